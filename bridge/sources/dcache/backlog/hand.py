"""The occurrences in hand: read from the store, and neither settled nor given back to it."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from bridge.core.delivery import Delivery
from bridge.core.event import Event
from bridge.core.ports import Spooled
from bridge.sources.dcache.backlog.resolution import Found, Later

WINDOW = 1000
"""Occurrences read and not handed over yet: more would only be looked up too early."""
WINDOW_BYTES = 8 * 2**20
"""Their data; one more page is read below it."""
HELD = 10_000
"""Occurrences passed by, to be looked up again or waiting for another of the same version: at so many, none
behind them is read."""
LONGEST_PAUSE = 300.0
"""Seconds between two look-ups of one occurrence, at most (unless it asks for more)."""


@dataclass(eq=False, slots=True)
class Row:
    """One occurrence in hand."""

    number: int
    size: int
    """Bytes, while it is in the window."""
    event: Event | None = None
    fault: str | None = None
    version: bytes | None = None
    delivery: Delivery | None = None
    others: list[int] = field(default_factory=list)
    """Later occurrences of the same version. They stay in the store until this one is done: should it be
    given back and its file be elsewhere then, one of them still finds it."""


class Hand:
    """Knows them by number and by version, and says how many more may be read.

    Those in the window are being looked up, or wait to be handed over; the others are passed by.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        """All of them, by number."""
        self.has_more = True
        """There may be occurrences in the store that were not read."""
        self.changed = asyncio.Event()
        """There may be more of them, or more room."""
        self.window = self.window_bytes = 0
        self.passed_by = 0
        """Those that are put off, or are among the `others` of some row."""
        self._versions: dict[bytes, Row] = {}
        """The first occurrence of each version."""

    def wake(self) -> None:
        """Have the store read again: there are others by now."""
        self.has_more = True
        self.changed.set()

    def room(self, leaving: int) -> int:
        """Return how many more to read while `leaving` are being laid aside. It is not one by one."""
        passed_by = self.passed_by + leaving
        if passed_by >= HELD or self.window_bytes >= WINDOW_BYTES or self.window > WINDOW // 2:
            return 0
        return min(WINDOW, HELD - passed_by) - self.window

    def take(self, number: int, occurrence: Spooled) -> None:
        """Take an occurrence that was read."""
        self.rows[number] = Row(number, len(occurrence.data))
        self.window += 1
        self.window_bytes += len(occurrence.data)

    def leave_window(self, row: Row) -> None:
        """Note that `row` was handed over, is dropped, or is passed by."""
        self.window -= 1
        self.window_bytes -= row.size
        self.changed.set()

    def give_back(self, number: int) -> None:
        """Leave an occurrence to the next reading of the store."""
        self.rows.pop(number, None)
        self.wake()

    def resolve(self, row: Row, found: Found) -> bool:
        """Note what `row` was found to be; return whether it is the first occurrence of its version."""
        row.event, row.version, row.fault = found.event, found.version, found.fault
        if row.version is None:
            return True
        first = self._versions.setdefault(row.version, row)
        if first is row:
            return True
        row.event = None
        self.leave_window(row)
        self.passed_by += 1
        first.others.append(row.number)
        return False

    def end(self, row: Row) -> list[int]:
        """Let another row be the first of its version; return those that waited for it."""
        if row.version is not None:
            del self._versions[row.version]
        others, row.others = row.others, []
        self.passed_by -= len(others)
        self.changed.set()
        return others


class PutOff:
    """Occurrences to be looked up again later; `run` gives them back when it is time."""

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        self._due: list[tuple[float, int]] = []
        """When to look up again (monotonic), and what."""
        self._has_sooner = asyncio.Event()
        self.failures: dict[int, int] = {}
        """Look-ups that failed, by number, of those put off or just given back."""

    def add(self, number: int, later: Later) -> None:
        """Put off `number`, each time for longer if `later` says so."""
        failures = self.failures[number] = self.failures.get(number, 0) + 1
        doubled = 2 ** min(failures - 1, 30) if later.doubles else 1
        pause = min(later.seconds * doubled, max(later.seconds, LONGEST_PAUSE))
        heapq.heappush(self._due, (time.monotonic() + pause * random.uniform(0.75, 1), number))
        self._hand.passed_by += 1
        self._has_sooner.set()

    def forget(self, number: int) -> None:
        """Count no longer how often looking up `number` has failed."""
        self.failures.pop(number, None)

    async def run(self) -> NoReturn:
        """Let what is due be read again: by its number it is among the oldest."""
        while True:
            pause = self._due[0][0] - time.monotonic() if self._due else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._has_sooner.wait()
            self._has_sooner.clear()
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, number = heapq.heappop(self._due)
                self._hand.passed_by -= 1
                self._hand.give_back(number)
