"""The rate of acceptances, and the time until what waits is accepted."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from bridge.pipeline.throughput import Throughput
from tests.pipeline.clock import now, wall_clock
from tests.pipeline.scripted import (
    ACCEPTED,
    UNREACHABLE,
    Bench,
    ScriptedDestination,
    deliveries,
    event,
    settled,
)


def accepting(throughput: Throughput, began: float, ended: float, pause: float) -> float:
    """Count an acceptance every `pause` seconds; give the time of the last."""
    for number in range(int((ended - began) / pause)):
        last = began + number * pause
        throughput.count(last)
    return last


@pytest.mark.parametrize("pause", [0.001, 0.1, 1, 4, 9, 40, 600])
def test_a_steady_rate_is_told_as_it_is(pause: float) -> None:
    throughput = Throughput()
    last = accepting(throughput, 1000, 1000 + max(200, 40 * pause), pause)
    for share in (0.1, 0.5, 0.9):
        assert throughput.a_second(last + share * pause) == pytest.approx(1 / pause, rel=0.12)


async def test_the_last_acceptance_has_a_time_once_there_is_one() -> None:
    bench = Bench(ScriptedDestination())
    labels = {"service": bench.lane.key}
    name = "bridge_last_accepted_timestamp_seconds"
    assert bench.metrics.registry.get_sample_value(name, labels) is None
    async with bench.running():
        await bench.put(deliveries(3))
        await asyncio.sleep(1)
        accepted = bench.value(name)
        assert wall_clock() - accepted == pytest.approx(1, abs=0.5)
        await asyncio.sleep(600)
        assert bench.value(name) == pytest.approx(accepted, abs=0.5)


def test_nothing_is_told_before_the_second_acceptance() -> None:
    throughput = Throughput()
    assert throughput.a_second(1000) == 0
    throughput.count(1000)
    assert throughput.a_second(1001) == 0
    throughput.count(1002)
    assert throughput.a_second(1002) == 0.5


def test_time_in_which_nothing_came_makes_a_service_no_slower() -> None:
    throughput = Throughput()
    accepting(throughput, 1000, 1100, 0.1)
    last = accepting(throughput, 5000, 5003, 0.01)
    assert throughput.a_second(last) == pytest.approx(100, rel=0.01)


def test_another_rate_is_told_within_about_a_minute() -> None:
    throughput = Throughput()
    accepting(throughput, 1000, 1100, 0.01)
    last = accepting(throughput, 1100, 1165, 1)
    assert throughput.a_second(last) == pytest.approx(1, rel=0.05)


def test_of_a_service_that_accepts_nothing_any_more_it_falls_steadily() -> None:
    throughput = Throughput()
    last = accepting(throughput, 1000, 1100, 0.01)
    told = [throughput.a_second(last + seconds) for seconds in range(5, 3600, 60)]
    assert told == sorted(told, reverse=True)
    assert told[0] == pytest.approx(100, rel=0.1)
    assert told[1] < 10
    assert told[-1] < 0.2


def test_it_costs_an_event_less_than_a_microsecond() -> None:
    """Of the processor's time, the best of some rounds: a busy machine takes the rest."""
    throughput = Throughput()
    best = math.inf
    for round_ in range(20):
        began = time.thread_time()
        for number in range(10_000):
            throughput.count(round_ + number / 10_000)
        best = min(best, time.thread_time() - began)
    assert best / 10_000 < 1e-6


async def test_a_lane_tells_how_long_its_backlog_takes_at_the_rate_it_has() -> None:
    bench = Bench(ScriptedDestination(seconds=1), concurrency=10, queue=500, park=True)
    await bench.keeper.replay(*(event(f"parked{number}") for number in range(1000)))
    async with bench.running():
        assert bench.value("bridge_lane_drain_seconds") == math.inf, "it was never seen to accept one"
        await asyncio.sleep(50.5)
        told = bench.value("bridge_lane_drain_seconds")
        began = now()
        while bench.keeper.rows:
            await asyncio.sleep(0.5)
        assert told == pytest.approx(now() - began, rel=0.05)
        assert bench.value("bridge_lane_drain_seconds") == 0


async def test_while_nothing_is_accepted_the_time_is_longer_and_longer() -> None:
    destination = ScriptedDestination(ACCEPTED, seconds=0.1)
    bench = Bench(destination, concurrency=10, park=True)
    async with bench.running():
        await bench.put(given := deliveries(900))
        await settled(given)
        assert bench.value("bridge_lane_drain_seconds") == 0
        destination.script = UNREACHABLE
        await bench.put(deliveries(900, "later"))
        told = []
        for _ in range(20):
            await asyncio.sleep(60)
            told.append(bench.value("bridge_lane_drain_seconds"))
        assert told == sorted(told)
        assert told[-1] > 900


async def test_what_is_back_in_the_lane_counts_once() -> None:
    destination = ScriptedDestination(seconds=3600)
    bench = Bench(destination, concurrency=1, queue=50, park=True)
    await bench.keeper.replay(*(event(f"parked{number}") for number in range(200)))
    async with bench.running():
        await asyncio.sleep(1)
        waiting = bench.value("bridge_lane_queued")
        assert waiting > 20
        assert waiting + bench.lane._room.parking.elsewhere + destination.active == 200
