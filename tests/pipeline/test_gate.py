"""A lane's gate: shut when the service takes nothing, probed, and open again without a loss."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from bridge.core import steady
from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer, Verdict
from bridge.pipeline.waiting import PROBERS
from tests.pipeline import clock
from tests.pipeline.scripted import (
    ACCEPTED,
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
)

pytestmark = pytest.mark.usefixtures("told_no_longer")

FORBIDDEN = Answer(Verdict.REFUSED, "http_403", "by a firewall", status=403, perhaps_its_own=True)


@pytest.mark.parametrize("answer", [UNAVAILABLE, UNREACHABLE, FAILED], ids=lambda answer: answer.cause)
async def test_an_outage_shuts_the_gate_and_loses_nothing(answer: Answer) -> None:
    destination = ScriptedDestination(answer, seconds=0.01)
    bench = Bench(destination, concurrency=8, max_attempts=2, max_backoff=60)
    given = deliveries(100)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(0.021)
        assert bench.value("bridge_lane_open") == 0
        assert bench.lane.problems() == [f"unavailable: {answer.cause}"]
        assert len(destination.began) <= 8 + 4 + 1, "who failed before the fifth took one more"

        destination.peak = 0
        destination.began.clear()
        await asyncio.sleep(12 * 3600)
        assert destination.peak <= 1, "one probe at a time"
        assert 12 * 450 <= len(destination.began) <= 12 * 1800  # 0 to 8 s apart, 4 s on average
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(destination.began)]
        assert max(gaps) <= 60.02
        # 1, 2, 4, 8 s at most, or the next four when a probe was made before the count began.
        assert max(gaps[:4]) <= 16.02, "the first pauses are short"
        assert not bench.dead.letters
        assert all(delivery.outcome is None for delivery in given)

        destination.script = ACCEPTED
        destination.began.clear()
        destination.peak = 0
        back = clock.now()
        assert await settled(given, within=121) == [Outcome.ACCEPTED] * 100
        assert clock.now() - back < 121
        assert destination.peak == 8, "all workers resume"
    assert bench.value("bridge_lane_open") == 1
    assert bench.lane.problems() == []
    assert bench.value("bridge_lane_queued") == 0
    bench.assert_nothing_is_remembered()


async def test_readiness_repeats_nothing_of_an_answer_but_its_status() -> None:
    """Nobody needs a credential to read it, and an OSCAR may send the event back in its 500."""
    echo = Answer(Verdict.REFUSED, "credentials", "401 Unauthorized: you sent the patient's name", status=401)
    bench = Bench(ScriptedDestination(echo), concurrency=1, max_backoff=60)
    with capture_logs() as lines:
        async with bench.running():
            await bench.put(deliveries(1))
            await asyncio.sleep(0.01)
            assert bench.lane.problems() == ["refused: credentials (status 401)"]
    assert [line["detail"] for line in lines if line["event"] == "gate shut"] == [echo.detail]


async def test_a_gate_that_shuts_and_opens_again_and_again_is_told_until_it_has_stayed_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steady, "HELD_SECONDS", 30.0)
    destination = ScriptedDestination()
    bench = Bench(destination, concurrency=16)
    looks: list[bool] = []
    async with bench.running():
        for number in range(600):
            destination.script = UNAVAILABLE if number % 10 < 5 else ACCEPTED
            await bench.put(deliveries(8, f"{number}-"))
            await asyncio.sleep(1)
            looks.append(bool(bench.lane.problems()))
        assert bench.value("bridge_retries_total", cause="http_502") > 100
        assert all(looks[5:]), "no look, and no alert that waits, finds it well"
        assert bench.value("bridge_lane_shuts_total") > 20, "looks at `bridge_lane_open` would miss most"
        destination.script = ACCEPTED
        await asyncio.sleep(100)
        assert bench.lane.problems() == []


async def test_after_an_outage_the_oldest_go_first() -> None:
    destination = ScriptedDestination(UNAVAILABLE)
    bench = Bench(destination, concurrency=4, max_backoff=1)
    given = deliveries(40)
    async with bench.running():
        for delivery in given:
            await bench.lane.put(delivery)
            await asyncio.sleep(0.001)
        await asyncio.sleep(60)
        tried = sorted({int(name) for name in destination.ids})
        assert tried == list(range(len(tried)))
        assert 5 <= len(tried) <= PROBERS, "the day of few has begun"
        bench.lane._gate._probe_at = clock.now() + 2  # so that all that were tried are due when it opens
        await asyncio.sleep(1.9)
        destination.script = ACCEPTED
        destination.began.clear()
        await settled(given)
    probe = int(destination.ids[0])
    expected = [number for number in range(40) if number != probe]
    for name, place in zip(destination.ids[1:], expected, strict=True):
        assert abs(int(name) - place) <= 4, "those of one moment, one for each attempt at once, have no order"


async def test_failures_of_five_different_events_shut_the_gate_and_of_four_do_not() -> None:
    answers = iter([FAILED] * 4 + [ACCEPTED] + [FAILED] * 4 + [ACCEPTED] * 20)
    bench = Bench(ScriptedDestination(lambda _event: next(answers)), concurrency=1)
    given = deliveries(10)
    with capture_logs() as lines:
        async with bench.running():
            await bench.put(given)
            await settled(given)
    assert not [line for line in lines if line["event"] == "gate shut"]
    assert bench.invocations("failed") == 8

    answers = iter([FAILED] * 5 + [ACCEPTED] * 20)
    bench = Bench(ScriptedDestination(lambda _event: next(answers)), concurrency=1)
    given = deliveries(10)
    async with bench.running():
        await bench.put(given)
        async with asyncio.timeout(0.01):
            while bench.value("bridge_lane_open"):
                await asyncio.sleep(0)
        assert bench.lane.problems() == ["unavailable: http_500"]
        await settled(given)
        assert not bench.lane.problems()


async def test_one_event_that_fails_again_and_again_shuts_no_gate_and_is_told() -> None:
    destination = ScriptedDestination(lambda event: FAILED if event.id == "bad0" else ACCEPTED)
    bench = Bench(destination, concurrency=1)
    async with bench.running():
        await bench.put(deliveries(1, "bad"))
        await asyncio.sleep(3600)
        assert bench.value("bridge_lane_open") == 1
        assert bench.lane.problems() == ["failing: http_500"], "there is no proof that anything is accepted"
        await bench.put(good := deliveries(1))
        assert await settled(good, within=0.1) == [Outcome.ACCEPTED]
        assert bench.lane.problems() == []


async def test_a_refusal_shuts_the_gate_at_once_and_probes_go_round() -> None:
    destination = ScriptedDestination(REFUSED, seconds=0.01)
    bench = Bench(destination, concurrency=1, max_attempts=1, max_backoff=60)
    given = deliveries(5)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(0.02)
        assert bench.lane.problems() == ["refused: http_404"]
        assert bench.value("bridge_lane_open") == 0
        await asyncio.sleep(6 * 3600)
        assert all(probe != after for probe, after in pairwise(destination.ids))
        assert set(destination.ids) == {"0", "1", "2", "3", "4"}
        assert 6 * 60 <= len(destination.began) <= 6 * 60 * 4
        destination.script = ACCEPTED
        destination.began.clear()
        assert await settled(given, within=61) == [Outcome.ACCEPTED] * 5
    probe = destination.ids[0]
    assert destination.ids[1:] == [name for name in "01234" if name != probe], "then the oldest first"
    assert bench.lane.problems() == []
    assert bench.value("bridge_lane_open") == 1
    assert not bench.dead.letters
    bench.assert_nothing_is_remembered()


async def test_those_refused_together_go_again_in_their_order() -> None:
    destination = ScriptedDestination(Answer(Verdict.REFUSED, "http_401", retry_after=2.0), seconds=1)
    bench = Bench(destination, concurrency=4)
    given = deliveries(8)
    async with bench.running():
        for delivery in given:
            await bench.lane.put(delivery)
            await asyncio.sleep(0.01)
        await asyncio.sleep(2)
        destination.script = ACCEPTED
        destination.began.clear()
        await settled(given)
    probe = destination.ids[0]
    assert destination.ids[1:] == [name for name in "01234567" if name != probe]


async def test_an_acceptance_of_what_was_under_way_opens_the_gate() -> None:
    async def script(given: Event) -> Answer:
        if destination.ids.count("slow") and given.id == "slow":
            await asyncio.sleep(30)
            return ACCEPTED
        return REFUSED if clock.now() < clock.STARTS_AT + 29 else ACCEPTED

    destination = ScriptedDestination(script)
    bench = Bench(destination, concurrency=2, max_backoff=3600)
    given = [Delivery(event("slow")), *deliveries(3)]
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(5)
        assert bench.lane.problems()
        bench.lane._gate._probe_at = clock.now() + 3600
        assert await settled(given, within=40) == [Outcome.ACCEPTED] * 4


async def test_an_event_that_alone_is_refused_becomes_a_dead_letter_and_holds_no_other() -> None:
    destination = ScriptedDestination(
        lambda event: FORBIDDEN if event.id == "bad0" else ACCEPTED, seconds=0.01
    )
    bench = Bench(destination, concurrency=1, max_attempts=3)
    given = [*deliveries(1, "bad"), *deliveries(100)]
    async with bench.running():
        await bench.put(given)
        assert await settled(given[1:], within=1.1) == [Outcome.ACCEPTED] * 100
        assert bench.lane.problems() == []
        more = deliveries(20, "more")
        for delivery in more:
            await asyncio.sleep(60)
            await bench.put([delivery])
            assert await settled([delivery], within=61) == [Outcome.ACCEPTED]
        assert await settled(given[:1]) == [Outcome.DEAD_LETTERED]
        bench.assert_nothing_is_remembered()
    assert bench.dead.causes == {"bad0": "http_403"}


async def test_a_refusal_of_all_events_that_may_be_of_each_makes_no_dead_letter() -> None:
    destination = ScriptedDestination(FORBIDDEN, seconds=0.01)
    bench = Bench(destination, concurrency=4, max_attempts=1)
    given = deliveries(20)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(6 * 3600)
        assert bench.lane.problems() == ["refused: http_403"]
        assert not bench.dead.letters
        destination.script = ACCEPTED
        assert await settled(given, within=121) == [Outcome.ACCEPTED] * 20


@pytest.mark.parametrize("answer", [FAILED, FORBIDDEN], ids=["failed", "forbidden"])
@pytest.mark.parametrize("poisons", [1, 3, 20])
async def test_events_that_always_fail_do_not_block_the_good_ones_in_an_idle_lane(
    poisons: int, answer: Answer
) -> None:
    destination = ScriptedDestination(
        lambda event: answer if event.id.startswith("bad") else ACCEPTED, seconds=0.01
    )
    bench = Bench(destination, concurrency=4, max_attempts=8)
    bad = deliveries(poisons, "bad")
    async with bench.running():
        await bench.put(bad)
        await asyncio.sleep(6 * 3600)
        assert bench.lane.problems()
        assert not bench.dead.letters, "nobody can tell an event's failure from the service's yet"
        for number in range(60):
            good = deliveries(1, f"good{number}-")
            await bench.put(good)
            assert await settled(good, within=3 * 60.1) == [Outcome.ACCEPTED]
            await asyncio.sleep(60)
        assert await settled(bad) == [Outcome.DEAD_LETTERED] * poisons
        bench.assert_nothing_is_remembered()
    assert set(bench.dead.causes.values()) == {answer.cause}
    assert all(letter.attempts >= 8 for letter in bench.dead.letters)


@pytest.mark.parametrize(
    "answer",
    [Answer(Verdict.CAPACITY, "http_500", status=500, perhaps_its_own=True), FORBIDDEN, FAILED],
    ids=["empty", "forbidden", "failed"],
)
async def test_events_that_always_fail_and_come_all_the_time_never_hide_the_good_ones(answer: Answer) -> None:
    """However many they are by now: those that failed before the last acceptance are not of an outage."""
    destination = ScriptedDestination(
        lambda event: answer if event.id.startswith("bad") else ACCEPTED, seconds=0.05
    )
    bench = Bench(destination, concurrency=16, park=True)
    async with bench.running():
        for number in range(120):
            await bench.put(deliveries(1, f"bad{number}-"))
            await asyncio.sleep(5)
            await bench.put(deliveries(1, f"good{number}-"))
            await asyncio.sleep(5)
        await asyncio.sleep(120)
        assert bench.invocations("accepted") == 120


async def test_a_probe_rejected_by_the_service_opens_the_gate() -> None:
    answers = iter([REFUSED, REJECTED])
    destination = ScriptedDestination(lambda _event: next(answers, ACCEPTED))
    bench = Bench(destination, concurrency=1)
    given = deliveries(3)
    async with bench.running():
        await bench.put(given)
        assert await settled(given, within=2) == [
            Outcome.ACCEPTED,
            Outcome.DEAD_LETTERED,
            Outcome.ACCEPTED,
        ]
    assert bench.value("bridge_lane_open") == 1


async def test_a_probe_that_never_left_says_nothing_and_the_next_event_probes() -> None:
    answers = iter([REFUSED, TOO_LARGE, REFUSED])
    destination = ScriptedDestination(lambda _event: next(answers, ACCEPTED))
    bench = Bench(destination, concurrency=1)
    given = deliveries(3)
    async with bench.running():
        await bench.put(given)
        outcomes = await settled(given, within=2)
    assert outcomes == [Outcome.ACCEPTED, Outcome.DEAD_LETTERED, Outcome.ACCEPTED]
    assert destination.ids == ["0", "1", "2", "0", "2"]


async def test_lost_answers_in_a_row_shut_the_gate_so_that_few_are_lost() -> None:
    destination = ScriptedDestination(UNKNOWN, seconds=0.01)
    bench = Bench(destination, concurrency=1)
    given = deliveries(100)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(60)
        assert bench.lane.problems()
        assert 5 <= len(bench.dead.letters) < 30
        destination.script = ACCEPTED
        outcomes = await settled(given)
    assert outcomes.count(Outcome.DEAD_LETTERED) == len(bench.dead.letters)
    assert bench.value("bridge_lane_open") == 1


async def test_a_probe_fails_for_the_lane_though_others_were_accepted_since_its_event_failed() -> None:
    """An acceptance from before the outage must not make a failed probe look like the event's own fault."""
    up = True
    patience = Answer(Verdict.UNAVAILABLE, "http_503", retry_after=30.0, status=503)

    def script(given: Event) -> Answer:
        if given.id == "old" and destination.ids.count("old") == 1:
            return patience
        return ACCEPTED if up else UNAVAILABLE

    destination = ScriptedDestination(script, seconds=0.01)
    bench = Bench(destination, concurrency=4)
    old, good, rest = Delivery(event("old")), deliveries(2), deliveries(20, "rest")
    async with bench.running():
        await bench.lane.put(old)
        await asyncio.sleep(1)
        await bench.put(good)
        await settled(good)
        up = False
        await bench.put(rest)
        await asyncio.sleep(10)
        assert bench.lane.problems()
        destination.peak = 0
        await asyncio.sleep(3600)
        assert destination.ids.count("old") > 1
        assert destination.peak == 1
        up = True
        await settled([old, *good, *rest])
    bench.assert_nothing_is_remembered()


