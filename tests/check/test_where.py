"""What became of an event: in the store, or as a job on the sandbox's OSCAR."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.core.jobs import JobChanges
from bridge.core.ports import DeadLetter
from bridge.sandbox.kafka import free_port
from bridge.sandbox.oscar import SandboxOscar
from bridge.sandbox.oscar import Settings as Sandbox
from bridge.settings import Settings
from bridge.store import Filter, Store, orders
from bridge.telemetry.metrics import Metrics
from bridge.where import Fate, Found, lines, where
from tests.check.test_local import settings


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Sandbox(simulate=True, jobs_a_page=5)) as cluster:
        cluster.add_service("plants")
        yield cluster


def configuration(tmp_path: Path, url: str, auth: Any = None, **more: Any) -> Settings:
    auth = auth or {"type": "basic", "username": "oscar", "password": "sandbox"}
    return settings(tmp_path / "state", clusters={"main": {"endpoint": url, "auth": auth}}, **more)


async def make_job(oscar: SandboxOscar, event_id: str, service: str = "plants") -> str:
    name = invocation_name("uploads", event_id, service)
    (known,) = oscar.services.named(service)
    headers = {"Authorization": f"Bearer {known.token}", "X-Delegated-Job-ID": name}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{oscar.url}/job/{service}", data=b"{}", headers=headers) as answer,
    ):
        assert answer.status == 201
    return name


def event(event_id: str) -> Event:
    return Event(id=event_id, source="uploads", type="t", data=b"{}")


async def only(tmp_path: Path, url: str, event_id: str, **more: Any) -> Found:
    (found,) = await where(configuration(tmp_path, url, **more), event_id)
    return found


async def test_a_job_is_found_with_its_state_among_many(oscar: SandboxOscar, tmp_path: Path) -> None:
    names = {await make_job(oscar, str(number)) for number in range(23)}
    for number in (0, 11, 22):
        found = await only(tmp_path, oscar.url, str(number))
        assert (found.fate, found.status) == (Fate.JOB, "Succeeded")
        assert found.job in names
        assert "finished" in found.detail
    missing = await only(tmp_path, oscar.url, "99")
    assert missing.fate is Fate.NO_JOB
    assert not (tmp_path / "state").exists(), "looking makes no store"


async def test_a_job_that_waits_is_found(oscar: SandboxOscar, tmp_path: Path) -> None:
    oscar.settings.pending_seconds = 60
    await make_job(oscar, "1")
    found = await only(tmp_path, oscar.url, "1")
    assert (found.fate, found.status, found.detail) == (Fate.JOB, "Pending", "not started")


async def test_what_is_kept_is_told_with_its_cause_beside_a_daemon_and_after_it(
    oscar: SandboxOscar, tmp_path: Path
) -> None:
    async with Store.open(tmp_path / "state", Metrics()) as store:
        await store.bury(
            DeadLetter(event=event("1"), service="plants", cause="too_large", detail="9 bytes", attempts=3)
        )
        await store.park(event("2"), "plants")
        dead = await only(tmp_path, oscar.url, "1")
    assert dead.fate is Fate.KEPT
    assert "too_large: 9 bytes" in dead.detail
    assert (await only(tmp_path, oscar.url, "1")).kept == dead.kept, "the same without the daemon"
    parked = await only(tmp_path, oscar.url, "2")
    assert parked.kept is not None
    assert parked.kept.reason == "parked"
    text = "\n".join(lines([dead, parked]))
    assert "uploads → plants: kept: dead letter 1: too_large" in text
    assert "3 attempts" in text


async def test_services_that_are_done_are_told_beside_the_one_that_is_not(
    oscar: SandboxOscar, tmp_path: Path
) -> None:
    oscar.add_service("flood")
    async with Store.open(tmp_path / "state", Metrics()) as store:
        await store.park(event("1"), "flood")
    await make_job(oscar, "1")
    two = configuration(
        tmp_path,
        oscar.url,
        services={"plants": {}, "flood": {}},
        routes=[{"from": "uploads", "to": "plants"}, {"from": "uploads", "to": "flood"}],
    )
    fates = {found.service: found.fate for found in await where(two, "1", "uploads")}
    assert fates == {"plants": Fate.JOB, "flood": Fate.KEPT}


async def test_an_event_replayed_as_new_is_followed(oscar: SandboxOscar, tmp_path: Path) -> None:
    async with Store.open(tmp_path / "state", Metrics()) as store:
        await store.bury(DeadLetter(event=event("1"), service="plants", cause="job_failed", detail=""))
        await orders.replay(store, Filter(), as_new=True, dry_run=False)
        kept = await only(tmp_path, oscar.url, "1")
        assert kept.kept is not None
        assert (kept.kept.reason, kept.kept.event_id) == ("parked", "1+1")
        store.forget(kept.kept.number)
    await make_job(oscar, "1+1")
    found = await only(tmp_path, oscar.url, "1")
    assert (found.fate, found.job) == (Fate.JOB, invocation_name("uploads", "1+1", "plants"))


async def test_a_job_that_was_removed_is_known_to_have_succeeded(oscar: SandboxOscar, tmp_path: Path) -> None:
    name = invocation_name("uploads", "1", "plants")
    async with Store.open(tmp_path / "state", Metrics()) as store:
        await store.change_jobs("plants", JobChanges(remember={name}))
    found = await only(tmp_path, oscar.url, "1")
    assert (found.fate, found.job) == (Fate.REMOVED, name)
    assert (await only(tmp_path, oscar.url, "2")).fate is Fate.NO_JOB
    await make_job(oscar, "1")
    assert (await only(tmp_path, oscar.url, "1")).fate is Fate.JOB, "it is still there"


async def test_what_can_not_be_asked_says_why(oscar: SandboxOscar, tmp_path: Path) -> None:
    refused = await only(tmp_path, f"http://127.0.0.1:{free_port()}", "1")
    assert refused.fate is Fate.UNKNOWN
    assert "onnect" in refused.detail
    token = {"type": "service-token", "token": "a" * 64}
    tokened = await only(tmp_path, oscar.url, "1", auth=token)
    assert tokened.fate is Fate.UNKNOWN
    assert "service token" in tokened.detail
    assert tokened.job == invocation_name("uploads", "1", "plants"), "the name is known all the same"
    wrong = {"type": "basic", "username": "oscar", "password": "wrong-one"}
    assert "401" in (await only(tmp_path, oscar.url, "1", auth=wrong)).detail
    run = await only(tmp_path, oscar.url, "1", services={"plants": {"mode": "run"}})
    assert run.fate is Fate.UNKNOWN
    assert "mode: run" in run.detail
    gone = await only(tmp_path, oscar.url, "1", services={"plants": {"service": "other"}})
    assert "no service other" in gone.detail
