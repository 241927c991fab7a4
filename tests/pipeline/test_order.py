"""`order_by`: events of one key one after another through whatever happens, other keys beside it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError, StoreFullError
from bridge.core.event import Event
from bridge.core.ports import Answer, DeadLetter, InOrder
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.order import MOST_BEHIND, order_key
from tests.pipeline import clock
from tests.pipeline.clock import VirtualLoop, now
from tests.pipeline.routing import House, route
from tests.pipeline.scripted import (
    ACCEPTED,
    BUSY,
    FAILED,
    REFUSED,
    REJECTED,
    UNAVAILABLE,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    event,
    settled,
)
from tests.pipeline.test_backlog import Cluster


def key_of(one: Event) -> int:
    """Events of these tests are named KEY-NUMBER."""
    return ord(one.id[0])


def deliveries(*names: str) -> list[Delivery]:
    return [Delivery(event(name)) for name in names]


async def put(bench: Bench, given: Sequence[Delivery], *, crowded: bool = False) -> None:
    for delivery in given:
        await bench.lane.put(delivery, lambda: crowded, order_key=key_of(delivery.event))


def assert_nothing_is_remembered(bench: Bench) -> None:
    bench.assert_nothing_is_remembered()
    order, parking = bench.lane._room.order, bench.lane._room.parking
    assert not order.keys
    assert not order._lines
    assert not order._failing
    assert not order._under_way
    assert order._behind == 0
    assert not parking._aside
    assert parking._writes_aside == 0


until = partial(clock.until, step=0.05)


async def test_events_of_a_key_go_one_after_another_and_other_keys_beside_them() -> None:
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination, concurrency=8)
    async with bench.running():
        given = deliveries(*(f"{key}-{n}" for n in range(5) for key in "abc"))
        began = now()
        await put(bench, given)
        assert await settled(given) == [Outcome.ACCEPTED] * 15
        assert 5 <= now() - began < 5.1
        assert destination.peak == 3
        assert_nothing_is_remembered(bench)
    for key in "abc":
        assert [name for name in destination.ids if name[0] == key] == [f"{key}-{n}" for n in range(5)]


async def test_keys_take_turns_where_places_are_few() -> None:
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination, concurrency=1)
    async with bench.running():
        given = deliveries(*(f"a-{n}" for n in range(4)), *(f"b-{n}" for n in range(4)))
        await put(bench, given)
        await settled(given)
    assert destination.ids == [f"{key}-{n}" for n in range(4) for key in "ab"]


async def test_events_without_a_key_wait_for_nobody() -> None:
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination, concurrency=20)
    async with bench.running():
        given = deliveries(*(f"a-{n}" for n in range(3)))
        await put(bench, given)
        free = deliveries(*(f"free-{n}" for n in range(10)))
        await bench.put(free)
        began = now()
        await settled(free)
        assert now() - began < 1.1
        await settled(given)


async def test_a_key_that_backs_off_slows_no_other_and_few_of_it_are_in_memory() -> None:
    broken = True

    def script(one: Event) -> Answer:
        return UNAVAILABLE if one.id.startswith("a") and broken else ACCEPTED

    destination = ScriptedDestination(script, seconds=0.01)
    bench = Bench(destination, concurrency=4, queue=200, park=True, max_attempts=1000)
    slow: list[Delivery] = []
    async with bench.running():
        for n in range(1000):
            pair = deliveries(f"a-{n}", f"b-{n}", f"c-{n}")
            slow.append(pair[0])
            began = now()
            await put(bench, pair)
            await settled(pair[1:])
            assert now() - began < 0.1
            assert bench.value("bridge_lane_queued") <= MOST_BEHIND + 2
        await until(lambda: all(each.outcome is Outcome.PARKED for each in slow))
        assert set(bench.keeper.parked_ids) == {f"a-{n}" for n in range(1000)}
        assert bench.value("bridge_lane_queued") <= 1
        assert bench.value("bridge_lane_keys_held") == 1
        broken = False
        late = deliveries(*(f"a-{n}" for n in range(1000, 1010)))
        await put(bench, late)
        await until(lambda: not bench.keeper.rows)
        assert_nothing_is_remembered(bench)
    accepted = [name for name in destination.ids if name.startswith("a")]
    assert list(dict.fromkeys(accepted)) == [f"a-{n}" for n in range(1010)]
    assert Counter(accepted)["a-1"] == 1, "a follower is not tried before"


async def test_keys_that_back_off_share_what_is_held_in_memory() -> None:
    def script(one: Event) -> Answer:
        return ACCEPTED if one.id[0] == "z" else UNAVAILABLE

    bench = Bench(ScriptedDestination(script), queue=1000, park=True, max_attempts=1000)
    async with bench.running():
        for n in range(30):
            for key in "abcdefghijklmnop":
                await put(bench, deliveries(f"{key}-{n}"))
                await bench.put(good := deliveries(f"z-{key}{n}"))
                await settled(good)
        assert bench.value("bridge_lane_open") == 1
        await until(lambda: bench.value("bridge_lane_queued") <= MOST_BEHIND + 16, 60)


async def test_a_lane_starves_though_events_wait_in_it_behind_one_that_fails() -> None:
    bench = Bench(ScriptedDestination(lambda one: UNAVAILABLE if one.id[0] == "a" else ACCEPTED))
    bench.lane.when_starving(lambda _: None, 64)
    async with bench.running():
        good = deliveries("b-0")
        await put(bench, [*deliveries(*(f"a-{n}" for n in range(MOST_BEHIND))), *good])
        await settled(good)
        assert bench.value("bridge_lane_queued") == MOST_BEHIND
        assert bench.lane.starving, "or its source is held at the pace of another of its lanes"


async def test_keys_that_come_back_fill_no_lane_that_is_full() -> None:
    broken = True
    keys = "abcdefghij"
    destination = ScriptedDestination(lambda _: UNAVAILABLE if broken else ACCEPTED, seconds=0.1)
    bench = Bench(destination, park=True, queue=40, park_after=1000.0)
    parked = [InOrder(event=event(f"{key}-{n}"), order_key=ord(key)) for n in range(50) for key in keys]
    await bench.keeper.park_in_order("plants", parked)
    async with bench.running():
        bench.keeper._wakes["plants"]()
        await until(lambda: len(bench.lane._room.parking._aside) == len(keys))
        broken, most = False, 0.0
        while bench.keeper.rows:
            most = max(most, bench.value("bridge_lane_queued"))
            await asyncio.sleep(0.05)
        assert most <= 40 + len(keys)
        assert_nothing_is_remembered(bench)
    for key in keys:
        tried = [name for name in destination.ids if name[0] == key]
        assert list(dict.fromkeys(tried)) == [f"{key}-{n}" for n in range(50)]


async def test_what_is_parked_behind_a_replayed_letter_is_written_once() -> None:
    broken = True
    destination = ScriptedDestination(lambda _: UNAVAILABLE if broken else ACCEPTED)
    bench = Bench(destination, park=True, max_attempts=1000)
    given = deliveries(*(f"a-{n}" for n in range(40)))
    async with bench.running():
        await put(bench, given)
        await bench.keeper.park_in_order("plants", [InOrder(event=event("a-late"), order_key=ord("a"))])
        bench.keeper._wakes["plants"]()
        await until(lambda: bool(bench.lane._room.parking._aside))
        bench.lane.make_way(for_all=True)
        assert await settled(given) == [Outcome.PARKED] * 40
        broken = False
        await until(lambda: not bench.keeper.rows)
        assert_nothing_is_remembered(bench)
    assert [name for name in dict.fromkeys(destination.ids) if name != "a-late"] == [
        f"a-{n}" for n in range(40)
    ]


async def test_one_that_came_back_behind_another_goes_when_those_behind_it_are_parked() -> None:
    bench = Bench(destination := ScriptedDestination(seconds=10), park=True)
    first, last = deliveries("a-1", "a-2")
    async with bench.running():
        await put(bench, [first])
        await bench.keeper.park_in_order("plants", [InOrder(event=event("a-0"), order_key=ord("a"))])
        bench.keeper._wakes["plants"]()
        await asyncio.sleep(1)
        await put(bench, [last])
        bench.lane.make_way(for_all=True)
        await until(lambda: first.outcome is not None and not bench.keeper.rows, 100)
        assert_nothing_is_remembered(bench)
    assert destination.ids == ["a-1", "a-0", "a-2"]


async def test_without_parking_followers_are_held() -> None:
    broken = True

    def script(one: Event) -> Answer:
        return UNAVAILABLE if one.id.startswith("a") and broken else ACCEPTED

    destination = ScriptedDestination(script)
    bench = Bench(destination, park=False, max_attempts=1000)
    given = deliveries(*(f"a-{n}" for n in range(300)))
    async with bench.running():
        await put(bench, given)
        good = deliveries("b-0")
        await put(bench, good)
        await settled(good)
        await asyncio.sleep(100)
        assert bench.value("bridge_lane_queued") == 300
        told = {delivery.event.id: doing for delivery, doing in bench.lane.in_hand()}
        assert told["a-0"] == "it comes next"
        assert told["a-299"] == "it waits for one of its key (`order_by`): a-0"
        assert bench.value("bridge_lane_keys_held") == 1
        broken = False
        await settled(given)
    assert list(dict.fromkeys(destination.ids)) == ["a-0", "b-0", *(f"a-{n}" for n in range(1, 300))]


async def test_a_dead_letter_lets_its_key_go_on_and_says_so() -> None:
    destination = ScriptedDestination(lambda one: REJECTED if one.id == "a-0" else ACCEPTED, seconds=1)
    bench = Bench(destination)
    given = deliveries("a-0", "a-1", "a-2")
    async with bench.running():
        bench.keeper.broken = True
        await put(bench, given)
        await asyncio.sleep(60)
        assert destination.ids == ["a-0"], "its followers wait until it is durable"
        bench.keeper.broken = False
        assert await settled(given) == [Outcome.DEAD_LETTERED, Outcome.ACCEPTED, Outcome.ACCEPTED]
    (letter,) = bench.keeper.letters
    assert letter.order_key == key_of(given[0].event)
    assert letter.detail == "body too large (its key goes on without it: 2 waited behind it)"


async def test_a_replayed_dead_letter_takes_its_turn() -> None:
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination)
    given = deliveries("a-1", "a-2")
    async with bench.running():
        await put(bench, given)
        await bench.keeper.park_in_order("plants", [InOrder(event=event("a-0"), order_key=ord("a"))])
        bench.keeper._wakes["plants"]()
        await settled(given)
        await until(lambda: not bench.keeper.rows)
    assert destination.peak == 1
    assert destination.ids == ["a-1", "a-2", "a-0"]


async def test_one_given_back_in_an_attempt_keeps_its_key_until_that_ends() -> None:
    destination = ScriptedDestination(seconds=10)
    bench = Bench(destination)
    first, again = deliveries("a-0", "a-1"), deliveries("a-0", "a-1")
    async with bench.running():
        await put(bench, first)
        await asyncio.sleep(1)
        for delivery in first:
            delivery.settle(Outcome.RELEASED)
        await put(bench, again)
        await settled(again)
        assert_nothing_is_remembered(bench)
    assert destination.peak == 1
    assert destination.ids == ["a-0", "a-0", "a-1"]


async def test_a_stop_lets_nothing_overtake_what_is_in_the_store() -> None:
    broken = True

    def script(one: Event) -> Answer:
        return UNAVAILABLE if one.id[0] == "a" and broken else ACCEPTED

    keeper = MemoryKeeper()
    destination = ScriptedDestination(script, seconds=0.1)
    bench = Bench(destination, park=True, keeper=keeper)
    given = deliveries(*(f"a-{n}" for n in range(150)))
    async with bench.running():
        await put(bench, given)
        await until(lambda: all(each.outcome is Outcome.PARKED for each in given))
        await asyncio.sleep(1)
        bench.lane.close()
        broken = False
        late = deliveries("a-150", "b-0")
        await put(bench, late)
        assert await settled(late) == [Outcome.RELEASED, Outcome.ACCEPTED]
    again = Bench(destination, park=True, keeper=keeper)
    async with again.running():
        await put(again, deliveries("a-150"))
        await until(lambda: not keeper.rows)
        await until(lambda: destination.ids[-1] == "a-150")
    assert list(dict.fromkeys(name for name in destination.ids if name[0] == "a")) == [
        f"a-{n}" for n in range(151)
    ]


@pytest.mark.parametrize("full", [False, True])
async def test_what_the_store_does_not_take_overtakes_nothing(full: bool) -> None:
    broken = True

    def script(one: Event) -> Answer:
        return UNAVAILABLE if one.id[0] == "a" and broken else ACCEPTED

    destination = ScriptedDestination(script)
    bench = Bench(destination, park=True, max_attempts=1000)
    async with bench.running():
        bench.keeper.broken, bench.keeper.full = not full, full
        await put(bench, deliveries(*(f"a-{n}" for n in range(150))))
        await asyncio.sleep(100)
        assert not bench.keeper.rows
        bench.keeper.broken = bench.keeper.full = False
        await asyncio.sleep(100)
        assert len(bench.keeper.rows) == 150
        bench.keeper.broken = True
        putting = asyncio.create_task(put(bench, deliveries(*(f"a-{n}" for n in range(150, 200)))))
        await asyncio.sleep(100)
        broken = False
        await asyncio.sleep(100)
        bench.keeper.broken = False
        await putting
        await until(lambda: not bench.keeper.rows and len(set(destination.ids)) == 200)
        assert_nothing_is_remembered(bench)
    assert list(dict.fromkeys(destination.ids)) == [f"a-{n}" for n in range(200)]


async def set_aside(bench: Bench, keys: str) -> None:
    """Have events of keys, of which the first fails, wait in the store."""
    parked = [InOrder(event=event(f"{key}-{n}"), order_key=ord(key)) for key in keys for n in range(50)]
    await bench.keeper.park_in_order("plants", parked)
    bench.keeper._wakes["plants"]()
    await until(
        lambda: len(bench.lane._room.parking._aside) == len(keys) and not bench.lane._room.parking.backlog
    )


@pytest.mark.parametrize("park", [False, True])
async def test_what_can_not_be_parked_behind_its_key_holds_up_no_other(park: bool) -> None:
    broken = True

    def script(one: Event) -> Answer:
        return UNAVAILABLE if one.id[0] == "a" and broken else ACCEPTED

    destination = ScriptedDestination(script)
    bench = Bench(destination, park=park, max_attempts=1000)
    async with bench.running():
        await set_aside(bench, "a")
        bench.keeper.full = park
        slow, last = deliveries(*(f"a-{n}" for n in range(50, 60))), deliveries("c-0")
        if park:
            await put(bench, slow[:1])
            await until(lambda: bench.lane._room.parking.failing)
        putting = asyncio.create_task(put(bench, [*(slow[1:] if park else slow), *last]))
        await until(lambda: bench.lane._room.entrance.held)
        good = deliveries("b-0", "b-1")
        async with asyncio.timeout(0.01):
            await put(bench, good)
            await settled(good)
        assert bench.lane._room.entrance.held
        bench.keeper.full = broken = False
        await putting
        await until(lambda: not bench.keeper.rows and last[0].outcome is not None)
        await settled(slow)
        await until(lambda: not bench.lane._room.order.keys)
        assert_nothing_is_remembered(bench)
    assert list(dict.fromkeys(name for name in destination.ids if name[0] == "a")) == [
        f"a-{n}" for n in range(60)
    ]


async def test_a_key_that_is_parked_time_and_again_lets_others_in() -> None:
    bench = Bench(
        ScriptedDestination(lambda one: UNAVAILABLE if one.id[0] == "a" else ACCEPTED),
        park=True,
        max_attempts=1000,
    )
    async with bench.running():
        await set_aside(bench, "a")

        async def feed() -> None:
            for n in range(50, 2000):
                await put(bench, deliveries(f"a-{n}"))
                await asyncio.sleep(0.0005)

        feeding = asyncio.create_task(feed())
        await asyncio.sleep(0.1)
        await bench.keeper.replay(event("free"))
        good = deliveries("b-0")
        async with asyncio.timeout(0.1):
            await put(bench, good)
            await settled(good)
        assert not feeding.done()
        await cancel(feeding)


async def test_one_key_that_backs_off_does_not_fill_a_small_lane() -> None:
    bench = Bench(
        ScriptedDestination(lambda one: UNAVAILABLE if one.id[0] == "a" else ACCEPTED), park=True, queue=40
    )
    async with bench.running():
        good = deliveries("b-0")
        async with asyncio.timeout(5):
            for n in range(60):
                await put(bench, deliveries(f"a-{n}"))
                await asyncio.sleep(0.01)
                assert bench.value("bridge_lane_queued") <= 40 // 4 + 1
            await put(bench, good)
            await settled(good)


async def test_near_the_budget_smaller_events_of_other_keys_are_parked() -> None:
    class NearBudget(MemoryKeeper):
        near = False

        async def park_in_order(self, service: str, events: Sequence[InOrder]) -> None:
            if self.near and any(each.event.size > 1000 for each in events):
                raise StoreFullError("at its budget")
            await super().park_in_order(service, events)

    broken = True
    keeper = NearBudget()
    destination = ScriptedDestination(lambda _: UNAVAILABLE if broken else ACCEPTED)
    bench = Bench(destination, park=True, max_attempts=1000, keeper=keeper)
    async with bench.running():
        good = deliveries("z-0")
        await set_aside(bench, "ab")
        keeper.near = True
        large = [Delivery(event("a-50", b"x" * 10_000)), *deliveries("a-51", "a-52")]
        small = deliveries(*(f"b-{n}" for n in range(50, 55)))
        putting = asyncio.create_task(put(bench, [*large, *small]))
        assert await settled(small) == [Outcome.PARKED] * 5
        assert {delivery.outcome for delivery in large} == {None}
        keeper.near = False
        assert await settled(large) == [Outcome.PARKED] * 3
        await putting
        broken = False
        await put(bench, good)
        await until(lambda: not keeper.rows and good[0].outcome is not None)
        await until(lambda: not bench.lane._room.order.keys)
        assert_nothing_is_remembered(bench)
    for key, last in ("a", 53), ("b", 55):
        tried = dict.fromkeys(name for name in destination.ids if name[0] == key)
        assert list(tried) == [f"{key}-{n}" for n in range(last)]


class Log:
    """A topic of one partition: what is not settled is told again after a restart, in its order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._settled: set[int] = set()
        self.open: list[Delivery] = []

    @property
    def committed(self) -> int:
        return next((n for n in range(len(self.names)) if n not in self._settled), len(self.names))

    async def read(self, bench: Bench, slots: int, dice: random.Random) -> None:
        room = asyncio.Semaphore(slots)
        self._settled = set(range(self.committed))
        for number in range(self.committed, len(self.names)):
            await room.acquire()

            def record(_: Delivery, outcome: Outcome, number: int = number) -> None:
                room.release()
                if outcome is not Outcome.RELEASED:
                    self._settled.add(number)

            delivery = Delivery(event(self.names[number]), record, nearly_dead=dice.random() < 0.01)
            self.open.append(delivery)
            ordered = None if delivery.event.id[0] == "-" else key_of(delivery.event)
            crowded = dice.random() < 0.1
            await bench.lane.put(delivery, lambda crowded=crowded: crowded, order_key=ordered)  # type: ignore[misc]
            if dice.random() < 0.1:
                await asyncio.sleep(dice.choice((0.001, 1, 10)))

    def give_back(self) -> None:
        for delivery in self.open:
            delivery.settle(Outcome.RELEASED)
        self.open.clear()


