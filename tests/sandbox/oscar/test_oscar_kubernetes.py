"""What OSCAR passes on of Kubernetes and of the issuer: throttled, full, failing, on their way out."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import aiohttp
import pytest

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings, kubernetes, logins
from bridge.sandbox.oscar.kubernetes import TROUBLES, Throttle

ADMIN = "Basic " + base64.b64encode(b"oscar:sandbox").decode()


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as cluster:
        cluster.add_service("plants")
        yield cluster


async def ask(
    http: aiohttp.ClientSession, method: str, path: str, authorization: str, name: str = ""
) -> tuple[int, str]:
    headers = {"Authorization": authorization} | ({"X-Delegated-Job-ID": name} if name else {})
    async with http.request(
        method, path, data=b"{}" if method == "POST" else None, headers=headers
    ) as answer:
        return answer.status, await answer.text()


async def job(oscar: SandboxOscar, http: aiohttp.ClientSession, name: str) -> tuple[int, str]:
    token = oscar.services.named("plants")[0].token
    return await ask(http, "POST", "/job/plants", f"Bearer {token}", name)


async def test_a_burst_is_let_in_and_then_half_as_many_jobs_as_calls(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    """Two calls of the core group a job: five of them at once, and at 5 calls a second 2.5 a second."""
    oscar.settings.api_calls_per_second = 50.0
    began = time.monotonic()
    answers = await asyncio.gather(*(job(oscar, http, f"job-{number}") for number in range(10)))
    assert {status for status, _ in answers} == {201}
    assert time.monotonic() - began >= (20 - 10) / 50.0 - 0.02


async def test_a_throttle_holds_each_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(kubernetes, "sleep", sleep)
    throttle = Throttle(Settings(api_calls_per_second=0.001))  # so that none comes free in a slow test
    for _ in range(12):
        await throttle.calls("core")
    await throttle.calls("batch")
    assert [round(pause, -2) for pause in pauses] == [1000, 2000]


@pytest.mark.parametrize("rate", [0.001, 0.003, 3.3, 1e3])
async def test_a_burst_is_let_in_without_a_pause_whatever_the_time(
    monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    """A loop's time is hours; what it loses in the last digit is no pause."""

    async def sleep(seconds: float) -> None:
        pytest.fail(f"a pause of {seconds} s")

    monkeypatch.setattr(kubernetes, "sleep", sleep)
    for hours in range(1, 1000):
        loop = SimpleNamespace(time=lambda now=hours * 3600.1: now)
        monkeypatch.setattr(kubernetes, "get_running_loop", lambda loop=loop: loop)
        throttle = Throttle(Settings(api_calls_per_second=rate))
        for _ in range(10):
            await throttle.calls("core")


