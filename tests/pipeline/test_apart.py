"""One event, one service and one store in trouble: what is beside them goes on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer, Verdict
from bridge.pipeline.intake import Intake
from bridge.pipeline.limits.concurrency import Fixed
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import now
from tests.pipeline.scripted import (
    ACCEPTED,
    FAILED,
    REFUSED,
    REJECTED,
    UNAVAILABLE,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
    settled,
    stop,
)

EMPTY = Answer(Verdict.CAPACITY, "http_500", "500: ", status=500, perhaps_its_own=True)
TIMEOUT = Answer(Verdict.CAPACITY, "timeout", "no answer", perhaps_its_own=True)
CUT = Answer(Verdict.UNAVAILABLE, "answer_lost", "cut", perhaps_its_own=True)
FORBIDDEN = Answer(Verdict.REFUSED, "http_403", "by a firewall", status=403, perhaps_its_own=True)


# --- one event is no evidence about another ------------------------------------------------------


@pytest.mark.parametrize("trouble", [FAILED, EMPTY, TIMEOUT, CUT, FORBIDDEN], ids=str)
async def test_two_events_that_always_fail_hold_up_no_good_one_and_die(trouble: Answer) -> None:
    async def script(given: Event) -> Answer:
        if not given.id.startswith("bad"):
            return ACCEPTED
        await asyncio.sleep(30 if trouble is TIMEOUT else 0.05)
        return trouble

    bench = Bench(ScriptedDestination(script), concurrency=16, park=True)
    bad = deliveries(2, "bad")
    async with bench.running():
        await bench.put(bad)
        for number in range(80):
            good = deliveries(1, f"good{number}-")
            await bench.put(good)
            assert set(await settled(good, within=61)) <= {Outcome.ACCEPTED, Outcome.PARKED}
            await asyncio.sleep(30)
        await asyncio.sleep(120)
        bench.assert_nothing_is_remembered()
    assert bench.keeper.causes == {"bad0": trouble.cause, "bad1": trouble.cause}
    assert bench.invocations("accepted") == 80
    assert not bench.keeper.rows


@pytest.mark.parametrize("park", [False, True])
async def test_an_event_with_its_own_500_among_99_accepted_is_dead_and_no_other(park: bool) -> None:
    bench = Bench(
        ScriptedDestination(lambda given: FAILED if given.id == "50" else ACCEPTED, seconds=0.1), park=park
    )
    given = deliveries(100)
    async with bench.running():
        await bench.put(given[:60])
        for delivery in given[60:]:
            await bench.put([delivery])
            await asyncio.sleep(10)
        outcomes = await settled(given)
    assert outcomes.count(Outcome.ACCEPTED) == 99
    assert bench.keeper.causes == {"50": "http_500"}


async def test_a_lack_of_capacity_that_comes_and_goes_makes_no_dead_letter() -> None:
    """More at once than the service takes: each is refused many times, while others are accepted."""
    destination = ScriptedDestination(seconds=0.1)

    async def script(_given: Event) -> Answer:
        if destination.active > 2:
            return Answer(Verdict.CAPACITY, "http_429", status=429, perhaps_its_own=True)
        await asyncio.sleep(0.1)
        return ACCEPTED

    destination.script = script
    destination.seconds = 0
    bench = Bench(destination, concurrency=16, max_attempts=3, max_backoff=1)
    given = deliveries(300)
    async with bench.running():
        await bench.put(given)
        assert await settled(given) == [Outcome.ACCEPTED] * 300
    assert not bench.keeper.letters
    assert bench.invocations("capacity") > 300


@pytest.mark.parametrize("trouble", [EMPTY, CUT, UNAVAILABLE], ids=lambda answer: answer.cause)
@pytest.mark.parametrize("seed", range(5))
async def test_trouble_that_half_of_all_attempts_meet_is_no_event_s_own(trouble: Answer, seed: int) -> None:
    """Half an ingress is gone: with four attempts each, one event in sixteen would die of it."""
    dice = random.Random(seed)
    bench = Bench(
        ScriptedDestination(lambda _event: trouble if dice.random() < 0.5 else ACCEPTED, seconds=0.05),
        max_attempts=4,
        max_backoff=1,
    )
    given = deliveries(1000)
    async with bench.running():
        await bench.put(given)
        outcomes = await settled(given)
    assert outcomes == [Outcome.ACCEPTED] * 1000


# --- lanes of one source ---------------------------------------------------------------------------


class World:
    """A source with a backlog, its router, and lanes behind."""

    def __init__(self, *routes: RouteConfig, slots: int = 2000, **benches: Bench) -> None:
        self.benches = benches
        self.keeper = MemoryKeeper()
        """Of what can't be routed."""
        self.metrics = Metrics()
        source = self.metrics.source("uploads")
        self.intake = Intake(slots, 2**30, source)
        lanes = {key: bench.lane for key, bench in benches.items()}
        self.router = Router(routes, lanes, self.keeper, source, self.intake)
        self.read = 0

    async def source(self, made: Callable[[int], Event] = event) -> None:
        """Read without end, as a runner does."""
        while True:
            batch = [Delivery(made(self.read + n)) for n in range(min(500, self.intake.free))]
            self.read += len(batch)
            self.intake.admit(batch)
            for delivery in batch:
                await self.router.route(delivery)
            if not self.intake.free:
                self.router.make_way()
            await self.intake.wait()
            await asyncio.sleep(0.001)

    @asynccontextmanager
    async def running(self, made: Callable[[int], Event] = event) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for bench in self.benches.values():
                await stack.enter_async_context(bench.running())
            reading = asyncio.create_task(self.source(made))
            yield
            await stop(reading)


