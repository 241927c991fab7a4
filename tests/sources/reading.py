"""What a test needs to play the runner: slots, and taking deliveries with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import Source
from bridge.sources import Keeping
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.source import KafkaSource
from bridge.telemetry.metrics import Metrics

Batches = AsyncIterator[Sequence[Delivery]]


class Room:
    """Slots that count what is unsettled (`core.ports.Slots`)."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.taken = 0
        self._freed = asyncio.Event()

    @property
    def free(self) -> int:
        return max(0, self.limit - self.taken)

    async def wait(self) -> None:
        while not self.free:
            self._freed.clear()
            await self._freed.wait()

    def take(self, batch: Sequence[Delivery]) -> None:
        assert len(batch) <= self.free, "more was handed over than there were slots"
        self.taken += len(batch)
        for delivery in batch:
            delivery.watch(self._settled)

    def _settled(self, _delivery: Delivery, _outcome: Outcome) -> None:
        self.taken -= 1
        self._freed.set()


class Hands:
    """One opened source with the deliveries taken from it."""

    def __init__(self, source: Source, room: Room, batches: Batches) -> None:
        self.source = source
        self.room = room
        self.batches = batches
        self.seen: list[Delivery] = []
        """Everything handed out, in order."""

    async def take(self, count: int, *, timeout: float = 30.0) -> list[Delivery]:
        """Take batches until `count` deliveries came since the call; fails after `timeout` seconds."""
        taken: list[Delivery] = []
        try:
            async with asyncio.timeout(timeout):
                while len(taken) < count:
                    taken += await self.next()
        except TimeoutError:
            raise AssertionError(f"{len(taken)} of {count} deliveries in {timeout} s") from None
        return taken

    async def next(self) -> Sequence[Delivery]:
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
        return [delivery.event.data for delivery in self.seen]


def no_spool() -> NoReturn:
    raise AssertionError("its upstream keeps its events")


def keeping(lost: dict[str, int] | None = None) -> Keeping:
    """Keep nothing; what a source says that is lost is added up in `lost`, by place."""
    counts = {} if lost is None else lost

    def add(place: str, events: int) -> None:
        counts[place] = counts.get(place, 0) + events

    return Keeping(spool=no_spool, state_dir=Path("/nonexistent"), lost=add)


def source(
    broker: Any,
    topic: str,
    *,
    key: str = "uploads",
    metrics: Metrics | None = None,
    lost: dict[str, int] | None = None,
    **more: Any,
) -> KafkaSource:
    """Make a source of `broker` (anything with `bootstrap_servers`) for one topic."""
    values: dict[str, Any] = {
        "type": "kafka",
        "bootstrap_servers": broker.bootstrap_servers,
        "group_id": topic,
        "session_timeout": 2,  # tansu holds a join back for half of it
        **({} if "topic_pattern" in more else {"topics": [topic]}),
        **more,
    }
    own = (metrics or Metrics()).source(key)
    return KafkaSource(KafkaConfig.model_validate(values), key, own, keeping(lost).lost)


@asynccontextmanager
async def opened(source: Source, limit: int = 1000) -> AsyncIterator[Hands]:
    room = Room(limit)
    async with source.open(room) as batches:
        yield Hands(source, room, batches)


def settle(deliveries: Sequence[Delivery], outcome: Outcome = Outcome.ACCEPTED) -> None:
    for delivery in deliveries:
        delivery.settle(outcome)


async def until(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Return once `condition()` holds (awaited when it gives an awaitable); fails after `timeout` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return
        assert asyncio.get_running_loop().time() < deadline, "the condition never held"
        await asyncio.sleep(0.02)
