"""Trouble on request, in process and over HTTP, and the truth beside it."""

import time
from collections.abc import AsyncIterator

import httpx
import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.testing import until
from tests.servers.dcache import PLAIN, created, listening, new_channel, subscribe, watch


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data")
        await site.mkdir("/other")
        yield site


async def control(site: SandboxDcache, kind: str, **query: str) -> int:
    async with httpx.AsyncClient(verify=PLAIN) as anyone:
        return (await anyone.post(f"{site.url}/sandbox/{kind}", params=query)).status_code


async def make(site: SandboxDcache, *names: str) -> None:
    for name in names:
        await site.mkdir(f"/data/{name}")


async def test_a_dropped_stream_is_cut_and_its_channel_remains(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with listening(http, channel) as listener:
        await make(site, "a")
        assert await listener.take(1) == created(0, "a")
        assert await control(site, "drop") == 204
        assert await listener.rest() == ["cut"]
    await make(site, "b")
    async with listening(http, channel, "0") as listener:
        assert await listener.take(1) == created(1, "b")


async def test_a_stream_is_cut_after_so_many_events_once(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    site.faults.drop_after = 2
    async with listening(http, channel) as listener:
        await make(site, "a", "b", "c")
        assert await listener.rest() == [*created(0, "a", "b"), "cut"]
    async with listening(http, channel, "1") as listener:
        await make(site, "d", "e")
        assert await listener.take(3) == created(2, "c", "d", "e")


async def test_a_stalled_stream_stays_open_and_silent_and_another_is_served(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with listening(http, channel) as listener:
        await make(site, "a")
        assert await listener.take(1) == created(0, "a")
        site.trouble.stall()
        await make(site, "b")
        assert site.connected == 1
        async with listening(http, channel, "0") as second:
            assert await second.take(1) == created(1, "b")
            assert site.connected == 2
        site.trouble.resume()
        assert await listener.rest() == [*created(1, "b"), "SYSTEM COMPETING_CLIENT", "end"]


async def test_an_emptied_ring_is_a_loss_for_whoever_comes_back(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await make(site, "a", "b")
    site.trouble.lose_events()
    async with listening(http, channel, "1") as listener:
        await make(site, "c")
        assert await listener.take(2) == ["SYSTEM EVENT_LOSS", *created(2, "c")]


async def test_an_overflow_loses_the_events_of_its_watch_and_says_so_whatever_the_flags(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await watch(http, channel, "/other", "IN_CREATE")
    async with listening(http, channel) as listener:
        assert await control(site, "begin-overflow", path="/data") == 204
        await make(site, "a", "b")
        await site.mkdir("/other/c")
        assert await control(site, "end-overflow") == 204
        await make(site, "d")
        expected = [*created(0, "c"), "1 IN_Q_OVERFLOW", *created(2, "d")]
        assert await listener.take(3) == expected


async def test_an_overflow_of_the_namespace_strikes_all_watches(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await watch(http, channel, "/other", "IN_CREATE")
    async with listening(http, channel) as listener:
        site.trouble.begin_overflow()
        await make(site, "a")
        site.trouble.end_overflow()
        assert await listener.take(2) == ["0 IN_Q_OVERFLOW", "1 IN_Q_OVERFLOW"]


async def test_a_restart_announces_itself_and_forgets_channels_and_watches_but_no_files(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    version = await site.upload("/data/a")
    async with listening(http, channel) as listener:
        assert await control(site, "restart") == 204
        assert await listener.rest() == ["SYSTEM SHUTDOWN", "cut"]
    assert (await http.get(channel)).status_code == 404
    assert (await http.get("events/channels")).json() == []
    assert site.watched == []
    assert site.versions() == [version]
    again = await new_channel(http)
    await watch(http, again, "/data", "IN_CREATE")
    async with listening(http, again) as listener:
        await make(site, "b")
        assert await listener.take(1) == created(0, "b")


async def test_a_crash_is_a_restart_without_a_word(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with listening(http, channel) as listener:
        assert await control(site, "restart", shutdown="0") == 204
        assert await listener.rest() == ["cut"]
    assert (await http.get(channel)).status_code == 404


async def test_a_restart_cuts_a_stalled_stream_too(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with listening(http, channel) as listener:
        site.trouble.stall()
        site.trouble.restart()
        assert await listener.rest() == ["cut"]


async def test_forgotten_channels_end_their_streams_in_good_order(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    async with listening(http, channel) as listener:
        assert await control(site, "forget-channels") == 204
        assert await listener.rest() == ["SYSTEM SUBSCRIPTION_CLOSED", "end"]
    assert (await http.get(channel)).status_code == 404


async def test_lookups_fail_so_often_as_asked(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    site.faults.lookup_failures = 2
    statuses = [(await http.get("namespace/data")).status_code for _ in range(3)]
    site.faults.lookup_failures, site.faults.lookup_status = 1, 503
    statuses.append((await http.get("namespace/data")).status_code)
    assert statuses == [500, 500, 200, 503]


async def test_lookups_are_slow_when_asked(http: httpx.AsyncClient, site: SandboxDcache) -> None:
    site.faults.lookup_delay_seconds = 0.1
    began = time.monotonic()
    assert (await http.get("namespace/data")).status_code == 200
    assert time.monotonic() - began >= 0.1


async def test_good_credentials_are_refused_so_often_as_asked(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    site.faults.refusals = 1
    assert [(await http.get("events")).status_code for _ in range(2)] == [401, 200]


async def test_subscriptions_fail_so_often_as_asked(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    site.faults.subscription_failures = 1
    statuses = [(await subscribe(http, channel, {"path": "/other"})).status_code for _ in range(2)]
    assert statuses == [500, 201]


async def test_faults_are_set_and_shown_over_http(site: SandboxDcache) -> None:
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.url) as anyone:
        answer = await anyone.put("/sandbox/faults", json={"lookup_failures": 3, "moved_to_first": True})
        assert answer.status_code == 204
        assert (await anyone.get("/sandbox/faults")).json() == {
            "lookup_failures": 3,
            "lookup_status": 500,
            "lookup_delay_seconds": 0.0,
            "busy": 0,
            "subscription_failures": 0,
            "refusals": 0,
            "stream_status": 0,
            "comments_every_seconds": 0.0,
            "ignores_offset": False,
            "no_location": False,
            "drop_after": None,
            "moved_to_first": True,
        }
        for wrong in ({"lookups": 1}, [], {"lookup_failures": "3"}):
            assert (await anyone.put("/sandbox/faults", json=wrong)).status_code == 400
    assert (site.faults.lookup_failures, site.faults.moved_to_first) == (3, True)


async def test_an_unknown_trouble_names_those_there_are(site: SandboxDcache) -> None:
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.url) as anyone:
        answer = await anyone.post("/sandbox/earthquake")
        assert (answer.status_code, "begin-overflow" in answer.text) == (404, True)
        assert (await anyone.post("/sandbox/close-again")).status_code == 400
        assert (await anyone.post("/sandbox/unreadable?path=/nowhere")).status_code == 400


async def test_further_closes_and_permissions_are_asked_for_over_http(
    http: httpx.AsyncClient, site: SandboxDcache
) -> None:
    await site.upload("/data/a")
    channel = await new_channel(http)
    await watch(http, channel, "/data", "IN_CLOSE_WRITE")
    async with listening(http, channel) as listener:
        assert await control(site, "close-again", path="/data/a") == 204
        assert await listener.take(1) == ["0 IN_CLOSE_WRITE a"]
    assert await control(site, "unreadable", path="/data") == 204
    assert (await http.get("namespace/data?children=true")).status_code == 403
    assert await control(site, "readable", path="/data") == 204
    assert (await http.get("namespace/data?children=true")).status_code == 200


async def test_the_truth_is_told_over_http(site: SandboxDcache) -> None:
    version = await site.upload("/data/a", b"12")
    await site.begin_upload("/data/b")
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.url) as anyone:
        told = {one["path"]: one for one in (await anyone.get("/sandbox/truth")).json()}
    assert told["/data/a"] == {
        "path": "/data/a",
        "pnfs_id": version.pnfs_id,
        "size": 2,
        "mtime": version.mtime,
        "closed": True,
    }
    assert (told["/data/b"]["size"], told["/data/b"]["closed"]) == (None, False)


async def test_requests_are_counted(http: httpx.AsyncClient, site: SandboxDcache, channel: str) -> None:
    await http.get("namespace/data?children=true")
    await http.get("namespace/data")
    assert site.requests == {"POST events": 2, "GET namespace": 2}
    assert channel


async def test_two_sites_of_one_seed_draw_the_same() -> None:
    ids = []
    for _ in range(2):
        async with SandboxDcache() as one:
            ids.append((await one.upload("/a")).pnfs_id)
    assert ids[0] == ids[1]


async def test_thousands_of_uploads_into_watched_directories_all_arrive(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    directories, files = 50, 2000
    for number in range(directories):
        await site.mkdir(f"/data/{number}")
        await watch(http, channel, f"/data/{number}", "IN_CLOSE_WRITE")
    closed = []
    async with http.stream("GET", channel, headers={"Accept": "text/event-stream"}) as stream:
        await until(lambda: site.connected)
        for number in range(files):
            await site.upload(f"/data/{number % directories}/{number}")
        async for text in stream.aiter_lines():
            if "IN_CLOSE_WRITE" in text:
                closed.append(int(text.split('"name":"')[1].split('"')[0]))
                if len(closed) == files:
                    break
    assert closed == list(range(files))