async def test_what_was_under_way_when_the_gate_shut_does_not_keep_it_shut() -> None:
    async def script(given: Event) -> Answer:
        if clock.now() >= clock.STARTS_AT + 1:
            return ACCEPTED
        if given.id == "slow":
            await asyncio.sleep(1)
            return Answer(Verdict.REFUSED, "http_401", status=401, retry_after=600.0)
        return Answer(Verdict.REFUSED, "http_401", status=401, retry_after=5.0)

    bench = Bench(ScriptedDestination(script), concurrency=2)
    given = [Delivery(event("slow")), *deliveries(3)]
    async with bench.running():
        await bench.put(given)
        assert await settled(given, within=6) == [Outcome.ACCEPTED] * 4


async def test_the_end_of_an_older_attempt_lets_no_second_probe_pass() -> None:
    async def script(given: Event) -> Answer:
        if given.id == "old" and destination.ids.count("old") == 1:
            await asyncio.sleep(10)
            return UNAVAILABLE
        if destination.ids.count(given.id) > 1:
            await asyncio.sleep(20)
        return REFUSED

    destination = ScriptedDestination(script)
    bench = Bench(destination, concurrency=4)
    async with bench.running():
        await bench.put([Delivery(event("old")), Delivery(event("probe"))])
        await asyncio.sleep(5)
        assert destination.active == 2
        await bench.put(deliveries(5))
        await asyncio.sleep(6)
        assert destination.active == 1
        assert set(destination.ids) == {"old", "probe"}


