"""What an attempt costs, told by counts: a clock would tell how busy the machine is."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from bridge.core.delivery import Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline.dispatch import _BEGIN_AT_ONCE
from bridge.pipeline.intake import Intake
from bridge.pipeline.router import _LOOK, Router
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.gathering import Gathering
from tests.pipeline.scripted import (
    ACCEPTED,
    UNAVAILABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    settled,
)


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is given to the loop from now on: timers, and callbacks of its next turn."""
    loop, counts = asyncio.get_running_loop(), Counter[str]()

    def counted(name: str) -> None:
        original = getattr(loop, name)

        def call(*arguments: Any, **more: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **more)

        monkeypatch.setattr(loop, name, call)

    counted("call_at")
    counted("call_soon")
    return counts


async def _paced(places: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Give what 100 attempts at a rate take of the loop, in a lane all of whose places have been used."""
    destination = ScriptedDestination(seconds=3600)
    bench = Bench(destination, concurrency=places, rate="50/s")
    async with bench.running():
        given = deliveries(places, "before")
        await bench.put(given)
        await settled(given, within=7200)
        assert destination.peak == places
        destination.seconds = 0.001
        given = deliveries(100)
        with monkeypatch.context() as patched:
            counts = count_calls(patched)
            await bench.put(given)
            assert await settled(given) == [Outcome.ACCEPTED] * 100
    return counts


async def test_idle_places_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = [await _paced(places, monkeypatch) for places in (4, 1000)]
    assert many == few
    # The lane's alarm when it begins and when it ends, and the destination's own.
    assert many["call_at"] <= 3 * 100 + 10
    assert many["call_soon"] <= 5 * 100 + 10


async def test_an_attempt_sets_no_timer_while_there_is_always_more_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(ScriptedDestination(seconds=0.01), concurrency=16)
    async with bench.running():
        counts = count_calls(monkeypatch)
        given = deliveries(1000)
        await bench.put(given)
        await settled(given)
    assert counts["call_at"] <= 1000 + 10  # the destination's


async def test_routes_that_send_events_together_cost_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither of the loop nor of the store, though there are windows and one timer for them."""
    # The router gives way after so many milliseconds, of which a busy machine takes more for the same.
    monkeypatch.setattr("bridge.pipeline.router.perf_counter", lambda: 0.0)

    async def calls(*more: dict[str, Any]) -> Counter[str]:
        bed = Gathering({"when": "!has(data.together)"}, *more)
        async with bed.running():
            await bed.send(Event(id="first", source="uploads", type="t", data=b'{"together": 1}'))
            await asyncio.sleep(1)
            before = bed.keeper.steps
            with monkeypatch.context() as patched:
                counts = count_calls(patched)
                for number in range(200):
                    await bed.send(Event(id=str(number), source="uploads", type="t", data=b"{}"))
                while len(bed.outcomes) < 201:
                    await asyncio.sleep(1)
            counts["of the store"] = bed.keeper.steps - before
        assert len(bed.jobs) == 200
        return counts

    together = {"when": "has(data.together)", "merge": {"window": "1h"}}
    beside, alone = await calls(together), await calls()
    assert beside.keys() == alone.keys()
    assert all(abs(beside[name] - alone[name]) <= 5 for name in alone), (
        beside,
        alone,
    )  # two hundred are sent


async def test_an_attempt_that_fails_takes_no_more_of_the_loop_than_one_that_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: Counter[str] = Counter()

    def fails_three_times(given: Event) -> Answer:
        made[given.id] += 1
        return UNAVAILABLE if made[given.id] <= 3 and given.id.startswith("bad") else ACCEPTED

    async def calls(prefix: str) -> tuple[int, Counter[str]]:
        bench = Bench(ScriptedDestination(fails_three_times, seconds=0.01), concurrency=16, max_attempts=99)
        async with bench.running():
            with monkeypatch.context() as patched:
                counts = count_calls(patched)
                # Many good ones between them, or the gate would shut.
                given = [one for n in range(200) for one in (*deliveries(1, f"{prefix}{n}-"), *deliveries(4))]
                await bench.put(given)
                await settled(given)
        return sum(map(int, (bench.invocations("accepted"), bench.invocations("unavailable")))), counts

    attempts, good = await calls("good")
    assert attempts == 1000
    attempts, bad = await calls("bad")
    assert attempts == 1600
    for name in ("call_at", "call_soon"):
        assert bad[name] / 1600 <= 2 * good[name] / 1000


async def test_many_that_may_begin_at_once_leave_the_loop_to_others_in_between() -> None:
    bench = Bench(ScriptedDestination(seconds=1), concurrency=1000, queue=10_000)
    given = deliveries(10_000)
    await bench.put(given)
    async with bench.running():
        begun = [0.0]
        while begun[-1] < 1000:
            await asyncio.sleep(0)
            begun.append(bench.value("bridge_lane_in_flight"))
        steps = [after - before for before, after in pairwise(begun)]
        assert max(steps) <= _BEGIN_AT_ONCE
        assert await settled(given) == [Outcome.ACCEPTED] * 10_000


@pytest.mark.parametrize("when", [None, 'id != ""'])
async def test_events_that_nothing_holds_up_enter_their_lane_in_one_run(
    when: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No turn of the loop is waited for, though there are more lanes."""
    # The router gives way after so many milliseconds, of which a busy machine takes more for the same.
    monkeypatch.setattr("bridge.pipeline.router.perf_counter", lambda: 0.0)
    benches = [Bench(ScriptedDestination(), key=key) for key in ("plants", "flood")]
    source = Metrics().source("uploads")
    for several in (False, True):
        routes = [
            RouteConfig.model_validate({"from": "uploads", "when": when, "to": bench.lane.key})
            for bench in benches[: 1 + several]
        ]
        lanes = {bench.lane.key: bench.lane for bench in benches}
        router = Router(routes, lanes, MemoryKeeper(), source, Intake(10_000, 2**30, source))
        for delivery in deliveries(300):
            with pytest.raises(StopIteration):
                router.route(delivery).send(None)
    assert [bench.value("bridge_lane_queued") for bench in benches] == [600, 300]


@pytest.mark.parametrize("when", [None, 'id != ""'])
async def test_many_that_enter_their_lane_leave_the_loop_to_others_in_between(
    when: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each 5 ms, or a few events more: nothing else of theirs may wait for anything."""
    seconds = 0.0
    monkeypatch.setattr("bridge.pipeline.router.perf_counter", lambda: seconds)
    bench = Bench(ScriptedDestination(), queue=2000)
    source = Metrics().source("uploads")
    route = RouteConfig.model_validate({"from": "uploads", "when": when, "to": "plants"})
    intake = Intake(10_000, 2**30, source)
    router = Router([route], {"plants": bench.lane}, MemoryKeeper(), source, intake)
    in_one_run, longest = 0, 0
    for delivery in deliveries(1000):
        seconds += 0.001
        in_one_run += 1
        routing = router.route(delivery)
        try:
            while True:
                routing.send(None)
                longest, in_one_run = max(longest, in_one_run), 0
        except StopIteration:
            pass
    assert 5 <= longest <= _LOOK
    assert in_one_run <= _LOOK
    assert bench.value("bridge_lane_queued") == 1000
