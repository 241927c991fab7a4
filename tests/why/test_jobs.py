"""What became of an event that the journal does not know: in the store, or a job on the sandbox's OSCAR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge.core.identity import invocation_name
from bridge.core.jobs import JobChanges
from bridge.core.ports import DeadLetter
from bridge.sandbox.oscar import SandboxOscar
from bridge.sandbox.servers import free_port
from bridge.store import Filter, Store, orders
from bridge.telemetry.metrics import Metrics
from bridge.why import Fate, Told
from tests.why.place import Place, event, make_job


async def only(place: Place, event_id: str, **more: Any) -> Told:
    (story,) = (await place.ask(event_id, **more)).events
    (told,) = story.fates
    return told


async def test_a_job_is_found_with_its_state_among_many(oscar: SandboxOscar, place: Place) -> None:
    names = {await make_job(oscar, str(number)) for number in range(23)}
    for number in (0, 11, 22):
        found = await only(place, str(number))
        assert (found.fate, found.status) == (Fate.SUCCEEDED, "Succeeded")
        assert found.job in names
        assert "finished" in found.detail
    missing = await place.ask("99")
    assert not missing.events
    assert not list(place.state_dir.iterdir()), "looking makes no store"


async def test_a_job_is_found_by_its_name_though_its_event_is_not_known(
    oscar: SandboxOscar, place: Place
) -> None:
    name = await make_job(oscar, "1")
    heading, fate, job = await place.read(name)
    assert heading == "a job whose event is not known any more"
    assert fate.startswith("  plants: succeeded: started 20")
    assert job == f"      job {name}"
    place.journal({"what": "filtered", "cause": "no_match"})
    assert (await place.read(name))[0] == heading, "with a journal too"
    assert not (await place.ask(name.replace("plants", "others"))).events


async def test_an_event_of_the_store_is_found_by_its_jobs_name(oscar: SandboxOscar, place: Place) -> None:
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.bury(DeadLetter(event=event("1"), service="plants", cause="job_failed", detail=""))
        await store.park(event("2"), "plants")
    (story,) = (await place.ask(invocation_name("uploads", "1", "plants"))).events
    assert (story.id, story.fates[0].fate) == ("1", Fate.DEAD)


async def test_a_job_that_waits_is_found(oscar: SandboxOscar, place: Place) -> None:
    oscar.settings.pending_seconds = 60
    await make_job(oscar, "1")
    found = await only(place, "1")
    assert (found.fate, found.status) == (Fate.ACCEPTED, "Pending")
    oscar.settings.controller_seconds = 60
    await make_job(oscar, "2")
    assert (await only(place, "2")).status == "Suspended", "it has no pod, and is searched for in the list"
    place.journal({"what": "filtered", "cause": "no_match", "id": "other"})
    assert not (await place.ask("2")).events, "a journal that never had it spares OSCAR the list"


async def test_services_that_are_done_are_told_beside_the_one_that_is_not(
    oscar: SandboxOscar, place: Place
) -> None:
    oscar.add_service("flood")
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.park(event("1"), "flood")
    await make_job(oscar, "1")
    two = {
        "services": {"plants": {}, "flood": {}},
        "routes": [{"from": "uploads", "to": "plants"}, {"from": "uploads", "to": "flood"}],
    }
    (story,) = (await place.ask("1", **two)).events
    assert {told.service: told.fate for told in story.fates} == {
        "plants": Fate.SUCCEEDED,
        "flood": Fate.PARKED,
    }


async def test_an_event_replayed_as_new_is_followed(oscar: SandboxOscar, place: Place) -> None:
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.bury(DeadLetter(event=event("1"), service="plants", cause="job_failed", detail=""))
        await orders.replay(store, Filter(), as_new=True, dry_run=False)
        kept = await only(place, "1")
        assert (kept.fate, kept.number) == (Fate.PARKED, 1)
        store.forget(1)
    await make_job(oscar, "1+1")
    found = await only(place, "1")
    assert (found.fate, found.job) == (Fate.SUCCEEDED, invocation_name("uploads", "1+1", "plants"))


async def test_a_job_that_was_removed_is_known_to_have_succeeded(oscar: SandboxOscar, place: Place) -> None:
    name = invocation_name("uploads", "1", "plants")
    async with Store.open(place.state_dir, Metrics()) as store:
        await store.change_jobs("plants", JobChanges(remember={name}))
    found = await only(place, "1")
    assert (found.fate, found.job) == (Fate.SUCCEEDED, name)
    assert found.detail == "its job was removed then (`remove_finished`)"
    assert not (await place.ask("2")).events
    await make_job(oscar, "1")
    assert (await only(place, "1")).status == "Succeeded", "it is still there"


async def test_what_can_not_be_asked_says_why(oscar: SandboxOscar, place: Place, tmp_path: Path) -> None:
    async def note(**more: Any) -> str:
        answer = await place.ask("1", **more)
        assert not answer.events
        (told,) = answer.notes
        return told

    def cluster(url: str, **auth: Any) -> dict[str, Any]:
        auth = {"type": "basic", "username": "oscar", "password": "sandbox"} | auth
        return {"clusters": {"main": {"endpoint": url, "auth": auth}}}

    assert "onnect" in await note(**cluster(f"http://127.0.0.1:{free_port()}"))
    token = {
        "clusters": {"main": {"endpoint": oscar.url, "auth": {"type": "service-token", "token": "a" * 64}}}
    }
    assert "service token" in await note(**token)
    assert "401" in await note(**cluster(oscar.url, password="wrong-one"))
    assert "no service other" in await note(services={"plants": {"service": "other"}})
    place.journal({"what": "accepted", "service": "plants", "id": "1"})
    run = await only(place, "1", services={"plants": {"mode": "run"}})
    assert (run.fate, run.job) == (Fate.ACCEPTED, None)
    assert run.detail == "`mode: run`: a call leaves no trace on the cluster"
    tokened = await only(place, "1", **token)
    assert tokened.job == invocation_name("uploads", "1", "plants"), "the name is known all the same"