async def test_failures_are_counted_anew_after_the_gate_opened() -> None:
    answers = iter([UNAVAILABLE] * 5 + [REJECTED] + [UNAVAILABLE] * 4)
    destination = ScriptedDestination(lambda _event: next(answers, ACCEPTED))
    bench = Bench(destination, concurrency=1)
    given = deliveries(12)
    opened: list[float] = []
    async with bench.running():
        await bench.put(given)
        while any(delivery.outcome is None for delivery in given):
            await asyncio.sleep(0.001)
            if len(destination.began) > 6:
                opened.append(bench.value("bridge_lane_open"))
    assert set(opened) == {1.0}


async def test_a_probe_that_outlives_the_opening_of_the_gate_lets_only_one_other_probe() -> None:
    """The gate opens through an older attempt, shuts again, and the first probe is still under way."""

    async def script(given: Event) -> Answer:
        name, attempt = given.id, destination.ids.count(given.id)
        if name == "old":
            await asyncio.sleep(10)
            return ACCEPTED
        if name == "probe" and attempt == 2:
            await asyncio.sleep(20)
        return REFUSED

    destination = ScriptedDestination(script)
    bench = Bench(destination, concurrency=6)
    given = [Delivery(event("old")), Delivery(event("probe"))]
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(9)
        probe = bench.lane._gate._probe
        assert probe is not None
        assert probe.delivery is given[1]
        rest = deliveries(10)
        await bench.put(rest)
        await asyncio.sleep(1.5)  # the old attempt is accepted at 10 s: open, and shut by the next refusal
        assert given[0].outcome is Outcome.ACCEPTED
        assert bench.lane.problems()
        destination.peak = destination.active
        await asyncio.sleep(60)
        assert destination.peak <= 2


