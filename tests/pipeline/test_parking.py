"""Events that can't be attempted go to the store, and come back in their order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer, Parked
from bridge.pipeline.waiting import PROBERS
from tests.pipeline import clock
from tests.pipeline.clock import now, until, wall_clock
from tests.pipeline.scripted import (
    ACCEPTED,
    FAILED,
    REFUSED,
    REJECTED,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
    settled,
)


class Service:
    """Accepts, or gives its trouble while there is some."""

    def __init__(self, trouble: Answer | None = None) -> None:
        self.trouble = trouble
        self.accepted: list[str] = []

    def __call__(self, event: Event) -> Answer:
        if self.trouble is not None:
            return self.trouble
        self.accepted.append(event.id)
        return ACCEPTED


def assert_in_order(accepted: list[str], slack: int) -> None:
    """Each event came at its place, but for `slack` at most."""
    assert sorted(accepted, key=int) == [str(n) for n in range(len(accepted))]
    assert all(abs(int(name) - place) <= slack for place, name in enumerate(accepted)), accepted


@pytest.mark.parametrize("trouble", [REFUSED, UNREACHABLE])
async def test_events_behind_a_shut_gate_are_parked_after_a_minute_and_return_oldest_first(
    trouble: Answer,
) -> None:
    service = Service(trouble)
    bench = Bench(ScriptedDestination(service), park=True)
    given = deliveries(50)
    async with bench.running():
        began = now()
        await bench.put(given)
        outcomes = await settled(given)
        assert set(outcomes) == {Outcome.PARKED}
        assert 50 <= now() - began <= 100
        # Many deadlines of upstreams later:
        await asyncio.sleep(13 * 3600)
        assert bench.keeper.waiting("plants") == 50
        assert bench.value("bridge_lane_queued") <= PROBERS + 1, "few are there, to probe with"
        service.trouble = None
        await until(lambda: len(service.accepted) == 50)
        await until(lambda: not bench.keeper.rows)
    probe = int(service.accepted.pop(0))
    places = [int(name) for name in service.accepted]
    assert sorted(places) == [n for n in range(50) if n != probe]
    # Those that probed last have pauses of their own.
    untried = [n for n in places if n > PROBERS]
    assert untried == sorted(untried)
    assert len(untried) > 10
    assert bench.keeper.letters == []
    bench.assert_nothing_is_remembered()


async def test_once_the_gate_was_shut_for_a_minute_what_arrives_is_parked_at_once() -> None:
    service = Service(REFUSED)
    bench = Bench(ScriptedDestination(service), park=True, queue=5)
    first = deliveries(5, "first-")
    async with bench.running():
        await bench.put(first)
        await settled(first)
        for batch in range(20):
            began = now()
            late = deliveries(100, f"late-{batch}-")
            await bench.put(late)
            assert set(await settled(late)) == {Outcome.PARKED}
            assert now() - began < 1
        service.trouble = None
        await until(lambda: not bench.keeper.rows)
    expected = [f"first-{n}" for n in range(5)]
    expected += [f"late-{batch}-{n}" for batch in range(20) for n in range(100)]
    assert sorted(service.accepted) == sorted(expected)
    places = {name: place for place, name in enumerate(expected)}
    assert all(abs(places[name] - place) <= 8 for place, name in enumerate(service.accepted[1:], 1))
    bench.assert_nothing_is_remembered()


async def test_a_full_lane_parks_at_once_what_comes_from_a_source_with_other_lanes() -> None:
    service = Service()
    bench = Bench(ScriptedDestination(service, seconds=30), park=True, queue=10, concurrency=2)
    given = deliveries(40)
    async with bench.running():
        for delivery in given:
            await bench.lane.put(delivery, crowded=lambda: True)
        await asyncio.sleep(1)
        assert {delivery.outcome for delivery in given} == {Outcome.PARKED}  # those that waited as well
        await until(lambda: len(service.accepted) == 40)
        await until(lambda: not bench.keeper.rows)
    assert_in_order(service.accepted, slack=2)  # two workers at a time


async def test_what_exceeds_its_source_s_share_of_a_lane_is_parked_behind_what_waits() -> None:
    service = Service()
    bench = Bench(ScriptedDestination(service, seconds=30), park=True, concurrency=1)
    given = deliveries(4)
    async with bench.running():
        for number, delivery in enumerate(given):
            await bench.lane.put(delivery)
            if number == 3:
                bench.lane.make_way(for_all=True)
            await asyncio.sleep(0.1)
        assert [delivery.outcome for delivery in given] == [None, *[Outcome.PARKED] * 3]
        await until(lambda: not bench.keeper.rows and len(service.accepted) == 4)
    assert service.accepted == [delivery.event.id for delivery in given]


async def test_a_full_open_lane_holds_a_source_that_feeds_it_alone() -> None:
    bench = Bench(ScriptedDestination(Service(), seconds=30), park=True, queue=10, concurrency=2)
    given = deliveries(40)
    async with bench.running():
        put = asyncio.create_task(bench.put(given))
        await settled(given)
        await put
    assert {delivery.outcome for delivery in given} == {Outcome.ACCEPTED}


async def test_what_waits_long_in_a_slow_open_lane_is_parked_for_the_upstreams_deadline() -> None:
    service = Service()
    bench = Bench(ScriptedDestination(service), park=True, rate="1/m")
    given = deliveries(30)
    async with bench.running():
        await bench.put(given)
        await settled(given)
        assert now() - given[0].since < 1000
        assert Counter(delivery.outcome for delivery in given)[Outcome.PARKED] >= 15
        await until(lambda: not bench.keeper.rows)
    assert service.accepted == [str(n) for n in range(30)]


async def test_newer_events_do_not_overtake_those_in_the_store() -> None:
    service = Service(UNREACHABLE)
    bench = Bench(ScriptedDestination(service, seconds=1), park=True, queue=20, concurrency=1)
    old = deliveries(60, "old-")
    async with bench.running():
        put = asyncio.create_task(bench.put(old))
        await settled(old)
        await put
        service.trouble = None
        young = deliveries(10, "young-")
        await bench.put(young)
        assert set(await settled(young)) <= {Outcome.ACCEPTED, Outcome.PARKED}
        await until(lambda: not bench.keeper.rows)
    assert [name.partition("-")[0] for name in service.accepted] == ["old"] * 60 + ["young"] * 10


async def test_big_events_come_back_a_few_at_a_time_and_all_of_them() -> None:
    class Paged(MemoryKeeper):
        async def parked(
            self, service: str, *, without: Collection[int], limit: int, **more: Any
        ) -> Sequence[Parked]:
            return await super().parked(service, without=without, limit=min(limit, 4), **more)

    keeper, megabyte = Paged(), b"x" * 2**20
    for number in range(100):
        await keeper.park(event(number, megabyte), "plants")
    service = Service()
    bench = Bench(ScriptedDestination(service, seconds=1), park=True, keeper=keeper, concurrency=2)
    async with bench.running():
        while keeper.rows:
            await asyncio.sleep(0.1)
            assert len(bench.lane._room.parking._back) <= 20
    assert_in_order(service.accepted, slack=1)
    bench.assert_nothing_is_remembered()


class Counting(MemoryKeeper):
    """Counts what it was asked for."""

    looks = named = 0
    """Times, and numbers that were to be left out."""

    async def parked(
        self, service: str, *, without: Collection[int], limit: int, **more: Any
    ) -> Sequence[Parked]:
        self.looks += 1
        self.named += len(without)
        return await super().parked(service, without=without, limit=limit, **more)


async def test_many_come_back_at_once_and_none_that_is_back_is_looked_at_again() -> None:
    keeper = Counting()
    for number in range(4000):
        await keeper.park(event(number), "plants")
    service = Service()
    bench = Bench(ScriptedDestination(service, seconds=1), park=True, keeper=keeper)
    async with bench.running():
        await until(lambda: not keeper.rows)
    assert_in_order(service.accepted, slack=4)
    assert keeper.looks < 20
    assert keeper.named < 1100
    bench.assert_nothing_is_remembered()


async def parked_but_one(count: int, number: int) -> tuple[MemoryKeeper, Callable[[], Awaitable[None]]]:
    """Park `count` events but for one, a dead letter; give what parks that anew, in its old place."""
    keeper = MemoryKeeper()
    for each in range(count):
        await keeper.park(event(each), "plants")
    key = list(keeper.rows)[number]
    dead = keeper.rows.pop(key)

    async def replay() -> None:
        keeper.rows = {key: dead} | keeper.rows
        await keeper.replay()

    return keeper, replay


async def test_what_is_parked_anew_in_a_place_behind_which_others_came_back_comes_back_too() -> None:
    keeper, replay = await parked_but_one(3000, 7)
    service = Service()
    bench = Bench(ScriptedDestination(service, seconds=1), park=True, keeper=keeper)
    async with bench.running():
        await until(lambda: len(service.accepted) > 1000)
        await replay()
        await until(lambda: not keeper.rows)
    assert sorted(service.accepted, key=int) == [str(number) for number in range(3000)]
    assert service.accepted.index("7") < 2600, "it is the oldest"
    bench.assert_nothing_is_remembered()


async def test_what_is_back_is_not_brought_again_behind_one_that_is_parked_in_front_of_it() -> None:
    keeper, replay = await parked_but_one(20, 3)
    service = Service()
    destination = ScriptedDestination(service, seconds=60)
    bench = Bench(destination, park=True, keeper=keeper, concurrency=2)
    async with bench.running():
        await until(lambda: destination.active)
        await replay()
        await until(lambda: not keeper.rows)
    assert sorted(service.accepted, key=int) == [str(number) for number in range(20)]
    bench.assert_nothing_is_remembered()


async def test_what_comes_behind_a_full_lane_costs_the_same_however_much_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keeper = MemoryKeeper()
    for number in range(1500):
        await keeper.park(event(number), "plants")
    bench = Bench(ScriptedDestination(seconds=1000), park=True, queue=1000, keeper=keeper)
    looks = 0

    def owns(delivery: Delivery) -> bool:
        nonlocal looks
        looks += 1
        return delivery in bench.lane._room.parking._back

    async with bench.running():
        await until(lambda: len(bench.lane._room.parking._back) == 1000)
        monkeypatch.setattr(bench.lane._room.parking, "owns", owns)
        given = deliveries(200, "young-")
        for delivery in given:
            await bench.lane.put(delivery, crowded=lambda: True)
        assert await settled(given) == [Outcome.PARKED] * 200
    assert looks < 2000


async def test_the_first_attempt_counts_through_parking_and_a_restart() -> None:
    keeper = MemoryKeeper()
    day = 24 * 3600
    first = Bench(ScriptedDestination(UNREACHABLE), park=True, keeper=keeper, give_up_after=2 * day)
    given = deliveries(3)
    began = now()
    async with first.running():
        await first.put(given)
        await settled(given)
        await asyncio.sleep(day)
    assert any(row.first_attempt is not None for row in keeper.rows.values())
    second = Bench(ScriptedDestination(UNREACHABLE), park=True, keeper=keeper, give_up_after=2 * day)
    async with second.running():
        await until(lambda: keeper.letters, seconds=10 * day)
    letter = keeper.letters[0]
    assert letter.cause == "gave_up"
    assert now() - began < 2.2 * day
    assert letter.attempts > 100


@pytest.mark.parametrize(("hours", "lost"), [(25, 0), (24 * 365, 0), (23, 3)])
async def test_a_start_with_a_clock_more_than_a_day_beyond_what_the_store_knows_makes_no_parked_event_old(
    monkeypatch: pytest.MonkeyPatch, hours: int, lost: int
) -> None:
    """A day and less may be how long the bridge was off."""
    hour, seen = 3600, wall_clock()
    monkeypatch.setattr(clock, "EPOCH", clock.EPOCH + hours * hour)
    keeper = MemoryKeeper(seen=seen)
    for number in range(3):
        await keeper.park(event(number), "plants", attempts=1, first_attempt=seen - 2 * hour)
    bench = Bench(ScriptedDestination(UNREACHABLE), park=True, keeper=keeper, give_up_after=24 * hour)
    async with bench.running():
        await asyncio.sleep(20 * hour)
        assert len(keeper.letters) == lost
        await until(lambda: len(keeper.letters) == 3, seconds=10 * hour)
    assert {letter.cause for letter in keeper.letters} == {"gave_up"}


async def test_a_rejected_event_that_came_back_becomes_a_dead_letter() -> None:
    keeper = MemoryKeeper()
    for name in ("good", "bad", "good too"):
        await keeper.park(event(name), "plants")
    bench = Bench(
        ScriptedDestination(lambda one: REJECTED if one.id == "bad" else ACCEPTED), park=True, keeper=keeper
    )
    async with bench.running():
        await until(lambda: not keeper.rows)
    assert keeper.causes == {"bad": "http_413"}
    bench.assert_nothing_is_remembered()


async def test_a_command_wakes_an_idle_lane() -> None:
    service = Service()
    bench = Bench(ScriptedDestination(service), park=True)
    async with bench.running():
        await asyncio.sleep(1000)
        await bench.keeper.replay(event("again"))
        await until(lambda: service.accepted == ["again"], seconds=5)
        await bench.put(fresh := deliveries(3))
        assert await settled(fresh) == [Outcome.ACCEPTED] * 3, "and the lane goes on as before"


@pytest.mark.parametrize("trouble", ["broken", "full"])
async def test_a_store_that_takes_nothing_holds_the_source_and_loses_nothing(trouble: str) -> None:
    service = Service(REFUSED)
    bench = Bench(ScriptedDestination(service), park=True, queue=10)
    setattr(bench.keeper, trouble, True)
    given = deliveries(30)
    async with bench.running():
        put = asyncio.create_task(bench.put(given))
        await asyncio.sleep(1000)
        assert {delivery.outcome for delivery in given} == {None}
        assert bench.keeper.refusals < 500
        setattr(bench.keeper, trouble, False)
        await settled(given)
        await put
        service.trouble = None
        await until(lambda: len(service.accepted) == 30)
    bench.assert_nothing_is_remembered()


async def test_a_store_that_takes_nothing_does_not_stop_a_lane_whose_gate_opens() -> None:
    service = Service(REFUSED)
    bench = Bench(ScriptedDestination(service), park=True, queue=10)
    bench.keeper.broken = True
    given = deliveries(10)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(1000)
        service.trouble = None
        assert await settled(given) == [Outcome.ACCEPTED] * 10
    assert not bench.keeper.rows


async def test_a_delivery_released_on_its_way_into_the_store_is_let_go() -> None:
    service = Service(REFUSED)
    bench = Bench(ScriptedDestination(service), park=True)
    bench.keeper.broken = True
    given = deliveries(10)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(300)
        for delivery in given:
            delivery.settle(Outcome.RELEASED)
        service.trouble = None
        bench.keeper.broken = False
        await asyncio.sleep(300)
    assert service.accepted == []
    bench.assert_nothing_is_remembered()


async def test_room_left_by_what_is_released_on_its_way_into_a_full_store_is_taken_by_what_is_there() -> None:
    service = Service(UNREACHABLE)
    bench = Bench(ScriptedDestination(service, seconds=0.1), park=True, queue=10)
    for number in range(40):
        await bench.keeper.park(event(f"old-{number}"), "plants")
    given = deliveries(50)
    async with bench.running():
        putting = asyncio.create_task(bench.put(given))
        await asyncio.sleep(100)
        bench.keeper.full = True  # what is there can be read all the same
        for pause in (0.001, 1, 20, 100):
            await asyncio.sleep(pause)
            for delivery in given[: len(given) // 2]:
                delivery.settle(Outcome.RELEASED)
        bench.keeper.full = False
        for delivery in given:
            delivery.settle(Outcome.RELEASED)
        await putting
        service.trouble = None
        await until(lambda: not bench.keeper.waiting("plants"), seconds=200)


async def test_closing_leaves_in_the_store_what_came_back_and_is_not_under_way() -> None:
    keeper = MemoryKeeper()
    for number in range(20):
        await keeper.park(event(number), "plants")
    service = Service()
    bench = Bench(ScriptedDestination(service, seconds=10), park=True, keeper=keeper, concurrency=2)
    async with bench.running():
        await asyncio.sleep(5)
        bench.lane.close()
        await bench.lane.finished()
        assert len(service.accepted) == 2
        await bench.put(fresh := deliveries(2, "fresh-"))
        assert await settled(fresh) == [Outcome.ACCEPTED] * 2, "what is in hand may still finish"
    assert keeper.waiting("plants") == 18
    bench.assert_nothing_is_remembered()


async def test_without_parking_events_are_held() -> None:
    bench = Bench(ScriptedDestination(REFUSED), park=False)
    given = deliveries(10)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(24 * 3600 - 100)
    assert {delivery.outcome for delivery in given} == {None}
    assert not bench.keeper.rows


async def _put(bench: Bench, batch: list[Delivery], *, crowded: bool) -> None:
    for delivery in batch:
        await bench.lane.put(delivery, lambda: crowded)


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_happens_every_event_is_accepted_dead_released_or_kept_once(seed: int) -> None:
    """Trouble of the service and the store, releases, restarts: nothing is lost, nothing stays behind."""
    dice = random.Random(seed)
    keeper = MemoryKeeper()
    service = Service()
    accepted: Counter[str] = Counter()

    def script(one: Event) -> Answer:
        answer = service(one)
        if answer is ACCEPTED:
            accepted[one.id] += 1
        return answer

    given: list[Delivery] = []
    for generation in range(3):
        bench = Bench(
            ScriptedDestination(script, seconds=dice.choice((0.0, 0.3))),
            park=True,
            keeper=keeper,
            queue=dice.choice((1, 5, 50)),
            concurrency=dice.choice((1, 4)),
            park_after=dice.choice((1.0, 60.0)),
        )
        mine: list[Delivery] = []
        putters: set[asyncio.Task[None]] = set()
        async with bench.running():
            for step in range(15):
                service.trouble = dice.choice((None, None, REFUSED, UNREACHABLE, FAILED))
                keeper.broken = dice.random() < 0.1
                fresh = deliveries(dice.randint(0, 12), f"{generation}.{step}.")
                mine += fresh
                putters.add(asyncio.create_task(_put(bench, fresh, crowded=dice.random() < 0.5)))
                await asyncio.sleep(dice.choice((0.01, 1.0, 30.0, 200.0)))
                for delivery in dice.sample(mine, min(2, len(mine))):
                    if dice.random() < 0.3:
                        delivery.settle(Outcome.RELEASED)
            service.trouble, keeper.broken = None, False
            if generation == 2:
                await settled(mine)
                await until(lambda: not keeper.rows)
                await asyncio.wait(putters)
                bench.assert_nothing_is_remembered()
        for task in putters:
            task.cancel()
        for delivery in mine:
            delivery.settle(Outcome.RELEASED)
        given += mine
    for delivery in given:
        name = delivery.event.id
        if delivery.outcome is not Outcome.RELEASED:
            assert accepted[name] == 1 or name in keeper.causes, (name, delivery.outcome)
        assert accepted[name] <= 2


async def test_what_its_upstream_would_soon_drop_is_parked_as_it_comes_and_keeps_its_place() -> None:
    service = Service(UNREACHABLE)
    bench = Bench(ScriptedDestination(service), park=True)
    older, newer = deliveries(3), Delivery(event("4"))
    parent = Delivery(event("3"), nearly_dead=True)
    (nearly_dead,) = parent.split([parent.event])
    async with bench.running():
        await bench.put(older)
        began = now()
        await bench.put([nearly_dead])
        assert await settled([parent, *older]) == [Outcome.PARKED] * 4
        assert now() - began < 1
        service.trouble = None
        putting = asyncio.create_task(bench.put([newer]))
        await until(lambda: len(service.accepted) == 5)
        await putting
        await until(lambda: not bench.keeper.rows)
    assert_in_order(service.accepted, slack=3)  # the older three were tried at once
    bench.assert_nothing_is_remembered()


async def test_what_its_upstream_would_soon_drop_is_held_where_nothing_is_parked() -> None:
    service = Service(UNREACHABLE)
    bench = Bench(ScriptedDestination(service), park=False)
    nearly_dead = Delivery(event("0"), nearly_dead=True)
    async with bench.running():
        await bench.put([nearly_dead])
        await asyncio.sleep(3600)
        assert nearly_dead.outcome is None
        service.trouble = None
        assert await settled([nearly_dead]) == [Outcome.ACCEPTED]


async def test_what_its_upstream_would_soon_drop_is_held_while_the_store_is_full() -> None:
    service = Service(UNREACHABLE)
    bench = Bench(ScriptedDestination(service), park=True)
    bench.keeper.full = True
    nearly_dead = Delivery(event("0"), nearly_dead=True)
    async with bench.running():
        await bench.put([nearly_dead])
        await asyncio.sleep(3600)
        assert nearly_dead.outcome is None
        assert bench.keeper.refusals
        bench.keeper.full = False
        assert await settled([nearly_dead]) == [Outcome.PARKED]
        service.trouble = None
        await until(lambda: service.accepted == ["0"])
        await until(lambda: not bench.keeper.rows)
