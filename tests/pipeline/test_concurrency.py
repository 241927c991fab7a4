"""The limit `concurrency`: what `auto` makes of answers; whole scenarios are in test_scenarios.py."""

from __future__ import annotations

import asyncio
import time
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.delivery import Delivery
from bridge.core.ports import Answer, Verdict
from bridge.pipeline.limits.concurrency import Auto, Fixed
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt
from tests.pipeline import clock
from tests.pipeline.scripted import ACCEPTED, FAILED, REFUSED, REJECTED, UNREACHABLE, event

NOT_NOW = Answer(Verdict.CAPACITY, "http_429", status=429)
OURS = Answer(Verdict.CAPACITY, "no_descriptors", ours=True)

_names = count()


def begin(limit: Auto | Fixed, name: str = "") -> Attempt:
    attempt = Attempt(Delivery(event(name or f"event-{next(_names)}")), clock.now())
    limit.began(attempt)
    return attempt


def begin_all(limit: Auto | Fixed) -> list[Attempt]:
    """Begin as many attempts as the limit allows now."""
    begun = []
    while limit.pause() <= 0:
        begun.append(begin(limit))
    return begun


async def rounds(limit: Auto, number: int, seconds: float = 0.1) -> None:
    """Have rounds of attempts accepted after so many seconds."""
    for _ in range(number):
        begun = begin_all(limit)
        await asyncio.sleep(seconds)
        for attempt in begun:
            limit.ended(attempt, ACCEPTED, clock.now() - attempt.began)


async def test_a_fixed_limit_lets_so_many_be_under_way() -> None:
    limit = Fixed(3)
    begun = begin_all(limit)
    assert len(begun) == 3
    assert limit.pause() == NOT_BEFORE_TOLD
    limit.ended(begun[0], FAILED, 0.1)
    assert limit.pause() == 0


async def test_it_begins_where_a_fixed_limit_stands_by_default_and_below_a_lower_ceiling() -> None:
    assert len(begin_all(Auto(200))) == 16
    assert len(begin_all(Auto(5))) == 5


async def test_asking_takes_nothing() -> None:
    limit = Auto(200)
    assert [limit.pause() for _ in range(1000)] == [0.0] * 1000


async def test_it_doubles_up_to_its_ceiling_while_more_costs_nothing() -> None:
    limit = Auto(200)
    seen = []
    for _ in range(6):
        await rounds(limit, 2)
        seen.append(limit.limit)
    assert seen == [32, 64, 128, 200, 200, 200]


async def test_it_does_not_rise_while_it_is_not_reached() -> None:
    limit = Auto(200)
    for _ in range(1000):
        attempt = begin(limit)
        await asyncio.sleep(0.1)
        limit.ended(attempt, ACCEPTED, 0.1)
    assert limit.limit == 16


async def test_two_events_told_not_now_quarter_it_once_for_all_that_were_under_way() -> None:
    limit = Auto(200)
    begun = begin_all(limit)
    await asyncio.sleep(0.1)
    limit.ended(begun[0], NOT_NOW, 0.1)
    assert limit.limit == 16
    for attempt in begun[1:]:
        limit.ended(attempt, NOT_NOW, 0.1)
    assert limit.limit == 4


async def test_two_events_with_an_acceptance_between_do_not_lower_it() -> None:
    limit = Auto(200)
    first, between, second = begin(limit), begin(limit), begin(limit)
    await asyncio.sleep(0.1)
    limit.ended(first, NOT_NOW, 0.1)
    limit.ended(between, ACCEPTED, 0.1)
    limit.ended(second, NOT_NOW, 0.1)
    assert limit.limit == 16


async def test_one_event_that_alone_is_told_not_now_lowers_nothing_and_does_not_keep_it_from_rising() -> None:
    limit = Auto(200)
    for _ in range(50):
        for _ in range(3):
            poisoned = begin(limit, "poison")
            await asyncio.sleep(0.01)
            limit.ended(poisoned, NOT_NOW, 0.01)
        before = limit.limit
        await rounds(limit, 1)
        assert limit.limit >= before
    assert limit.limit == 200


@pytest.mark.parametrize("answer", [UNREACHABLE, FAILED, REFUSED, REJECTED, OURS])
async def test_what_says_nothing_of_capacity_leaves_the_limit_as_it_was(answer: Answer) -> None:
    limit = Auto(200)
    await rounds(limit, 4)
    assert limit.limit == 64
    for _ in range(600):
        for attempt in begin_all(limit):
            limit.ended(attempt, answer, 0.0)
        await asyncio.sleep(0.1)
    assert limit.limit == 64
    assert limit.pause() == 0
    await rounds(limit, 2)
    assert limit.limit == 128


