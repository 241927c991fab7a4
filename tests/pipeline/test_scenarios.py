"""What `concurrency: auto` makes of other sides of many kinds, beside 16 at once and a model of Vector's.

All of it goes through lanes and a cluster's ring, five seeds each.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from statistics import fmean

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import Answer, Verdict
from bridge.pipeline.limits.concurrency import Auto, Fixed
from bridge.pipeline.limits.ring import Ring
from tests.pipeline import vector
from tests.pipeline.clock import now
from tests.pipeline.driving import AT_ONCE, ServerDestination, drive
from tests.pipeline.scenarios import (
    QUOTA,
    SCENARIOS,
    TOO_MANY,
    HardLimit,
    Jitter,
    Places,
    Quota,
    Ran,
    Scenario,
    Server,
    Throttle,
)
from tests.pipeline.scripted import Bench, event, settled

SEEDS = range(5)
CEILING = 200
NOT_BELOW = 0.999
"""Of a goodput that is equal but for rounding."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The ranges of what `auto` makes of a scenario, as means of the seeds."""

    goodput: tuple[float, float]
    """Events a second."""
    wasted: tuple[float, float]
    """Attempts that made no job."""
    of_the_models_goodput: float = NOT_BELOW
    of_its_wasted: float = math.inf
    of_its_return: float | None = None
    """Of the events that the model has accepted in the first ten seconds after the outage."""
    calls_a_job: float = math.inf


EXPECTED = {
    "ramp": Expected((400, 700), (0, 0), of_the_models_goodput=2),
    "jitter": Expected((300, 800), (0, 0)),
    "knee": Expected((99, 100), (0, 0)),
    "hard limit": Expected((47, 50), (20, 60), of_its_wasted=0.5),
    "silent drop": Expected((40, 50), (10, 40)),
    "rate": Expected((95, 101), (20, 80), of_its_wasted=0.5),
    "outage": Expected((118, 125), (20, 55), of_its_wasted=0.5, of_its_return=2),
    "drift": Expected((24, 26), (0, 0)),
    "slowdown": Expected((24, 26), (0, 0)),
    "throttle": Expected((2.49, 2.5), (0, 0), calls_a_job=1.3),
    "quota": Expected((1.7, 2.0), (20, 60), calls_a_job=1.3),
}


async def auto(scenario: Scenario, seeds: range = SEEDS) -> list[Ran]:
    return [await drive(scenario, seed, Auto(CEILING)) for seed in seeds]


async def fixed(scenario: Scenario, seeds: range = SEEDS) -> list[Ran]:
    return [await drive(scenario, seed, Fixed(16)) for seed in seeds]


def model(scenario: Scenario, seeds: range = SEEDS) -> list[Ran]:
    return [vector.run(scenario, seed) for seed in seeds]


def goodput(runs: list[Ran]) -> float:
    return fmean(ran.goodput for ran in runs)


def wasted(runs: list[Ran]) -> float:
    return fmean(ran.wasted for ran in runs)


def back(runs: list[Ran]) -> float:
    return fmean(ran.accepted_between(70, 80) for ran in runs)


async def _as_expected(name: str, seeds: range) -> None:
    scenario, expected = SCENARIOS[name], EXPECTED[name]
    runs, beside = await auto(scenario, seeds), model(scenario, seeds)
    assert expected.goodput[0] <= goodput(runs) <= expected.goodput[1]
    assert expected.wasted[0] <= wasted(runs) <= expected.wasted[1]
    assert goodput(runs) >= expected.of_the_models_goodput * goodput(beside)
    if expected.of_its_wasted < math.inf:
        assert wasted(runs) <= expected.of_its_wasted * wasted(beside)
    if expected.of_its_return is not None:
        assert back(runs) >= expected.of_its_return * back(beside)
    assert max(ran.calls_a_job for ran in runs) <= expected.calls_a_job


@pytest.mark.parametrize("name", SCENARIOS)
async def test_auto_keeps_to_its_ranges_and_is_not_below_the_model(name: str) -> None:
    await _as_expected(name, SEEDS)


@pytest.mark.prove
@pytest.mark.parametrize("name", SCENARIOS)
async def test_auto_keeps_to_its_ranges_with_more_seeds(name: str) -> None:
    await _as_expected(name, range(5, 25))


# --- why a cluster's default is `auto`: each within 5 % of 16 at once, or better ---------------


async def test_from_a_cold_start_auto_is_as_quick_as_fixed() -> None:
    scenario = Scenario(Server, 1000)
    (ran,), (beside,) = await auto(scenario, range(1)), await fixed(scenario, range(1))
    for number in range(1000):
        assert ran.took(number / 1000) <= 1.05 * beside.took(number / 1000)


@pytest.mark.parametrize("rate", [40, 80, 120])
async def test_with_events_now_and_then_auto_adds_no_more_than_fixed(rate: float) -> None:
    scenario = Scenario(Jitter, 2000, rate)
    runs, beside = await auto(scenario), await fixed(scenario)
    for share in (0.5, 0.99):
        assert fmean(ran.took(share) for ran in runs) <= 1.05 * fmean(ran.took(share) for ran in beside)


@pytest.mark.parametrize("name", ["throttle", "quota"])
async def test_before_a_throttle_or_a_quota_auto_is_as_quick_as_fixed(name: str) -> None:
    runs, beside = await auto(SCENARIOS[name]), await fixed(SCENARIOS[name])
    assert goodput(runs) >= 0.95 * goodput(beside)
    assert fmean(ran.took(0.99) for ran in runs) <= 1.05 * fmean(ran.took(0.99) for ran in beside)
    assert wasted(runs) <= wasted(beside)