def route(to: str, **others: object) -> RouteConfig:
    return RouteConfig.model_validate({"from": "uploads", "to": to, **others})


class Jittery:
    """Accepts after about so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._calls = 0

    async def __call__(self, _event: Event) -> Answer:
        self._calls += 1
        await asyncio.sleep(self._seconds * (0.5 + (self._calls * 7919 % 1000) / 1000))
        return ACCEPTED


async def _pace(seconds: float, *others: tuple[str, Callable[[Event], Awaitable[Answer]] | Answer]) -> World:
    """Run a service that takes `seconds` beside `others` for ten minutes, with a tenth of the places."""
    benches = {"plants": Bench(ScriptedDestination(Jittery(seconds)), concurrency=16, queue=100, park=True)}
    for key, script in others:
        benches[key] = Bench(ScriptedDestination(script), concurrency=16, queue=100, park=True)
    world = World(*(route(key) for key in benches), slots=200, **benches)
    async with world.running():
        await asyncio.sleep(600)
    return world


async def test_of_two_healthy_services_nothing_is_parked_and_each_has_its_rate() -> None:
    alone = (await _pace(4)).benches["plants"].invocations("accepted")
    world = await _pace(4, ("flood", Jittery(4)))
    for bench in world.benches.values():
        assert bench.invocations("accepted") >= 0.95 * alone
        assert not bench.keeper.rows


async def test_a_service_ten_times_as_fast_as_its_sibling_is_not_held_and_never_parked() -> None:
    alone = (await _pace(4)).benches["plants"].invocations("accepted")
    world = await _pace(4, ("slow", Jittery(40)))
    assert world.benches["plants"].invocations("accepted") >= 0.95 * alone
    assert not world.benches["plants"].keeper.rows
    slow = world.benches["slow"]
    assert slow.invocations("accepted") >= 0.95 * alone / 10
    assert len(slow.keeper.rows) > 500, "what it can't take waits in the store"


@pytest.mark.parametrize("answer", [UNREACHABLE, REFUSED, TIMEOUT], ids=lambda answer: answer.cause)
async def test_a_dead_service_that_receives_half_holds_its_sibling_no_more_than_a_twentieth(
    answer: Answer,
) -> None:
    async def dead(_event: Event) -> Answer:
        await asyncio.sleep(30 if answer is TIMEOUT else 0)
        return answer

    alone = (await _pace(4)).benches["plants"].invocations("accepted")
    world = await _pace(4, ("dead", dead))
    assert world.benches["plants"].invocations("accepted") >= 0.95 * alone
    assert not world.benches["plants"].keeper.rows


async def test_a_paused_service_that_receives_half_holds_its_sibling_no_more_than_a_twentieth() -> None:
    alone = (await _pace(4)).benches["plants"].invocations("accepted")
    pause = Pause()
    plants = Bench(ScriptedDestination(Jittery(4)), concurrency=16, queue=100, park=True)
    paused = Bench(ScriptedDestination(ACCEPTED), queue=100, park=True, pauses=[pause])
    world = World(route("plants"), route("paused"), slots=200, plants=plants, paused=paused)
    pause.set(True)
    async with world.running():
        await asyncio.sleep(600)
    assert plants.invocations("accepted") >= 0.95 * alone
    assert not plants.keeper.rows
    assert paused.invocations("accepted") == 0


_BY_NAME = [route(key, when=f"id.startsWith('{key}')") for key in ("plants", "other")]


def _routed(number: int) -> str:
    """Name one of two services, in no order."""
    return ("plants", "other")[number * 7919 % 1009 % 2]


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("slots", [10, 32])
async def test_however_few_places_a_source_has_a_slow_service_does_not_hold_its_sibling(
    slots: int, ring: bool
) -> None:
    """Ring or not: where a cluster's places are all taken, a lane that has nothing gets no turn at all."""
    shared = Ring([Fixed(20)]) if ring else None
    benches = {
        key: Bench(ScriptedDestination(Jittery(seconds)), concurrency=16, park=True, ring=shared)
        for key, seconds in (("plants", 1), ("other", 40))
    }
    world = World(*_BY_NAME, slots=slots, **benches)
    async with world.running(lambda number: event(f"{_routed(number)}-{number}")):
        await asyncio.sleep(100)
        before = benches["plants"].invocations("accepted")
        await asyncio.sleep(30)
    alone = min(slots, 16) * 30
    if ring:  # the slow one stands there with 16 at a time, and each place that is free goes round
        assert benches["plants"].invocations("accepted") - before >= 0.95 * 4 * 30
    else:
        assert benches["plants"].invocations("accepted") - before >= 0.7 * alone, "not a fortieth"
    assert not benches["plants"].keeper.rows