async def test_a_job_is_made_though_its_caller_has_hung_up(
    oscar: SandboxOscar, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, lets_in = asyncio.Event(), asyncio.Event()

    async def sleep(_seconds: float) -> None:
        waits.set()
        await lets_in.wait()

    monkeypatch.setattr(kubernetes, "sleep", sleep)
    oscar.settings.api_calls_per_second = 0.001
    for number in range(5):
        assert (await job(oscar, http, f"job-{number}"))[0] == 201
    call = asyncio.create_task(job(oscar, http, "late"))
    await waits.wait()
    call.cancel()
    await asyncio.wait([call])
    assert "late" not in oscar.ledger.created
    lets_in.set()
    async with asyncio.timeout(60):
        while "late" not in oscar.ledger.created:
            await asyncio.sleep(0.001)
    assert await job(oscar, http, "late") == (500, 'jobs.batch "late" already exists')


@pytest.mark.parametrize("kind", TROUBLES)
async def test_kubernetes_says_why_it_creates_no_job(
    oscar: SandboxOscar, http: aiohttp.ClientSession, kind: str
) -> None:
    oscar.faults.set(Fault(kubernetes={kind: 1.0}), "plants")
    status, text = await job(oscar, http, "one")
    assert (status, text) == (500, TROUBLES[kind].format(name="one", namespace="oscar-svc"))
    assert oscar.ledger.total == 0
    assert oscar.faults.injected == {"kubernetes": 1}
    oscar.faults.clear()
    assert await job(oscar, http, "one") == (201, "")


async def test_the_troubles_of_kubernetes_can_be_set_over_http(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    rules = {"*": {"kubernetes": {"quota": 1}}}
    async with http.put("/sandbox/faults", json={"services": rules}) as answer:
        assert answer.status == 204
    assert "exceeded quota" in (await job(oscar, http, "one"))[1]
    async with http.get("/sandbox/faults") as answer:
        assert (await answer.json())["services"]["*"]["kubernetes"] == {"quota": 1.0}
    async with http.put("/sandbox/faults", json={"services": {"*": {"kubernetes": {"rain": 1}}}}) as answer:
        assert answer.status == 400
        assert "quota, webhook" in await answer.text()


async def test_a_resource_quota_holds_until_a_job_is_gone(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.jobs_quota = 2
    assert [(await job(oscar, http, name))[0] for name in ("one", "two")] == [201, 201]
    full = (
        'jobs.batch "{}" is forbidden: exceeded quota: oscar-jobs, requested: count/jobs.batch=1, '
        "used: count/jobs.batch=2, limited: count/jobs.batch=2"
    )
    assert await job(oscar, http, "three") == (500, full.format("three"))
    assert await job(oscar, http, "one") == (500, full.format("one"))  # the quota is looked at first
    assert (await ask(http, "DELETE", "/system/logs/plants/one", ADMIN))[0] == 204
    assert (await job(oscar, http, "three"))[0] == 201


async def test_a_job_that_is_being_deleted_keeps_its_name(
    oscar: SandboxOscar, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    oscar.settings.deleting_seconds = 60
    await job(oscar, http, "one")
    assert (await ask(http, "DELETE", "/system/logs/plants/one", ADMIN))[0] == 204
    taken = (500, 'object is being deleted: jobs.batch "one" already exists')
    assert await job(oscar, http, "one") == taken
    ahead = 61.0
    assert await job(oscar, http, "one") == (201, "")
    oscar.settings.ttl_job_seconds = 10
    ahead += 11.0
    assert await job(oscar, http, "one") == taken
    ahead += 61.0
    assert await job(oscar, http, "one") == (201, "")


async def test_the_issuer_is_asked_at_each_call_and_its_trouble_has_many_faces(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    mine = oscar.add_service("mine", owner="ana")
    known, new = (f"Bearer {oscar.oidc.access_token('ana')}" for _ in range(2))
    assert (await ask(http, "GET", "/system/info", known))[0] == 200  # asked for the cache, and for itself
    assert [(await ask(http, "POST", "/job/mine", known, name))[0] for name in ("one", "two")] == [201, 201]
    assert oscar.oidc.asked == 4
    oscar.faults.set(Fault(statuses={429: 1.0}), "userinfo")
    assert await ask(http, "POST", "/job/mine", known, "three") == (500, "")
    assert await ask(http, "POST", "/run/mine", known) == (500, "")
    assert await ask(http, "POST", "/run/mine", new) == (404, "")
    assert await ask(http, "GET", "/system/info", known) == (500, "429 Too Many Requests: ")
    assert await ask(http, "GET", "/system/info", new) == (401, "")
    assert (await ask(http, "POST", "/job/mine", f"Bearer {mine.token}", "three"))[0] == 201  # asks nobody
    oscar.faults.clear()
    assert (await ask(http, "POST", "/job/mine", known, "four"))[0] == 201


async def test_a_user_who_has_left_the_group_is_told_so_while_the_token_is_in_the_cache(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("mine", owner="ana")
    token = oscar.oidc.access_token("ana")
    assert (await ask(http, "GET", "/system/info", f"Bearer {token}"))[0] == 200
    oscar.oidc.leave("ana")
    for path in ("/job/mine", "/run/mine"):
        answer = await ask(http, "POST", path, f"Bearer {token}")
        assert answer == (401, "this user isn't enrrolled on the vo: ")


async def test_of_calls_that_race_to_be_a_users_first_one_succeeds(
    oscar: SandboxOscar, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, all_looked = 0, asyncio.Event()

    async def sleep(_seconds: float) -> None:
        nonlocal looked
        looked += 1
        if looked == 3:
            all_looked.set()
        await all_looked.wait()

    monkeypatch.setattr(logins, "sleep", sleep)
    oscar.settings.first_contact_seconds = 1.0
    first = f"Bearer {oscar.oidc.access_token('ana')}"
    answers = await asyncio.gather(*(ask(http, "GET", "/system/services", first) for _ in range(3)))
    assert sorted(status for status, _ in answers) == [200, 500, 500]
    assert ('Error creating secret for user ana: secrets "ana" already exists') in {
        text for _, text in answers
    }
    assert (await ask(http, "GET", "/system/services", first))[0] == 200


async def test_the_authorization_of_a_service_can_be_asked_for_without_an_invocation(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    plants = oscar.services.named("plants")[0]
    oscar.add_service("mine", owner="ana")
    path = "/system/services/{}/auth"
    assert await ask(http, "GET", path.format("plants"), f"Bearer {plants.token}") == (200, "")
    assert await ask(http, "GET", path.format("plants"), f"Bearer {'0' * 64}") == (401, "")
    assert await ask(http, "GET", path.format("none"), f"Bearer {plants.token}") == (500, "")
    assert await ask(http, "GET", path.format("plants"), ADMIN) == (200, "")
    assert (await ask(http, "GET", path.format("plants"), "Basic bm8="))[0] == 401
    assert (await ask(http, "GET", path.format("none"), ADMIN))[0] == 404
    for user, status in (("ana", 200), ("eve", 403)):
        token = oscar.oidc.access_token(user)
        assert (await ask(http, "GET", path.format("mine"), f"Bearer {token}"))[0] == status
    oscar.settings.version = "4.0.0"
    assert (await ask(http, "GET", path.format("plants"), f"Bearer {plants.token}"))[0] == 404
    assert oscar.ledger.requests == 0


async def test_quotas_are_there_with_kueue_alone(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    assert await ask(http, "GET", "/system/quotas/user/ana", ADMIN) == (404, "404 page not found")
    oscar.settings.version = "3.7.1"
    status, text = await ask(http, "GET", "/system/quotas/user/ana", ADMIN)
    assert (status, text.partition(":")[0]) == (503, "kueue is not enabled")
    oscar.settings.version, oscar.settings.kueue = "4.1.0", True
    ana = f"Bearer {oscar.oidc.access_token('ana')}"
    assert (await ask(http, "GET", "/system/quotas/user", ADMIN))[0] == 401
    assert (await ask(http, "GET", "/system/quotas/user/ana", ana))[0] == 403
    status, text = await ask(http, "GET", "/system/quotas/user", ana)
    assert status == 200
    assert '"cpu": {"max": 2000, "used": 0}' in text
    async with http.put("/system/quotas/user/ana", data=b"{}", headers={"Authorization": ADMIN}) as answer:
        assert answer.status == 400


async def test_a_run_is_an_invalid_workload_while_its_users_quota_is_full(
    http: aiohttp.ClientSession, oscar: SandboxOscar
) -> None:
    oscar.settings.kueue = True
    mine = oscar.add_service("mine", owner="ana", cpu="1.5")
    oscar.settings.provisioned.add("ana")
    token = f"Bearer {mine.token}"
    assert (await ask(http, "POST", "/run/mine", token))[0] == 200
    oscar.settings.simulated_seconds = 3600
    assert (await ask(http, "POST", "/job/mine", token, "one"))[0] == 201
    assert await ask(http, "POST", "/run/mine", token) == (
        400,
        "invalid workload: try to reduce the service resource (cpu, memory, etc.)",
    )
    assert (await ask(http, "DELETE", "/system/logs/mine/one", ADMIN))[0] == 204
    oscar.settings.simulated_seconds = 0
    assert (await ask(http, "POST", "/run/mine", token))[0] == 200


async def test_run_does_not_reach_what_is_offloaded(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    far = oscar.add_service("far", interlink_node_name="hpc-1")
    assert await ask(http, "POST", "/run/far", f"Bearer {far.token}") == (502, "")
    assert (await ask(http, "POST", "/job/far", f"Bearer {far.token}"))[0] == 201