@pytest.mark.parametrize("seconds", [0.0, 0.01, 5.0])
async def test_a_side_that_refuses_even_one_at_a_time_is_asked_at_a_pace_at_last_once_a_second(
    seconds: float,
) -> None:
    """However long it took where it accepted."""
    limit = Auto(200)
    if seconds:
        await rounds(limit, 1, seconds)
    began: list[float] = []
    while clock.now() < clock.STARTS_AT + 3600:
        if (pause := limit.pause()) > 0:
            assert pause <= 1
            await asyncio.sleep(pause)
        else:
            began.append(clock.now())
            limit.ended(begin(limit), NOT_NOW, 0.0)
    assert limit.limit == 1
    assert len(began) < 3600 + 20
    assert began[-1] - began[-2] == pytest.approx(1)


async def test_after_a_pace_that_was_an_outage_it_is_back_within_rounds() -> None:
    limit = Auto(200)
    await rounds(limit, 8)
    assert limit.limit == 200
    for _ in range(100):
        await asyncio.sleep(min(limit.pause(), 1))
        for attempt in begin_all(limit):
            limit.ended(attempt, NOT_NOW, 0.0)
    assert limit.limit == 1
    await asyncio.sleep(limit.pause())
    began = clock.now()
    while limit.limit < 200:
        await rounds(limit, 1)
        await asyncio.sleep(min(limit.pause(), 0.0))
    assert clock.now() - began < 8  # half of it at paces, each of which must hold for a second


async def test_a_pace_that_was_good_before_is_back_within_a_few_acceptances() -> None:
    limit = Auto(200)

    async def one(answer: Answer) -> None:
        await asyncio.sleep(limit.pause())
        attempt = begin(limit)
        await asyncio.sleep(0.01)
        limit.ended(attempt, answer, 0.01)

    async def minutes(number: float, *, room: float) -> int:
        """Have one accepted each `room` seconds, at most; give how many were."""
        end, free, accepted = clock.now() + 60 * number, clock.now(), 0
        while clock.now() < end:
            fits = clock.now() >= free
            if fits:
                free, accepted = max(free + room, clock.now()), accepted + 1
            await one(ACCEPTED if fits else NOT_NOW)
        return accepted

    before = await minutes(10, room=0.5)
    assert before > 600 / 0.5 * 0.7
    await minutes(60, room=1e9)
    assert await minutes(10, room=0.5) > before * 0.95
    await minutes(1, room=0)
    assert limit.pause() == 0


async def test_what_a_service_refuses_whose_gate_is_shut_already_lowers_nothing() -> None:
    limit = Auto(200)
    for _ in range(1000):
        probe = Attempt(Delivery(event(f"event-{next(_names)}")), clock.now(), probe=True)
        limit.began(probe)
        await asyncio.sleep(0.01)
        limit.ended(probe, NOT_NOW, 0.01)
    assert limit.limit == 16


async def test_a_slower_side_for_which_a_lower_limit_does_nothing_keeps_its_limit() -> None:
    limit = Auto(64)
    await rounds(limit, 20)
    await rounds(limit, 20, seconds=1.0)
    assert limit.limit == 64


async def test_a_queue_at_the_other_side_brings_the_limit_down_to_a_few() -> None:
    limit = Auto(64)
    await rounds(limit, 20)
    for _ in range(60):  # one at a time now: an acceptance takes as long as all before it
        await rounds(limit, 1, seconds=0.1 * limit.limit)
    assert 4 <= limit.limit <= 8


@given(
    st.lists(
        st.tuples(
            st.sampled_from([ACCEPTED, NOT_NOW, UNREACHABLE, FAILED, OURS]),
            st.integers(0, 3),
            st.floats(0, 40),
            st.integers(1, 50),
        ),
        max_size=200,
    )
)
def test_whatever_comes_it_never_locks_and_stays_within_its_bounds(
    steps: list[tuple[Answer, int, float, int]],
) -> None:
    now = 1000.0
    limit = Auto(50)
    under_way: list[Attempt] = []
    with pytest.MonkeyPatch.context() as patched:
        for module in ("core.delivery", "pipeline.limits.concurrency"):
            patched.setattr(f"bridge.{module}.monotonic", lambda: now)
        for answer, name, seconds, ends in steps:
            while limit.pause() <= 0 and len(under_way) < 100:
                attempt = Attempt(Delivery(event(name)), now)
                limit.began(attempt)
                under_way.append(attempt)
            now += seconds
            for attempt in under_way[:ends]:
                limit.ended(attempt, answer, now - attempt.began)
            del under_way[:ends]
            assert 1 <= limit.limit <= 50
            assert len(under_way) <= 50
            assert under_way or limit.pause() <= 1


async def test_it_costs_a_few_microseconds_an_attempt() -> None:
    limit = Auto(200)
    attempts = [Attempt(Delivery(event(number)), clock.now()) for number in range(16)]

    def once() -> float:
        began = time.perf_counter()
        for _ in range(100):
            for attempt in attempts:
                limit.pause()
                limit.began(attempt)
            for attempt in attempts:
                limit.ended(attempt, ACCEPTED, 0.1)
        return (time.perf_counter() - began) / 1600

    assert min(once() for _ in range(20)) < 10e-6
