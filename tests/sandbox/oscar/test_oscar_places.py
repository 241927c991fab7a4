"""The cluster's places: who has one, in which order, for how long; and the ledger's witness of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from bridge.sandbox.oscar import Fault, Job, SandboxOscar, Settings
from tests.servers.oscar import Clock, bearer, call, invoke, listed


@pytest.fixture
async def oscar(clock: Clock) -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True, simulated_seconds=20, max_pods=2)) as cluster:
        cluster.add_service("plants")
        cluster.add_service("birds")
        yield cluster


def phases(oscar: SandboxOscar, *names: str) -> list[str]:
    jobs = [oscar.job(name) for name in names]
    return [job.phase if job is not None else "none" for job in jobs]


def found(oscar: SandboxOscar, name: str) -> Job:
    job = oscar.job(name)
    assert job is not None
    return job


async def test_jobs_beyond_the_places_are_pending_and_run_in_order(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, "c", "b", "a")
    assert phases(oscar, "c", "b", "a") == ["Running", "Running", "Pending"]
    assert (await listed(http, "plants"))["a"] == {"status": "Pending"}
    clock.pass_(19.9)
    assert phases(oscar, "c", "b", "a") == ["Running", "Running", "Pending"]
    clock.pass_(0.2)
    assert phases(oscar, "c", "b", "a") == ["Succeeded", "Succeeded", "Running"]
    clock.pass_(3600)
    assert phases(oscar, "a") == ["Succeeded"]
    # Nobody looked for an hour: it took the place the moment that this one was free.
    assert found(oscar, "a").started == found(oscar, "c").finished
    assert found(oscar, "a").finished - found(oscar, "a").started == pytest.approx(20)


async def test_all_services_wait_for_the_same_places(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    for name in ("plants", "birds", "plants", "birds"):
        await invoke(http, oscar.services.named(name)[0], f"{name}-{oscar.ledger.total}")
    assert oscar.activity().places_used == 2
    assert phases(oscar, "plants-2", "birds-3") == ["Pending", "Pending"]
    clock.pass_(20)
    assert phases(oscar, "plants-2", "birds-3") == ["Running", "Running"]


async def test_a_deleted_job_leaves_its_place_or_its_turn_to_the_next(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    await invoke(http, oscar.services.named("plants")[0], "one", "two", "three", "four")
    clock.pass_(5)
    assert (await call(http, "DELETE", "/system/logs/plants/three"))[0] == 204
    assert (await call(http, "DELETE", "/system/logs/plants/one"))[0] == 204
    assert phases(oscar, "two", "four") == ["Running", "Running"]
    assert found(oscar, "four").started == clock.now
    assert oscar.activity().active == {"plants": 2}
    clock.pass_(20)
    assert phases(oscar, "two", "four") == ["Succeeded", "Succeeded"]
    assert oscar.activity().active == {"plants": 0}


async def test_a_pod_has_its_place_before_it_runs_while_its_image_is_pulled(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.controller_seconds, oscar.settings.pending_seconds = 1, 2
    oscar.settings.starting_seconds = 30
    await invoke(http, oscar.services.named("plants")[0], "one")
    assert (await listed(http, "plants"))["one"] == {"status": "Suspended"}  # no pod yet
    clock.pass_(1)
    assert (await listed(http, "plants"))["one"] == {"status": "Pending"}
    assert oscar.activity().places_used == 0
    clock.pass_(1)
    assert (await listed(http, "plants"))["one"].keys() == {"status", "creation_time"}
    assert oscar.activity().places_used == 1
    clock.pass_(30)
    shown = (await listed(http, "plants"))["one"]
    assert shown.keys() == {"status", "creation_time", "start_time"}
    assert shown["status"] == "Running"
    assert shown["creation_time"] < shown["start_time"]


async def test_a_pod_without_its_secret_holds_a_place_for_ever(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    mallory = b'{"Records":[{"requestParameters":{"principalId":"mallory","sourceIPAddress":"::1"}}]}'
    plants = oscar.services.named("plants")[0]
    await invoke(http, plants, "hangs", body=mallory)
    await invoke(http, plants, "one", "two")
    clock.pass_(86_400)
    assert (await listed(http, "plants"))["hangs"].keys() == {"status", "creation_time"}
    assert phases(oscar, "hangs", "one", "two") == ["Pending", "Succeeded", "Succeeded"]
    assert found(oscar, "two").started == found(oscar, "one").finished
    await call(http, "DELETE", "/system/logs/plants/hangs")
    assert oscar.activity().places_used == 0


async def test_kueue_holds_what_a_users_quota_has_no_room_for_without_a_pod(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.kueue = True
    oscar.settings.provisioned |= {"ana", "bob"}
    mine = oscar.add_service("mine", owner="ana", cpu="0.5")  # of 2 cores
    names = [f"job-{number}" for number in range(6)]
    await invoke(http, mine, *names)

    async def states() -> list[str]:
        jobs = await listed(http, "mine")
        return [jobs[name]["status"] for name in names]

    assert await states() == ["Running"] * 2 + ["Pending"] * 2 + ["Suspended"] * 2
    assert oscar.activity().peak == {"mine": 6}
    assert (await call(http, "GET", "/system/logs/mine/job-5"))[0] == 500
    # Another user's queue is another's; the administrator has none.
    await invoke(http, oscar.add_service("his", owner="bob"), "his")
    await invoke(http, oscar.services.named("plants")[0], "plain")
    assert phases(oscar, "his", "plain") == ["Pending", "Pending"]
    clock.pass_(20)
    assert await states() == ["Succeeded"] * 2 + ["Running"] * 2 + ["Pending"] * 2
    assert found(oscar, "job-4").pod_from == found(oscar, "job-0").finished
    clock.pass_(100)
    assert await states() == ["Succeeded"] * 6
    assert oscar.quotas.of("ana")["resources"]["cpu"]["used"] == 0


async def test_kueue_looks_again_when_a_job_is_deleted_or_a_quota_changed(
    oscar: SandboxOscar, http: aiohttp.ClientSession
) -> None:
    oscar.settings.kueue = True
    oscar.settings.provisioned.add("ana")
    large, small = (oscar.add_service(f"of-{cpu}", owner="ana", cpu=cpu) for cpu in ("1.5", "0.5"))
    await invoke(http, large, "large-1", "large-2", "large-3")
    await invoke(http, small, "small")
    # What does not fit lets pass what does.
    assert phases(oscar, "large-1", "large-2", "small") == ["Running", "Suspended", "Running"]
    assert (await call(http, "DELETE", "/system/logs/of-1.5/large-2"))[0] == 204
    assert phases(oscar, "large-3") == ["Suspended"]
    assert (await call(http, "DELETE", "/system/logs/of-1.5/large-1"))[0] == 204
    assert phases(oscar, "large-3") == ["Running"]
    await invoke(http, large, "large-4")
    assert phases(oscar, "large-4") == ["Suspended"]
    assert (await call(http, "PUT", "/system/quotas/user/ana", json={"cpu": "4"}))[0] == 200
    assert phases(oscar, "large-4") == ["Pending"]


async def test_the_ledger_knows_the_most_jobs_that_were_ever_active(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    plants, birds = (oscar.services.named(name)[0] for name in ("plants", "birds"))
    await invoke(http, plants, "one", "two", "three")
    await invoke(http, birds, "four")
    clock.pass_(20)  # two end in the very instant before the next is made
    await invoke(http, plants, "five")
    status, activity = await call(http, "GET", "/sandbox/activity")
    assert status == 200
    assert activity["peak"] == {"plants": 3, "birds": 1}
    assert activity["active"] == {"plants": 2, "birds": 1}
    # The peak is of an instant, whether anybody looked at it or not.
    await invoke(http, plants, "six", "seven")
    clock.pass_(3600)
    assert oscar.activity().peak == {"plants": 4, "birds": 1}
    assert oscar.activity().active == {"plants": 0, "birds": 0}


async def test_the_ledger_knows_how_much_of_the_places_was_used(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    plants = oscar.services.named("plants")[0]
    began = oscar.activity()
    clock.pass_(5)
    await invoke(http, plants, "one", "two", "three")
    clock.pass_(30)
    middle = oscar.activity()
    # Both for 20 s, then one for 10 s.
    assert middle.place_seconds - began.place_seconds == pytest.approx(50)
    assert middle.moment - began.moment == pytest.approx(35)
    assert middle.places_used == 1
    await call(http, "DELETE", "/system/logs/plants/three")
    clock.pass_(100)
    assert oscar.activity().place_seconds == pytest.approx(middle.place_seconds)


async def test_jobs_that_really_run_are_in_the_ledger_too() -> None:
    async with SandboxOscar(Settings(max_pods=1)) as oscar, aiohttp.ClientSession(oscar.url) as http:
        await invoke(http, oscar.add_service("slow", "sleep 60"), "one", "two", "three")
        await invoke(http, oscar.add_service("fast", "true"), "four")
        async with asyncio.timeout(60):
            while oscar.activity().places_used == 0:
                await asyncio.sleep(0.01)
        assert oscar.activity().active == {"slow": 3, "fast": 1}
        for name in ("one", "two", "three"):
            await call(http, "DELETE", f"/system/logs/slow/{name}")
        assert oscar.activity().active == {"slow": 0, "fast": 1}
        async with asyncio.timeout(60):
            while oscar.activity().active["fast"] or oscar.activity().places_used:
                await asyncio.sleep(0.01)
        assert oscar.activity().peak == {"slow": 3, "fast": 1}
        assert 0 < oscar.activity().place_seconds < 60


async def test_ended_jobs_can_be_there_from_the_start(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    document = {"service": "plants", "count": 10_000, "failed": 1000, "seconds_ago": 600, "prefix": "ob-"}
    began = time.process_time()
    assert (await call(http, "POST", "/sandbox/jobs", json=document))[0] == 204
    spent = time.process_time() - began
    assert spent < 5, "seconds of CPU: a second is much"
    jobs = oscar.jobs.all()
    assert len(jobs) == 10_000
    assert sum(job.phase == "Failed" for job in jobs) == 1000
    assert {job.name[:3] for job in jobs} == {"ob-"}
    assert oscar.activity().active == {}
    assert oscar.ledger.total == 0
    # They are Jobs as any other: their names are taken, and TTL_JOB ends them.
    plants = oscar.services.named("plants")[0]
    headers = {"Authorization": f"Bearer {plants.token}", "X-Delegated-Job-ID": jobs[0].name}
    async with http.post("/job/plants", data=b"{}", headers=headers) as answer:
        assert (answer.status, await answer.text()) == (500, f'jobs.batch "{jobs[0].name}" already exists')
    oscar.settings.ttl_job_seconds = 601
    assert len(oscar.jobs.all()) == 10_000
    clock.pass_(1)
    assert oscar.jobs.all() == []
    for wrong in ({"service": "none", "count": 1}, {"service": "plants"}, {"count": 1}):
        assert (await call(http, "POST", "/sandbox/jobs", json=wrong))[0] == 400


async def test_fifty_thousand_jobs_are_no_trouble(clock: Clock) -> None:
    """Each has its 20 s on one of 20 places: 13 hours and 53 minutes in which nobody looks."""
    settings = Settings(simulate=True, simulated_seconds=20, max_pods=20, keep_bodies=False)
    dice = random.Random(1)
    async with SandboxOscar(settings) as oscar:
        plants = oscar.add_service("plants")
        oscar.preload(plants, 10_000)
        began = time.process_time()
        for number in range(50_000):
            job = oscar.jobs.create(f"ob-{dice.getrandbits(128):032x}", plants, None, 2)
            oscar.ledger.record(job.name, "plants", b"{}")
            oscar.pods.start(job, plants, b"{}")
            if number % 1000 == 999:
                clock.pass_(100)
        before = oscar.activity()
        assert before.active["plants"] == 50_000 - 20 * 50 * 5
        clock.pass_(50_000)
        after = oscar.activity()
        assert after.active["plants"] == 0
        assert after.peak["plants"] == 50_000 - 20 * 49 * 5
        assert after.place_seconds == pytest.approx(1_000_000, rel=1e-6)
        names, token, pages = [], "", 0
        while pages == 0 or token:
            page = oscar.jobs.page(plants, None, token)
            names += [job.name for job in page.jobs]
            token, pages = page.following, pages + 1
        assert len(names) == 60_000
        assert names == sorted(names)
        spent = time.process_time() - began
        assert spent < 30, "seconds of CPU, of which three are much"


@pytest.mark.parametrize("seed", range(5))
async def test_places_are_never_overbooked_and_never_idle_while_one_waits(clock: Clock, seed: int) -> None:
    dice = random.Random(seed)
    async with SandboxOscar(Settings(simulate=True, max_pods=3)) as oscar:
        plants = oscar.add_service("plants")
        jobs: list[Job] = []
        for number in range(300):
            oscar.settings.simulated_seconds = dice.choice([0.0, 1.0, 7.5, 20.0])
            oscar.settings.starting_seconds = dice.choice([0.0, 0.5])
            oscar.settings.pending_seconds = dice.choice([0.0, 0.0, 3.0])
            job = oscar.jobs.create(f"job-{number}", plants, None, 2)
            oscar.ledger.record(job.name, "plants", b"{}")
            oscar.pods.start(job, plants, b"{}")
            jobs.append(job)
            if dice.random() < 0.1:
                oscar.jobs.delete(dice.choice([known for known in jobs if known.gone > clock.now]))
            clock.pass_(dice.choice([0.0, 0.1, 5.0]))
            waiting = sum(known.phase == "Pending" and known.placed > clock.now for known in oscar.jobs.all())
            used = oscar.activity().places_used
            assert used <= 3
            eligible = any(
                known.placed > clock.now and known.created + 3.0 <= clock.now for known in oscar.jobs.all()
            )
            assert used == 3 or not eligible, f"{waiting} wait"
        clock.pass_(10_000)
        assert oscar.activity().active == {"plants": 0}
        assert oscar.activity().places_used == 0


def test_a_compressed_cluster_is_the_same_one_faster() -> None:
    settings = Settings(simulated_seconds=20, api_calls_per_second=5, max_pods=20, page_token_seconds=300)
    fast = settings.compressed(10)
    assert (fast.simulated_seconds, fast.api_calls_per_second, fast.page_token_seconds) == (2, 50, 30)
    assert (fast.max_pods, fast.jobs_a_page, fast.ttl_job_seconds) == (20, 70, 259_200)
    assert Settings().compressed(10).api_calls_per_second is None


async def test_a_script_fails_by_a_rule_and_every_service_has_its_own(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.supervisor = "go"
    rules = {"plants": {"scripts": {"broken": 3}}}
    async with http.put("/sandbox/faults", json={"services": rules}) as answer:
        assert answer.status == 204
    for name, body in (("plants", b'{"a":"broken"}'), ("plants", b'{"a":1}'), ("birds", b'{"a":"broken"}')):
        await invoke(http, oscar.services.named(name)[0], f"{name}-{oscar.ledger.total}", body=body)
    clock.pass_(40)
    assert phases(oscar, "plants-0", "plants-1", "birds-2") == ["Failed", "Succeeded", "Succeeded"]
    assert oscar.faults.injected == {"script": 1}
    async with http.get("/sandbox/faults") as answer:
        assert (await answer.json())["services"]["plants"]["scripts"] == {"broken": 3}
    oscar.faults.set(Fault(scripts={"": 1}))
    await invoke(http, oscar.services.named("birds")[0], "all")
    clock.pass_(40)
    assert phases(oscar, "all") == ["Failed"]


async def test_the_clusters_status_tells_what_is_left_and_the_administrator_how_many_pods_there_are(
    oscar: SandboxOscar, http: aiohttp.ClientSession, clock: Clock
) -> None:
    oscar.settings.starting_seconds = 5
    _, empty = await call(http, "GET", "/system/status")
    cpu = empty["cluster"]["metrics"]["cpu"]
    assert (cpu["total_free_cores"], cpu["total_schedulable_cores"]) == (400, 400)  # 2 places of 200 m
    await invoke(http, oscar.services.named("plants")[0], "one", "two")
    await invoke(http, oscar.services.named("birds")[0], "three")
    _, full = await call(http, "GET", "/system/status")
    cpu = full["cluster"]["metrics"]["cpu"]
    # They have their places, and pull their images: asked for, but not used.
    assert (cpu["total_free_cores"], cpu["total_schedulable_cores"]) == (400, 0)
    assert full["cluster"]["nodes"][0]["cpu"] == {"capacity_cores": 400, "request_cores": 400}
    assert full["oscar"]["pods"]["states"]["Pending"] == 3
    clock.pass_(5)
    _, busy = await call(http, "GET", "/system/status")
    assert busy["cluster"]["metrics"]["cpu"]["total_free_cores"] == 0
    states = {"Pending": 1, "Running": 2, "Succeeded": 0, "Failed": 0, "Unknown": 0}
    assert busy["oscar"]["pods"] == {"total": 3, "states": states}
    # A user sees what is left, and no counts; a pod that was collected is in none.
    ana = bearer(oscar.oidc.access_token("ana"))
    _, hers = await call(http, "GET", "/system/status", ana)
    assert hers["cluster"] == busy["cluster"]
    assert hers["oscar"]["pods"] == {"total": 0, "states": {}}
    oscar.settings.dead_pods = 1
    clock.pass_(100)
    _, after = await call(http, "GET", "/system/status")
    assert after["oscar"]["pods"]["states"]["Succeeded"] == 1
    assert after["oscar"]["jobs_count"] == 3
