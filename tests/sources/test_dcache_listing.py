"""Listings of the dCache source: in pages, and what they let it forget; and the metronome and tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from bridge.sandbox.dcache import SandboxDcache
from bridge.sources.dcache.listing import directory
from bridge.sources.dcache.progress import Phase
from bridge.sources.dcache.rest.connection import Connection
from bridge.testing import until
from tests.sources.dcache import Bridge, Running

pytestmark = pytest.mark.usefixtures("told_no_longer")


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


async def listed_again(running: Running) -> None:
    """Have all listed, and return once it is."""
    session = running.session
    before = session.site.position.listed
    session.agenda.list_all_soon()
    await until(lambda: session.site.position.listed != before and session.progress.phase is Phase.KNOWN, 20)


async def test_a_big_directory_is_listed_in_pages(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PAGE", 50)
    monkeypatch.setattr(directory, "OVERLAP", 5)
    for n in range(333):
        await site.upload(f"/data/in/{n}", b"x")
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        events = await running.accept(333)
        assert {event.subject for event in events} == {f"/data/in/{n}" for n in range(333)}
        await running.healed()
        await running.nothing_more()


async def test_files_that_move_up_between_two_pages_are_not_missed(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PAGE", 50)
    monkeypatch.setattr(directory, "OVERLAP", 5)
    for n in range(200):
        await site.upload(f"/data/in/{n:03}", b"x")
    page = Connection.list_page
    asked = 0

    async def list_page(self: Connection, path: str, *, offset: int, limit: int) -> object:
        nonlocal asked
        asked += 1
        if asked == 2:
            for n in range(40):
                await site.remove(f"/data/in/{n:03}")
        return await page(self, path, offset=offset, limit=limit)

    monkeypatch.setattr(Connection, "list_page", list_page)
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        await running.healed()
        events = await running.accept(160)
        assert {f"/data/in/{n:03}" for n in range(40, 200)} <= {event.subject for event in events}


async def test_what_two_complete_listings_do_not_show_is_forgotten(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        for n in range(10):
            await site.upload(f"/data/in/{n}", b"x")
        await running.accept(10)
        await until(lambda: running.spool.remembered == 10)
        for n in range(6):
            await site.remove(f"/data/in/{n}")
        for _ in range(3):
            await listed_again(running)
        assert running.spool.remembered == 4
        await running.nothing_more()


@pytest.mark.parametrize("renamed", [False, True])
async def test_an_unfinished_upload_that_a_listing_shows_is_waited_for(
    site: SandboxDcache, tmp_path: Path, renamed: bool
) -> None:
    """One that was renamed before is told closed under its old name, where nothing is."""
    upload = await site.begin_upload("/data/elsewhere")
    await site.rename("/data/elsewhere", "/data/in/slow")
    if not renamed:
        await site.finish_upload(upload, b"x")
        upload = await site.begin_upload("/data/in/slower")
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        await running.healed()
        if not renamed:
            await running.accept(1)
        await until(lambda: running.spool.waiting == 1)
        await site.finish_upload(upload, b"x")
        (event,) = await running.accept(1)
        assert event.subject == upload.node.path
        await running.nothing_more()


async def test_a_file_closed_during_the_first_listing_enters_though_its_time_is_older(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer of a file may choose its time, so a listing may take it for one that was there before."""
    page = Connection.list_page
    told = False

    async def list_page(self: Connection, path: str, *, offset: int, limit: int) -> object:
        nonlocal told
        if not told:
            told = True
            await site.upload("/data/in/new", b"x")
            site.namespace.lookup("/data/in/new").mtime = 1000
            await asyncio.sleep(0.1)
        return await page(self, path, offset=offset, limit=limit)

    monkeypatch.setattr(Connection, "list_page", list_page)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/new"
        await running.healed()
        await running.nothing_more()
    async with bridge.running() as running:
        await running.healed()
        await running.nothing_more()


