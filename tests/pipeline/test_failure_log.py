"""Of attempts that fail the log tells the first of each cause, and then once a minute how many there were."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import MutableMapping
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from bridge.core.delivery import Delivery
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline import lane as lane_module
from bridge.pipeline.failure_log import FailureLog
from tests.pipeline.scripted import (
    ACCEPTED,
    BUSY,
    UNAVAILABLE,
    UNREACHABLE,
    Bench,
    ScriptedDestination,
    deliveries,
    event,
    settled,
)

Line = MutableMapping[str, Any]


@pytest.fixture(autouse=True)
def _level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log from `info` on, unless a test is for another level."""
    wrapper = structlog.make_filtering_bound_logger(getattr(request, "param", logging.INFO))
    monkeypatch.setattr(lane_module, "_log", structlog.wrap_logger(None, wrapper_class=wrapper))


def failures(lines: list[Line], **wanted: object) -> list[Line]:
    return [line for line in lines if line["event"] == "attempt failed" and wanted.items() <= line.items()]


def told(lines: list[Line], **wanted: object) -> int:
    """How many attempts the lines stand for."""
    return sum(line.get("and_more_in_the_last_minute", 1) for line in failures(lines, **wanted))


async def test_one_failure_is_one_line_with_all_that_is_known_of_it() -> None:
    answers = iter([UNAVAILABLE])
    bench = Bench(ScriptedDestination(lambda _: next(answers, ACCEPTED)))
    given = deliveries(1)
    with capture_logs() as lines:
        async with bench.running():
            await bench.put(given)
            await settled(given)
            await asyncio.sleep(3600)
    (line,) = failures(lines)
    assert 0.0 <= line.pop("again_in_seconds") <= 0.5
    assert line == {
        "event": "attempt failed",
        "log_level": "info",
        "service": "plants",
        "id": "0",
        "outcome": "unavailable",
        "cause": "http_502",
        "detail": "no backend",
        "attempts": 1,
    }


async def test_an_outage_is_one_line_a_minute_that_tells_how_many_failed() -> None:
    bench = Bench(ScriptedDestination(UNREACHABLE, seconds=0.01), concurrency=16, max_backoff=0.5)
    with capture_logs() as lines:
        async with bench.running():
            await bench.put(deliveries(50))
            await asyncio.sleep(1)
            for minute in range(10):
                await asyncio.sleep(60)
                assert len(failures(lines)) == minute + 2
            await asyncio.sleep(5)
            before = bench.value("bridge_retries_total", cause="connect")
            assert told(lines) < before, "some are counted, and not told yet"
        first, *others = failures(lines)
    assert "and_more_in_the_last_minute" not in first
    assert all(line["and_more_in_the_last_minute"] > 50 for line in others[:-1])
    assert others[-1]["attempts"] > 10, "it is the last attempt that is told"
    assert told(lines) == bench.value("bridge_retries_total", cause="connect") == before


async def test_the_line_of_a_minute_counts_the_attempt_it_tells_and_says_nothing_of_a_time_gone_by() -> None:
    with capture_logs() as lines:
        log = FailureLog(lane_module._log.bind())
        for attempt in (1, 2, 3):
            log.failed(event("a"), UNREACHABLE, attempt, 0.25)
        log.close()
    first, last = failures(lines)
    assert (first["attempts"], first["again_in_seconds"]) == (1, 0.25)
    assert (last["attempts"], last["and_more_in_the_last_minute"]) == (3, 2)
    assert last["cause"] == "connect"
    assert "again_in_seconds" not in last


async def test_an_event_is_not_kept_for_the_line_that_will_tell_of_it() -> None:
    class Watched(Event):
        __slots__ = ("__weakref__",)

    log = FailureLog(lane_module._log.bind())
    failed = Watched(id="a", source="uploads", type="test", data=b"x" * 1_000_000)
    for attempt in (1, 2):
        log.failed(failed, UNREACHABLE, attempt, 0.25)
    gone = weakref.ref(failed)
    del failed
    gc.collect()
    assert gone() is None
    log.close()


async def test_each_cause_and_each_service_has_its_own_lines() -> None:
    answers = {"a": UNREACHABLE, "b": BUSY}
    benches = [
        Bench(ScriptedDestination(lambda one: answers.get(one.id, ACCEPTED), seconds=0.1), key=key)
        for key in ("plants", "flood")
    ]
    with capture_logs() as lines:
        for bench in benches:
            async with bench.running():
                await bench.put([Delivery(event(name)) for name in ("a", "b", "good")])
                await asyncio.sleep(30)
    for bench in benches:
        for cause in ("connect", "http_503"):
            ours = {"service": bench.lane.key, "cause": cause}
            first, last = failures(lines, **ours)
            assert "and_more_in_the_last_minute" not in first
            assert last["id"] == first["id"]
            assert told(lines, **ours) == bench.value("bridge_retries_total", cause=cause) > 2


async def test_after_a_minute_without_one_the_next_is_told_at_once() -> None:
    failing = {"bad": True}

    def script(_event: Event) -> Answer:
        return UNAVAILABLE if failing["bad"] else ACCEPTED

    bench = Bench(ScriptedDestination(script, seconds=0.1))
    with capture_logs() as lines:
        async with bench.running():
            for outage in range(3):
                failing["bad"] = True
                given = deliveries(1, f"{outage}-")
                await bench.put(given)
                await asyncio.sleep(0.15)
                assert failures(lines)[-1]["id"] == f"{outage}-0"
                assert len(failures(lines)) == outage + 1
                failing["bad"] = False
                await settled(given)
                await asyncio.sleep(61)


@pytest.mark.parametrize("_level", [logging.DEBUG], indirect=True)
async def test_at_debug_each_has_its_line() -> None:
    bench = Bench(ScriptedDestination(UNREACHABLE, seconds=0.01), max_backoff=0.5)
    with capture_logs() as lines:
        async with bench.running():
            await bench.put(deliveries(3))
            await asyncio.sleep(300)
    count = bench.value("bridge_retries_total", cause="connect")
    assert len(failures(lines)) == told(lines) == count > 30
    levels = [line["log_level"] for line in failures(lines)]
    assert levels.count("info") <= 6
    assert set(levels) == {"info", "debug"}