@pytest.mark.parametrize("queue", [20, 1000])
async def test_two_equal_services_go_through_memory_whatever_their_queues(queue: int) -> None:
    benches = {
        key: Bench(ScriptedDestination(Jittery(1)), concurrency=16, park=True, queue=queue)
        for key in ("plants", "other")
    }
    world = World(route("plants"), route("other"), slots=200, **benches)
    async with world.running():
        await asyncio.sleep(300)
    for bench in benches.values():
        assert bench.invocations("accepted") >= 0.95 * 16 * 300
        assert not bench.keeper.rows


async def test_with_two_hundred_services_that_take_what_comes_nothing_is_parked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The router gives way after so many milliseconds, of which a busy machine takes more for the same.
    monkeypatch.setattr("bridge.pipeline.router.perf_counter", lambda: 0.0)
    keys = [f"service{number}" for number in range(200)]
    benches = {key: Bench(ScriptedDestination(seconds=0.1), concurrency=16, park=True) for key in keys}
    world = World(route("id", allow=keys), **benches)
    async with world.running(lambda number: event(keys[number * 7919 % 200])):
        await asyncio.sleep(1.5)
    assert not any(bench.keeper.rows for bench in benches.values())
    assert sum(bench.invocations("accepted") for bench in benches.values()) > 0.9 * 1.5 / 0.1 * 2000


async def test_sources_that_feed_one_full_lane_take_turns() -> None:
    for queue in (1, 4, 100):
        bench = Bench(ScriptedDestination(seconds=1), concurrency=4, queue=queue)
        began: Counter[str] = Counter()

        async def feed(name: str, bench: Bench = bench) -> None:
            for delivery in deliveries(2000, name):
                await bench.lane.put(delivery)

        async with bench.running():
            feeding = [asyncio.create_task(feed(name)) for name in "abc"]
            await asyncio.sleep(queue / 4 + 50)
            began = Counter(name[0] for name in bench.lane._places._destination.ids[queue + 4 :])  # type: ignore[attr-defined]
            for task in feeding:
                await stop(task)
        assert sum(began.values()) >= 180
        assert max(began.values()) - min(began.values()) <= 2, began


# --- the ring ----------------------------------------------------------------------------------------


