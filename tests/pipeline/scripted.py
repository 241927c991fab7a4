"""Destinations, dead letters and events of the tests' own, and a lane between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.ports import Answer, DeadLetter, Destination, Verdict
from bridge.pipeline.lane import Lane, LaneConfig
from bridge.pipeline.limits import LimitsConfig
from bridge.pipeline.retry import RetryConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import now

ACCEPTED = Answer(Verdict.ACCEPTED, status=201)
DUPLICATE = Answer(Verdict.DUPLICATE, status=500)
FAILED = Answer(Verdict.FAILED, "http_500", "boom", status=500)
UNAVAILABLE = Answer(Verdict.UNAVAILABLE, "http_503", "no backend", status=503)
UNREACHABLE = Answer(Verdict.UNAVAILABLE, "connect", "connection refused")
REFUSED = Answer(Verdict.REFUSED, "http_404", "no such service", status=404)
REJECTED = Answer(Verdict.REJECTED, "http_413", "body too large", status=413)
TOO_LARGE = Answer(Verdict.REJECTED, "too_large", "131066 > 131065")
UNKNOWN = Answer(Verdict.UNKNOWN, "outcome_unknown", "answer lost")

Script = Callable[[Event], Answer | Awaitable[Answer]]


def event(name: object, data: bytes = b"{}", **others: Any) -> Event:
    return Event(id=str(name), source="uploads", type="test", data=data, **others)


def deliveries(count: int, prefix: str = "") -> list[Delivery]:
    return [Delivery(event(f"{prefix}{number}")) for number in range(count)]


class ScriptedDestination:
    """Answers as its script says, after `seconds`; remembers every attempt."""

    def __init__(self, script: Script | Answer = ACCEPTED, *, seconds: float = 0.0) -> None:
        self.script = script
        self.seconds = seconds
        self.began: list[tuple[float, str]] = []
        self.active = 0
        self.peak = 0

    @property
    def ids(self) -> list[str]:
        return [name for _, name in self.began]

    def times(self, name: str) -> list[float]:
        return [at for at, other in self.began if other == name]

    async def invoke(self, event: Event) -> Answer:
        self.began.append((now(), event.id))
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            if self.seconds:
                await asyncio.sleep(self.seconds)
            answer = self.script if isinstance(self.script, Answer) else self.script(event)
            return answer if isinstance(answer, Answer) else await answer
        finally:
            self.active -= 1


class MemoryDeadLetters:
    """Keeps letters in a list, or fails while `broken`."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []
        self.broken = False
        self.refusals = 0

    @property
    def causes(self) -> dict[str, str]:
        return {letter.event.id: letter.cause for letter in self.letters}

    async def bury(self, letter: DeadLetter) -> None:
        await asyncio.sleep(0.001)
        if self.broken:
            self.refusals += 1
            raise StoreError("disk full")
        self.letters.append(letter)


class Bench:
    """A lane with what it works against."""

    def __init__(
        self,
        destination: Destination,
        *,
        queue: int = 1000,
        concurrency: int = 4,
        rate: str | None = None,
        give_up_after: float = 24 * 3600.0,
        max_attempts: int = 8,
        max_backoff: float = 60.0,
    ) -> None:
        self.dead = MemoryDeadLetters()
        self.metrics = Metrics()
        self.lane = Lane(
            "plants",
            LaneConfig(
                queue=queue,
                limits=LimitsConfig.model_validate({"concurrency": concurrency, "rate": rate}),
                retry=RetryConfig(
                    give_up_after=give_up_after, max_attempts=max_attempts, max_backoff=max_backoff
                ),
            ),
            destination,
            self.dead,
            self.metrics.lane("plants"),
        )

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"service": "plants", **labels}) or 0.0

    def invocations(self, outcome: str) -> float:
        return self.value("bridge_invocations_total", outcome=outcome)

    async def put(self, given: Iterable[Delivery]) -> None:
        for delivery in given:
            await self.lane.put(delivery)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.lane.run())
        try:
            yield
        finally:
            await stop(task)

    def assert_nothing_is_remembered(self) -> None:
        lane = self.lane
        assert not lane._queue
        assert not lane._again
        assert not lane._later
        assert not lane._timetable
        assert not lane._past
        assert lane._probe is None
        assert self.value("bridge_lane_queued") == 0
        assert self.value("bridge_lane_in_flight") == 0


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()  # raises what it ended with
        raise AssertionError(f"{task} ended by itself")


async def settled(given: Iterable[Delivery], within: float = 3600.0) -> list[Outcome]:
    """Wait until all of `given` are settled, and give their outcomes."""
    given = list(given)
    left = {id(delivery) for delivery in given}
    done = asyncio.Event()

    def record(delivery: Delivery, _outcome: Outcome) -> None:
        left.discard(id(delivery))
        if not left:
            done.set()

    for delivery in given:
        delivery.watch(record)
    if left:
        async with asyncio.timeout(within):
            await done.wait()
    return [delivery.outcome for delivery in given if delivery.outcome is not None]
