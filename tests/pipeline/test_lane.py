"""A lane: its room, its workers, its gate, and that every Delivery gets one true answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline.limits.concurrency import Fixed
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.places import _KEPT, _KEPT_BYTES
from tests.pipeline import clock
from tests.pipeline.scripted import (
    ACCEPTED,
    DUPLICATE,
    FAILED,
    REFUSED,
    REJECTED,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN,
    UNREACHABLE,
    Bench,
    ScriptedDestination,
    deliveries,
    event,
    settled,
    stop,
)


async def _until(condition: Callable[[], bool], within: float = 3600.0) -> None:
    """Let virtual time pass until `condition()` holds."""
    deadline = clock.now() + within
    while not condition():
        assert clock.now() < deadline
        await asyncio.sleep(0.01)


# --- settling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [ACCEPTED, DUPLICATE], ids=["accepted", "duplicate"])
async def test_what_the_service_took_settles_accepted(answer: Answer) -> None:
    bench = Bench(ScriptedDestination(answer, seconds=0.2))
    happened = datetime.fromtimestamp(clock.wall_clock() - 60, UTC)
    delivery = Delivery(event("a", time=happened))
    async with bench.running():
        await bench.lane.put(delivery)
        assert await settled([delivery]) == [Outcome.ACCEPTED]
    assert bench.invocations(answer.verdict.value) == 1
    assert bench.value("bridge_invocation_seconds_sum") == pytest.approx(0.2)
    assert bench.value("bridge_event_age_seconds_sum") == pytest.approx(60.2)
    assert not bench.dead.letters
    bench.assert_nothing_is_remembered()


async def test_an_event_without_a_time_has_no_age() -> None:
    bench = Bench(ScriptedDestination())
    async with bench.running():
        given = deliveries(1)
        await bench.put(given)
        await settled(given)
    assert bench.value("bridge_event_age_seconds_count") == 0


@pytest.mark.parametrize("answer", [REJECTED, TOO_LARGE, UNKNOWN], ids=lambda answer: answer.cause)
async def test_what_can_never_be_taken_is_a_dead_letter_at_once(answer: Answer) -> None:
    bench = Bench(ScriptedDestination(lambda event: answer if event.id == "bad" else ACCEPTED, seconds=1))
    bad, good = Delivery(event("bad")), Delivery(event("good"))
    async with bench.running():
        await bench.put([bad, good])
        assert await settled([bad, good], within=2) == [Outcome.DEAD_LETTERED, Outcome.ACCEPTED]
    (letter,) = bench.dead.letters
    assert (letter.event, letter.service, letter.cause) == (bad.event, "plants", answer.cause)
    assert (letter.detail, letter.status, letter.attempts) == (answer.detail, answer.status, 1)
    assert letter.first_attempt == pytest.approx(clock.EPOCH + clock.STARTS_AT)
    assert letter.last_attempt == pytest.approx(clock.EPOCH + clock.STARTS_AT + 1)
    assert bench.invocations(answer.verdict.value) == 1
    assert bench.value("bridge_lane_open") == 1
    bench.assert_nothing_is_remembered()


# --- concurrency and room ---------------------------------------------------------------------


async def test_concurrency_is_fully_used_and_never_exceeded() -> None:
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination, concurrency=7)
    given = deliveries(70)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(0.5)
        assert bench.value("bridge_lane_in_flight") == bench.value("bridge_lane_limit") == 7
        assert bench.value("bridge_lane_queued") == 63
        began = clock.now()
        await settled(given)
        assert clock.now() - began == pytest.approx(9.5)
    assert destination.peak == 7
    assert destination.ids == [delivery.event.id for delivery in given]


async def test_events_are_made_ready_in_bounded_batches_and_one_released_is_forgotten() -> None:
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination, concurrency=1)
    given = deliveries(100)
    await bench.put(given)
    async with bench.running():
        await asyncio.sleep(0.5)
        assert destination.prepared == [delivery.event.id for delivery in given[:33]]
        given[1].settle(Outcome.RELEASED)
        assert len(bench.lane._places._ready) == 31
        await settled(given)
    assert destination.ids == [delivery.event.id for delivery in given if delivery is not given[1]]
    assert sorted(destination.prepared) == sorted(delivery.event.id for delivery in given)  # each once
    bench.assert_nothing_is_remembered()


@pytest.mark.parametrize("what", [{"data": b"x" * 40_000}, {"attributes": {"key": "x" * 40_000}}])
async def test_large_events_are_made_ready_one_by_one(what: dict[str, Any]) -> None:
    """Each takes milliseconds, in which nothing else goes on."""
    destination = ScriptedDestination(seconds=1)
    bench = Bench(destination, concurrency=1)
    given = [Delivery(event(number, **what)) for number in range(10)]
    await bench.put(given)
    async with bench.running():
        await asyncio.sleep(0.5)
        assert destination.prepared == ["0"]
        await settled(given)
    assert destination.ids == [str(number) for number in range(10)]
    bench.assert_nothing_is_remembered()


async def test_what_failed_is_made_ready_once_but_for_those_beyond_many() -> None:
    failing = True
    destination = ScriptedDestination(lambda _: FAILED if failing else ACCEPTED, seconds=0.1)
    bench = Bench(destination, concurrency=1000, max_attempts=99)
    given = deliveries(_KEPT + 10)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(0.1001)  # all have failed, and none is attempted again yet
        assert len(bench.lane._places._failed) == _KEPT
        given[1].settle(Outcome.RELEASED)
        assert len(bench.lane._places._failed) == _KEPT - 1
        failing = False
        await settled(given)
    assert len(destination.prepared) == len(given) + 10  # those beyond
    bench.assert_nothing_is_remembered()


async def test_what_failed_is_made_ready_once_as_far_as_there_is_memory_for_it() -> None:
    failing = True
    destination = ScriptedDestination(lambda _: FAILED if failing else ACCEPTED, seconds=0.1)
    bench = Bench(destination, max_attempts=99)
    for kept, size in ((3, _KEPT_BYTES // 3), (1, _KEPT_BYTES)):  # what is done leaves room for others
        failing = True
        destination.prepared.clear()
        given = [Delivery(event(number, b"x" * size)) for number in range(4)]
        async with bench.running():
            await bench.put(given)
            await asyncio.sleep(0.1001)
            failing = False
            await settled(given)
        assert sorted(Counter(destination.prepared).values()) == [1] * kept + [2] * (4 - kept)
        bench.assert_nothing_is_remembered()


async def test_what_is_released_amid_an_attempt_that_fails_is_forgotten() -> None:
    bench = Bench(ScriptedDestination(FAILED, seconds=1))
    [delivery] = given = deliveries(1)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(0.5)
        delivery.settle(Outcome.RELEASED)
        await bench.lane.finished()
        bench.assert_nothing_is_remembered()


async def test_a_full_lane_takes_more_when_some_room_has_gathered() -> None:
    bench = Bench(ScriptedDestination(seconds=1), queue=100, concurrency=1)
    await bench.put(deliveries(100))
    more = asyncio.create_task(bench.lane.put(*deliveries(1, "more")))
    async with bench.running():
        await asyncio.sleep(23.5)
        assert not more.done()
        await asyncio.sleep(1)  # the 25th attempt frees a quarter of the places
        assert more.done()
        assert bench.value("bridge_lane_queued") == 76


async def test_a_full_lane_makes_put_wait_in_turn() -> None:
    bench = Bench(ScriptedDestination(seconds=1), queue=1, concurrency=1)
    given = deliveries(6)
    async with bench.running(), asyncio.TaskGroup() as putters:
        for delivery in given:
            putters.create_task(bench.lane.put(delivery))
        await asyncio.sleep(0.5)
        assert bench.value("bridge_lane_queued") == 1
        assert await settled(given, within=6) == [Outcome.ACCEPTED] * 6
    bench.assert_nothing_is_remembered()


async def test_a_delivery_released_while_it_waits_leaves_at_once_and_frees_its_room() -> None:
    bench = Bench(ScriptedDestination(), queue=2)  # no worker runs
    first, second, third, fourth = deliveries(4)
    await bench.put([first, second])
    async with asyncio.timeout(1), asyncio.TaskGroup() as putters:
        putters.create_task(bench.lane.put(third))
        fourth_put = putters.create_task(bench.lane.put(fourth))
        await asyncio.sleep(0)
        fourth.settle(Outcome.RELEASED)
        await fourth_put  # needs no room any more
        assert bench.value("bridge_lane_queued") == 2
        first.settle(Outcome.RELEASED)
    assert list(bench.lane._waiting) == [second, third]
    for delivery in (second, third):
        delivery.settle(Outcome.RELEASED)
    bench.assert_nothing_is_remembered()


@pytest.mark.parametrize("how", ["cancelled", "released"])
async def test_room_offered_to_a_put_that_needs_it_no_more_goes_to_the_next(how: str) -> None:
    bench = Bench(ScriptedDestination(), queue=1)  # no worker runs
    first, second, third = deliveries(3)
    await bench.lane.put(first)
    second_put = asyncio.create_task(bench.lane.put(second))
    third_put = asyncio.create_task(bench.lane.put(third))
    await asyncio.sleep(0)
    first.settle(Outcome.RELEASED)  # offers the room to the second, which has no chance to take it
    if how == "cancelled":
        second_put.cancel()
    else:
        second.settle(Outcome.RELEASED)
    await asyncio.wait_for(third_put, 1)
    await asyncio.gather(second_put, return_exceptions=True)
    assert list(bench.lane._waiting) == [third]


async def test_a_settled_delivery_is_not_queued() -> None:
    destination = ScriptedDestination()
    bench = Bench(destination)
    (given,) = deliveries(1)
    given.settle(Outcome.RELEASED)
    async with bench.running():
        await bench.lane.put(given)
        await asyncio.sleep(1)
    assert not destination.began
    bench.assert_nothing_is_remembered()


async def test_a_delivery_released_between_attempts_leaves_the_timetable_and_frees_its_room() -> None:
    destination = ScriptedDestination(Answer(FAILED.verdict, "http_500", retry_after=600.0))
    bench = Bench(destination, queue=1)
    failing, waiting = deliveries(2)
    async with bench.running():
        await bench.lane.put(failing)
        await _until(lambda: bench.lane._failures.past(failing) is not None and not bench.lane._places.busy)
        put = asyncio.create_task(bench.lane.put(waiting))
        await asyncio.sleep(1)
        assert not put.done()
        destination.script = ACCEPTED
        failing.settle(Outcome.RELEASED)
        await asyncio.wait_for(put, 1)
        assert await settled([waiting], within=1) == [Outcome.ACCEPTED]
        await asyncio.sleep(3600)
    assert destination.ids == ["0", "1"]
    bench.assert_nothing_is_remembered()


@pytest.mark.parametrize("answer", [ACCEPTED, UNAVAILABLE, REFUSED, REJECTED])
async def test_a_delivery_released_during_its_attempt_is_forgotten_after_it(answer: Answer) -> None:
    destination = ScriptedDestination(answer, seconds=10)
    bench = Bench(destination)
    (given,) = deliveries(1)
    async with bench.running():
        await bench.lane.put(given)
        await asyncio.sleep(1)
        given.settle(Outcome.RELEASED)
        assert bench.value("bridge_lane_in_flight") == 1
        await asyncio.sleep(3600)
        bench.assert_nothing_is_remembered()
    assert given.outcome is Outcome.RELEASED
    assert destination.ids == ["0"]
    assert not bench.dead.letters


@settings(max_examples=60)
@given(seed=st.integers(min_value=0), queue=st.integers(1, 3), concurrency=st.integers(1, 4))
async def test_whatever_happens_every_delivery_settles_once_and_nothing_is_left(
    seed: int, queue: int, concurrency: int
) -> None:
    rng = random.Random(seed)
    answers = [ACCEPTED] * 6 + [DUPLICATE, FAILED, UNAVAILABLE, UNREACHABLE, REFUSED, REJECTED, UNKNOWN]

    async def script(_event: Event) -> Answer:
        await asyncio.sleep(rng.choice([0, 0, 0.01, 1, 30]))
        return rng.choice(answers)

    bench = Bench(
        ScriptedDestination(script),
        queue=queue,
        concurrency=concurrency,
        rate=rng.choice([None, "5/s"]),
        max_attempts=3,
    )
    given = deliveries(30)
    answered: list[str] = []
    for delivery in given:
        delivery.watch(lambda delivery, _outcome: answered.append(delivery.event.id))
    cancelled: list[Delivery] = []

    async def source(delivery: Delivery) -> None:
        await asyncio.sleep(rng.uniform(0, 60))
        put = asyncio.create_task(bench.lane.put(delivery))
        chance = rng.random()
        if chance < 0.2:
            await asyncio.sleep(rng.choice([0, 0, 0.01, 5]))
            delivery.settle(Outcome.RELEASED)
        elif chance < 0.4:
            await asyncio.sleep(rng.choice([0, 0, 0.01, 5]))
            put.cancel()
            await asyncio.gather(put, return_exceptions=True)
            if put.cancelled():
                cancelled.append(delivery)
                assert delivery.outcome is None
        async with asyncio.timeout(24 * 3600):
            await asyncio.gather(put, return_exceptions=True)

    async def breaks() -> None:
        for _ in range(5):
            await asyncio.sleep(rng.uniform(0, 20))
            bench.dead.broken = not bench.dead.broken
        bench.dead.broken = False

    async with bench.running():
        async with asyncio.TaskGroup() as sources:
            sources.create_task(breaks())
            for delivery in given:
                sources.create_task(source(delivery))
        await settled([delivery for delivery in given if delivery not in cancelled], within=24 * 3600)
        await _until(lambda: bench.value("bridge_lane_in_flight") == 0)
        assert sorted(answered) == sorted(
            delivery.event.id for delivery in given if delivery not in cancelled
        )
        bench.assert_nothing_is_remembered()


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("poisons", [1, 2, 4])
async def test_a_few_events_that_always_fail_after_a_long_time_do_not_have_all_the_places(
    poisons: int, concurrency: int
) -> None:
    """They are due again before the others of them have ended: those older would go first for ever."""

    async def script(given: Event) -> Answer:
        if given.id.startswith("bad"):
            await asyncio.sleep(30)
            return FAILED
        return FAILED if destination.ids.count(given.id) == 1 else ACCEPTED

    destination = ScriptedDestination(script)
    bench = Bench(destination, concurrency=concurrency, max_backoff=5)
    async with bench.running():
        await bench.put(deliveries(poisons, "bad"))
        await asyncio.sleep(200)
        for number in range(5):
            await bench.put(good := deliveries(1, f"good{number}-"))
            assert await settled(good, within=250) == [Outcome.ACCEPTED]


class _Noting(Fixed):
    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.given: list[Attempt] = []

    def began(self, attempt: Attempt) -> None:
        super().began(attempt)
        self.given.append(attempt)


async def test_a_lane_that_ends_is_given_no_turn_by_another_of_its_cluster() -> None:
    for moment in range(3):
        limit = _Noting(1)
        ring = Ring([limit])
        ending = Bench(ScriptedDestination(seconds=1), ring=ring)
        other = Bench(ScriptedDestination(seconds=10), ring=ring)
        async with other.running():
            lane = asyncio.create_task(ending.lane.run())
            await ending.put(first := deliveries(3))
            await settled(first)
            await asyncio.sleep(0)
            await other.put(deliveries(1))
            await ending.put(deliveries(1))  # stands in the ring, with places that sleep
            await asyncio.sleep(5)
            lane.cancel()
            for _turn in range(moment):
                await asyncio.sleep(0)
            other.lane._endings.ended(limit.given[-1], ACCEPTED, clock.now())
            await asyncio.wait([lane])
            assert lane.cancelled()
            other.lane._endings.ended = lambda *_: None  # type: ignore[method-assign, assignment] - it has ended


@pytest.mark.parametrize("answer", [ACCEPTED, FAILED, REFUSED, REJECTED], ids=lambda answer: answer.cause)
async def test_cancelling_the_lane_at_any_moment_settles_nothing_falsely(answer: Answer) -> None:
    for moment in range(0, 400, 7):
        destination = ScriptedDestination(answer, seconds=0.1)
        bench = Bench(destination, concurrency=2, max_attempts=2, rate="20/s")
        given = deliveries(8)
        await bench.put(given)
        lane = asyncio.create_task(bench.lane.run())
        await asyncio.sleep(moment / 1000)
        await stop(lane)
        for delivery in given:
            if delivery.outcome is Outcome.ACCEPTED:
                assert delivery.event.id in destination.ids
                assert answer is ACCEPTED
            elif delivery.outcome is Outcome.DEAD_LETTERED:
                assert delivery.event.id in bench.dead.causes
            else:
                assert delivery.outcome is None
        for delivery in given:
            delivery.settle(Outcome.RELEASED)
        bench.assert_nothing_is_remembered()


# --- the store --------------------------------------------------------------------------------


async def test_while_the_store_is_broken_no_attempt_waits_for_it_and_nothing_settles() -> None:
    destination = ScriptedDestination(lambda event: REJECTED if event.id in "01" else ACCEPTED)
    bench = Bench(destination, concurrency=1)
    bench.dead.broken = True
    first, second, good = deliveries(3)
    async with bench.running():
        await bench.put([first, second, good])
        assert await settled([good], within=1) == [Outcome.ACCEPTED]
        await asyncio.sleep(600)
        assert first.outcome is None
        assert second.outcome is None
        assert destination.ids == ["0", "1", "2"]
        assert 2 * 600 / 15 < bench.dead.refusals < 400  # pauses of at most 15 s
        bench.dead.broken = False
        assert await settled([first, second], within=16) == [Outcome.DEAD_LETTERED] * 2
    assert bench.dead.causes == {"0": "http_413", "1": "http_413"}
    bench.assert_nothing_is_remembered()


async def test_a_delivery_released_while_the_store_is_broken_frees_the_worker() -> None:
    destination = ScriptedDestination(lambda event: REJECTED if event.id == "0" else ACCEPTED)
    bench = Bench(destination, concurrency=1)
    bench.dead.broken = True
    first, second = deliveries(2)
    async with bench.running():
        await bench.put([first, second])
        await asyncio.sleep(60)
        first.settle(Outcome.RELEASED)
        assert await settled([second], within=16) == [Outcome.ACCEPTED]
        bench.assert_nothing_is_remembered()
    assert first.outcome is Outcome.RELEASED
    assert not bench.dead.letters