async def test_beside_a_busy_and_a_slow_service_each_of_200_idle_ones_has_its_turn_in_one_round() -> None:
    ring = Ring([Fixed(4)])
    order: list[str] = []

    def made(key: str, seconds: float) -> Bench:
        async def script(_event: Event) -> Answer:
            order.append(key)
            await asyncio.sleep(seconds)
            return ACCEPTED

        return Bench(ScriptedDestination(script), concurrency=16, ring=ring)

    busy, slow = made("busy", 0.1), made("slow", 5)
    idle = [made(f"idle{number}", 0.1) for number in range(200)]
    async with AsyncExitStack() as stack:
        for bench in (busy, slow, *idle):
            await stack.enter_async_context(bench.running())
        await busy.put(deliveries(1000))
        await slow.put(deliveries(1000))
        await asyncio.sleep(60)
        order.clear()
        ones = deliveries(200)
        for bench, delivery in zip(idle, ones, strict=True):
            await bench.lane.put(delivery)
        await settled(ones)
        first_round = order[: order.index("idle199") + 1]
        counts = Counter(first_round)
    assert counts["busy"] <= 2
    assert counts["slow"] <= 2
    assert sum(counts.values()) <= 204


async def test_a_shut_lane_s_probe_has_its_turn_in_the_ring() -> None:
    ring = Ring([Fixed(2)])
    dead = Bench(ScriptedDestination(REFUSED), ring=ring, max_backoff=1)
    busy = Bench(ScriptedDestination(seconds=0.1), concurrency=16, ring=ring)
    async with dead.running(), busy.running():
        await busy.put(deliveries(900))
        await dead.put(deliveries(5))
        await asyncio.sleep(30)
        assert 20 < len(dead.lane._places._destination.began) < 200  # type: ignore[attr-defined]
        assert busy.invocations("accepted") > 0.9 * 30 / 0.1 * 2


# --- the store ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["full", "broken"])
async def test_while_the_store_takes_nothing_only_the_dead_service_waits(trouble: str) -> None:
    keeper = MemoryKeeper()
    setattr(keeper, trouble, True)
    service = ScriptedDestination(lambda given: REJECTED if given.id.startswith("bad") else ACCEPTED)
    good = Bench(service, keeper=keeper, park=True, concurrency=16)
    dead = Bench(ScriptedDestination(REFUSED), keeper=keeper, park=True, concurrency=16, give_up_after=600)
    async with good.running(), dead.running():
        await dead.put(lost := deliveries(50))
        await good.put(bad := deliveries(40, "bad"))
        for number in range(100):
            await good.put(some := deliveries(20, f"good{number}-"))
            assert await settled(some, within=1) == [Outcome.ACCEPTED] * 20
            await asyncio.sleep(20)
        # Given up at 600 s, which can't be kept; others probe all the same.
        assert {delivery.outcome for delivery in [*lost, *bad]} == {None}
        probing = dead.lane._places._destination
        assert isinstance(probing, ScriptedDestination)
        probing.began.clear()
        await asyncio.sleep(300)
        assert probing.began, "there is another probe"
        setattr(keeper, trouble, False)
        assert await settled(bad, within=30) == [Outcome.DEAD_LETTERED] * 40


async def test_a_put_behind_what_was_released_while_the_store_failed_wakes() -> None:
    bench = Bench(ScriptedDestination(UNREACHABLE), park=True, queue=50)
    bench.keeper.broken = True
    older = [Delivery(event(number), nearly_dead=True) for number in range(100)]
    (newer,) = deliveries(1, "newer")
    async with bench.running():
        await bench.put(older)
        await asyncio.sleep(0.01)  # the store has refused them, and is asked again in 0 to 0.5 s
        putting = asyncio.create_task(bench.lane.put(newer))
        await asyncio.sleep(0)
        assert not putting.done()
        for delivery in older:
            delivery.settle(Outcome.RELEASED)
        before = now()
        await putting
        assert now() - before < 0.001
        newer.settle(Outcome.RELEASED)


# --- the store at its budget -------------------------------------------------------------------------


