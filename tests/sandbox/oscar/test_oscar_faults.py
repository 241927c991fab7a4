"""Trouble on request, and the ledger that tells what really happened."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True, seed=7)) as cluster:
        cluster.add_service("plants")
        cluster.add_service("birds")
        yield cluster


async def invoke(oscar: SandboxOscar, http: aiohttp.ClientSession, name: str, service: str = "plants") -> int:
    """The status, or 0 when the connection was cut."""
    token = oscar.services.named(service)[0].token
    headers = {"Authorization": f"Bearer {token}", "X-Delegated-Job-ID": name}
    try:
        async with http.post(f"/job/{service}", data=b"{}", headers=headers) as answer:
            return answer.status
    except aiohttp.ClientConnectionError:
        return 0


async def test_a_lost_answer_leaves_a_job_and_a_cut_leaves_none(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.faults.set(Fault(lost_answers=1))
    assert await invoke(oscar, http, "lost") == 0
    oscar.faults.set(Fault(cut=1))
    assert await invoke(oscar, http, "cut") == 0
    oscar.faults.clear()
    assert await invoke(oscar, http, "lost") == 500
    assert await invoke(oscar, http, "cut") == 201
    assert oscar.ledger.created == {"lost": 1, "cut": 1}
    assert oscar.ledger.requests == 4
    assert oscar.faults.injected == {"lost_answer": 1, "cut": 1}


async def test_statuses_come_with_their_chance_and_no_job(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.faults.set(Fault(statuses={500: 0.2, 503: 0.3}, retry_after="1"))
    statuses = [await invoke(oscar, http, f"job-{number}") for number in range(200)]
    assert 20 <= statuses.count(500) <= 65
    assert 35 <= statuses.count(503) <= 85
    assert statuses.count(201) == oscar.ledger.total == 200 - oscar.faults.injected["status"]


async def test_the_same_seed_gives_the_same_trouble() -> None:
    runs = []
    for _ in range(2):
        async with (
            SandboxOscar(Settings(simulate=True, seed=3)) as oscar,
            aiohttp.ClientSession(oscar.url) as http,
        ):
            oscar.add_service("plants")
            oscar.faults.set(Fault(statuses={503: 0.5}))
            runs.append([await invoke(oscar, http, f"job-{number}") for number in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {201, 503}


async def test_a_fault_of_one_service_spares_the_others(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.faults.set(Fault(statuses={429: 1}), "plants")
    assert await invoke(oscar, http, "one") == 429
    assert await invoke(oscar, http, "two", "birds") == 201


async def test_faults_can_be_set_over_http(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    rules = {
        "plants": {"statuses": {"503": 1}, "retry_after": 2, "delay_seconds": 0.01},
        "system": {"statuses": {"502": 1}},
    }
    async with http.put("/sandbox/faults", json={"services": rules}) as answer:
        assert answer.status == 204
    headers = {"Authorization": "Bearer " + "0" * 64}
    async with http.post("/job/plants", data=b"{}", headers=headers) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
    async with http.get("/system/info") as answer:
        assert answer.status == 502
    async with http.get("/sandbox/faults") as answer:
        shown = await answer.json()
    assert shown["services"]["system"]["statuses"] == {"502": 1}
    assert shown["injected"] == {"status": 2}
    for wrong in ("[]", "{", '{"services": {"*": {"colour": 1}}}', '{"services": {"*": []}}'):
        async with http.put("/sandbox/faults", data=wrong) as answer:
            assert answer.status == 400
    async with http.put("/sandbox/faults", json={}) as answer:
        assert answer.status == 204
    assert await invoke(oscar, http, "one") == 201


async def test_an_outage_refuses_connections_on_the_same_port_until_it_ends(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    assert await invoke(oscar, http, "before") == 201
    for _ in range(2):
        await oscar.outage()
        assert await invoke(oscar, http, "during") == 0
        await oscar.end_outage()
        assert await invoke(oscar, http, "before") == 500
    assert "during" not in oscar.ledger.created


async def test_an_outage_cuts_the_request_under_way(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.faults.set(Fault(delay_seconds=30))
    async with asyncio.TaskGroup() as group:
        pending = group.create_task(invoke(oscar, http, "one"))
        async with asyncio.timeout(60):
            while oscar.ledger.requests == 0:
                await asyncio.sleep(0.01)
        await oscar.outage()
    assert pending.result() == 0


async def test_an_outage_of_some_seconds_ends_by_itself(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    try:
        async with http.put("/sandbox/faults", json={"outage_seconds": 0.2}):
            pass
    except aiohttp.ClientConnectionError:
        pass
    assert await invoke(oscar, http, "one") == 0
    async with asyncio.timeout(60):
        while await invoke(oscar, http, "one") == 0:
            await asyncio.sleep(0.02)
    assert oscar.ledger.created == {"one": 1}


async def test_what_takes_longer_than_the_write_timeout_is_done_but_not_answered(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.write_timeout_seconds = 0.01
    oscar.faults.set(Fault(delay_seconds=0.1))
    assert await invoke(oscar, http, "one") == 0
    oscar.settings.write_timeout_seconds = 300
    assert await invoke(oscar, http, "one") == 500
    assert oscar.ledger.created == {"one": 1}


async def test_the_ledger_can_be_read_by_another_process(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    for number in range(5):
        await invoke(oscar, http, f"job-{number}")
    await invoke(oscar, http, "job-0")
    async with http.get("/sandbox/ledger?offset=0&limit=3") as answer:
        first = await answer.json()
    assert first == {
        "requests": 6,
        "total": 5,
        "runs": 0,
        "created": {"job-0": 1, "job-1": 1, "job-2": 1},
        "next": 3,
    }
    async with http.get("/sandbox/ledger?offset=3&limit=3&bodies") as answer:
        second = await answer.json()
    assert second["next"] is None
    assert [entry["job"] for entry in second["entries"]] == ["job-3", "job-4"]
    assert base64.b64decode(second["entries"][0]["body"]) == b"{}"
    async with http.get("/sandbox/ledger?offset=x") as answer:
        assert answer.status == 400


async def test_the_ledgers_file_has_a_job_before_its_answer(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    async with SandboxOscar(Settings(simulate=True, ledger_file=file, keep_bodies=False)) as oscar:
        oscar.add_service("plants")
        async with aiohttp.ClientSession(oscar.url) as http:
            await invoke(oscar, http, "one")
        [line] = file.read_text().splitlines()
        assert oscar.ledger.entries == []
    assert json.loads(line) == {"job": "one", "service": "plants", "body": base64.b64encode(b"{}").decode()}
