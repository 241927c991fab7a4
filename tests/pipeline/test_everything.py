"""Everything at once: sources, lanes, rings, releases, a store that fails, and whatever a service answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import NO_LANE, Answer, Verdict
from bridge.pipeline.intake import Intake
from bridge.pipeline.limits.concurrency import Auto, Fixed
from bridge.pipeline.limits.pace import Pace
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.rerouting import Rerouting
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import now
from tests.pipeline.scripted import (
    ACCEPTED,
    BUSY,
    DUPLICATE,
    FAILED,
    REFUSED,
    REJECTED,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    stop,
)

pytestmark = pytest.mark.usefixtures("told_no_longer")

OURS = Answer(Verdict.UNAVAILABLE, "no_descriptors", "Too many open files", ours=True)
LONG = Answer(Verdict.CAPACITY, "http_429", status=429, retry_after=600.0, perhaps_its_own=True)
FORBIDDEN = Answer(Verdict.REFUSED, "http_403", status=403, perhaps_its_own=True)
TROUBLE = [
    FAILED,
    UNAVAILABLE,
    UNREACHABLE,
    BUSY,
    REFUSED,
    REJECTED,
    TOO_LARGE,
    UNKNOWN,
    OURS,
    LONG,
    FORBIDDEN,
]


class Service:
    """Never takes two attempts of one Delivery at once; its moods change."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.mood: list[Answer] = [ACCEPTED]
        self.instant = dice.random() < 0.3
        self.accepted: Counter[str] = Counter()
        self._poisoned = dice.choice((0, 0, 10, 3))

    async def __call__(self, given: Event) -> Answer:
        if not self.instant:
            await asyncio.sleep(self._dice.choice((0, 0.01, 1, 30)))
        number = int(given.id.rpartition("-")[2])
        if self._poisoned and number % self._poisoned == 1:
            return TROUBLE[number % len(TROUBLE)]
        answer = self._dice.choice(self.mood)
        if answer.accepted:
            self.accepted[given.id] += 1
        return answer


class Exact(ScriptedDestination):
    """Notes the events that are attempted twice at once."""

    def __init__(self, script: Service) -> None:
        super().__init__(script)
        self.now: Counter[tuple[str, str]] = Counter()
        self.twice: set[tuple[str, str]] = set()

    async def attempt(self, given: Event) -> Answer:
        key = given.source, given.id
        self.now[key] += 1
        if self.now[key] > 1:
            self.twice.add(key)
        try:
            return await super().attempt(given)
        finally:
            self.now[key] -= 1


async def _replay(keeper: MemoryKeeper, step: int) -> None:
    """Park a dead letter for its routes again, as a command does."""
    if not (keeper.broken or keeper.full):
        await keeper.replay(
            Event(id=f"replayed-{step}", source="source0", type="t", data=b"{}"), service=NO_LANE
        )