async def test_at_the_store_s_budget_the_source_stops_reading_and_goes_on_when_there_is_room() -> None:
    dead = ScriptedDestination(REFUSED)
    bench = Bench(dead, queue=100, park=True)
    bench.keeper.for_letters_alone = True
    world = World(route("dead"), slots=200, dead=bench)
    async with world.running():
        await asyncio.sleep(600)
        assert (world.read, world.intake.free) == (200, 0)
        dead.began.clear()
        await asyncio.sleep(3600)
        assert world.read == 200, "by its slots"
        assert len(dead.began) > 60, "it is probed all the same"
        bench.keeper.for_letters_alone = False
        began = now()
        while world.read < 1000:
            await asyncio.sleep(0.01)
        assert now() - began < 16, "the store is asked again so often"
        bench.keeper.for_letters_alone = True
        dead.script, dead.seconds = ACCEPTED, 1
        await asyncio.sleep(600)
        assert not bench.keeper.rows, "those parked go first"
        read = world.read
        await asyncio.sleep(120)
        assert world.read > read + 400, "what is accepted needs no room"


async def test_at_the_store_s_budget_none_waits_but_events_of_the_dead_service() -> None:
    """Those of its sibling are accepted, or dead letters, as long as the source has a slot to read with."""
    dead = Bench(ScriptedDestination(REFUSED), queue=100, park=True)
    script = {"good": ACCEPTED, "bad": REJECTED}
    good = Bench(ScriptedDestination(lambda given: script[str(given.attributes["kind"])]), park=True)
    for bench in (dead, good):
        bench.keeper.for_letters_alone = True
    world = World(
        route("dead", when="attributes.kind == 'dead'"),
        route("good", when="attributes.kind != 'dead'"),
        slots=200,
        dead=dead,
        good=good,
    )
    came: Counter[str] = Counter()
    waiting: Counter[str] = Counter()

    def kind(number: int) -> Event:
        name = "dead" if number % 20 == 0 else "bad" if number % 20 == 1 else "good"
        came[name] += 1
        return event(number, attributes={"kind": name})

    async with world.running(kind):
        await asyncio.sleep(900)
        waiting.update(str(delivery.event.attributes["kind"]) for delivery in world.intake._unsettled)
    assert world.intake.most == waiting["dead"] == waiting.total()
    assert came["dead"] == 200
    assert good.invocations("accepted") == came["good"] > 2000
    assert len(good.keeper.letters) == came["bad"] > 100


async def test_what_can_not_be_routed_while_the_store_takes_nothing_holds_its_source_alone() -> None:
    service = Bench(ScriptedDestination(), park=True)
    stuck, other = World(route("plants"), plants=service), World(route("plants"), plants=service)
    stuck.keeper.full = other.keeper.full = True
    given = [*deliveries(5), Delivery(event("unreadable"), fault="no event"), *deliveries(5, "behind")]

    async def hand_over(world: World, some: list[Delivery]) -> None:
        world.intake.admit(some)
        for delivery in some:
            await world.router.route(delivery)

    async with service.running():
        held = asyncio.create_task(hand_over(stuck, given))
        assert await settled(given[:5], within=1) == [Outcome.ACCEPTED] * 5
        for number in range(30):
            await hand_over(other, some := deliveries(20, f"other{number}-"))
            assert await settled(some, within=1) == [Outcome.ACCEPTED] * 20
            await asyncio.sleep(10)
        assert {delivery.outcome for delivery in given[5:]} == {None}
        given[5].settle(Outcome.RELEASED)
        assert await settled(given[6:], within=16) == [Outcome.ACCEPTED] * 5
        await held


@pytest.mark.parametrize("trouble", ["full", "broken"])
async def test_while_the_store_takes_nothing_a_slow_service_that_should_make_way_goes_on(
    trouble: str,
) -> None:
    benches = {
        key: Bench(ScriptedDestination(Jittery(seconds)), concurrency=16, park=True, queue=100)
        for key, seconds in (("plants", 1), ("slow", 4))
    }
    for bench in benches.values():
        setattr(bench.keeper, trouble, True)
    world = World(route("plants"), route("slow"), slots=200, **benches)
    async with world.running():
        await asyncio.sleep(600)
    assert benches["slow"].invocations("accepted") >= 0.95 * 16 / 4 * 600
    assert benches["slow"].keeper.refusals < 600, "it is asked again with growing pauses"
