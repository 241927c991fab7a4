"""What a dCache, or something before it, may answer in place of what is meant: told, bounded, passed by."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bridge.core import steady
from bridge.core.delivery import Outcome
from bridge.sandbox.dcache import SandboxDcache
from bridge.sources.dcache import following, lookups, settling
from bridge.sources.dcache.backlog import failing, hand
from bridge.sources.dcache.health import Health
from bridge.sources.dcache.listing import directory, lister
from bridge.sources.dcache.progress import Phase
from bridge.sources.dcache.rest import connection, http
from bridge.sources.dcache.rest.answers import Unanswered
from bridge.sources.dcache.rest.connection import Connection
from bridge.testing import until
from tests.sources.dcache import Bridge, Running, source

pytestmark = pytest.mark.usefixtures("told_no_longer")


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


def changed(monkeypatch: pytest.MonkeyPatch, path: str, change: Any) -> None:
    """Have what dCache tells at `path`, below the API's base, go through `change`."""
    get = Connection.get

    async def changing(self: Connection, at: str, query: Mapping[str, str] | None = None, **more: Any) -> Any:
        told = await get(self, at, query, **more)
        return change(told) if at == path else told

    monkeypatch.setattr(Connection, "get", changing)


def problems(running: Running) -> str:
    return "; ".join(running.source.problems())


# --- one item that can't be read ---


