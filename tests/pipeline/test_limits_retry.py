"""The limits of a lane, the pauses between attempts, and when an event is given up."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.core.backoff import Backoff
from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import Answer, Verdict
from bridge.pipeline.limits.concurrency import Fixed
from bridge.pipeline.limits.config import LimitsConfig
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.limits.pace import Pace
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.retry import RetryConfig
from tests.pipeline import clock
from tests.pipeline.scripted import (
    ACCEPTED,
    FAILED,
    REFUSED,
    UNAVAILABLE,
    UNREACHABLE,
    Bench,
    ScriptedDestination,
    deliveries,
    event,
    settled,
)

# --- rate -------------------------------------------------------------------------------------


def _most_in(times: list[float], window: float) -> int:
    """The most of `times` in any window of that many seconds."""
    return max(bisect_right(times, at + window) - number for number, at in enumerate(times))


@pytest.mark.parametrize(
    ("rate", "per_second"), [("10/s", 10), ("600/m", 10), ("1800/h", 0.5), ("500/s", 500)]
)
async def test_the_rate_is_reached_and_never_exceeded_over_any_window(rate: str, per_second: float) -> None:
    destination = ScriptedDestination(seconds=0.01)
    bench = Bench(destination, concurrency=16, rate=rate)
    given = deliveries(400)
    async with bench.running():
        await bench.put(given)
        began = clock.now()
        await settled(given, within=24 * 3600)
        took = clock.now() - began
    assert 400 / per_second * 0.98 - Pace._LATE <= took <= 400 / per_second * 1.02
    times = [at for at, _ in destination.began]
    for window in (0.5, 1.0, 5.0, 60.0):
        assert _most_in(times, window - 1e-6) <= per_second * (window + Pace._LATE) + 1


@pytest.mark.parametrize("per_second", [10, 500])
async def test_idle_time_earns_no_burst(per_second: int) -> None:
    destination = ScriptedDestination()
    bench = Bench(destination, concurrency=1000, rate=f"{per_second}/s")
    async with bench.running():
        for _ in range(3):
            await asyncio.sleep(3600)
            given = deliveries(5 * per_second)
            await bench.put(given)
            await settled(given)
    times = [at for at, _ in destination.began]
    assert _most_in(times, 0.1 - 1e-6) <= 0.1 * per_second + 1
    assert _most_in(times, 1 - 1e-6) <= per_second + 1


async def test_retries_count_against_the_rate() -> None:
    rng = random.Random(7)
    destination = ScriptedDestination(lambda _event: rng.choice([ACCEPTED, FAILED]))
    bench = Bench(destination, concurrency=16, rate="10/s", max_attempts=1000)
    given = deliveries(200)
    async with bench.running():
        await bench.put(given)
        await settled(given)
    times = [at for at, _ in destination.began]
    assert len(times) > 300
    assert _most_in(times, 0.999) <= 11
    bench.assert_nothing_is_remembered()


@settings(max_examples=50)
@given(
    per_second=st.floats(0.01, 2000),
    pauses=st.lists(st.floats(0, 3).map(lambda seconds: seconds**4), min_size=2, max_size=60),
)
async def test_whenever_turns_are_asked_for_no_window_has_too_many(
    per_second: float, pauses: list[float]
) -> None:
    pace = Pace(per_second)
    taken: list[float] = []
    for pause in pauses:
        await asyncio.sleep(pause)
        while (wait := pace.pause()) > 0:
            await asyncio.sleep(wait)
        pace.began(Attempt(Delivery(event("0")), clock.now()))
        taken.append(clock.now())
    for first, started in enumerate(taken):
        for last in range(first + 1, len(taken)):
            allowed = per_second * (taken[last] - started) + 1
            assert last - first <= allowed + 1e-6


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"concurrency": 1001}, {"rate": "0/s"}, {"rate": 10}, {"rates": "1/s"}]
)
def test_wrong_limits_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LimitsConfig.model_validate(wrong)


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"give_up_after": 0}, {"max_backoff": "-1s"}])
def test_wrong_patience_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RetryConfig.model_validate(wrong)


# --- pauses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 2, 5, 8, 100, 100_000])
def test_a_pause_is_drawn_evenly_below_a_bound_that_doubles(failures: int) -> None:
    backoff = Backoff(first=0.5, longest=60.0)
    bound = min(0.5 * 2 ** min(failures - 1, 50), 60.0)
    drawn = sorted(backoff.seconds(failures) for _ in range(400))
    assert 0 <= drawn[0] < bound * 0.1
    assert bound * 0.9 < drawn[-1] <= bound
    assert drawn[200] == pytest.approx(bound / 2, rel=0.25)


async def test_an_event_that_fails_alone_backs_off_alone_and_becomes_a_dead_letter() -> None:
    destination = ScriptedDestination(lambda event: FAILED if event.id == "bad" else ACCEPTED, seconds=0.01)
    bench = Bench(destination, concurrency=2, max_attempts=8, max_backoff=60)
    bad = Delivery(event("bad"))
    async with bench.running():
        await bench.lane.put(bad)
        number = 0
        began = clock.now()
        while bad.outcome is None:
            (good,) = deliveries(1, f"good{number}-")
            await bench.lane.put(good)
            assert await settled([good], within=0.1) == [Outcome.ACCEPTED]
            assert bench.value("bridge_lane_open") == 1
            number += 1
            await asyncio.sleep(0.05)
        took = clock.now() - began
    attempts = destination.times("bad")
    assert 8 <= len(attempts) < 16  # a failure counts when others were accepted since the one before
    gaps = [later - earlier for earlier, later in pairwise(attempts)]
    assert all(gap <= 0.5 * 2**number + 0.1 for number, gap in enumerate(gaps))
    (letter,) = bench.dead.letters
    assert (letter.cause, letter.detail, letter.status) == ("http_500", "boom", 500)
    assert letter.attempts == len(attempts)
    assert letter.last_attempt is not None
    assert letter.first_attempt is not None
    assert letter.last_attempt - letter.first_attempt == pytest.approx(attempts[-1] - attempts[0] + 0.01)
    assert took < 16 * 60
    assert bench.invocations("failed") == len(attempts)
    assert bench.invocations("accepted") == number
    bench.assert_nothing_is_remembered()


async def test_what_was_never_sent_makes_no_dead_letter_by_number_of_attempts() -> None:
    """While others are accepted an event whose connection fails goes on until `give_up_after`."""
    destination = ScriptedDestination(lambda event: UNREACHABLE if event.id == "late" else ACCEPTED)
    bench = Bench(destination, max_attempts=2, max_backoff=1)
    late = Delivery(event("late"))
    async with bench.running():
        await bench.lane.put(late)
        for number in range(300):
            await bench.put(deliveries(1, f"good{number}-"))
            await asyncio.sleep(1)
        assert late.outcome is None
        assert len(destination.times("late")) > 100
        destination.script = ACCEPTED
        assert await settled([late], within=2) == [Outcome.ACCEPTED]
    assert not bench.dead.letters


async def test_failures_while_nothing_is_accepted_do_not_count_against_an_event() -> None:
    destination = ScriptedDestination(FAILED, seconds=0.01)
    bench = Bench(destination, max_attempts=1)
    given = deliveries(10)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(6 * 3600)
        assert not bench.dead.letters
        destination.script = ACCEPTED
        assert await settled(given) == [Outcome.ACCEPTED] * 10


async def test_failures_of_an_outage_are_forgiven_when_it_ends() -> None:
    destination = ScriptedDestination(FAILED, seconds=0.01)
    bench = Bench(destination, concurrency=1, max_attempts=5)
    bad = Delivery(event("bad"))
    async with bench.running():
        await bench.lane.put(bad)
        await asyncio.sleep(3600)
        assert len(destination.began) > 5
        destination.script = lambda event: FAILED if event.id == "bad" else ACCEPTED
        destination.began.clear()
        number = 0
        while bad.outcome is None:
            await bench.put(deliveries(1, f"good{number}-"))
            await asyncio.sleep(1)
            number += 1
    assert bench.dead.causes == {"bad": "http_500"}
    assert len(destination.times("bad")) >= 5


# --- Retry-After ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [30.0, 1800.0])
async def test_retry_after_is_honoured(asked: float) -> None:
    answers = iter([Answer(Verdict.UNAVAILABLE, "http_429", status=429, retry_after=asked)])
    destination = ScriptedDestination(lambda _event: next(answers, ACCEPTED))
    bench = Bench(destination)
    given = deliveries(1)
    async with bench.running():
        await bench.put(given)
        assert await settled(given, within=4000) == [Outcome.ACCEPTED]
    first, second = destination.times("0")
    assert second - first == pytest.approx(asked, abs=0.51)
    assert second - first >= asked


async def test_a_shut_gate_honours_retry_after_for_the_whole_lane() -> None:
    busy = Answer(Verdict.UNAVAILABLE, "http_503", status=503, retry_after=120.0)
    destination = ScriptedDestination(busy)
    bench = Bench(destination, concurrency=5)
    given = deliveries(20)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(1)
        assert len(destination.began) in range(5, 10)
        destination.began.clear()
        await asyncio.sleep(118.9)
        assert not destination.began
        destination.script = ACCEPTED
        assert await settled(given, within=60) == [Outcome.ACCEPTED] * 20


async def test_one_events_retry_after_does_not_hold_up_the_others() -> None:
    wait = Answer(Verdict.UNAVAILABLE, "http_429", status=429, retry_after=600.0)
    destination = ScriptedDestination(
        lambda event: wait if event.id == "slow" and len(destination.times("slow")) == 1 else ACCEPTED
    )
    bench = Bench(destination, concurrency=1)
    slow, others = Delivery(event("slow")), deliveries(10)
    async with bench.running():
        await bench.put([slow, *others])
        assert await settled(others, within=1) == [Outcome.ACCEPTED] * 10
        assert await settled([slow], within=601) == [Outcome.ACCEPTED]


# --- giving up --------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [UNAVAILABLE, FAILED, REFUSED], ids=lambda answer: answer.cause)
async def test_an_event_is_given_up_a_day_after_its_first_attempt(answer: Answer) -> None:
    destination = ScriptedDestination(answer, seconds=0.5)
    bench = Bench(destination, concurrency=1, give_up_after=24 * 3600.0)
    (given,) = deliveries(1)
    async with bench.running():
        await bench.lane.put(given)
        began = clock.now()
        assert await settled([given], within=25 * 3600) == [Outcome.DEAD_LETTERED]
        assert clock.now() - began == pytest.approx(24 * 3600, abs=121)
        assert clock.now() - began >= 24 * 3600
    (letter,) = bench.dead.letters
    assert letter.cause == "gave_up"
    assert letter.detail == f"{answer.cause}: {answer.detail}"
    assert letter.status == answer.status
    assert letter.attempts == len(destination.began) > 1000
    assert letter.first_attempt == pytest.approx(clock.EPOCH + began, abs=0.01)
    assert letter.last_attempt == pytest.approx(clock.wall_clock(), abs=0.01)
    bench.assert_nothing_is_remembered()


async def test_events_are_given_up_by_the_time_of_their_own_first_attempts() -> None:
    destination = ScriptedDestination(REFUSED)
    bench = Bench(destination, concurrency=1, give_up_after=7 * 24 * 3600.0, max_backoff=3600)
    given = deliveries(3)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(5 * 24 * 3600)
        await bench.put(later := deliveries(3, "later"))
        await asyncio.sleep(2 * 24 * 3600 + 4 * 3600)
        assert bench.dead.causes == {"0": "gave_up", "1": "gave_up", "2": "gave_up"}
        destination.script = ACCEPTED
        assert await settled(later, within=3601) == [Outcome.ACCEPTED] * 3


async def test_an_event_given_up_with_a_broken_store_is_not_settled() -> None:
    destination = ScriptedDestination(UNAVAILABLE)
    bench = Bench(destination, concurrency=1, give_up_after=60.0)
    bench.dead.broken = True
    (given,) = deliveries(1)
    async with bench.running():
        await bench.lane.put(given)
        await asyncio.sleep(3600)
        assert given.outcome is None
        attempts = len(destination.began)
        await asyncio.sleep(3600)
        assert len(destination.began) == attempts, "given up: only the store is asked again"
        bench.dead.broken = False
        assert await settled([given], within=16) == [Outcome.DEAD_LETTERED]


async def test_every_attempt_is_counted_by_how_it_was_answered() -> None:
    script = [UNAVAILABLE, FAILED, REFUSED, ACCEPTED]
    answers = iter(script)
    bench = Bench(ScriptedDestination(lambda _event: next(answers), seconds=0.25), concurrency=1)
    given = deliveries(1)
    async with bench.running():
        await bench.put(given)
        await settled(given)
    counted = {verdict: bench.invocations(verdict.value) for verdict in Verdict}
    assert counted == {
        Verdict.ACCEPTED: 1,
        Verdict.DUPLICATE: 0,
        Verdict.CAPACITY: 0,
        Verdict.UNAVAILABLE: 1,
        Verdict.FAILED: 1,
        Verdict.REFUSED: 1,
        Verdict.REJECTED: 0,
        Verdict.UNKNOWN: 0,
    }
    assert bench.value("bridge_invocation_seconds_count") == 4
    assert bench.value("bridge_invocation_seconds_sum") == pytest.approx(1.0)
    assert bench.value("bridge_retries_total", cause="http_502") == 1


# --- the clock is set while the bridge runs -----------------------------------------------------


@pytest.mark.parametrize("hours", [25, 24 * 365, -25])
@pytest.mark.parametrize("park", [False, True])
@pytest.mark.parametrize("answer", [UNAVAILABLE, UNREACHABLE, REFUSED], ids=lambda answer: answer.cause)
async def test_a_clock_that_is_set_makes_no_fresh_event_old(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, park: bool, hours: int
) -> None:
    """The gate is shut, so parked events come back one by one, each with the time of its first attempt."""
    destination = ScriptedDestination(answer)
    bench = Bench(destination, park=park, give_up_after=24 * 3600.0)
    given = deliveries(3)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(3600)
        monkeypatch.setattr(clock, "EPOCH", clock.EPOCH + hours * 3600.0)
        await asyncio.sleep(3600)
        assert bench.dead.letters == []
        await bench.put(deliveries(3, "later-"))
        await asyncio.sleep(20 * 3600)
        assert bench.dead.letters == []
        destination.script = ACCEPTED
        await asyncio.sleep(3600)
    assert len({name for _, name in destination.began}) == 6
    assert bench.dead.letters == []
    assert not bench.keeper.rows


@pytest.mark.parametrize("hours", [25, 0, -25])
async def test_an_event_is_given_up_in_time_whatever_the_clock_tells(
    monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    bench = Bench(ScriptedDestination(UNAVAILABLE), give_up_after=24 * 3600.0)
    (delivery,) = given = deliveries(1)
    async with bench.running():
        began = clock.now()
        await bench.put(given)
        await asyncio.sleep(3600)
        monkeypatch.setattr(clock, "EPOCH", clock.EPOCH + hours * 3600.0)
        assert await settled(given, within=48 * 3600) == [Outcome.DEAD_LETTERED]
        assert 24 * 3600 <= clock.now() - began < 25 * 3600
    (letter,) = bench.dead.letters
    assert letter.first_attempt == pytest.approx(clock.EPOCH - hours * 3600.0 + began, abs=5)
    assert delivery.outcome is Outcome.DEAD_LETTERED


# --- what holds a lane up ---------------------------------------------------------------------


async def test_a_lane_names_the_limit_that_its_events_wait_for() -> None:
    destination = ScriptedDestination(seconds=10)
    bench = Bench(destination, concurrency=2)
    async with bench.running():
        assert bench.lane.held_by is None
        await bench.put(deliveries(2))
        await asyncio.sleep(1)
        assert bench.lane.held_by is None, "nothing waits"
        await bench.put(given := deliveries(1, "more-"))
        await asyncio.sleep(1)
        assert bench.lane.held_by == "concurrency"
        await settled(given)
        bench.lane.allowance.change(100, 1 / 60)
        await bench.put(given := deliveries(2, "slow-"))
        await asyncio.sleep(1)
        assert bench.lane.held_by == "rate"
        await settled(given, within=3600)


async def test_a_lane_that_waits_for_its_turn_says_so() -> None:
    ring = Ring([Fixed(1)])
    one, other = (Bench(ScriptedDestination(seconds=10), key=key, ring=ring) for key in ("one", "other"))
    async with one.running(), other.running():
        await one.put(deliveries(1))
        await other.put(given := deliveries(1))
        await asyncio.sleep(1)
        assert (one.lane.held_by, other.lane.held_by) == (None, "cluster")
        await settled(given)
        assert other.lane.held_by is None