@pytest.mark.parametrize("seed", range(16))
async def test_whatever_happens_nothing_is_lost_attempted_twice_at_once_or_left_behind(  # noqa: C901
    seed: int,
) -> None:
    dice = random.Random(seed)
    keeper = MemoryKeeper()
    rings = [
        None,
        Ring([Fixed(dice.choice((1, 2, 8)))]),
        Ring([Auto(50), *([Pace(5.0)] if dice.random() < 0.5 else [])]),
    ]
    services, benches = {}, {}
    for number in range(dice.choice((1, 2, 3, 6))):
        key = f"s{number}"
        services[key] = Service(dice)
        destination = Exact(services[key])
        benches[key] = Bench(
            destination,
            key=key,
            queue=dice.choice((1, 4, 50)),
            concurrency=dice.choice((1, 4, 16)),
            rate=dice.choice((None, None, "10/s")),
            park=dice.random() < 0.8,
            park_after=dice.choice((1.0, 60.0)),
            max_attempts=dice.choice((1, 8)),
            give_up_after=dice.choice((600.0, 3600.0)),
            keeper=keeper,
            ring=dice.choice(rings),
        )
    lanes = {key: bench.lane for key, bench in benches.items()}
    routers: dict[str, Router] = {}
    intakes: list[Intake] = []
    given: list[Delivery] = []
    again: set[tuple[str, str]] = set()
    """Those that may come twice: given back in the midst of something, or replayed."""

    def reader(source: str) -> asyncio.Task[None]:
        metrics = Metrics().source(source)
        intake = Intake(dice.choice((1, 5, 50)), 2**30, metrics)
        intakes.append(intake)
        reached = dice.sample(sorted(lanes), dice.randint(1, len(lanes)))
        conditions = [None, "id.endsWith('1') || id.endsWith('4')"]
        routes = [
            RouteConfig.model_validate({"from": source, "to": key, "when": dice.choice(conditions)})
            for key in reached
        ]
        routers[source] = router = Router(routes, lanes, keeper, metrics, intake)

        async def read() -> None:
            for batch in range(6):
                await intake.wait()
                new = [
                    Delivery(
                        Event(id=f"{batch}-{n}", source=source, type="t", data=b"{}"), nearly_dead=n == 7
                    )
                    for n in range(min(dice.randint(1, 30), intake.free))
                ]
                given.extend(new)
                intake.admit(new)
                for delivery in new:
                    await router.route(delivery)
                if not intake.free:
                    router.make_way()
                await asyncio.sleep(dice.choice((0, 0.01, 5)))

        return asyncio.create_task(read())

    async with AsyncExitStack() as stack:
        for bench in benches.values():
            await stack.enter_async_context(bench.running())
        reading = [reader(f"source{number}") for number in range(dice.choice((1, 2, 3)))]
        rerouting = asyncio.create_task(Rerouting(routers, keeper).run())
        for step in range(12):
            for service in services.values():
                service.mood = dice.choice(
                    ([ACCEPTED], [ACCEPTED, DUPLICATE], [*TROUBLE, ACCEPTED], TROUBLE[:5])
                )
            keeper.broken, keeper.full = dice.random() < 0.1, dice.random() < 0.1
            if dice.random() < 0.2:
                await _replay(keeper, step)
            await asyncio.sleep(dice.choice((0.001, 1, 30, 200)))
            for delivery in dice.sample(given, min(3, len(given))):
                if dice.random() < 0.3:
                    delivery.settle(Outcome.RELEASED)
                    again.add((delivery.event.source, delivery.event.id))
        keeper.broken = keeper.full = False
        for service in services.values():
            service.mood = [ACCEPTED]
        # The longest pause, and the longest patience with a poisoned event:
        deadline = now() + 12 * 3600
        while any(delivery.outcome is None for delivery in given) or keeper.rows:
            assert now() < deadline, [lane.problems() for lane in lanes.values()]
            await asyncio.sleep(60)
        for task in reading:
            await asyncio.wait([task])
            task.result()
        for bench in benches.values():
            bench.assert_nothing_is_remembered()
            lane = bench.lane
            assert not lane._room.parking.backlog
            assert len(lane._failures._put_off) <= 2
            assert len(lane._gate._failed) <= 5
            assert not lane._waiting._timetable + lane._waiting._due
            destination = lane._places._destination
            assert isinstance(destination, Exact)
            assert destination.twice <= again
        for router in routers.values():
            assert not any(router._reached._taken.values())
            assert router._reached._putting == 0
        assert not any(intake.in_flight for intake in intakes)
        await stop(rerouting)
    dead = {(letter.service, letter.event.source, letter.event.id) for letter in keeper.letters}
    for delivery in given:
        if delivery.outcome is Outcome.ACCEPTED:
            assert any(service.accepted[delivery.event.id] for service in services.values())
        if delivery.outcome is Outcome.DEAD_LETTERED:
            assert any(key[1:] == (delivery.event.source, delivery.event.id) for key in dead)
