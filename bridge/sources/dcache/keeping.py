"""Keeps what the stream brings in the store, with the stream's position, before anything is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.core.errors import StoreFullError
from bridge.core.ports import Spooled
from bridge.sources.dcache.backlog.asking import portions_of
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.health import Health
from bridge.sources.dcache.site import Site

MOST_PENDING_BYTES = 16 * 2**20
"""Memory for what was read and is not kept yet. Where it is not enough the connection is left, and resumed
later from what is kept."""
_EVENT_BYTES = 400
"""Memory that an event takes beside its data."""


class Overrun(Exception):  # noqa: N818 - the stream is left, and that is no fault of ours
    """Events come faster than the store takes them, or it takes none."""


class Keeper:
    """Writes what one connection brings; what comes during a transaction is written in the next."""

    def __init__(self, site: Site, reader: SpoolReader, health: Health) -> None:
        self._position = site.position
        self._reader = reader
        self._health = health
        self._pending: list[tuple[Spooled, str]] = []
        """What was read and is not kept yet, each with its SSE id."""
        self._pending_bytes = 0
        self._newest: str | None = None
        """SSE id of the newest event that was read, if that is not kept yet."""
        self._is_over = False
        self._has_work = asyncio.Event()

    def read_up_to(self, event_id: str) -> None:
        """Note that the event with this SSE id was read, whatever is made of it."""
        self._newest = event_id
        self._has_work.set()

    def keep(self, occurrence: Spooled, event_id: str) -> None:
        """Have `occurrence` kept soon. Raise Overrun when too much waits for the store."""
        self._pending.append((occurrence, event_id))
        self._pending_bytes += len(occurrence.data) + _EVENT_BYTES
        self._has_work.set()
        if self._pending_bytes > MOST_PENDING_BYTES:
            raise Overrun("events come faster than the store can write them")

    def end(self) -> None:
        """Have `run` return once all is kept that was read until now: dCache may not send it again."""
        self._is_over = True
        self._has_work.set()

    async def run(self) -> None:
        """Write until `end` was called. Raise Overrun when the store is full, StoreError."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            is_over = self._is_over
            if self._newest is not None or self._pending:
                await self._write()
            if is_over:
                return

    async def _write(self) -> None:
        batch, self._pending, self._pending_bytes = self._pending, [], 0
        newest, self._newest = self._newest, None
        occurrences = [occurrence for occurrence, _ in batch]
        try:
            await self._append(occurrences, newest)
        except StoreFullError:  # A part of it may fit.
            kept = 0
            for portion in portions_of(occurrences):
                kept += len(portion)
                try:
                    await self._append(portion, newest if kept == len(batch) else batch[kept - 1][1])
                except StoreFullError as error:
                    raise Overrun(str(error)) from None
        self._health.heard()

    async def _append(self, occurrences: Sequence[Spooled], event_id: str | None) -> None:
        """Keep `occurrences`, and that the stream is kept up to `event_id`, if that is one."""
        before = self._position.event
        self._position.event = event_id or before
        try:
            await self._reader.append(occurrences, self._position.text())
        except BaseException:
            self._position.event = before
            raise
