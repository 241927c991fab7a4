"""`GET /system/logs/{service}`: what a listing shows, what it hides, and what it costs OSCAR."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings, kubernetes
from tests.servers.oscar import ADMIN, Clock, bearer, call, invoke, listed


@pytest.fixture
async def oscar(clock: Clock) -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True, simulated_seconds=20)) as cluster:
        cluster.add_service("plants")
        yield cluster


async def page(http: aiohttp.ClientSession, token: str = "", service: str = "plants") -> dict[str, Any]:
    status, answer = await call(http, "GET", f"/system/logs/{service}?page={token}")
    assert status == 200, answer
    document: dict[str, Any] = answer
    return document


def continue_token(**fields: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


async def test_later_pages_show_the_state_of_the_first(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    """OSCAR lists the pods of a page under the page's token, and so of its resource version."""
    oscar.settings.jobs_a_page = 1
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, "a", "b", "c")
    clock.pass_(10)
    first = await page(http)
    clock.pass_(10)
    await call(http, "DELETE", "/system/logs/plants/b")
    await invoke(http, plants, "bb")
    second = await page(http, first["next_page"])
    assert second["jobs"]["b"]["status"] == "Running"  # in truth it ended, and is gone
    third = await page(http, second["next_page"])
    assert third["jobs"]["c"]["status"] == "Running"
    assert third.keys() == {"jobs"}
    # A listing begun anew shows what is.
    assert (await page(http))["jobs"]["a"]["status"] == "Succeeded"
    oscar.settings.jobs_a_page = 70
    assert list(await listed(http, "plants")) == ["a", "bb", "c"]


async def test_a_token_of_the_latest_version_shows_what_is_and_never_expires(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    """Kubernetes makes such tokens itself: `inconsistentContinueToken` in apiserver's etcd3/errors.go."""
    oscar.settings.jobs_a_page = 1
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, "a", "b", "c")
    latest = continue_token(v="meta.k8s.io/v1", rv=-1, start="a\0")
    clock.pass_(86_400)
    second = await page(http, latest)
    assert second["jobs"]["b"]["status"] == "Succeeded"
    # The next one has a version again, and with it an end.
    assert list((await page(http, second["next_page"]))["jobs"]) == ["c"]
    clock.pass_(301)
    assert (await call(http, "GET", f"/system/logs/plants?page={second['next_page']}"))[0] == 500
    await call(http, "DELETE", "/system/logs/plants/b")
    assert list((await page(http, latest))["jobs"]) == ["c"]


