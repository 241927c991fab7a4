"""What is not well is told as long as it is, and a while longer; the log says it once."""

from __future__ import annotations

import pytest
import structlog
from structlog.testing import capture_logs

from bridge.core import steady
from bridge.sources.kafka.health import Health


def test_a_problem_that_comes_and_goes_is_told_throughout_and_logged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(steady, "monotonic", lambda: now)
    health = Health(structlog.get_logger())
    with capture_logs() as lines:
        for _ in range(100):
            now += 1
            health.failed("leader", "broker 2 is silent")
            assert health.problems() == ["broker 2 is silent"]
            now += 1
            health.recovered("leader")
            assert health.problems()[0].startswith("broker 2 is silent (over for")
    assert [line["event"] for line in lines].count("kafka: not well") == 1
    now += steady.HELD_SECONDS
    assert health.problems() == []
    health.recovered("leader")
    health.recovered("never failed")
    with capture_logs() as lines:
        health.failed("leader", "broker 2 is silent")
    assert [line["log_level"] for line in lines] == ["error"]


def test_what_is_another_members_now_is_not_told_any_more() -> None:
    health = Health(structlog.get_logger())
    health.failed(("t", 0), "t/0 is held")
    health.failed("coordinator", "no answer")
    health.forget(lambda what: what == "coordinator")
    assert health.problems() == ["no answer"]
