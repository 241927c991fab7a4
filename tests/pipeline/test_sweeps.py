"""How well `active_jobs` fills the sandbox's places with OSCAR's throttle on, in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from bridge.core.delivery import Delivery
from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.core.ports import Answer
from bridge.destinations.oscar import jobs as listing
from bridge.destinations.oscar import throttle
from bridge.destinations.oscar.client import OscarService
from bridge.destinations.oscar.cluster import ClusterInfo, OscarCluster
from bridge.destinations.oscar.throttle import Throttle
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.sandbox.oscar.jobs import KubernetesError
from bridge.sandbox.oscar.jobs_api import JobsApi
from bridge.sandbox.oscar.logins import Logins
from tests.pipeline import clock
from tests.pipeline.clock import now
from tests.pipeline.scripted import ACCEPTED, DUPLICATE, Bench, MemoryKeeper, ScriptedDestination, event, stop

PLACES, MOST, SECONDS = 20, 40, 20.0


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "monotonic", now)
    monkeypatch.setattr(throttle, "monotonic", now)
    monkeypatch.setattr(time, "time", clock.wall_clock)


class Site:
    """The sandbox's cluster without its HTTP: what the sweeps and the lane ask of it."""

    key = "main"
    name = "plants"
    lists_all_jobs = True
    judged_by_output = False
    afterwards = 60.0

    def __init__(self, settings: Settings) -> None:
        self.oscar = SandboxOscar(settings)
        self.plants = self.oscar.add_service("plants")
        self._jobs_api = JobsApi(self.oscar, Logins(self.oscar))
        self.throttle = Throttle()
        self.pages = 0
        self.longest_answer = 0.0

    def job_of(self, one: Event) -> str:
        return invocation_name(one.source, one.id, self.name)

    async def make(self, one: Event) -> Answer:
        """`POST /job`, as `Invocation.job` of the sandbox."""
        oscar, name, began = self.oscar, self.job_of(one), now()
        self.throttle.began()
        accepted = False
        try:
            await oscar.throttle.calls("core")
            await oscar.throttle.calls("core")
            await oscar.throttle.calls("batch")
            try:
                job = oscar.jobs.create(name, self.plants, None, 2)
            except KubernetesError:
                return DUPLICATE
            oscar.ledger.record(name, self.name, b"")
            oscar.pods.start(job, self.plants, b"{}")
            accepted = True
            return ACCEPTED
        finally:
            self.throttle.ended(accepted=accepted)
            self.longest_answer = max(self.longest_answer, now() - began)

    async def jobs_page(self, _service: str, token: str) -> dict[str, Any]:
        """`GET /system/logs/plants`."""
        service = await self.oscar.only_service(self.name)
        self.pages += 1
        return await self._jobs_api.page_of_jobs(service, None, token)

    async def remove_job(self, _service: str, name: str) -> None:
        """`DELETE /system/logs/plants/{name}`, as `JobsApi` of the sandbox."""
        oscar = self.oscar
        await oscar.throttle.calls("core", 2)
        await oscar.throttle.calls("batch", 2)
        (job,) = oscar.jobs.named(name)
        oscar.jobs.delete(job)

    async def job_log(self, _service: str, _job: str) -> str:
        raise AssertionError("none fails")

    async def info(self) -> ClusterInfo:
        return ClusterInfo("4.1.0", names_jobs=True)

    async def federated(self) -> bool:
        return False

    @asynccontextmanager
    async def bridge(
        self, keeper: MemoryKeeper, given: list[Delivery], *, remove_finished: bool = False
    ) -> AsyncIterator[Bench]:
        """A lane with its sweeps, and `given` on their way into it."""
        destination = ScriptedDestination(self.make)
        bench = Bench(
            destination,
            concurrency=16,
            active_jobs=MOST,
            remove_finished=remove_finished,
            maker=self,
            keeper=keeper,
        )
        assert bench.lane.jobs is not None
        places = [(cast("OscarService", self), bench.lane.jobs)]
        async with bench.running():
            sweeps = asyncio.create_task(listing.follow(cast("OscarCluster", self), places))
            putting = asyncio.create_task(bench.put(given))
            try:
                yield bench
            finally:
                putting.cancel()
                await stop(sweeps)

    async def made(self, jobs: int) -> None:
        async with asyncio.timeout(50_000):
            while self.oscar.ledger.total < jobs:
                await asyncio.sleep(0.5)


def site(**more: Any) -> Site:
    return Site(
        Settings(
            simulate=True,
            simulated_seconds=SECONDS,
            max_pods=PLACES,
            api_calls_per_second=5,
            keep_bodies=False,
            **more,
        )
    )


async def share_of_places(at: Site, jobs: int) -> float:
    """Give the share of all places that was used while `jobs` more were made."""
    before = at.oscar.activity()
    await at.made(at.oscar.ledger.total + jobs)
    after = at.oscar.activity()
    return (after.place_seconds - before.place_seconds) / ((after.moment - before.moment) * PLACES)