async def test_a_page_begins_at_the_name_of_its_token_and_so_do_its_pods(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    """`getPod` lists pods with the page's token: one whose name was cut may be before its own job's."""
    plants = oscar.services.named("plants")[0]
    long = "b" + "z" * 61
    await invoke(http, plants, "a", long, "c")
    at_its_name = continue_token(v="meta.k8s.io/v1", rv=-1, start=long)
    assert {name: job["status"] for name, job in (await page(http, at_its_name))["jobs"].items()} == {
        long: "Suspended",
        "c": "Running",
    }
    before = continue_token(v="meta.k8s.io/v1", rv=-1, start=long[:57])
    assert (await page(http, before))["jobs"][long]["status"] == "Running"


async def test_each_pod_of_a_page_is_as_it_is_when_the_throttle_lets_its_list_through(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, *(f"job-{number:02}" for number in range(40)))
    oscar.settings.api_calls_per_second = 0.001  # nothing comes free while the test runs

    async def sleep(_seconds: float) -> None:
        clock.pass_(1)

    monkeypatch.setattr(kubernetes, "sleep", sleep)
    seen = [job["status"] for job in (await page(http))["jobs"].values()]
    # Eight of the burst are left behind the two that find the service; then each costs a second.
    assert seen == ["Running"] * 27 + ["Succeeded"] * 13


@pytest.mark.parametrize(
    "token",
    [
        "nonsense",
        continue_token(v="meta.k8s.io/v2", rv=1, start="a"),
        continue_token(v="meta.k8s.io/v1", rv=0, start="a"),
        continue_token(v="meta.k8s.io/v1", rv=1, start=""),
        continue_token(v="meta.k8s.io/v1", rv=1),
    ],
)
async def test_what_is_no_token_is_a_500(http: aiohttp.ClientSession, token: str) -> None:
    status, text = await call(http, "GET", f"/system/logs/plants?page={token}")
    assert status == 500
    assert text.startswith("invalid continue token: continue key is not valid")


async def test_a_token_lives_for_minutes_from_the_first_page_on(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.jobs_a_page = 1
    await invoke(http, oscar.services.named("plants")[0], "a", "b", "c", "d")
    first = await page(http)
    clock.pass_(200)
    second = await page(http, first["next_page"])
    clock.pass_(99)
    third = await page(http, second["next_page"])
    assert list(third["jobs"]) == ["c"]
    clock.pass_(2)  # 301 s after the first page, though 2 s after this one
    status, text = await call(http, "GET", f"/system/logs/plants?page={third['next_page']}")
    assert status == 500
    assert text.startswith("The provided continue parameter is too old")


async def test_the_last_page_can_be_empty_because_of_another_services_jobs(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.jobs_a_page = 2
    await invoke(http, oscar.services.named("plants")[0], "a", "b")
    await invoke(http, oscar.add_service("birds"), "c")
    first = await page(http)
    assert list(first["jobs"]) == ["a", "b"]
    assert await page(http, first["next_page"]) == {"jobs": {}}


async def test_a_few_active_jobs_are_scattered_among_the_ended_ones(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    plants = oscar.services.named("plants")[0]
    oscar.preload(plants, 500, prefix="")
    names = [f"{digit}0000000" for digit in "048c"]
    await invoke(http, plants, *names)
    seen: dict[str, int] = {}
    token, number = "", 0
    while number == 0 or token:
        answer = await page(http, token)
        seen |= {name: number for name, job in answer["jobs"].items() if job["status"] == "Running"}
        token, number = answer.get("next_page", ""), number + 1
    assert number == 8  # 504 jobs by 70
    assert list(seen) == names
    assert len(set(seen.values())) > 1


async def test_only_the_jobs_with_the_users_label_are_listed_for_a_user(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.provisioned |= {"abc", "bob"}
    shared = oscar.add_service("shared", visibility="public")
    ana, bob = (oscar.oidc.access_token(user) for user in ("abc@egi.eu", "bob"))
    record = b'{"Records":[{"requestParameters":{"principalId":"%s","sourceIPAddress":"::1"}}]}'
    await invoke(http, shared, "by-service-token")
    await invoke(http, shared, "hers", token=ana)
    await invoke(http, shared, "his", token=bob)
    await invoke(http, shared, "hers-as-his", token=ana, body=record % b"bob")  # the body's label wins
    await invoke(http, shared, "s3-as-hers", body=record % b"abc")
    await invoke(http, shared, "s3-without", token=ana, body=b'{"Records":[]}')  # its label is emptied
    oscar.preload(shared, 2, prefix="old-", user="abc@egi.eu")
    for token, names in ((ana, {"hers", "s3-as-hers"}), (bob, {"his", "hers-as-his"})):
        _, answer = await call(http, "GET", "/system/logs/shared", bearer(token))
        assert {name for name in answer["jobs"] if not name.startswith("old-")} == names
        assert sum(name.startswith("old-") for name in answer["jobs"]) == (2 if token == ana else 0)
    assert len(await listed(http, "shared")) == 8


async def test_a_stranger_gets_an_empty_200_and_deletes_nothing(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    await invoke(http, oscar.services.named("plants")[0], "one")
    eve = bearer(oscar.oidc.access_token("eve"))
    assert await call(http, "GET", "/system/logs/plants", eve) == (200, "")
    assert await call(http, "GET", "/system/logs/plants/one", eve) == (200, "")
    assert await call(http, "DELETE", "/system/logs/plants", eve) == (200, "")
    assert (await call(http, "DELETE", "/system/logs/plants/one", eve))[0] == 403
    assert list(await listed(http, "plants")) == ["one"]


async def test_a_job_whose_pod_was_collected_is_suspended_again(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    """`--terminated-pod-gc-threshold`: the oldest ended pods go, by creation, and their Jobs stay."""
    oscar.settings.dead_pods = 2
    plants = oscar.services.named("plants")[0]
    for name in ("d", "c", "b", "a"):
        await invoke(http, plants, name)
        clock.pass_(20)
    jobs = await listed(http, "plants")
    states = {name: job["status"] for name, job in jobs.items()}
    assert states == {"a": "Succeeded", "b": "Succeeded", "c": "Suspended", "d": "Suspended"}
    assert jobs["d"] == {"status": "Suspended"}
    assert (await call(http, "GET", "/system/logs/plants/d"))[0] == 500
    assert oscar.activity().active == {"plants": 0}
    # The name is taken all the same; and a deleted Job makes room for no other's pod.
    headers = bearer(plants.token) | {"X-Delegated-Job-ID": "d"}
    assert (await call(http, "POST", "/job/plants", headers))[0] == 500
    await call(http, "DELETE", "/system/logs/plants/a")
    await invoke(http, plants, "e")
    clock.pass_(20)
    jobs = await listed(http, "plants")
    assert [jobs[name]["status"] for name in "bcde"] == ["Succeeded", "Suspended", "Suspended", "Succeeded"]


async def test_a_deleted_job_frees_its_name_once_it_is_gone(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.deleting_seconds = 30
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, "one")
    clock.pass_(20)
    assert (await call(http, "DELETE", "/system/logs/plants/one"))[0] == 204
    assert list(await listed(http, "plants")) == ["one"]
    clock.pass_(30)
    assert await listed(http, "plants") == {}
    await invoke(http, plants, "one")
    assert oscar.ledger.created == {"one": 2}


async def test_ttl_job_takes_ended_jobs_and_no_others(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.ttl_job_seconds = 60
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, "one")
    oscar.settings.simulated_seconds = 600
    await invoke(http, plants, "two")
    clock.pass_(79)
    assert list(await listed(http, "plants")) == ["one", "two"]
    clock.pass_(1)
    assert list(await listed(http, "plants")) == ["two"]
    clock.pass_(600)
    assert await listed(http, "plants") == {}


async def test_a_listing_fails_as_a_whole_where_kubernetes_does(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    await invoke(http, oscar.services.named("plants")[0], *(f"job-{number:02}" for number in range(40)))
    oscar.faults.set(Fault(kubernetes={"busy": 1}), "system")
    assert await call(http, "GET", "/system/logs/plants") == (
        500,
        "the server has received too many requests and has asked us to try again later (get jobs.batch)",
    )
    oscar.faults.set(Fault(kubernetes={"quota": 1}), "system")  # no trouble of a listing's
    assert len(await listed(http, "plants")) == 40


async def test_a_listing_of_which_some_pods_are_refused_is_a_500_with_the_others_behind_the_text(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    await invoke(http, oscar.services.named("plants")[0], *(f"job-{number:02}" for number in range(40)))
    oscar.faults.set(Fault(kubernetes={"etcd": 0.05}), "system")
    for _ in range(100):
        async with http.get("/system/logs/plants", headers=ADMIN) as answer:
            status, text = answer.status, await answer.text()
        if status == 500 and "{" in text:
            break
    error, _, rest = text.partition("{")
    count = error.count("etcdserver: request timed out")
    assert count > 0
    assert len(json.loads("{" + rest)["jobs"]) == 40 - count


class Pauses:
    """What the throttle would have waited; nothing here takes time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[float] = []
        monkeypatch.setattr(kubernetes, "sleep", self)

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)

    def spent(self, rate: float) -> int:
        """The calls that the last one waited for, after the burst of 10."""
        last = self.taken[-1] if self.taken else 0.0
        self.taken.clear()
        return round(last * rate)


async def test_a_page_costs_a_call_for_each_job_on_it_of_those_that_jobs_live_on(
    oscar: SandboxOscar, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    plants = oscar.services.named("plants")[0]
    oscar.preload(plants, 100)
    pauses = Pauses(monkeypatch)
    rate = oscar.settings.api_calls_per_second = 0.001  # nothing comes free while the test runs
    await invoke(http, plants, "one")
    assert pauses.spent(rate) == 0  # 2 of the burst
    await page(http)
    assert pauses.spent(rate) == 2 + 2 + 70 - 10  # the service, and the pods of each
    await invoke(http, plants, "two")
    assert pauses.spent(rate) == 74 + 2 - 10  # at 5 a second: more than 13 s late
    await call(http, "GET", "/system/logs/plants/one")
    assert pauses.spent(rate) == 76 + 4 - 10
    await call(http, "DELETE", "/system/logs/plants/one")
    assert pauses.spent(rate) == 80 + 2 - 10
    # The group of jobs has a limiter of its own: 2 created, 1 listing, 2 to look at one and delete it.
    batch = oscar.throttle._all_made["batch"] - asyncio.get_running_loop().time()
    assert round(batch * rate) == 5
    await call(http, "GET", "/system/buckets/none")
    assert pauses.spent(rate) == 0  # storage is no business of Kubernetes'
    await call(http, "GET", "/system/status")
    assert pauses.spent(rate) == 82 + 3 - 10  # whatever the number of jobs


async def test_a_direct_request_of_a_user_costs_more_calls_than_it_makes(
    oscar: SandboxOscar, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    oscar.add_service("shared", visibility="public")
    ana = bearer(oscar.oidc.access_token("ana"))
    for _ in range(2):  # until OSCAR's cache of users is used
        assert (await call(http, "GET", "/system/info", ana))[0] == 200
    pauses = Pauses(monkeypatch)
    rate = oscar.settings.api_calls_per_second = 0.001
    for _ in range(3):
        assert (await call(http, "GET", "/system/logs/shared", ana))[0] == 200
    assert pauses.spent(rate) == 3 * (4 + 2) - 10
    rbac = oscar.throttle._all_made["rbac"] - asyncio.get_running_loop().time()
    assert round(rbac * rate) == 6


async def test_listings_slow_jobs_down_as_they_really_would(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    """A page stands before the jobs in the same queue; a hundred times as fast as in truth."""
    plants = oscar.services.named("plants")[0]
    oscar.preload(plants, 70)
    oscar.settings.api_calls_per_second = 500
    loop = asyncio.get_running_loop()
    began = loop.time()
    listing = asyncio.create_task(page(http))
    while oscar.throttle._all_made.get("core", 0.0) < began + 70 / 500:
        await asyncio.sleep(0)
    await invoke(http, plants, "late")
    assert loop.time() - began >= (72 + 2 - 10) / 500 - 0.01
    assert len((await listing)["jobs"]) == 70