async def test_a_probe_released_during_its_attempt_still_opens_the_gate() -> None:
    answers = iter([REFUSED])
    destination = ScriptedDestination(lambda _event: next(answers, ACCEPTED), seconds=5)
    bench = Bench(destination, concurrency=1)
    first, second = deliveries(2)
    async with bench.running():
        await bench.put([first, second])
        await asyncio.sleep(7)  # the probe is under way: the pause was at most 0.5 s
        probe = bench.lane._gate._probe
        assert probe is not None
        assert probe.delivery is second
        second.settle(Outcome.RELEASED)
        assert await settled([first], within=10) == [Outcome.ACCEPTED]
    assert bench.lane.problems() == []
    bench.assert_nothing_is_remembered()


async def test_a_probe_released_and_failed_shuts_the_gate_for_longer() -> None:
    destination = ScriptedDestination(Answer(Verdict.REFUSED, "http_429", retry_after=100.0), seconds=5)
    bench = Bench(destination, concurrency=1)
    first, second = deliveries(2)
    async with bench.running():
        await bench.put([first, second])
        await asyncio.sleep(107)
        assert destination.active == 1
        second.settle(Outcome.RELEASED)
        destination.script = ACCEPTED
        await asyncio.sleep(0)
        destination.script = Answer(Verdict.REFUSED, "http_429", retry_after=100.0)
        await asyncio.sleep(50)
        assert destination.ids == ["0", "1"]
        destination.script = ACCEPTED
        assert await settled([first], within=70) == [Outcome.ACCEPTED]
    bench.assert_nothing_is_remembered()


NO_DESCRIPTORS = Answer(Verdict.UNAVAILABLE, "no_descriptors", "Too many open files", ours=True)


async def test_what_the_bridge_lacks_itself_shuts_no_gate() -> None:
    destination = ScriptedDestination(NO_DESCRIPTORS, seconds=0.01)
    bench = Bench(destination, concurrency=4, max_backoff=1)
    given = deliveries(40)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(60)
        assert bench.value("bridge_lane_open") == 1
        assert bench.value("bridge_retries_total", cause="no_descriptors") > 100
        destination.script = ACCEPTED
        assert await settled(given, within=5) == [Outcome.ACCEPTED] * 40


async def test_a_probe_that_the_bridge_could_not_make_is_made_again_soon() -> None:
    destination = ScriptedDestination(REFUSED)
    bench = Bench(destination, concurrency=4, max_backoff=1)
    given = deliveries(40)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(10)
        destination.script = NO_DESCRIPTORS
        destination.began.clear()
        await asyncio.sleep(60)
        assert bench.lane.problems() == ["refused: http_404"]
        assert 50 < len(destination.began) < 1000, "no busy loop"
        destination.script = ACCEPTED
        assert await settled(given, within=5) == [Outcome.ACCEPTED] * 40
