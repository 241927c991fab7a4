"""What the bridge makes of OSCAR's bad days, as the sandbox has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bridge.core.identity import invocation_name
from bridge.core.ports import Verdict
from bridge.sandbox.oscar import Fault, SandboxOscar, Settings, kubernetes
from bridge.sandbox.oscar.kubernetes import TROUBLES
from tests.destinations.fake_oscar import event, service

ADMIN = {"type": "basic", "username": "oscar", "password": "sandbox"}
NAME = invocation_name("uploads", "event-1", "plants")


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as cluster:
        cluster.add_service("plants", visibility="public")
        yield cluster


def oidc(oscar: SandboxOscar) -> dict[str, str]:
    return {
        "type": "oidc",
        "refresh_token": oscar.oidc.grant("ana"),
        "token_endpoint": f"{oscar.url}/oidc/token",
        "client_id": "bridge",
    }


@pytest.mark.parametrize("kind", TROUBLES)
async def test_a_trouble_of_kubernetes_is_no_events_fault_and_no_duplicate(
    oscar: SandboxOscar, kind: str
) -> None:
    oscar.faults.set(Fault(kubernetes={kind: 1.0}), "plants")
    async with service(oscar.url, ADMIN) as plants:
        answer = await plants.prepare(event()).attempt()
        oscar.faults.clear()
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.DUPLICATE
    # A policy that denies may mean this event, and an API server out of reach tells nothing of its load.
    others = {"denied": Verdict.FAILED, "unreachable": Verdict.UNAVAILABLE}
    assert answer.verdict is others.get(kind, Verdict.CAPACITY)
    assert answer.perhaps_its_own, "the lane can tell by its siblings"
    assert oscar.ledger.created == {NAME: 1}


async def test_a_full_quota_is_waited_for_and_a_job_being_deleted_is_a_duplicate(
    oscar: SandboxOscar,
) -> None:
    oscar.settings.jobs_quota = 1
    oscar.settings.deleting_seconds = 3600
    async with service(oscar.url, ADMIN) as plants:
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.ACCEPTED
        full = await plants.prepare(event(2)).attempt()
        assert (full.verdict, full.cause) == (Verdict.CAPACITY, "http_500")
        assert "exceeded quota" in full.detail
        oscar.settings.jobs_quota = None
        job = oscar.job(NAME)
        assert job is not None
        oscar.jobs.delete(job)
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.DUPLICATE
    assert oscar.ledger.created == {NAME: 1}


async def test_a_job_that_oscar_made_after_we_had_hung_up_is_a_duplicate(
    oscar: SandboxOscar, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_in = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        await let_in.wait()

    monkeypatch.setattr(kubernetes, "sleep", sleep)
    oscar.settings.api_calls_per_second = 0.001  # the burst is enough for the token and four jobs
    async with service(oscar.url, ADMIN, timeout_seconds=1) as plants:
        for number in range(2, 6):
            assert (await plants.prepare(event(number)).attempt()).verdict is Verdict.ACCEPTED
        late = await plants.prepare(event(1)).attempt()
        assert (late.verdict, late.cause) == (Verdict.CAPACITY, "timeout")
        oscar.settings.api_calls_per_second = None
        let_in.set()
        async with asyncio.timeout(30):
            while NAME not in oscar.ledger.created:
                await asyncio.sleep(0.001)
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.DUPLICATE
    assert oscar.ledger.created[NAME] == 1


async def test_a_user_whom_oscar_has_never_seen_is_introduced_once(oscar: SandboxOscar) -> None:
    """Of direct requests at once OSCAR lets all but one fail."""
    oscar.settings.first_contact_seconds = 0.05
    async with service(oscar.url, oidc(oscar)) as plants:
        calls = (plants.prepare(event(number)).attempt() for number in range(8))
        assert {answer.verdict for answer in await asyncio.gather(*calls)} == {Verdict.ACCEPTED}
    assert "ana" in oscar.settings.provisioned
    assert oscar.ledger.total == 8


@pytest.mark.parametrize("mode", ["job", "run"])
async def test_an_issuer_that_tells_no_user_is_no_fault_of_a_job(oscar: SandboxOscar, mode: str) -> None:
    async with service(oscar.url, oidc(oscar), mode=mode) as plants:
        await plants._cluster.info()  # the user's first contact
        oscar.faults.set(Fault(statuses={429: 1.0}), "userinfo")
        for number in range(3):
            answer = await plants.prepare(event(number)).attempt()
            # With the token in OSCAR's cache a run shows it as the application's 500 would.
            assert answer.verdict is (Verdict.CAPACITY if mode == "job" else Verdict.FAILED)
        oscar.faults.clear()
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED


async def test_a_run_that_met_a_hiccup_of_the_issuer_is_made_once_more(oscar: SandboxOscar) -> None:
    async with service(oscar.url, oidc(oscar), mode="run") as plants:
        oscar.faults.set(Fault(statuses={503: 1.0}), "userinfo")
        away = await plants.prepare(event()).attempt()
        assert (away.verdict, away.cause) == (Verdict.REFUSED, "credentials")  # the management API says 401
        assert oscar.ledger.requests == 1
        oscar.faults.clear()
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
    assert len(oscar.ledger.runs) == 1


async def test_a_user_info_endpoint_that_throttles_makes_no_run_a_dead_letter(oscar: SandboxOscar) -> None:
    verdicts = set()
    oscar.faults.set(Fault(statuses={429: 0.5}), "userinfo")
    for number in range(40):  # each with an access token that OSCAR has not seen yet
        async with service(oscar.url, oidc(oscar), mode="run") as plants:
            verdicts.add((await plants.prepare(event(number)).attempt()).verdict)
    assert {Verdict.ACCEPTED, Verdict.REFUSED} <= verdicts
    assert verdicts <= {Verdict.ACCEPTED, Verdict.REFUSED, Verdict.UNAVAILABLE, Verdict.FAILED}


@pytest.mark.parametrize("version", ["4.0.0", "4.1.0"])
@pytest.mark.parametrize("kind", ["basic", "oidc", "service token"])
async def test_an_event_that_a_firewall_refuses_is_told_from_a_service_that_refuses_all(
    oscar: SandboxOscar, kind: str, version: str
) -> None:
    oscar.settings.version = version
    plants_there = oscar.services.named("plants")[0]
    token = {"type": "service-token", "token": plants_there.token}
    auth = {"basic": ADMIN, "oidc": oidc(oscar), "service token": token}[kind]
    async with service(oscar.url, auth) as plants:
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.ACCEPTED
        oscar.faults.set(Fault(statuses={403: 1.0}), "plants")
        refused = await plants.prepare(event(2)).attempt()
        assert (refused.verdict, refused.perhaps_its_own) == (Verdict.REFUSED, True)
        oscar.faults.clear()
        assert (await plants.prepare(event(3)).attempt()).verdict is Verdict.ACCEPTED
    async with service(oscar.url, auth) as plants:  # one that does not remember that the service was there
        if kind == "basic":
            assert (await plants.prepare(event(4)).attempt()).verdict is Verdict.ACCEPTED  # has the token now
        oscar.services.remove(plants_there)
        oscar.faults.set(Fault(statuses={403: 1.0}), "plants")
        refused = await plants.prepare(event(5)).attempt()
    assert refused.verdict is Verdict.REFUSED
    # Before 4.1.0 a service token can't ask, and an event keeps the doubt.
    assert refused.perhaps_its_own == (kind == "service token" and version == "4.0.0")


async def test_a_run_that_its_gateway_gave_up_waiting_for_is_not_repeated(oscar: SandboxOscar) -> None:
    oscar.settings.simulated_seconds, oscar.settings.run_timeout_seconds = 3600, 0.05
    async with service(oscar.url, ADMIN, mode="run") as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNKNOWN, "http_504")
    assert len(oscar.ledger.runs) == 1


async def test_a_run_of_an_offloaded_service_is_not_repeated(oscar: SandboxOscar) -> None:
    oscar.add_service("far", interlink_node_name="hpc-1")
    async with service(oscar.url, ADMIN, key="far", mode="run") as far:
        answer = await far.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNKNOWN, "http_502")
