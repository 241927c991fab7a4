"""The slots of one source: how much of it may be in the bridge's hands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from bridge.core.delivery import Delivery, Outcome, watch_all
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.telemetry.metrics import SourceMetrics


class Intake:
    """Gives each Delivery of one source a slot and takes it back when it settles (`core.ports.Slots`).

    No slot, no pull: this is the backpressure that reaches the upstream.
    """

    def __init__(
        self,
        max_in_flight: int,
        max_in_flight_bytes: int,
        metrics: SourceMetrics,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        self.most = max_in_flight
        self._journal = journal
        self._max_bytes = max_in_flight_bytes
        self._bytes = 0
        self._metrics = metrics
        self._count = metrics.settled
        self._unsettled: dict[Delivery, int] = {}  # with their sizes
        self._grown: set[Delivery] = set()
        """Those of which a route has decoded more than was received."""
        self._closed = False
        self._paused = False
        self._room = asyncio.Event()
        self._room.set()
        self._room_is_awaited = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._awake = asyncio.Event()
        self._awake.set()
        self._rested = asyncio.Event()
        metrics.in_flight.set_function(lambda: len(self._unsettled))
        metrics.oldest_unsettled(self._oldest)

    @property
    def free(self) -> int:
        """Slots that may be filled now; 0 when full, paused or closed."""
        if self._closed or self._paused or self._bytes >= self._max_bytes:
            return 0
        return max(0, self.most - len(self._unsettled))

    @property
    def full(self) -> bool:
        """Whether what is not settled takes all slots or bytes."""
        return len(self._unsettled) >= self.most or self._bytes >= self._max_bytes

    @property
    def crowded(self) -> bool:
        """Whether all bytes are taken, some by what was decoded: no more should be, until it settles."""
        return bool(self._grown) and self._bytes >= self._max_bytes

    @property
    def in_flight(self) -> int:
        """Deliveries not settled."""
        return len(self._unsettled)

    @property
    def unsettled(self) -> list[Delivery]:
        """Deliveries not settled, the oldest first."""
        return list(self._unsettled)

    async def wait(self) -> None:
        """Return when a slot is free; never again once closed."""
        while not self.free:
            await self.settled()

    def admit(self, batch: Sequence[Delivery]) -> None:
        """Give each of `batch` a slot. A source that gives more than was free is let in all the same."""
        unsettled, size = self._unsettled, 0
        for delivery in batch:
            unsettled[delivery] = one = delivery.event.size
            size += one
        self._bytes += size
        watch_all(batch, self._settled)
        if self._unsettled:  # some may have been settled before
            self._empty.clear()
            self._rested.clear()
        self._metrics.received.inc(len(batch))

    def add(self, delivery: Delivery, size: int) -> None:
        """Count `size` bytes more for an admitted delivery: what a route has made of it."""
        if delivery in self._unsettled:
            self._unsettled[delivery] += size
            self._bytes += size
            self._grown.add(delivery)

    async def settled(self) -> None:
        """Return when something has settled."""
        self._room.clear()
        self._room_is_awaited = True
        await self._room.wait()

    def pause(self, on: bool) -> None:
        """Give no slots while it is on: nothing more is read, and what is in hand goes on."""
        self._paused = on
        if on:
            self._awake.clear()
            if not self._unsettled:
                self._rested.set()
        else:
            self._rested.clear()
            self._awake.set()
            self._room.set()

    @property
    def paused(self) -> bool:
        """Whether it gives no slots until it is resumed."""
        return self._paused

    async def rested(self) -> None:
        """Return once it is paused and nothing is in the bridge's hands."""
        await self._rested.wait()

    async def resumed(self) -> None:
        """Return once it is not paused."""
        await self._awake.wait()

    def close(self) -> None:
        """Give no more slots: the source stops reading."""
        self._closed = True

    async def drained(self) -> None:
        """Return when nothing is in the bridge's hands."""
        await self._empty.wait()

    def release(self) -> int:
        """Give back upstream what is unsettled; how many that were."""
        leftovers = list(self._unsettled)
        for delivery in leftovers:
            delivery.settle(Outcome.RELEASED)
        return len(leftovers)

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        self._bytes -= self._unsettled.pop(delivery)
        if self._grown:
            self._grown.discard(delivery)
        self._count[outcome].value += 1
        if outcome is Outcome.RELEASED:
            self._journal.note("released", delivery.event, since=delivery.since)
        if self._room_is_awaited:
            self._room_is_awaited = False
            self._room.set()
        if not self._unsettled:
            self._empty.set()
            if self._paused:
                self._rested.set()

    def _oldest(self) -> float:
        for delivery in self._unsettled:
            return monotonic() - delivery.since
        return 0.0
