"""The status of a bridge: its rates, what holds a service up, and the last hours in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bridge import status
from bridge.core.delivery import Outcome
from bridge.core.ports import Verdict
from bridge.settings import Settings, load
from bridge.status import Status
from bridge.telemetry.metrics import Metrics
from bridge.web import Problem
from tests.settings.conftest import MINIMAL


class Bridge:
    """What a status reads, with the numbers of a test."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(status, "monotonic", lambda: self.now)
        self.metrics = Metrics()
        self.problems: list[Problem] = []
        self.lane: Any = SimpleNamespace(held_by=None)
        self.intake = SimpleNamespace(paused=False, in_flight=3, most=2000)
        self.parked = 0
        store: Any = SimpleNamespace(waiting=lambda _service: self.parked, used_bytes=7)
        runner: Any = SimpleNamespace(key="uploads", intake=self.intake)
        self.paused: set[str] = set()
        control: Any = SimpleNamespace(rows=list, is_paused=lambda part: str(part) in self.paused)
        self.source, self.service = self.metrics.source("uploads"), self.metrics.lane("plants")
        self.status = Status(
            settings, self.metrics, [runner], {"plants": self.lane}, control, store, lambda: self.problems
        )

    def minutes(self, count: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let so much time go by, with samples as the status takes them; `meanwhile` each ten seconds."""
        for number in range(6 * count):
            self.now += 10
            meanwhile()
            self.status._sample()
            if number % 6 == 5:
                self.status._step()

    async def sources(self) -> dict[str, Any]:
        (found,) = (await self.status.document())["sources"]
        return dict(found)

    async def services(self) -> dict[str, Any]:
        (found,) = (await self.status.document())["services"]
        return dict(found)


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bridge:
    (tmp_path / "bridge.yaml").write_text(MINIMAL)
    return Bridge(load(tmp_path / "bridge.yaml", {}), monkeypatch)


async def test_rates_are_those_of_the_last_minute(bridge: Bridge) -> None:
    def meanwhile() -> None:
        bridge.source.received.inc(50)
        bridge.service.invocations[Verdict.ACCEPTED].inc(20)
        bridge.service.invocations[Verdict.DUPLICATE].inc(10)
        bridge.service.invocations[Verdict.FAILED].inc(5)

    assert (await bridge.sources())["rate"] == 0
    bridge.minutes(30, meanwhile)
    assert (await bridge.sources())["rate"] == pytest.approx(5)
    service = await bridge.services()
    assert service["rate"] == pytest.approx(3)
    assert (service["accepted"], service["failed"]) == (5400, 900)
    bridge.minutes(1)
    assert (await bridge.sources())["rate"] == 0


async def test_what_holds_a_service_up_is_told_the_worst_first(bridge: Bridge) -> None:
    assert (await bridge.services())["why"] is None
    bridge.lane.held_by = "rate"
    assert (await bridge.services())["why"] == "rate: the limit is reached"
    bridge.lane.held_by = "cluster"
    assert (await bridge.services())["why"] == "cluster main: a limit is reached"
    bridge.paused = {"cluster main"}
    assert (await bridge.services())["why"] == "cluster main: paused by a person"
    bridge.paused.add("service plants")
    assert (await bridge.services())["why"] == "paused by a person"
    bridge.problems = [Problem("service plants", "refused: http_401"), Problem("store", "full")]
    service = await bridge.services()
    assert (service["why"], service["problems"]) == ("refused: http_401", ["refused: http_401"])
    document = await bridge.status.document()
    assert (document["ready"], len(document["problems"])) == (False, 2)


async def test_what_is_not_known_is_null(bridge: Bridge) -> None:
    source, service = await bridge.sources(), await bridge.services()
    assert source["lag"] is None
    assert service["active_jobs"] is None
    bridge.source.lag(7)
    bridge.service.drain.set(float("inf"))
    bridge.source.filtered("no_match")
    bridge.source.filtered("missing_key")
    bridge.source.settled[Outcome.PARKED].inc(2)
    bridge.metrics.dead_letters.labels("plants", "route").inc(2)
    bridge.metrics.dead_letters.labels("plants", "gave_up").inc(3)
    source, service = await bridge.sources(), await bridge.services()
    assert (source["lag"], source["filtered"], source["settled"]["parked"]) == (7, 2, 2)
    assert (service["drain_seconds"], service["dead_letters"]) == (None, 5)


async def test_it_is_told_whether_a_clusters_token_could_be_had(bridge: Bridge) -> None:
    for works in (None, True, False):
        bridge.metrics.credential_ok.take("main", call=lambda works=works: works)
        (cluster,) = (await bridge.status.document())["clusters"]
        assert cluster["credential_ok"] is works


async def test_the_last_hours_are_told_by_the_minute(bridge: Bridge) -> None:
    empty = await bridge.status.history(6)
    assert empty["services"]["plants"] == {"accepted": [], "failed": [], "parked": [], "dead_letters": []}
    bridge.status._sample()
    bridge.status._step()
    for minute in range(1, 6):
        bridge.parked = minute
        bridge.minutes(1, lambda minute=minute: bridge.source.received.inc(minute))
    told = await bridge.status.history(6)
    assert told["step"] == 60
    assert told["sources"]["uploads"]["received"] == [6, 12, 18, 24, 30]
    assert told["services"]["plants"]["parked"] == [1, 2, 3, 4, 5]
    assert (await bridge.status.history(0.05))["sources"]["uploads"]["received"] == [18, 24, 30]


@pytest.mark.parametrize(("hours", "step"), [(1, 60), (6, 60), (12, 120), (24, 240)])
async def test_days_take_no_more_memory_and_a_long_answer_has_few_points(
    bridge: Bridge, hours: float, step: int
) -> None:
    series = bridge.status._history["source", "uploads"]["received"]
    bridge.status._sample()
    for _ in range(5000):
        bridge.status._samples[-1]["source", "uploads"] = status._Counted(received=bridge.status._steps * 3)
        bridge.status._step()
    assert len(series._numbers) <= 2 * 1440
    told = await bridge.status.history(hours)
    received = told["sources"]["uploads"]["received"]
    assert told["step"] == step
    assert len(received) in (hours * 3600 / step, hours * 3600 / step - 1)
    assert set(received) == {3 * step // 60}
