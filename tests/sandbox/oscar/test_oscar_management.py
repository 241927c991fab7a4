"""`/system/*`: services, their tokens, the lists of jobs and their quirks; and the token endpoint."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from bridge.sandbox.oscar import SandboxOscar, Settings
from tests.servers.oscar import bearer, call, invoke

PLANTS = {"name": "plants", "image": "alpine", "script": "cat"}


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as cluster:
        yield cluster


async def create_jobs(http: aiohttp.ClientSession, oscar: SandboxOscar, names: list[str]) -> None:
    await invoke(http, oscar.services.named("plants")[0], *names)


async def test_a_service_lives_from_creation_to_deletion(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    assert await call(http, "GET", "/system/services/plants") == (404, "")
    assert await call(http, "POST", "/system/services", json=PLANTS) == (201, "")
    assert await call(http, "POST", "/system/services", json=PLANTS) == (
        400,
        "A service with the provided name already exists",
    )
    status, service = await call(http, "GET", "/system/services/plants")
    assert status == 200
    assert len(service["token"]) == 64
    assert (service["owner"], service["namespace"]) == ("cluster_admin", "oscar-svc")
    assert await call(http, "GET", "/system/services") == (200, [service])
    await create_jobs(http, oscar, ["one"])
    assert await call(http, "DELETE", "/system/services/plants") == (204, "")
    assert await call(http, "DELETE", "/system/services/plants") == (404, "")
    assert oscar.job("one") is None
    assert oscar.ledger.created == {"one": 1}


async def test_an_update_keeps_the_token_since_4_0_0_and_changed_it_before(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    old = oscar.add_service("plants").token
    assert await call(http, "PUT", "/system/services", json=PLANTS) == (204, "")
    assert (await call(http, "GET", "/system/services/plants"))[1]["token"] == old
    oscar.settings.version = "3.7.1"
    assert await call(http, "PUT", "/system/services", json=PLANTS) == (204, "")
    assert (await call(http, "GET", "/system/services/plants"))[1]["token"] != old
    assert await call(http, "PUT", "/system/services", json=PLANTS | {"name": "none"}) == (404, "")


@pytest.mark.parametrize("missing", ["name", "image", "script"])
async def test_an_incomplete_definition_is_refused(http: aiohttp.ClientSession, missing: str) -> None:
    definition = {key: value for key, value in PLANTS.items() if key != missing}
    status, text = await call(http, "POST", "/system/services", json=definition)
    assert status == 400
    assert text.startswith("The service specification is not valid: Key: 'Service.")


async def test_secrets_are_never_shown(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.add_service("plants", environment={"secrets": {"KEY": "value"}})
    _, service = await call(http, "GET", "/system/services/plants")
    assert service["environment"] == {"variables": {}, "secrets": {"KEY": ""}}


async def test_management_takes_basic_or_oidc_but_no_service_token(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    token = oscar.add_service("plants").token
    wrong = {"Authorization": "Basic " + base64.b64encode(b"oscar:wrong").decode()}
    for headers, status in [
        ({}, 401),
        (wrong, 401),
        (bearer(token), 400),
        (bearer(oscar.oidc.access_token("alice")), 200),
        (bearer(oscar.oidc.access_token("alice", seconds=-1)), 401),
        (bearer(oscar.oidc.access_token("alice", groups=())), 401),
        (bearer(oscar.oidc.access_token("alice", issuer="https://elsewhere.example.org")), 401),
    ]:
        assert (await call(http, "GET", "/system/services", headers))[0] == status
    assert await call(http, "GET", "/health", {}) == (200, "Ok")


async def test_a_user_sees_public_and_own_services_only(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("open", visibility="public")
    oscar.add_service("shared", visibility="restricted", allowed_users=["alice"])
    oscar.add_service("hidden")
    alice = bearer(oscar.oidc.access_token("alice"))
    assert await call(http, "POST", "/system/services", alice, PLANTS) == (201, "")
    _, services = await call(http, "GET", "/system/services", alice)
    assert {service["name"] for service in services} == {"open", "shared", "plants"}
    assert (await call(http, "GET", "/system/services/hidden", alice))[0] == 403
    bob = bearer(oscar.oidc.access_token("bob"))
    assert (await call(http, "DELETE", "/system/services/plants", bob))[0] == 500
    assert (await call(http, "DELETE", "/system/services/plants", alice))[0] == 204


async def test_jobs_are_listed_by_name_in_pages(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.add_service("plants")
    names = [f"job-{number:03}" for number in range(160)]
    await create_jobs(http, oscar, list(reversed(names)))
    seen: list[str] = []
    sizes = []
    page = ""
    while True:
        status, answer = await call(http, "GET", f"/system/logs/plants?page={page}")
        assert status == 200
        assert "remaining_jobs" not in answer
        sizes.append(len(answer["jobs"]))
        seen += answer["jobs"]
        if not (page := answer.get("next_page", "")):
            break
        # Not in the later pages: they show the state of the first.
        await create_jobs(http, oscar, [f"later-{len(seen)}", f"job-{len(seen)}-later"])
    assert seen == names
    assert sizes == [70, 70, 20]


async def test_a_page_token_expires_with_500(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.settings.jobs_a_page = 1
    oscar.add_service("plants")
    await create_jobs(http, oscar, ["one", "two"])
    _, answer = await call(http, "GET", "/system/logs/plants")
    oscar.settings.page_token_seconds = 0
    status, text = await call(http, "GET", f"/system/logs/plants?page={answer['next_page']}")
    assert status == 500
    assert text.startswith("The provided continue parameter is too old")
    assert (await call(http, "GET", "/system/logs/plants?page=nonsense"))[0] == 500


async def test_with_oidc_only_the_jobs_labelled_with_the_user_are_listed(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants", visibility="public")
    await create_jobs(http, oscar, ["by-service-token"])
    alice = bearer(oscar.oidc.access_token("alice"))
    assert (await call(http, "GET", "/system/logs/plants", alice))[1] == {"jobs": {}}
    async with http.post("/job/plants", data=b"{}", headers=alice | {"X-Delegated-Job-ID": "hers"}) as answer:
        assert answer.status == 201
    assert list((await call(http, "GET", "/system/logs/plants", alice))[1]["jobs"]) == ["hers"]
    assert len((await call(http, "GET", "/system/logs/plants"))[1]["jobs"]) == 2


async def test_job_times_are_there_once_they_have_come(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants")
    await create_jobs(http, oscar, ["done"])
    oscar.settings.pending_seconds = 60
    await create_jobs(http, oscar, ["waits"])
    _, answer = await call(http, "GET", "/system/logs/plants")
    assert answer["jobs"]["waits"] == {"status": "Pending"}
    done = answer["jobs"]["done"]
    assert done["status"] == "Succeeded"
    assert done["creation_time"] <= done["start_time"] <= done["finish_time"]
    assert done["finish_time"].endswith("Z")


async def test_deleting_a_job_frees_its_name(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.add_service("plants")
    await create_jobs(http, oscar, ["one"])
    assert await call(http, "DELETE", "/system/logs/plants/one") == (204, "")
    assert (await call(http, "DELETE", "/system/logs/plants/one"))[0] == 404
    assert (await call(http, "DELETE", "/system/logs/none/one"))[0] == 403
    await create_jobs(http, oscar, ["one"])
    assert oscar.ledger.created == {"one": 2}


async def test_deleting_all_jobs_spares_those_that_did_not_succeed(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants")
    await create_jobs(http, oscar, ["done"])
    oscar.settings.pending_seconds = 60
    await create_jobs(http, oscar, ["waits"])
    assert await call(http, "DELETE", "/system/logs/plants") == (204, "")
    assert [job.name for job in oscar.jobs.all()] == ["waits"]
    await call(http, "DELETE", "/system/logs/plants?all=true")
    assert oscar.jobs.all() == []


async def test_the_log_of_no_job_is_a_500_and_of_a_pending_one_a_404(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants")
    oscar.settings.pending_seconds = 60
    await create_jobs(http, oscar, ["waits"])
    assert (await call(http, "GET", "/system/logs/plants/none"))[0] == 500
    assert (await call(http, "GET", "/system/logs/plants/waits"))[0] == 404
    assert (await call(http, "GET", "/system/logs/none/waits"))[0] == 404


async def test_the_cluster_tells_its_version_configuration_and_state(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.add_service("plants")
    await create_jobs(http, oscar, ["one", "two"])
    _, info = await call(http, "GET", "/system/info")
    assert info["version"] == "4.1.0"
    _, config = await call(http, "GET", "/system/config")
    assert config["config"]["services_namespace"] == "oscar-svc"
    _, status = await call(http, "GET", "/system/status")
    assert status["oscar"]["pods"]["states"]["Succeeded"] == 2
    assert status["cluster"]["metrics"]["cpu"]["total_free_cores"] > 0


async def refresh(http: aiohttp.ClientSession, token: str) -> tuple[int, dict[str, Any]]:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "bridge"}
    async with http.post("/oidc/token", data=form) as answer:
        return answer.status, await answer.json()


async def test_the_token_endpoint_gives_tokens_that_the_cluster_takes(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.access_token_seconds = 30
    async with http.get("/.well-known/openid-configuration") as answer:
        assert (await answer.json())["token_endpoint"] == f"{oscar.url}/oidc/token"
    status, tokens = await refresh(http, oscar.oidc.grant("alice"))
    assert (status, tokens["expires_in"]) == (200, 30)
    assert (await call(http, "GET", "/system/info", bearer(tokens["access_token"])))[0] == 200
    assert (await call(http, "GET", "/oidc/userinfo", bearer(tokens["access_token"])))[1]["sub"] == "alice"
    assert (await refresh(http, "unknown"))[0] == 400
    assert (oscar.oidc.refreshes, oscar.oidc.refused) == (1, 1)


async def test_refresh_tokens_rotate_when_asked(oscar: SandboxOscar, http: aiohttp.ClientSession) -> None:
    oscar.settings.rotate_refresh_tokens = True
    first = oscar.oidc.grant("alice")
    _, tokens = await refresh(http, first)
    assert (await refresh(http, first))[0] == 400
    assert (await refresh(http, tokens["refresh_token"]))[0] == 200