def events(count: int) -> list[Delivery]:
    return [Delivery(event(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("rate", "took", "apart"),
    [(2.5, 1.0, 8.0), (2.5, 14.0, 21.0), (0.1, 1.0, 60.0), (0.1, 90.0, 90.0), (1e6, 0.001, 0.5)],
)
async def test_a_page_comes_while_twenty_jobs_could_be_made_and_once_a_minute_at_least(
    rate: float, took: float, apart: float
) -> None:
    class Cluster:
        throttle = SimpleNamespace(rate=rate, aside=nullcontext)

        async def jobs_page(self, _service: str, _token: str) -> dict[str, Any]:
            await asyncio.sleep(took)
            return {}

    turns = listing._Turns(cast("OscarCluster", Cluster()))
    # Two services of one cluster share the pace.
    began = await asyncio.gather(
        *(turns.page(cast("OscarService", SimpleNamespace(name=name)), "") for name in ("plants", "flood"))
    )
    assert abs(began[1][1] - began[0][1]) == pytest.approx(apart, rel=1e-3)


@pytest.mark.parametrize(
    ("waiting", "jobs"), [(3000, 600), pytest.param(50_000, 3000, marks=pytest.mark.prove)]
)
async def test_places_are_full_and_never_more_jobs_active_through_a_kill(waiting: int, jobs: int) -> None:
    at, keeper = site(ttl_job_seconds=20), MemoryKeeper()
    async with at.bridge(keeper, events(waiting)) as bench:
        await at.made(100)
        assert await share_of_places(at, jobs) >= 0.95
        # What is written from now on is lost, and calls that are under way go on in OSCAR: 2 s later, say.
        kept = {name: dict(records) for name, records in keeper.job_records.items()}
        assert bench.lane.jobs is not None
        under_way = [attempt.delivery.event for attempt in bench.lane.jobs._under_way]
    keeper.job_records = kept
    async with at.bridge(keeper, events(waiting)[100 + jobs - 2 * MOST :]):
        await asyncio.sleep(2)
        await asyncio.gather(*(at.make(one) for one in under_way))
        await at.made(at.oscar.ledger.total + 2 * MOST)
        assert await share_of_places(at, jobs) >= 0.95
    assert at.oscar.activity().peak == {"plants": MOST}


async def test_two_hundred_jobs_that_have_ended_leave_no_place_empty() -> None:
    at = site(ttl_job_seconds=200)
    async with at.bridge(MemoryKeeper(), events(3000)):
        await at.made(400)
        pages, began = at.pages, now()
        assert await share_of_places(at, 600) >= 0.95
        assert at.pages - pages <= (now() - began) * 2.5 / 20, "one while OSCAR could make twenty jobs"
        assert 190 <= len(at.oscar.jobs.all()) - at.oscar.activity().active["plants"] <= 210
    assert at.oscar.activity().peak == {"plants": MOST}
    assert at.longest_answer < 30, "the pages leave room for /job"


@pytest.mark.parametrize(("ended", "least"), [(200, 0.85), pytest.param(1000, 0.8, marks=pytest.mark.prove)])
async def test_those_of_others_among_its_own_leave_places_empty(ended: int, least: float) -> None:
    """A page has 70 jobs then: it and the 20 jobs that it makes room for take 22 s of 5 calls a second."""
    at = site(ttl_job_seconds=60)
    at.oscar.preload(at.plants, ended)
    at.oscar.jobs._ended.clear()  # these stay
    async with at.bridge(MemoryKeeper(), events(3000)):
        await at.made(400)
        assert least <= await share_of_places(at, 600) <= 0.95
    assert at.oscar.activity().peak["plants"] <= MOST
    assert at.longest_answer < 30, "the pages leave room for /job"


async def test_with_ten_thousand_that_have_ended_the_limit_holds_and_the_age_is_told() -> None:
    at = site()
    at.oscar.preload(at.plants, 10_000)
    with capture_logs() as logs:
        async with at.bridge(MemoryKeeper(), events(500)) as bench:
            await at.made(200)
            assert 60 < bench.value("bridge_sweep_age_seconds") < 600
    assert at.oscar.activity().peak["plants"] <= MOST
    (told,) = {line["event"] for line in logs if line["log_level"] == "warning"}
    assert "lower TTL_JOB" in told


async def test_with_many_active_jobs_at_an_oscar_without_a_throttle_pages_come_often() -> None:
    at = site(ttl_job_seconds=200)
    at.oscar.settings.api_calls_per_second = None
    async with at.bridge(MemoryKeeper(), events(3000)):
        await at.made(400)
        assert await share_of_places(at, 600) >= 0.99


@pytest.mark.parametrize(("seconds", "least", "most"), [(20.0, 0.6, 0.85), (50.0, 0.95, 1.0)])
async def test_jobs_that_are_removed_keep_the_listing_short(
    seconds: float, least: float, most: float
) -> None:
    """Each costs as many calls as making one, so of short ones the throttle bears fewer."""
    at = site()
    at.oscar.settings.simulated_seconds = seconds
    async with at.bridge(MemoryKeeper(), events(1000), remove_finished=True):
        await at.made(100)
        assert least <= await share_of_places(at, 200) <= most
        assert len(at.oscar.jobs.all()) <= 2 * MOST
    assert at.oscar.activity().peak == {"plants": MOST}