async def test_the_refresh_token_grant_gives_the_token(site: SandboxDcache, tmp_path: Path) -> None:
    forms: list[dict[str, str]] = []

    async def grant(request: web.Request) -> web.Response:
        forms.append({key: str(value) for key, value in (await request.post()).items()})
        return web.json_response({"access_token": "bridge-token", "expires_in": 3600})

    application = web.Application()
    application.add_routes([web.post("/token", grant)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
        auth = {"type": "oidc", "client_id": "bridge", "refresh_token": "r", "token_endpoint": url}
        bridge = Bridge(site, tmp_path, auth=auth)
        async with bridge.running() as running:
            await running.healed()
            await site.upload("/data/in/a", b"x")
            await running.accept(1)
    finally:
        await runner.cleanup()
    assert [form["refresh_token"] for form in forms] == ["r"]


class Ticking:
    """A frontend with nothing but a channel that ticks."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.resumed: list[str | None] = []
        self.subscriptions: list[str] = []
        self.url = ""

    async def metronome(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.subscriptions.append(f"{self.url}/events/channels/C/subscriptions/metronome/M")
        return web.Response(status=201, headers={"Location": self.subscriptions[-1]})

    async def channel(self, request: web.Request) -> web.StreamResponse:
        if "event-stream" not in request.headers["Accept"]:
            return web.json_response({"timeout": 300})
        self.resumed.append(request.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        told = json.dumps({"event": "tick", "subscription": self.subscriptions[-1]})
        for number in range(3):
            await response.write(f"event: metronome\ndata: {told}\nid: {number}\n\n".encode())
        return response

    def application(self) -> web.Application:
        async def limits(_request: web.Request) -> web.Response:
            lifetime = {"minimum": 1, "maximum": 86400, "default": 300}
            return web.json_response(
                {"channels": {"maximumPerUser": 1, "lifetimeWhenDisconnected": lifetime}}
            )

        async def none(_request: web.Request) -> web.Response:
            return web.json_response([])

        async def made(request: web.Request) -> web.Response:
            return web.Response(status=201, headers={"Location": f"{request.url}/C"})

        async def subscriptions(_request: web.Request) -> web.Response:
            return web.json_response(self.subscriptions)

        async def patched(_request: web.Request) -> web.Response:
            return web.Response(status=204)

        async def listed(_request: web.Request) -> web.Response:
            return web.json_response({"fileType": "DIR", "pnfsId": "0", "children": []})

        application = web.Application()
        application.add_routes(
            [
                web.get("/events", limits),
                web.get("/events/channels", none),
                web.post("/events/channels", made),
                web.get("/events/channels/C", self.channel),
                web.patch("/events/channels/C", patched),
                web.get("/events/channels/C/subscriptions", subscriptions),
                web.post("/events/channels/C/subscriptions/metronome", self.metronome),
                web.post("/events/channels/C/subscriptions/inotify", made),
                web.get("/namespace/{path:.*}", listed),
            ]
        )
        return application


async def test_a_metronome_is_started_once_and_its_ticks_are_where_to_resume_from(tmp_path: Path) -> None:
    frontend = Ticking()
    runner = web.AppRunner(frontend.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    frontend.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    bridge = Bridge(None, tmp_path, endpoint=frontend.url)  # type: ignore[arg-type]  # no site: this stub
    try:
        for connections in (2, 4):
            async with bridge.running():
                while len(frontend.resumed) < connections:
                    await asyncio.sleep(0.02)
    finally:
        await runner.cleanup()
    assert frontend.asked == [{"delay": 20.0, "message": "tick"}]
    assert frontend.resumed[0] is None
    assert set(frontend.resumed[1:]) == {"2"}


async def test_a_watch_is_made_again_only_for_another_directory_of_that_name(
    site: SandboxDcache, tmp_path: Path
) -> None:
    await site.mkdir("/data/in/a/b")
    await site.mkdir("/data/in/c")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        made = site.requests["POST events"]
        await listed_again(running)
        assert site.requests["POST events"] == made + 1, "of the watched path itself"
        # Nothing is told of what happens here.
        site.trouble.begin_overflow()
        await site.rename("/data/in/a", "/data/out")
        await site.rename("/data/in/c", "/data/in/a")
        await site.mkdir("/data/in/a/b")
        await site.mkdir("/data/in/c")
        for watch in site._inotify.watches():
            watch.overflowing = False
        await listed_again(running)
        assert site.requests["POST events"] == made + 5
        for path in ("a/1", "a/b/2", "c/3"):
            await site.upload(f"/data/in/{path}", b"x")
        events = await running.accept(3)
        assert {event.attributes["found"] for event in events} == {"event"}
        await running.nothing_more()


async def test_a_watch_that_dcache_has_lost_is_made_again_by_the_next_listing(
    site: SandboxDcache, tmp_path: Path
) -> None:
    await site.mkdir("/data/in/a")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        (watch,) = site._inotify.watches("/data/in/a")
        watch.overflowing = True  # so that its end is not told
        watch.channel.subscriptions.pop(watch.identity)
        site._inotify._forget(watch)
        await listed_again(running)
        assert site.watched == ["/data/in", "/data/in/a"]
        await site.upload("/data/in/a/1", b"x")
        (event,) = await running.accept(1)
        assert event.attributes["found"] == "event"