# --- more sides than those of the table --------------------------------------------------------


class RefusesAtOnce(HardLimit):
    """Says 429 within 2 ms, so that a place is free at once for the next."""

    refusal = (TOO_MANY, 0.002)


class RefusesByChance(Server):
    """Every tenth call meets an instance that is broken."""

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        return (TOO_MANY, 0.002) if self.rng.random() < 0.1 else super()._answer(name, now)


class Resized(Places):
    """Has 40 places and 5 in turn."""

    def _seconds(self, now: float) -> float:
        self.places = 40 if now % 40 < 20 else 5
        return 0.1


class Storm(Server):
    """An ingress that says 503 for a minute, while what is behind it starts again."""

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        if 5 <= now < 65:
            return Answer(Verdict.CAPACITY, "http_503", status=503), 0.003
        return super()._answer(name, now)


class Runs(Server):
    """Answers after what an application takes: seconds, now and then minutes."""

    timeout = 600.0

    def _seconds(self, _now: float) -> float:
        return self.rng.expovariate(1 / 5.0)


@pytest.mark.parametrize(
    ("scenario", "of_the_models_goodput"),
    [
        pytest.param(Scenario(RefusesAtOnce, 1000), 1.5, id="refuses at once"),
        pytest.param(Scenario(RefusesByChance, 5000), 0.9, id="refuses by chance"),
        pytest.param(Scenario(Resized, 8000), 0.9, id="resized"),
        pytest.param(Scenario(Storm, 15_000), 1.0, id="storm of 503"),
        pytest.param(Scenario(Runs, 2000), 1.5, id="runs of an application"),
    ],
)
async def test_auto_holds_its_own_at_other_sides_too(
    scenario: Scenario, of_the_models_goodput: float
) -> None:
    assert goodput(await auto(scenario)) >= of_the_models_goodput * goodput(model(scenario))


@pytest.mark.parametrize("services", [5, 50])
async def test_a_throttle_is_not_called_in_vain_whatever_the_number_of_services(services: int) -> None:
    ran = await drive(Scenario(Throttle, 400), 0, Auto(CEILING), services=services)
    assert ran.calls_a_job <= 1.3
    assert ran.goodput >= 2.45


class NearbyQuota(Quota):
    """Answers within milliseconds: one attempt at a time is a hundred times what it takes."""

    refusal = QUOTA

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        seconds = 0.003 * self.rng.uniform(0.7, 2.0)
        if self._in_hand(now) >= self._room(now):
            return self.refusal, seconds
        self._take(now + 1.0)
        return self._make(name, seconds)

    def _room(self, _now: float) -> int:
        return 2


class AsksForPauses(NearbyQuota):
    """An ingress in its place, which tells when to come back."""

    refusal = replace(TOO_MANY, retry_after=1.0)


@pytest.mark.parametrize("server", [NearbyQuota, AsksForPauses])
async def test_a_quota_of_a_side_that_answers_at_once_is_found_with_few_calls(server: type[Server]) -> None:
    for seed in SEEDS:
        ran = await drive(Scenario(server, 200), seed, Auto(CEILING))
        assert ran.calls_a_job <= 1.3
        assert ran.goodput >= 1.7


class Raised(NearbyQuota):
    """Has room for ten times as much after five minutes."""

    def _room(self, now: float) -> int:
        return 2 if now < 300 else 20


async def test_a_quota_that_is_raised_is_found_within_a_minute() -> None:
    for seed in SEEDS:
        ran = await drive(Scenario(Raised, 1600), seed, Auto(CEILING))
        assert ran.accepted_between(290, 300) <= 20
        assert ran.accepted_between(350, 360) >= 120


class OneIsFull(Server):
    """Has room for two jobs of one service, for as long as anybody looks, and any number of the others'."""

    def _answer(self, name: str, now: float) -> tuple[Answer, float]:
        if int(name) % 2 == 0:
            return super()._answer(name, now)
        if self._in_hand(now) >= 2:
            return QUOTA, 0.005
        self._take(math.inf)
        return self._make(name, 0.05)


@pytest.mark.parametrize(("pause", "services"), [(0.0, 1), (30.0, 1), (0.0, 4)])
async def test_a_service_whose_quota_is_full_takes_nothing_of_the_cluster_from_others(
    pause: float, services: int
) -> None:
    """The others have events one by one for a while, or at once, and then very many."""
    server = OneIsFull(0)
    ring = Ring([Auto(CEILING)])
    full, *others = (
        Bench(ServerDestination(server), concurrency=AT_ONCE, ring=ring) for _ in range(1 + services)
    )
    async with AsyncExitStack() as running:
        for bench in (full, *others):
            await running.enter_async_context(bench.running())
        await full.put(Delivery(event(number)) for number in range(1, 1000, 2))
        for number in range(1000, 1100, 2):
            await asyncio.sleep(pause)
            one = [Delivery(event(number))]
            began = now()
            await others[number // 2 % services].put(one)
            assert await settled(one, within=10) == [Outcome.ACCEPTED]
            assert now() - began < 2
        many = [Delivery(event(number)) for number in range(2000, 12_000, 2)]
        began = now()
        async with asyncio.TaskGroup() as arriving:
            for place, other in enumerate(others):
                arriving.create_task(other.put(many[place::services]))
            await settled(many)
            assert now() - began < 10
    assert server.calls < 5100 + (50 * pause + 20) / 2
