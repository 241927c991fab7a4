"""The listing of jobs, as the sandbox gives it: in pages, with tokens that end, troubles and labels."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.core.jobs import Ended, JobOutcome, JobSeen, Phase
from bridge.destinations.oscar import jobs as listing
from bridge.destinations.oscar.client import OscarService
from bridge.destinations.oscar.jobs import follow, jobs_in, start_of, token_at
from bridge.destinations.oscar.throttle import Throttle
from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.testing import until
from tests.destinations.fake_oscar import event, service

ADMIN = {"type": "basic", "username": "oscar", "password": "sandbox"}


class Watch:
    """Remembers what it was told."""

    def __init__(self, names: Collection[str] = ()) -> None:
        """Look for jobs of these `names`."""
        self.names = names
        self.began = 0
        self.seen: dict[str, Phase] = {}
        self.whole: dict[str, Phase] = {}
        """What the last whole listing has shown."""
        self.ends: list[tuple[int, bool]] = []
        self.logs: dict[str, str] = {}
        self.removes = False
        self.gone: set[str] = set()
        """Those that were removed."""

    async def wanted(self) -> None:
        await asyncio.sleep(0)

    def sweep_began(self) -> Collection[str]:
        self.began += 1
        self.seen.clear()
        return self.names

    def saw(self, jobs: Collection[JobSeen], asked_at: float) -> Ended:
        self.seen |= {job.name: job.phase for job in jobs}
        return Ended(
            failed=[job.name for job in jobs if job.phase is Phase.FAILED and job.name not in self.logs],
            removable=[job.name for job in jobs if self.removes and job.phase is Phase.SUCCEEDED],
        )

    async def failed(self, name: str, log: str) -> None:
        self.logs[name] = log

    def judged(self, outcomes: Collection[tuple[JobSeen, JobOutcome]]) -> Ended:
        return Ended(failed=[seen.name for seen, outcome in outcomes if outcome is JobOutcome.FAILED])

    async def remember(self, names: Collection[str]) -> Sequence[str]:
        return sorted(names)

    def removed(self, name: str) -> None:
        self.gone.add(name)

    async def sweep_ended(self, *, seen: int, absence_tells: bool) -> None:
        assert seen == len(self.seen)
        self.ends.append((seen, absence_tells))
        self.whole = dict(self.seen)


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_SHARE", 0.0)
    monkeypatch.setattr(listing, "_SHORTEST_PAUSE", 0.0)
    monkeypatch.setattr(listing, "_FIRST_PAUSE", 0.01)


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True, simulated_seconds=3600, jobs_a_page=2)) as cluster:
        cluster.add_service("plants", visibility="public")
        yield cluster


async def swept(plants: OscarService, watch: Watch, sweeps: int = 1) -> None:
    wanted = len(watch.ends) + sweeps
    task = asyncio.create_task(follow(plants._cluster, [(plants, watch)]))
    await until(lambda: len(watch.ends) >= wanted or task.done(), seconds=30)
    task.cancel()
    await asyncio.wait([task])


async def made(plants: OscarService, count: int) -> list[str]:
    for number in range(count):
        assert (await plants.prepare(event(number)).attempt()).accepted
    return [plants.job_of(event(number)) for number in range(count)]


async def test_all_pages_are_shown_and_what_has_ended(oscar: SandboxOscar) -> None:
    oscar.preload(oscar.services.named("plants")[0], 3, failed=1)
    async with service(oscar.url, ADMIN) as plants:
        names = await made(plants, 4)
        watch = Watch([job.name for job in oscar.jobs.all()])
        await swept(plants, watch)
    assert watch.ends[0] == (7, True)
    assert {name: watch.whole[name] for name in names} == dict.fromkeys(names, Phase.RUNNING)
    assert sorted(phase.value for name, phase in watch.whole.items() if name not in names) == [
        "failed",
        "succeeded",
        "succeeded",
    ]


async def test_a_token_that_would_have_ended_is_gone_on_with(oscar: SandboxOscar) -> None:
    oscar.settings.page_token_seconds = 0.0
    async with service(oscar.url, ADMIN) as plants:
        names = await made(plants, 7)
        watch = Watch(names)
        await swept(plants, watch)
    assert watch.whole.keys() == set(names)
    assert watch.began <= len(watch.ends) + 1, "none began anew"


async def test_a_listing_with_a_token_that_is_not_understood_begins_anew(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    oscar.settings.page_token_seconds = 0.0
    monkeypatch.setattr(listing, "start_of", lambda _token: "")
    async with service(oscar.url, ADMIN) as plants:
        names = await made(plants, 3)
        watch = Watch(names)
        sweeping = asyncio.create_task(swept(plants, watch))
        await until(lambda: watch.began >= 2, what="it begins anew")
        assert not watch.ends
        oscar.settings.page_token_seconds = 300.0
        await sweeping
    assert watch.whole.keys() == set(names)


async def test_pages_that_fail_come_again(oscar: SandboxOscar) -> None:
    async with service(oscar.url, ADMIN) as plants:
        names = await made(plants, 9)
        oscar.faults.set(Fault(kubernetes={"busy": 0.2}, cut=0.1), "system")
        watch = Watch(names)
        await swept(plants, watch, 3)
    assert watch.whole.keys() <= set(names)
    assert {seen for seen, _ in watch.ends} == {9}
    assert oscar.faults.injected["kubernetes"] > 0


@pytest.mark.parametrize(
    ("version", "more", "tells"),
    [("4.1.0", {}, True), ("3.6.0", {}, False), ("devel", {}, False), ("4.1.0", {"federated": True}, False)],
)
async def test_absence_tells_where_oscar_names_jobs_as_told_and_runs_them_itself(
    oscar: SandboxOscar, version: str, more: dict[str, Any], tells: bool
) -> None:
    oscar.settings.version = version
    if more:
        definition = oscar.services.named("plants")[0].definition
        definition["federation"] = {"members": [{"type": "oscar", "cluster_id": "other"}]}
    async with service(oscar.url, ADMIN) as plants:
        watch = Watch()
        await swept(plants, watch)
    assert watch.ends == [(0, tells)] * len(watch.ends)


async def test_the_log_of_a_job_that_failed_is_read() -> None:
    async with SandboxOscar(Settings(supervisor="go")) as oscar:
        oscar.add_service("plants", "echo no such file; exit 3")
        async with service(oscar.url, ADMIN) as plants:
            (name,) = await made(plants, 1)
            watch = Watch([name])
            job = oscar.job(name)
            assert job is not None
            await until(lambda: job.phase == "Failed")
            await swept(plants, watch)
    assert "exited with code 3" in watch.logs[name]


async def test_jobs_that_succeeded_are_removed_and_those_that_failed_stay(oscar: SandboxOscar) -> None:
    oscar.preload(oscar.services.named("plants")[0], 5, failed=2)
    async with service(oscar.url, ADMIN) as plants:
        running = await made(plants, 1)
        watch = Watch([job.name for job in oscar.jobs.all()])
        watch.removes = True
        await swept(plants, watch, 2)
    assert len(watch.gone) == 3
    assert [job.phase for job in oscar.jobs.all() if job.name not in running] == ["Failed", "Failed"]
    assert watch.ends[-1] == (3, True)


async def test_one_that_is_gone_by_now_is_removed(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    oscar.preload(oscar.services.named("plants")[0], 1)

    async def remember(_self: Watch, names: Collection[str]) -> Sequence[str]:
        for job in oscar.jobs.all():
            oscar.jobs.delete(job)
        return sorted(names)

    monkeypatch.setattr(Watch, "remember", remember)
    async with service(oscar.url, ADMIN) as plants:
        watch = Watch([job.name for job in oscar.jobs.all()])
        watch.removes = True
        await swept(plants, watch)
    assert len(watch.gone) == 1


async def test_a_removal_that_fails_is_told_and_comes_again(oscar: SandboxOscar) -> None:
    oscar.preload(oscar.services.named("plants")[0], 2)
    async with service(oscar.url, ADMIN) as plants:
        watch = Watch([job.name for job in oscar.jobs.all()])
        watch.removes = True
        removing = plants._cluster.remove_job
        failures = 2

        async def at_last(service_name: str, job: str) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                oscar.settings.password = "changed"
            try:
                await removing(service_name, job)
            finally:
                oscar.settings.password = "sandbox"

        plants._cluster.remove_job = at_last  # type: ignore[method-assign]
        with capture_logs() as logs:
            await swept(plants, watch, 2)
    told = [line for line in logs if line["event"].startswith("a job that has succeeded can't be removed")]
    assert [line["cause"] for line in told] == ["credentials", "credentials"]
    assert "DELETE" in told[0]["detail"]
    assert len(watch.gone) == 2
    assert not oscar.jobs.all()


def test_a_status_that_is_not_understood_counts_as_running() -> None:
    page = {"jobs": {"a": {"status": "Unheard"}, "b": {"status": "Suspended"}, "c": 3}}
    assert jobs_in(page) == [JobSeen("a", Phase.RUNNING), JobSeen("b", Phase.WAITING)]
    assert jobs_in({"jobs": None}) == []


def test_times_are_read_and_1970_is_none() -> None:
    told = {"status": "Failed", "start_time": "1970-01-01T00:00:00Z", "finish_time": "2026-01-01T00:00:10Z"}
    assert jobs_in({"jobs": {"a": told}}) == [JobSeen("a", Phase.FAILED, None, 1767225610.0)]


@pytest.mark.parametrize("token", ["nonsense", "", base64.urlsafe_b64encode(b'{"v": "other"}').decode()])
def test_a_token_that_is_not_understood_stays_as_it_is(token: str) -> None:
    assert start_of(token) == ""
    assert token_at(token, "plants") == token


def test_a_token_is_made_for_another_place_that_never_expires() -> None:
    document = {"v": "meta.k8s.io/v1", "rv": 17, "start": "plants-1\0"}
    token = base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
    assert start_of(token) == "plants-1\0"
    found = token_at(token, "plants-7")
    told = json.loads(base64.urlsafe_b64decode(found + "=" * (-len(found) % 4)))
    assert told == document | {"rv": -1, "start": "plants-7"}


async def test_pages_without_a_job_that_is_looked_for_are_left_out(oscar: SandboxOscar) -> None:
    """Of two jobs a page, sixty in all, five are looked for, two of which are not there."""
    oscar.preload(oscar.services.named("plants")[0], 56)
    async with service(oscar.url, ADMIN) as plants:
        await made(plants, 4)
        there = sorted(job.name for job in oscar.jobs.all())
        watch = Watch([there[3], there[30], there[31], f"{there[40]}-gone", "zzz"])
        await swept(plants, watch)
        assert there[3] in watch.whole
        first = watch.ends[0][0]
        await swept(plants, watch, 2)
    assert first <= 10, "two to find out how tokens are, then two for each"
    assert {there[3], there[30], there[31]} <= watch.whole.keys()
    assert watch.ends[-1][0] <= 8


async def test_where_tokens_of_other_places_are_refused_all_pages_are_read(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(token: str, start: str) -> str:
        return token if start == start_of(token) else "nonsense"

    monkeypatch.setattr(listing, "token_at", refused)
    async with service(oscar.url, ADMIN) as plants:
        names = await made(plants, 12)
        watch = Watch([min(names), max(names)])
        await swept(plants, watch)
    assert watch.began > len(watch.ends), "the first was broken off"
    assert watch.ends[0][0] == 12


async def test_a_page_of_another_place_than_was_asked_for_is_not_believed(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with service(oscar.url, ADMIN) as plants:
        names = await made(plants, 12)
        page = plants._cluster.jobs_page

        async def misunderstood(name: str, token: str) -> dict[str, Any]:
            return await page(name, token if start_of(token).endswith("\0") else "")

        monkeypatch.setattr(plants._cluster, "jobs_page", misunderstood)
        watch = Watch([min(names), max(names)])
        await swept(plants, watch)
    assert watch.began > len(watch.ends), "the first was broken off"
    assert watch.ends[0][0] == 12


def test_throughput_counts_the_time_in_which_calls_alone_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("bridge.destinations.oscar.throttle.monotonic", lambda: clock[0])
    throttle = Throttle()
    assert throttle.rate == 2.5
    for _ in range(20):
        throttle.began()
        with throttle.aside():
            clock[0] += 30
        clock[0] += 0.5
        throttle.ended(accepted=True)
        clock[0] += 100
    assert throttle.rate == pytest.approx(2.0)