class Service:
    """Keeps what it accepted, in that order, and who was called while another of the key was."""

    def __init__(self, dice: random.Random, fails: float) -> None:
        self.dice = dice
        self.mood: Sequence[Answer] = [ACCEPTED]
        self.accepted: dict[str, None] = {}
        self._fails = fails
        self._tries: Counter[str] = Counter()
        self._bad = {}  # type: dict[str, tuple[Answer, int]]
        self.cluster = Cluster(places=50, seconds=2.0, page=100)

    def __call__(self, one: Event) -> Answer:
        if one.id not in self._bad:
            bad = self.dice.choice(((REJECTED, 99), (FAILED, 12), (UNAVAILABLE, 6), (BUSY, 2), (FAILED, 2)))
            self._bad[one.id] = bad if self.dice.random() < self._fails else (ACCEPTED, 0)
        self._tries[one.id] += 1
        trouble, times = self._bad[one.id]
        answer = trouble if self._tries[one.id] <= times else self.dice.choice(self.mood)
        if answer is ACCEPTED:
            self.accepted.setdefault(one.id)
            return self.cluster.make(one)
        return answer


class Watched(ScriptedDestination):
    """Notes the keys of which two events were attempted at once."""

    def __init__(self, script: Service) -> None:
        super().__init__(script)
        self.active_of: Counter[str] = Counter()
        self.clashes: list[str] = []

    async def attempt(self, one: Event) -> Answer:
        key = one.id[0]
        self.active_of[key] += 1
        if key != "-" and self.active_of[key] > 1:
            self.clashes.append(one.id)
        try:
            await asyncio.sleep(self.script.dice.choice((0, 0.01, 1)))  # type: ignore[union-attr]
            return await super().attempt(one)
        finally:
            self.active_of[key] -= 1


