"""The way from the occurrences in the store to Deliveries: looked up, each version once, oldest first."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreFullError
from bridge.core.ports import Slots, Spool, Spooled
from bridge.core.steady import Steady
from bridge.sources.dcache.backlog.asking import answered
from bridge.sources.dcache.backlog.failing import FailingLookups
from bridge.sources.dcache.backlog.hand import Hand, PutOff, Row
from bridge.sources.dcache.backlog.resolution import Dropped, Later, Resolve
from bridge.sources.handover import Handover
from bridge.telemetry.metrics import SourceMetrics

BATCH = 500
"""Handed over at once."""


class SpoolReader:
    """Hands out what is spooled, from `run` to its end; the runner iterates `batches`.

    What it has read and not settled is never read again meanwhile, and nothing leaves the store but by a
    settled Delivery, a reason to drop it, or a version that has entered.
    """

    def __init__(
        self,
        spool: Spool,
        slots: Slots,
        resolve: Resolve,
        metrics: SourceMetrics,
        log: Any,
        *,
        concurrency: int = 8,
    ) -> None:
        self.batches = Handover()
        self.hand = Hand()
        self._spool = spool
        self._slots = slots
        self._resolve = resolve
        self._metrics = metrics
        self._log = log
        self._concurrency = concurrency
        self._full = Steady()
        self._put_off = PutOff(self.hand)
        self._failing = FailingLookups(spool, self.hand, log)
        metrics.remembered(lambda: spool.remembered)
        metrics.waiting(lambda: spool.waiting)

        self._unresolved: list[tuple[int, Spooled]] = []
        self._has_unresolved = asyncio.Event()
        self._resolved: list[Row] = []
        self._has_resolved = asyncio.Event()
        self._ready: list[tuple[int, Row]] = []
        self._has_ready = asyncio.Event()

    async def append(self, occurrences: Sequence[Spooled], position: str | None = None) -> None:
        """Keep `occurrences`, and `position` if it is given, as `Spool.append` does; have them handed out."""
        try:
            await self._spool.append(occurrences, position)
        except StoreFullError as error:
            self._full.failed(f"the store is full: {error}")
            raise
        if occurrences:
            self._full.recovered()
            self.hand.wake()

    def problems(self) -> list[str]:
        """Return that the last `append` found the store full, and why look-ups fail."""
        problems = (self._failing.problem, self._full.problem)
        return [problem for problem in problems if problem is not None]

    async def run(self) -> None:
        """Hand out until cancelled; then release what is in hand. Raises, in a group, what `resolve` did."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                for _ in range(self._concurrency):
                    tasks.create_task(self._look_up())
                tasks.create_task(self._put_off.run())
                tasks.create_task(self._failing.run())
                tasks.create_task(self._compare())
                tasks.create_task(self._feed())
        finally:
            self.release()

    def release(self) -> None:
        """Give back what is in hand."""
        self.batches.withdraw()
        for row in list(self.hand.rows.values()):
            if row.delivery is not None:
                row.delivery.settle(Outcome.RELEASED)
        self.hand.rows.clear()

    async def _read(self) -> None:
        hand = self.hand
        while True:
            room = hand.room(self._failing.leaving) if hand.has_more else 0
            if room <= 0:
                hand.changed.clear()
                await hand.changed.wait()
                continue
            hand.has_more = False
            oldest = partial(self._spool.oldest, without=set(hand.rows), limit=room)
            page = await answered(oldest, self._log)
            if page:
                hand.has_more = True
                self._has_unresolved.set()
            for number, occurrence in page:
                hand.take(number, occurrence)
                heapq.heappush(self._unresolved, (number, occurrence))

    async def _look_up(self) -> None:
        while True:
            if not self._unresolved:
                self._has_unresolved.clear()
                await self._has_unresolved.wait()
                continue
            number, occurrence = heapq.heappop(self._unresolved)
            found = await self._resolve(occurrence)
            row = self.hand.rows[number]
            if isinstance(found, Later):
                self.hand.leave_window(row)
                self._leave(number, found, is_first=occurrence.first_attempt is None)
                continue
            self._put_off.forget(number)
            self._failing.ended(number)
            if isinstance(found, Dropped):
                self.hand.leave_window(row)
                self._drop([number], found.reason)
            elif self.hand.resolve(row, found):
                self._resolved.append(row)
                self._has_resolved.set()

    def _leave(self, number: int, later: Later, *, is_first: bool) -> None:
        """Have `number` looked up later: it is put off in memory, or laid aside in the store."""
        trouble = later.trouble
        if trouble is None:
            self._failing.ended(number)
            if later.aside:
                self._failing.lay_aside(number)
                return
        else:
            self._metrics.retried(trouble.cause)
            if self._failing.failed(number, trouble.reason, by_itself=trouble.by_itself, is_first=is_first):
                self._put_off.forget(number)
                return
        self._put_off.add(number, later)

    async def _compare(self) -> None:
        """Let what has not entered yet be handed over: the store is asked for many at once."""
        while True:
            await self._has_resolved.wait()
            self._has_resolved.clear()
            rows, self._resolved = self._resolved, []
            versions = [row.version for row in rows if row.version is not None]
            entered = await answered(partial(self._spool.entered, versions), self._log) if versions else ()
            for row in rows:
                if row.version is not None and row.version in entered:
                    self.hand.leave_window(row)
                    self._drop([row.number, *self.hand.end(row)], "repeated")
                else:
                    heapq.heappush(self._ready, (row.number, row))
                    self._has_ready.set()

    async def _feed(self) -> None:
        while True:
            await self._has_ready.wait()
            await self.batches.emptied()
            await self._slots.wait()
            free = min(self._slots.free, BATCH)
            batch: list[Delivery] = []
            while self._ready and len(batch) < free:
                _, row = heapq.heappop(self._ready)
                self.hand.leave_window(row)
                assert row.event is not None  # noqa: S101 - those that are ready have one
                row.delivery = Delivery(row.event, partial(self._settled, row), fault=row.fault)
                row.event = None
                batch.append(row.delivery)
            if not self._ready:
                self._has_ready.clear()
            if batch:
                self.batches.put(batch)

    def _settled(self, row: Row, _delivery: Delivery, outcome: Outcome) -> None:
        others = self.hand.end(row)
        if outcome is Outcome.RELEASED:
            for number in (row.number, *others):
                self.hand.give_back(number)
            return
        self.hand.rows.pop(row.number, None)
        self._spool.done(row.number, row.version)
        self._metrics.committed()
        self._drop(others, "repeated")

    def _drop(self, numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            self.hand.rows.pop(number, None)
            self._spool.done(number)
            self._metrics.filtered(reason)
            self._log.debug("event filtered", source=self._metrics.key, number=number, reason=reason)