@pytest.mark.parametrize("way", ["told", "listed"])
async def test_a_file_of_the_year_10000_enters_without_a_time_and_its_neighbour_beside_it(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    far = 253_402_300_800_000
    bridge = Bridge(site, tmp_path, first_start="everything")
    if way == "listed":
        await site.upload("/data/in/far", b"x")
        site.namespace.lookup("/data/in/far").mtime = far
    async with bridge.running() as running:
        await running.healed()
        if way == "told":
            with monkeypatch.context() as for_a_moment:
                for_a_moment.setattr("bridge.sandbox.dcache.namespace.time.time", lambda: far / 1000)
                await site.upload("/data/in/far", b"x")
        await site.upload("/data/in/near", b"x")
        events = {event.subject: event for event in await running.accept(2)}
        assert events["/data/in/far"].time is None
        assert int(events["/data/in/far"].attributes["mtime"]) >= far
        assert events["/data/in/near"].time is not None


@pytest.mark.parametrize("wrong", [{"pnfsId": None}, {"size": "7"}, {"mtime": []}, {"fileName": "a/b"}])
async def test_an_entry_that_can_not_be_read_is_one_dead_letter_and_the_listing_is_not_complete(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    def spoil(told: Any) -> Any:
        for child in told.get("children", ()):
            if child["fileName"] == "bad":
                child.update(wrong)
        return told

    changed(monkeypatch, "/namespace/data/in", spoil)
    for name in ("a", "bad", "b"):
        await site.upload(f"/data/in/{name}", b"x")
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        deliveries = await running.hands.take(3)
        (unreadable,) = (one for one in deliveries if one.fault is not None)
        assert {one.event.subject for one in deliveries if one.fault is None} == {"/data/in/a", "/data/in/b"}
        assert "/data/in" in str(unreadable.fault)
        assert unreadable.event.data.startswith(b'{"')
        for one in deliveries:
            one.settle(Outcome.ACCEPTED if one.fault is None else Outcome.DEAD_LETTERED)
        await running.healed()
        assert running.session.site.position.listed is None, "it was not complete"
        running.session.agenda.list_all_soon()
        await until(lambda: running.session.progress.phase is Phase.KNOWN)
        await running.nothing_more()


async def test_a_look_up_that_can_not_be_read_is_a_dead_letter_of_its_file(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(monkeypatch, "/namespace/data/in/bad", lambda told: {**told, "pnfsId": 7})
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/bad", b"x")
        await site.upload("/data/in/good", b"x")
        deliveries = {one.event.subject: one for one in await running.hands.take(2)}
        assert "no PNFS-ID" in str(deliveries["/data/in/bad"].fault)
        assert deliveries["/data/in/good"].fault is None


@pytest.mark.parametrize(
    "sent",
    [
        b"event: inotify\nid: \xc3\xa9\ndata: {}\n\n",
        b"event: inotify\nid: " + b"9" * 60_000 + b"\ndata: {}\n\n",
        b"event: inotify\nid: 7\ndata: \xff\n\n",
        b"event: inotify\nid: 7\ndata: " + b"x" * 200_000 + b"\n\n",
        b"event: SYSTEM\ndata: []\n\n",
    ],
    ids=["id", "long id", "not UTF-8", "long", "SYSTEM"],
)
async def test_an_event_that_can_not_be_read_is_a_dead_letter_and_the_stream_goes_on(
    site: SandboxDcache, tmp_path: Path, sent: bytes
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        (stream,) = site._streams
        stream.send(sent)
        await site.upload("/data/in/a", b"x")
        deliveries = {one.event.subject: one for one in await running.hands.take(2)}
        assert "an event can't be read" in str(deliveries[None].fault)
        assert deliveries["/data/in/a"].fault is None
        assert list(site._streams) == [stream]
        for one in deliveries.values():
            one.settle(Outcome.ACCEPTED)
        await running.nothing_more()


@pytest.mark.parametrize("limits", [{"channels": {"maximumPerUser": "unlimited"}}, {"channels": 7}, [], None])
async def test_limits_of_any_type_are_no_reason_not_to_read(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: Any
) -> None:
    changed(monkeypatch, "/events", lambda _told: limits)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)


# --- something in between ---


@pytest.mark.parametrize("status", [404, 403])
async def test_a_stream_refused_while_its_channel_is_listed_is_asked_for_less_and_less_often(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(following, "_PAUSES", (0.05, 30.0))
    site.faults.stream_status = status
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await until(lambda: "though dCache lists the channel" in problems(running))
        began, before = time.monotonic(), site.requests["GET events"]
        await until(lambda: site.requests["GET events"] >= before + 10)
        assert time.monotonic() - began > 0.5, "five of them, each after a pause twice as long"
        assert len(site._events.channels) == 1
        site.faults.stream_status = 0
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        assert "missed" not in problems(running)


async def test_a_channel_that_is_gone_each_time_is_made_anew_less_and_less_often(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_PAUSES", (0.05, 30.0))
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        began, made = time.monotonic(), site.requests["POST events"]
        connected = Health.connected

        def forgetting(self: Health) -> None:
            connected(self)
            if time.monotonic() - began < 1.0:
                site.trouble.forget_channels()

        monkeypatch.setattr(Health, "connected", forgetting)
        site.trouble.forget_channels()
        await until(lambda: time.monotonic() - began > 1.0)
        await running.healed()
        assert site.requests["POST events"] - made < 50
        await site.upload("/data/in/a", b"x")
        await running.accept(1)


async def test_a_stream_that_breaks_again_and_again_is_told_until_it_has_held(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, "HELD_SECONDS", 3600.0)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        assert problems(running) == "", "a start that has gone well"
        site.trouble.drop_streams()
        await until(lambda: site.connected == 0)
        await until(lambda: "(over for" in problems(running))
        assert site.connected
        monkeypatch.setattr(steady, "HELD_SECONDS", 0.0)
        assert problems(running) == ""


async def test_a_proxy_s_comments_are_no_sign_that_dcache_lives(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TICK_SECONDS", 0.2)
    site.faults.comments_every_seconds = 0.05
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        site.trouble.stall()
        await site.upload("/data/in/b", b"x")
        (event,) = await running.accept(1)
        assert event.attributes["found"] == "event"


# --- endless ---


async def test_of_a_body_that_does_not_end_no_more_is_read_than_its_bound(tmp_path: Path) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"[" * 2**16)
            sent += 2**16

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", endless)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        config = source(None, None, tmp_path, endpoint=url)._config  # type: ignore[arg-type]
        async with Connection(config) as asked:
            with pytest.raises(Unanswered, match=f"more than {http.MOST_BYTES} bytes"):
                await asked.limits()
            with pytest.raises(Unanswered, match=f"more than {http.MOST_BYTES + 4096} bytes"):
                await asked.list_page("/data/in", offset=0, limit=1)
    finally:
        await runner.cleanup()
    assert sent < 20 * http.MOST_BYTES


async def test_the_watches_of_fifty_thousand_directories_are_read(tmp_path: Path) -> None:
    front = (
        "https://dcache.example.org:3880/api/v1/events/channels/YubiguXBZXx4w6lns2cR6w/subscriptions/inotify/"
    )

    async def many(_request: web.Request) -> web.Response:
        return web.json_response([f"{front}{number:036X}" for number in range(50_000)])

    application = web.Application()
    application.add_routes([web.get("/{path:.*}", many)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with Connection(source(None, None, tmp_path, endpoint=url)._config) as asked:  # type: ignore[arg-type]
            assert len(await asked.subscriptions("YubiguXBZXx4w6lns2cR6w")) == 50_000
    finally:
        await runner.cleanup()


async def test_an_event_without_an_end_is_left_as_silence(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TICK_SECONDS", 0.2)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        site.trouble.stall()
        (stream,) = site._streams
        writes = [stream._transport]
        endless = asyncio.create_task(_write_without_end(writes[0]))
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        endless.cancel()


async def _write_without_end(transport: Any) -> None:
    while not transport.is_closing():
        transport.write(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        await asyncio.sleep(0.01)


async def test_a_dcache_that_ignores_the_offset_is_listed_in_one_page(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PAGE", 10)
    monkeypatch.setattr(directory, "OVERLAP", 2)
    site.faults.ignores_offset = True
    for number in range(35):
        await site.upload(f"/data/in/{number}", b"x")
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        assert len({event.subject for event in await running.accept(35)}) == 35
        await running.healed()
        assert site.requests["GET namespace"] <= 6
        await running.nothing_more()


async def test_a_directory_that_no_page_can_show_whole_is_told(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "PAGE", 10)
    monkeypatch.setattr(directory, "MOST_PAGE", 20)
    monkeypatch.setattr(directory, "OVERLAP", 2)
    monkeypatch.setattr(lister, "_PAUSE", 0.001)
    site.faults.ignores_offset = True
    for number in range(35):
        await site.upload(f"/data/in/{number}", b"x")
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        await until(lambda: "no page goes on where the one before ended" in problems(running))
        asked = site.requests["GET namespace"]
        assert asked <= 4 * lister.ATTEMPTS
        await site.upload("/data/in/more", b"x")
        while "/data/in/more" not in bridge.paths:
            await running.accept(1)


async def test_a_watch_without_a_location_is_told_and_made_again(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lister, "_PAUSE", 0.001)
    monkeypatch.setattr(lister, "RETRY_SECONDS", 0.1)
    site.faults.no_location = True
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await until(lambda: "without the subscription's Location" in problems(running))
        site.faults.no_location = False
        await until(lambda: not problems(running))
        await site.upload("/data/in/a", b"x")
        (event,) = await running.accept(1)
        assert event.attributes["found"] == "event"


# --- files that can't be looked up ---


async def test_files_that_may_not_be_looked_up_stop_no_others_and_enter_once_they_may(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "MOST", 5)
    monkeypatch.setattr(hand, "HELD", 20)
    monkeypatch.setattr(hand, "WINDOW", 10)
    monkeypatch.setattr(failing, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(failing, "LONGEST_ROUND_SECONDS", 0.3)
    monkeypatch.setattr(hand, "LONGEST_PAUSE", 0.3)
    await site.mkdir("/data/in/forbidden")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        site.mark_unreadable("/data/in/forbidden")
        for number in range(100):
            await site.upload(f"/data/in/forbidden/{number}", b"x")
        await site.upload("/data/in/a", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/a"
        assert "look-ups fail" in problems(running)
        assert len(running.session.reader.hand.rows) <= 30
        await until(lambda: running.spool.waiting == 100)
        site.mark_unreadable("/data/in/forbidden", unreadable=False)
        assert len({event.subject for event in await running.accept(100)}) == 100
        await running.nothing_more()
        await until(lambda: not problems(running))


async def test_a_file_that_may_not_be_looked_up_is_a_dead_letter_after_a_day_counted_over_restarts(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.mkdir("/data/in/d")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        site.mark_unreadable("/data/in/d")
        await site.upload("/data/in/d/a", b"x")
        await until(lambda: "403" in problems(running))
        await until(lambda: _first_attempt(tmp_path) is not None)
    first = _first_attempt(tmp_path)
    assert first is not None
    # A day that has passed while the bridge was off would be doubted: the store knows of none such.
    monkeypatch.setattr(lookups, "GIVE_UP_SECONDS", 0.9 * lookups.GIVE_UP_SECONDS)
    monkeypatch.setattr(time, "time", lambda: first + lookups.GIVE_UP_SECONDS)
    async with bridge.running() as running:
        (dead,) = await running.hands.take(1)
        assert "/data/in/d/a could not be looked up for 22 h" in str(dead.fault)
        assert "403" in str(dead.fault)
        assert dead.event.subject == "/data/in/d/a"
        dead.settle(Outcome.DEAD_LETTERED)
        await running.nothing_more()


def _first_attempt(directory: Path) -> float | None:
    with closing(sqlite3.connect(directory / "events.sqlite3")) as connected:
        found = connected.execute("SELECT first_attempt FROM kept").fetchone()
    return None if found is None else found[0]


# --- settle ---


async def test_a_file_that_is_written_again_and_again_enters_once_it_is_quiet(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path, settle="1s")
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"0")
        for number in range(50):
            version = await site.rewrite("/data/in/a", b"x" * number, closes=4)
        (event,) = await running.accept(1)
        assert event.attributes["mtime"] == str(version.mtime)
        assert event.attributes["size"] == "49"
        assert time.time() - version.mtime / 1000 >= 0.9, "each of the 50 is a millisecond younger"
        await running.nothing_more()
        assert site.requests["GET namespace"] < 60, "those that come meanwhile are not looked up"
        assert len(running.session.lookups.settling) == 0


async def test_files_that_are_waited_for_until_they_are_quiet_stop_no_others(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "MOST_SETTLING", 5)
    monkeypatch.setattr(hand, "HELD", 20)
    monkeypatch.setattr(hand, "WINDOW", 10)
    monkeypatch.setattr(failing, "ROUND_SECONDS", 0.05)
    bridge = Bridge(site, tmp_path, settle="1h")
    async with bridge.running() as running:
        await running.healed()
        for number in range(60):
            await site.upload(f"/data/in/{number}", b"x")
        long_ago = time.time() - 7200
        with monkeypatch.context() as for_a_moment:
            for_a_moment.setattr("bridge.sandbox.dcache.namespace.time.time", lambda: long_ago)
            await site.upload("/data/in/quiet", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/quiet"
        monkeypatch.setattr(Connection, "now", lambda _self: time.time() + 7200)
        while len(set(bridge.paths)) < 1 + 60 - 5:  # those in memory are looked at in an hour
            await running.accept(1)


@pytest.mark.parametrize("way", ["told", "listed"])
async def test_a_file_whose_time_lies_ahead_enters_once_it_is_the_same_for_long_enough(
    site: SandboxDcache, tmp_path: Path, way: str
) -> None:
    bridge = Bridge(site, tmp_path, settle="300ms", first_start="everything")
    if way == "listed":
        await site.upload("/data/in/a", b"0")
        site.namespace.lookup("/data/in/a").mtime += 10**9
    async with bridge.running() as running:
        await running.healed()
        if way == "told":
            upload = await site.begin_upload("/data/in/a")
            upload.node.mtime += 10**9
            await site.finish_upload(upload, b"0")
            upload.node.mtime += 10**9
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/a"
        await running.nothing_more()
