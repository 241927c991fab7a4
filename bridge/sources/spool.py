"""The way from what a stream told, kept in the store, to Deliveries: looked up, each once, oldest first."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError, StoreFullError
from bridge.core.event import Event
from bridge.core.ports import Slots, Spool, Spooled
from bridge.core.steady import Steady
from bridge.sources.failing import Failing
from bridge.sources.handover import Handover
from bridge.telemetry.metrics import SourceMetrics

WINDOW = 1000
"""Occurrences read and not handed over yet: more would only be looked up too early."""
WINDOW_BYTES = 8 * 2**20
"""Their data; one more page is read below it."""
HELD = 10_000
"""Occurrences passed by, to be looked up again or waiting for another of the same version: at so many, none
behind them is read."""
BATCH = 500
"""Handed over at once."""
PORTION, PORTION_BYTES = 100, 64 * 2**10
"""Occurrences, and their data, that are appended at once: of more a store that is nearly full may keep some,
and refuses them together."""
LONGEST_PAUSE = 300.0
"""Seconds between two look-ups of one occurrence, at most (unless it asks for more)."""
STORE_PAUSES = (0.5, 30.0)
"""Seconds before the store is asked again that could not be read: the first, the longest."""


@dataclass(frozen=True, slots=True)
class Found:
    """An occurrence became an event."""

    event: Event
    version: bytes | None = None
    """A digest of 16 bytes of the version of what it is about, which enters once. None: it is always new."""
    fault: str | None = None
    """Why it can't be more than a dead letter, for a person."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """An occurrence is none of ours."""

    reason: str
    """A bounded word for the metrics."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an occurrence can't be looked up."""

    cause: str
    """A bounded word for the metrics."""
    reason: str
    """For a person."""
    by_itself: bool = False
    """It is about this occurrence: others may be looked up well meanwhile."""


@dataclass(frozen=True, slots=True)
class Later:
    """What an occurrence is about could not be looked up; it keeps its place."""

    seconds: float
    """Before the second look-up."""
    doubles: bool = True
    """Whether the pause doubles with each look-up that fails."""
    trouble: Trouble | None = None
    """What is wrong; None where something is only waited for."""
    aside: bool = False
    """It is left to the store meanwhile: many wait so, and others shall not wait for them."""


