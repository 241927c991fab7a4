"""The runner's part, played by a test: slots, and taking what a source hands over with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import Source

Batches = AsyncIterator[Sequence[Delivery]]


class Room:
    """Slots that count what is unsettled (`core.ports.Slots`)."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.taken = 0
        self._freed = asyncio.Event()

    @property
    def free(self) -> int:
        """How many Deliveries may be handed over now."""
        return max(0, self.limit - self.taken)

    async def wait(self) -> None:
        """Return when there is a free slot."""
        while not self.free:
            self._freed.clear()
            await self._freed.wait()

    def take(self, batch: Sequence[Delivery]) -> None:
        """Give each of `batch` a slot until it is settled. Fails where there are not so many."""
        assert len(batch) <= self.free, "more was handed over than there were slots"
        self.taken += len(batch)
        for delivery in batch:
            delivery.watch(self._settled)

    def _settled(self, _delivery: Delivery, _outcome: Outcome) -> None:
        self.taken -= 1
        self._freed.set()


class Hands:
    """One opened source with the Deliveries taken from it."""

    def __init__(self, source: Source, room: Room, batches: Batches) -> None:
        self.source = source
        self.room = room
        self.batches = batches
        self.seen: list[Delivery] = []
        """Everything handed out, in order."""

    async def take(self, count: int, *, timeout: float = 30.0) -> list[Delivery]:
        """Take batches until `count` Deliveries came since the call; fails after `timeout` seconds."""
        taken: list[Delivery] = []
        try:
            async with asyncio.timeout(timeout):
                while len(taken) < count:
                    taken += await self.next()
        except TimeoutError:
            raise AssertionError(f"{len(taken)} of {count} deliveries in {timeout} s") from None
        return taken

    async def next(self) -> Sequence[Delivery]:
        """Take one batch. Raises SourceLost when the source is gone."""
        batch = await anext(self.batches)
        self.room.take(batch)
        self.seen += batch
        return batch

    async def takes_nothing(self, seconds: float) -> None:
        """Assert that nothing is handed out for `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                batch = await self.next()
        except TimeoutError:
            return
        raise AssertionError(f"handed out {batch}")

    @property
    def data(self) -> list[bytes]:
        """What the events held, in order."""
        return [delivery.event.data for delivery in self.seen]


@asynccontextmanager
async def opened(source: Source, limit: int = 1000) -> AsyncIterator[Hands]:
    """Open `source` with `limit` slots, and leave it in order at the end."""
    room = Room(limit)
    async with source.open(room) as batches:
        yield Hands(source, room, batches)


def settle(deliveries: Sequence[Delivery], outcome: Outcome = Outcome.ACCEPTED) -> None:
    """Settle each of `deliveries` with `outcome`."""
    for delivery in deliveries:
        delivery.settle(outcome)