MOODS: Sequence[Sequence[Answer]] = (
    [ACCEPTED],
    [ACCEPTED],
    [ACCEPTED, UNAVAILABLE],
    [ACCEPTED, FAILED, BUSY],
    [UNREACHABLE],
    [REFUSED],
)


async def live(seed: int, keys: int, ends: Sequence[str], active_jobs: int | None, fails: float) -> None:
    """Send events through a few lives of a bridge on one store. Each ends by a kill or a stop."""
    dice = random.Random(seed)
    random.seed(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"[:keys] + "-"
    weights = [dice.choice((1, 1, 10)) for _ in letters]
    names = [f"{key}-{n}" for n, key in enumerate(dice.choices(letters, weights, k=dice.choice((50, 250))))]
    log, keeper = Log(names), MemoryKeeper()
    service = Service(dice, fails)
    destination = Watched(service)
    for life, end in enumerate([*ends, "finish"]):
        pause = Pause()
        bench = Bench(
            destination,
            park=dice.random() < 0.9 or end == "finish",
            keeper=keeper,
            queue=dice.choice((1, 20, 300)),
            concurrency=dice.choice((1, 4, 16)),
            park_after=dice.choice((1.0, 60.0)),
            max_attempts=8,
            pauses=[pause],
            active_jobs=active_jobs,
            maker=None if active_jobs is None else service.cluster,
        )
        lane = asyncio.create_task(bench.lane.run())
        reading = asyncio.create_task(log.read(bench, dice.choice((5, 50, 300)), dice))
        sweeps = asyncio.create_task(
            service.cluster.sweeps(bench.lane.jobs) if active_jobs else asyncio.sleep(0)
        )
        for _ in range(dice.choice((1, 5))):
            service.mood = dice.choice(MOODS)
            keeper.broken, keeper.full = dice.random() < 0.1, dice.random() < 0.1
            pause.set(dice.random() < 0.1)
            if keeper.letters and dice.random() < 0.2:
                await replay(keeper, dice.choice(keeper.letters))
            await asyncio.sleep(dice.choice((0.005, 0.5, 20, 200)))
            if dice.random() < 0.2 and life % 2:
                bench.lane.make_way(for_all=True)
            if dice.random() < 0.1:  # the partition goes and comes
                await cancel(reading)
                log.give_back()
                reading = asyncio.create_task(log.read(bench, 50, dice))
        keeper.broken = keeper.full = False
        pause.set(False)
        if end == "stop":
            await cancel(reading)
            bench.lane.close()
            await asyncio.sleep(dice.choice((0.01, 25)))
            log.give_back()
        elif end == "finish":
            service.mood = [ACCEPTED]
            await asyncio.wait_for(reading, 30 * 86400)
            await until(lambda: log.committed == len(names) and not keeper.rows, 30 * 86400, step=30)
            if active_jobs is None:
                assert_nothing_is_remembered(bench)
        await cancel(sweeps)
        await cancel(lane)
        await cancel(reading)
        log.open.clear()
    assert not destination.clashes
    dead = {letter.event.id for letter in keeper.letters}
    assert set(names) == service.accepted.keys() | dead
    accepted = defaultdict(list)
    for name in service.accepted:
        if name not in dead:
            accepted[name[0]].append(name)
    for key in letters[:-1]:
        assert accepted[key] == [name for name in names if name[0] == key and name not in dead]


async def replay(keeper: MemoryKeeper, letter: DeadLetter) -> None:
    if letter.order_key is not None:
        with suppress(StoreError):
            await keeper.park_in_order("plants", [InOrder(event=letter.event, order_key=letter.order_key)])
            keeper._wakes["plants"]()


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


LIVES = given(
    seed=st.integers(0, 2**32),
    keys=st.sampled_from((1, 3, 20)),
    ends=st.lists(st.sampled_from(("kill", "stop")), max_size=4),
    active_jobs=st.sampled_from((None, None, 3, 30)),
    fails=st.sampled_from((0.0, 0.02, 0.2)),
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@LIVES
def test_whatever_happens_a_key_s_events_are_accepted_in_the_order_they_came(
    seed: int, keys: int, ends: Sequence[str], active_jobs: int | None, fails: float
) -> None:
    """Through failures, parking, dead letters, kills and stops, but for the dead letters."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(live(seed, keys, ends, active_jobs, fails))


@pytest.mark.prove
@pytest.mark.timeout(1200)
@settings(max_examples=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@LIVES
def test_however_often_it_happens_a_key_s_events_are_accepted_in_the_order_they_came(
    seed: int, keys: int, ends: Sequence[str], active_jobs: int | None, fails: float
) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(live(seed, keys, ends, active_jobs, fails))


def test_a_key_is_of_its_source_expression_and_value() -> None:
    keys = [
        order_key("s", "data.x", "1"),
        order_key("s", "data.x", 1),
        order_key("s", "data.x", True),
        order_key("s", "data.y", "1"),
        order_key("t", "data.x", "1"),
        order_key("s", "data.x", ["1"]),
        order_key("s", "data.x", "\ud83d"),
    ]
    assert len(set(keys)) == len(keys)
    assert all(key is not None and 0 <= key < 2**63 for key in keys)
    assert order_key("s", "data.x", "1") == keys[0]
    assert order_key("s", "data.x", None) is None
    assert order_key("s", "data.x", "") is None
    with pytest.raises(TypeError, match="gave dict, expected text"):
        order_key("s", "data.x", {})


async def test_a_key_that_can_not_be_told_is_a_dead_letter_and_none_is_no_order() -> None:
    house = House(route(order_by="data.user"), plants=ACCEPTED)
    destination = house.destinations["plants"]
    destination.seconds = 1
    for data in (b'{"user": null}', b'{"user": ""}', b"{}", b'{"user": "x"}', b'{"user": 1}'):
        assert await house.send(event(data.decode(), data)) is Outcome.ACCEPTED
    assert await house.send(event("map", b'{"user": {}}')) is Outcome.DEAD_LETTERED
    assert await house.send(event("text", b"no JSON")) is Outcome.DEAD_LETTERED
    assert [(letter.cause, letter.service) for letter in house.dead.letters] == [
        ("route", "plants"),
        ("not_json", "plants"),
    ]
    assert "expected text, a number or a list" in house.dead.letters[0].detail


async def test_a_key_is_made_of_the_decoded_event_and_two_routes_have_keys_of_their_own() -> None:
    house = House(
        route(when="data.a == 1", order_by="data.user"),
        route(when="data.a != 1", order_by="data.group"),
        plants=ACCEPTED,
    )
    bench, destination = house.benches["plants"], house.destinations["plants"]
    destination.seconds = 1
    async with bench.running():
        given = [
            Delivery(event(name, data))
            for name, data in (
                ("1", b'{"a": 1, "user": "x"}'),
                ("2", b'{"a": 2, "group": "x"}'),
                ("3", b'{"a": 1, "user": "x"}'),
                ("4", b'{"a": 2, "group": "x"}'),
            )
        ]
        for delivery in given:
            await house.router.route(delivery)
        await settled(given)
    assert destination.peak == 2
    assert [name for name in destination.ids if name in "13"] == ["1", "3"]
    assert [name for name in destination.ids if name in "24"] == ["2", "4"]