def portions_of(occurrences: Sequence[Spooled]) -> Iterator[Sequence[Spooled]]:
    """Part `occurrences` into what is appended at once; at least one part, perhaps empty."""
    portion: list[Spooled] = []
    size = 0
    for each in occurrences:
        if portion and (len(portion) == PORTION or size + len(each.data) > PORTION_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(each)
        size += len(each.data)
    yield portion


Resolve = Callable[[Spooled], Awaitable[Found | Dropped | Later]]


class _Row:
    """One occurrence in this reader's hands."""

    __slots__ = ("delivery", "event", "fault", "number", "others", "size", "version")

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        """Bytes, while it is in the window."""
        self.event: Event | None = None
        self.fault: str | None = None
        self.version: bytes | None = None
        self.delivery: Delivery | None = None
        self.others: list[int] = []
        """Later occurrences of the same version. They stay in the store until this one is done: should it
        be given back and its file be elsewhere then, one of them still finds it."""


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
        self._spool = spool
        self._slots = slots
        self._resolve = resolve
        self._metrics = metrics
        self._log = log
        self._concurrency = concurrency
        self._full = Steady()
        metrics.remembered(lambda: spool.remembered)
        metrics.waiting(lambda: spool.waiting)

        self._rows: dict[int, _Row] = {}
        """All in hand, by number."""
        self._more = True
        """There may be occurrences that were not read."""
        self._changed = asyncio.Event()
        """There may be more of them, or more room."""
        self._window = self._window_bytes = 0
        self._unresolved: list[tuple[int, Spooled]] = []
        self._some_unresolved = asyncio.Event()
        self._resolved: list[_Row] = []
        self._some_resolved = asyncio.Event()
        self._ready: list[tuple[int, _Row]] = []
        self._some_ready = asyncio.Event()
        self._versions: dict[bytes, _Row] = {}
        """In hand, with the occurrence that brings them in."""
        self._later: list[tuple[float, int]] = []
        """When to look up again (monotonic), and what."""
        self._sooner = asyncio.Event()
        self._failures: dict[int, int] = {}
        """Look-ups that failed, by number; of those in `_later`, or just back from there."""
        self._passed = 0
        """Occurrences in `_later`, and among the `others` of some row."""
        self._failing = Failing(spool, ask=self._ask, laid_aside=self._give_back, look=self.wake)

    async def append(self, occurrences: Sequence[Spooled], position: str | None = None) -> None:
        """Keep what the stream told, as `Spool.append` does, and have it handed out."""
        try:
            await self._spool.append(occurrences, position)
        except StoreFullError as error:
            self._full.failed(f"the store is full: {error}")
            raise
        if occurrences:
            self._full.recovered()
            self.wake()

    def wake(self) -> None:
        """Look for occurrences: some were appended."""
        self._more = True
        self._changed.set()

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
                tasks.create_task(self._bring_back())
                tasks.create_task(self._failing.run())
                tasks.create_task(self._compare())
                tasks.create_task(self._feed())
        finally:
            self.batches.withdraw()
            for row in list(self._rows.values()):
                if row.delivery is not None:
                    row.delivery.settle(Outcome.RELEASED)
            self._rows.clear()

    # Reading

    async def _read(self) -> None:
        while True:
            room = self._room() if self._more else 0
            if room <= 0:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._more = False
            page = await self._ask(partial(self._spool.oldest, without=set(self._rows), limit=room))
            if page:
                self._more = True
                self._some_unresolved.set()
            for number, occurrence in page:
                self._rows[number] = _Row(number, len(occurrence.data))
                self._window += 1
                self._window_bytes += len(occurrence.data)
                heapq.heappush(self._unresolved, (number, occurrence))

    def _room(self) -> int:
        """Return how many to read: not one by one when there are many."""
        passed = self._passed + self._failing.leaving
        if passed >= HELD or self._window_bytes >= WINDOW_BYTES or self._window > WINDOW // 2:
            return 0
        return min(WINDOW, HELD - passed) - self._window

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """Ask the store until it answers; it tells itself what is wrong with it."""
        pause, longest = STORE_PAUSES
        while True:
            try:
                return await question()
            except StoreError as error:
                self._log.warning("what is spooled can't be read", reason=str(error), again_in_seconds=pause)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, longest)

    # Looking up

    async def _look_up(self) -> None:
        while True:
            if not self._unresolved:
                self._some_unresolved.clear()
                await self._some_unresolved.wait()
                continue
            number, occurrence = heapq.heappop(self._unresolved)
            found = await self._resolve(occurrence)
            row = self._rows[number]
            if isinstance(found, Later):
                self._leave_window(row)
                self._put_off(number, found, is_first=occurrence.first_attempt is None)
                continue
            self._failures.pop(number, None)
            self._failing.ended(number)
            if isinstance(found, Dropped):
                self._leave_window(row)
                self._drop([number], found.reason)
            else:
                self._take(row, found)

    def _put_off(self, number: int, later: Later, *, is_first: bool) -> None:
        trouble = later.trouble
        if trouble is None:
            self._failing.ended(number)
            if later.aside:
                self._failing.lay_aside(number)
                return
        else:
            self._metrics.retried(trouble.cause)
            if self._failing.failed(number, trouble.reason, by_itself=trouble.by_itself, is_first=is_first):
                self._failures.pop(number, None)
                return
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        doubled = 2 ** min(failures - 1, 30) if later.doubles else 1
        pause = min(later.seconds * doubled, max(later.seconds, LONGEST_PAUSE))
        heapq.heappush(self._later, (time.monotonic() + pause * random.uniform(0.75, 1), number))
        self._passed += 1
        self._sooner.set()

    async def _bring_back(self) -> None:
        """Let what is due be read again: by its number it is among the oldest."""
        while True:
            pause = self._later[0][0] - time.monotonic() if self._later else None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sooner.wait()
            self._sooner.clear()
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, number = heapq.heappop(self._later)
                self._passed -= 1
                self._give_back(number)

    def _give_back(self, number: int) -> None:
        """Leave an occurrence to the next reading of the store."""
        self._rows.pop(number, None)
        self.wake()

    def _take(self, row: _Row, found: Found) -> None:
        row.event, row.version, row.fault = found.event, found.version, found.fault
        if row.version is not None:
            first = self._versions.setdefault(row.version, row)
            if first is not row:
                row.event = None
                self._leave_window(row)
                self._passed += 1
                first.others.append(row.number)
                return
        self._resolved.append(row)
        self._some_resolved.set()

    async def _compare(self) -> None:
        """Let go on what has not entered yet: the store is asked for many at once."""
        while True:
            await self._some_resolved.wait()
            self._some_resolved.clear()
            rows, self._resolved = self._resolved, []
            versions = [row.version for row in rows if row.version is not None]
            entered = await self._ask(partial(self._spool.entered, versions)) if versions else ()
            for row in rows:
                if row.version is not None and row.version in entered:
                    del self._versions[row.version]
                    self._leave_window(row)
                    self._drop([row.number, *self._without_others(row)], "repeated")
                else:
                    heapq.heappush(self._ready, (row.number, row))
                    self._some_ready.set()

    # Handing over

    async def _feed(self) -> None:
        while True:
            await self._some_ready.wait()
            await self.batches.emptied()
            await self._slots.wait()
            free = min(self._slots.free, BATCH)
            batch: list[Delivery] = []
            while self._ready and len(batch) < free:
                _, row = heapq.heappop(self._ready)
                self._leave_window(row)
                assert row.event is not None  # noqa: S101 - those that are ready have one
                row.delivery = Delivery(row.event, partial(self._settled, row), fault=row.fault)
                row.event = None
                batch.append(row.delivery)
            if not self._ready:
                self._some_ready.clear()
            if batch:
                self.batches.put(batch)

    def _leave_window(self, row: _Row) -> None:
        self._window -= 1
        self._window_bytes -= row.size
        self._changed.set()

    # Settling

    def _settled(self, row: _Row, _delivery: Delivery, outcome: Outcome) -> None:
        if row.version is not None:
            del self._versions[row.version]
        others = self._without_others(row)
        if outcome is Outcome.RELEASED:
            for number in (row.number, *others):
                self._give_back(number)
            return
        self._rows.pop(row.number, None)
        self._spool.done(row.number, row.version)
        self._metrics.committed()
        self._drop(others, "repeated")

    def _without_others(self, row: _Row) -> list[int]:
        others, row.others = row.others, []
        self._passed -= len(others)
        self._changed.set()
        return others

    def _drop(self, numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            self._rows.pop(number, None)
            self._spool.done(number)
            self._metrics.filtered(reason)
            self._log.debug("event filtered", source=self._metrics.key, number=number, reason=reason)
