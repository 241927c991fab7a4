"""When a service lives again what has gathered is no flood: the rate rises with what is accepted."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from bridge.core.delivery import Delivery
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline.limits.pace import Pace
from tests.pipeline.clock import now
from tests.pipeline.scripted import (
    ACCEPTED,
    REFUSED,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
)


class Service(ScriptedDestination):
    """Fails until `lives`; knows what had been accepted when each attempt began."""

    def __init__(self, failure: Answer, seconds: float) -> None:
        super().__init__(self._answer, seconds=seconds)
        self.failure = failure
        self.lives = False
        self.accepted: list[float] = []
        self.levels: list[tuple[int, int]] = []
        """At each beginning after the first acceptance: attempts under way, and acceptances."""

    async def attempt(self, event: Event) -> Answer:
        if self.accepted:
            self.levels.append((self.active + 1, len(self.accepted)))
        return await super().attempt(event)

    def _answer(self, _event: Event) -> Answer:
        if not self.lives:
            return self.failure
        self.accepted.append(now())
        return ACCEPTED

    def in_each_tenth(self, seconds: float) -> list[int]:
        """How many attempts began in each 100 ms after the first acceptance."""
        first = self.accepted[0]
        tenths = Counter(int((at - first) * 10 + 1e-6) for at, _ in self.began if at >= first)
        return [tenths[number] for number in range(round(seconds * 10))]


async def _outage(service: Service, *, parked: bool, **limits: object) -> Bench:
    """Let a thousand events gather over ten minutes; return ten seconds after the first acceptance."""
    bench = Bench(service, queue=2000, park=parked, **limits)  # type: ignore[arg-type]
    async with bench.running():
        await bench.put(deliveries(1000))
        await asyncio.sleep(600)
        assert len(bench.keeper.rows) == (1000 if parked else 0)
        service.lives = True
        while not service.accepted:
            await asyncio.sleep(1)
        await asyncio.sleep(10)
    return bench


@pytest.mark.parametrize("parked", [False, True], ids=["in memory", "parked"])
@pytest.mark.parametrize("failure", [UNREACHABLE, REFUSED], ids=lambda answer: answer.cause)
async def test_without_a_rate_attempts_double_with_each_round_of_answers(
    failure: Answer, parked: bool
) -> None:
    service = Service(failure, 0.05)
    await _outage(service, parked=parked, concurrency=200)
    told = service.in_each_tenth(1)
    print(told)
    assert told[0] <= 6
    assert all(later <= 4 * max(earlier, 6) for earlier, later in pairwise(told)), told
    assert max(told) <= 2 * 200, "two rounds of the whole concurrency"
    assert sum(told) >= 990, "it is a matter of a second all the same"
    assert all(under_way <= 2 + accepted for under_way, accepted in service.levels)


@pytest.mark.parametrize("parked", [False, True], ids=["in memory", "parked"])
async def test_with_a_rate_no_tenth_of_a_second_has_more_than_its_share(parked: bool) -> None:
    service = Service(UNREACHABLE, 0.05)
    await _outage(service, parked=parked, concurrency=200, rate="100/s")
    told = service.in_each_tenth(10)
    print(told)
    assert told[0] <= 6
    assert max(told) <= 100 * (0.1 + Pace._LATE)
    assert sum(told) == pytest.approx(1000, rel=0.05), "and the rate is reached"


@pytest.mark.parametrize("rate", [None, "100/s"])
async def test_a_start_with_a_large_parked_backlog_is_no_flood(rate: str | None) -> None:
    """It may have stopped in the midst of an outage, or because of it."""
    keeper = MemoryKeeper()
    for number in range(5000):
        await keeper.park(event(number), "plants")
    service = Service(UNREACHABLE, 0.05)
    service.lives = True
    bench = Bench(service, queue=2000, park=True, keeper=keeper, concurrency=200, rate=rate)
    async with bench.running():
        while not service.accepted:
            await asyncio.sleep(0.01)
        first = [at for at, _ in service.began if at < service.accepted[0]]
        await asyncio.sleep(1)
    assert len(first) == 2
    told = service.in_each_tenth(1)
    print(told)
    assert told[0] <= 12
    assert max(told) <= (2 * 200 if rate is None else 100 * (0.1 + Pace._LATE))
    assert all(under_way <= 2 + accepted for under_way, accepted in service.levels)


async def test_a_start_without_a_backlog_has_all_its_places_at_once() -> None:
    service = Service(UNREACHABLE, 0.05)
    bench = Bench(service, park=True, concurrency=200)
    async with bench.running():
        await bench.put(deliveries(500))
        await asyncio.sleep(0.01)
        assert service.active == 200


async def test_a_service_that_fails_again_while_the_gate_opens_has_one_probe_again() -> None:
    service = Service(UNREACHABLE, 0.05)
    bench = Bench(service, queue=2000, concurrency=200, max_backoff=5)
    given: list[Delivery] = deliveries(1000)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(60)
        for _ in range(5):
            service.lives = True
            while bench.value("bridge_lane_open") == 0:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            service.lives = False
            before = len(service.began)
            await asyncio.sleep(0.2)
            assert len(service.began) - before <= 16, "those under way, and those that were let in for them"
            assert bench.value("bridge_lane_open") == 0
            service.peak = 0
            await asyncio.sleep(30)
            assert service.peak == 1
