"""What names, operators, proxies and half-dead sites may do to the dCache source."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from bridge.core.errors import SourceLost
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.dcache.streams import Stream
from bridge.sources.dcache import inotify, session
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.backlog.resolution import Later
from bridge.sources.dcache.health import Health
from bridge.sources.dcache.listing import lister
from bridge.sources.dcache.moves import Half
from bridge.sources.dcache.occurrence import Occurrence
from bridge.sources.dcache.rest import connection
from bridge.sources.dcache.rest.answers import Unanswered
from bridge.sources.dcache.rest.connection import Connection
from bridge.sources.dcache.rest.namespace import Unreadable, entry_of
from bridge.sources.dcache.rest.sse import ServerSentEvent
from bridge.sources.dcache.state import OwnFile
from bridge.store import Store
from bridge.store.config import StoreConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import Room, until
from tests.sources.dcache import Bridge, source

pytestmark = pytest.mark.usefixtures("told_no_longer")


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


@asynccontextmanager
async def serving(*routes: web.RouteDef) -> AsyncIterator[str]:
    """Serve them, and give the URL."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


# --- names ---

NAMES = [
    *(
        "a b",
        " lead",
        "trail ",
        "a%20b",
        "100%",
        "%2e%2e",
        "a%2Fb",
        "a#b",
        "a?b=c",
        "a+b",
        "a&b",
        "a;b",
        "a:b",
    ),
    *("caf\u00e9", "cafe\u0301", "\U0001f331", "a\u00a0b", "\ufffd\ufffd", "a\u0085b", "a\u2028b"),
    *("new\nline", "a\rb", "a\tb", "a\x0bb", "a\x1cb", "\x01", "\x7f"),
    *("-rf", "..a", "a..b", ".hidden", "~", "*", "[x]", "{x}", "a\\b", '"q"', "'", "data: x", "x" * 255),
]


async def test_a_file_or_directory_of_any_name_enters_by_its_event_and_by_a_listing(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        told = {f"/data/in/{name}" for name in NAMES}
        listed = {f"/data/in/d{name}/{name}" for name in NAMES}
        for path in sorted(told | listed):
            await site.upload(path, b"x")
        events = await running.accept(len(told | listed))
        assert {event.subject for event in events} == told | listed
        assert not running.source.problems()
        await running.nothing_more()


def test_a_name_that_is_no_text_is_not_taken() -> None:
    """It could be neither kept nor looked up: each opening of the source would end at it again."""
    told = r'{"event": {"mask": ["IN_CLOSE_WRITE"], "name": "a%s"}, "subscription": "s"}'
    assert inotify.read(ServerSentEvent("1", "inotify", told % r"\ud800")) == "its name is no text"
    assert not isinstance(inotify.read(ServerSentEvent("1", "inotify", told % r"\ud83c\udf31")), str)
    entry = {"fileType": "DIR", "pnfsId": "0", "mtime": 0}
    with pytest.raises(Unreadable, match="no text"):
        entry_of({**entry, "fileName": "a\ud800"})
    assert entry_of({**entry, "fileName": "\U0001f331"})


# --- directories that move ---


async def test_a_watched_path_that_was_renamed_away_is_told_and_one_made_anew_is_watched(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lister, "RETRY_SECONDS", 0.1)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.rename("/data/in", "/data/in.old")
        await until(lambda: any("/data/in can't be watched" in one for one in running.source.problems()))
        await site.upload("/data/in/d/a", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/d/a"
        agenda = running.session.agenda
        await until(lambda: agenda.is_empty and not running.source.problems())
        await site.upload("/data/in/b", b"x")
        (event,) = await running.accept(1)
        assert event.attributes["found"] == "event"


async def test_a_directory_that_is_back_while_its_watch_is_being_ended_is_watched_again(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.mkdir("/data/in/d")
    await site.mkdir("/data/out")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        unwatch, watches, ended = Connection.unwatch, running.session.watches, asyncio.Event()

        async def late(self: Connection, channel: str, key: str) -> None:
            await site.rename("/data/out/d", "/data/in/d")
            await until(lambda: watches.key_at("/data/in/d") == key)
            await unwatch(self, channel, key)
            ended.set()

        monkeypatch.setattr(Connection, "unwatch", late)
        await site.rename("/data/in/d", "/data/out/d")
        await ended.wait()
        await until(lambda: watches.key_at("/data/in/d") and "/data/in/d" in site.watched)
        await site.upload("/data/in/d/a", b"x")
        await running.accept(1)


# --- the first listing ---


async def test_what_the_first_listing_could_not_read_is_skipped_later_but_for_what_came_since(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lister, "RETRY_SECONDS", 0.1)
    for path in ("/data/in/denied/old", "/data/in/denied/deep/old", "/data/in/open/old"):
        await site.upload(path, b"x")
    site.mark_unreadable("/data/in/denied")
    await asyncio.sleep(1.1)  # the time of dCache is told by whole seconds
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
    async with bridge.running() as running:  # remembered
        await running.healed()
        await site.upload("/data/in/denied/new", b"x")
        site.mark_unreadable("/data/in/denied", unreadable=False)
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/denied/new"
        await until(lambda: not running.source.problems())
        await running.nothing_more()
        # Listed by now: what is moved in enters however old it is.
        await until(lambda: running.session.site.position.unlisted == {})
        await site.upload("/data/out/moved", b"x")
        site.namespace.lookup("/data/out/moved").mtime = 1
        await site.rename("/data/out", "/data/in/denied/out")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/denied/out/moved"


async def test_a_directory_that_failed_in_the_first_listing_brings_no_files_of_the_past(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lister, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(lister, "_PAUSE", 0.001)
    listed = Connection.list_page
    fails = True

    async def failing(self: Connection, path: str, **more: Any) -> Any:
        if path == "/data/in/d" and fails:
            raise Unanswered("500")
        return await listed(self, path, **more)

    monkeypatch.setattr(Connection, "list_page", failing)
    await site.upload("/data/in/d/old", b"x")
    await asyncio.sleep(1.1)  # the time of dCache is told by whole seconds
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        upload = await site.begin_upload("/data/in/d/long")
        assert running.source.problems()
        # Its time is that of the beginning of its upload, long before; its end is told.
        await site.finish_upload(upload, b"x")
        upload.node.mtime = 1
        fails = False
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/d/long"
        await until(lambda: not running.source.problems())
        await running.nothing_more()


# --- another configuration ---


async def test_of_a_path_that_is_new_in_the_configuration_the_past_is_skipped(
    site: SandboxDcache, tmp_path: Path
) -> None:
    for path in ("/data/old", "/data/other/old"):
        await site.upload(path, b"x")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
    await site.upload("/data/in/missed", b"x")
    site.trouble.forget_channels()
    await asyncio.sleep(1.1)  # the time of dCache is told by whole seconds
    bridge.more["paths"] = ["/data"]
    async with bridge.running() as running:
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/missed"  # known before, so its past is not skipped
        await running.healed()
        await site.upload("/data/other/new", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/other/new"
        await running.nothing_more()


async def test_watches_of_a_path_that_was_removed_from_the_configuration_are_ended(
    site: SandboxDcache, tmp_path: Path
) -> None:
    await site.mkdir("/data/busy/deep")
    bridge = Bridge(site, tmp_path, paths=["/data/in", "/data/busy"])
    async with bridge.running() as running:
        await running.healed()
    bridge.more["paths"] = ["/data/in"]
    async with bridge.running() as running:
        await running.healed()
        await until(lambda: site.watched == ["/data/in"])
        await site.upload("/data/busy/deep/a", b"x")
        await site.upload("/data/in/a", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/a"
        await running.nothing_more()


# --- connections ---


async def test_a_source_that_was_never_connected_is_not_up(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def refused(*_: Any, **__: Any) -> AsyncIterator[Any]:
        raise Unanswered("refused")
        yield

    monkeypatch.setattr(Connection, "stream", refused)
    bridge = Bridge(site, tmp_path)
    up = bridge.metrics.source("arrivals").up
    async with bridge.running() as running:
        up.set(1)  # as the runner does once a source is open
        await until(lambda: running.source.problems() == ["not connected: refused"])
        assert up._value.get() == 0


async def test_a_new_channel_that_could_not_be_prepared_is_prepared_before_it_is_read(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timeout, failures = Connection.set_timeout, ["PATCH timed out"]

    async def failing(self: Connection, channel: str, seconds: int) -> None:
        if failures:
            raise Unanswered(failures.pop())
        await set_timeout(self, channel, seconds)

    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        monkeypatch.setattr(Connection, "set_timeout", failing)
        site.trouble.restart()
        await until(lambda: not failures)
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        await running.healed()
        (channel,) = site._events.channels.values()
        assert channel.timeout_seconds == site.settings.maximum_timeout_seconds
        assert any(one.kind == "metronome" for one in channel.subscriptions.values())


async def test_a_stream_that_is_held_back_is_told_until_something_comes(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may answer at once and keep the events until there are many."""
    monkeypatch.setattr(connection, "TICK_SECONDS", 0.1)
    send = Stream.send
    monkeypatch.setattr(Stream, "send", lambda _stream, _message: None)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await until(lambda: any("not even a tick" in one for one in running.source.problems()))
        monkeypatch.setattr(Stream, "send", send)
        await until(lambda: not running.source.problems())


async def test_who_asks_to_come_later_is_left_alone_for_so_long(tmp_path: Path) -> None:
    asked: list[float] = []

    async def busy(_request: web.Request) -> web.Response:
        asked.append(asyncio.get_running_loop().time())
        return web.Response(status=503, headers={"Retry-After": "1"})

    async with (
        serving(web.get("/events", busy)) as url,
        Store.open(tmp_path, Metrics(), StoreConfig()) as store,
    ):
        made = source(None, store, tmp_path, endpoint=url)
        async with Connection(made._config) as connection:
            for _ in range(2):
                with pytest.raises(Unanswered, match="503"):
                    await connection.limits()
    assert asked[1] - asked[0] > 0.9


async def test_an_overflow_of_all_watches_is_one_line_of_the_log(site: SandboxDcache, tmp_path: Path) -> None:
    for number in range(20):
        await site.mkdir(f"/data/in/{number}")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        with capture_logs() as lines:
            site.trouble.begin_overflow()
            await site.upload("/data/in/7/a", b"x")
            site.trouble.end_overflow()
            await running.accept(1)
        assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
            "dcache: events of a directory were lost; it is listed"
        ]


# --- credentials ---


async def test_a_refused_password_is_not_tried_by_every_opening(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third refusal would block the address, whoever else asks from there."""
    password = tmp_path / "password"
    password.write_text("wrong")
    auth = {"type": "basic", "username": "bridge", "password_file": str(password)}

    async with Store.open(tmp_path, Metrics(), StoreConfig()) as store:
        made = source(site, store, tmp_path, auth=auth)

        async def opens() -> None:
            async with made.open(Room()):
                pass

        for _ in range(3):
            with pytest.raises(SourceLost, match="401"):
                await opens()
        assert site.requests.total() == 1
        made._refusal.until = 0.0  # its time has passed
        with pytest.raises(SourceLost, match="401"):
            await opens()
        assert site.requests.total() == 2
        password.write_text("bridge")  # another is tried at once
        await opens()


async def test_access_tokens_that_are_refused_are_not_tried_one_after_the_other(
    site: SandboxDcache, tmp_path: Path
) -> None:
    """The issuer gives a new one each time; it is the user that dCache does not know."""
    given: list[str] = []

    async def grant(_request: web.Request) -> web.Response:
        given.append(f"unknown-{len(given)}")
        return web.json_response({"access_token": given[-1], "expires_in": 3600})

    async with (
        serving(web.post("/token", grant)) as url,
        Store.open(tmp_path, Metrics(), StoreConfig()) as store,
    ):
        auth = {"type": "oidc", "client_id": "b", "refresh_token": "r", "token_endpoint": f"{url}/token"}
        made = source(site, store, tmp_path, auth=auth)
        for _ in range(4):
            with pytest.raises(SourceLost, match="401"):
                async with made.open(Room()):
                    pass
    assert site.requests.total() == 2  # with the token there was, and with one more


async def test_a_token_refused_while_the_stream_is_opened_is_renewed_before_it_counts_as_connected(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[bool] = []
    hear = Health.connected

    def hearing(self: Health) -> None:
        connected.append(site.connected > 0)
        hear(self)

    monkeypatch.setattr(Health, "connected", hearing)
    token = tmp_path / "token"
    token.write_text("bridge-token")
    bridge = Bridge(site, tmp_path / "state", auth={"type": "bearer", "token_file": str(token)})
    async with bridge.running() as running:
        await running.healed()
        site.settings.tokens = {"another": "bridge"}
        token.write_text("another")
        site.trouble.drop_streams()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        await running.healed()
    assert connected == [True, True]


# --- the store ---


@pytest.mark.parametrize("way", ["told", "listed"])
async def test_a_backlog_bigger_than_the_store_s_room_comes_in_parts(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(lister, "FULL_SECONDS", 0.2)
    append = SpoolReader.append

    async def slowly(self: SpoolReader, *what: Any) -> None:
        await asyncio.sleep(0.05)  # all that is told comes meanwhile
        await append(self, *what)

    bridge = Bridge(site, tmp_path)
    bridge.store_config = StoreConfig(max_bytes=2**20)
    async with bridge.running() as running:
        await running.healed()
        await site.upload(f"/data/in/{'d' * 250}/first", b"x")  # something to resume from
        await running.accept(1)
        await running.nothing_more(0.1)
    for number in range(2000):
        await site.upload(f"/data/in/{'d' * 250}/{number}-{'n' * 240}", b"x")
    if way == "listed":
        site.trouble.forget_channels()
    else:
        monkeypatch.setattr(SpoolReader, "append", slowly)
    async with bridge.running() as running:
        while len(bridge.events) < 2001:
            await running.accept(1)
        await running.nothing_more()


async def test_the_small_file_is_written_beside_the_loop(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk may be slow, and nothing else goes on meanwhile."""
    monkeypatch.setattr(session, "_SAVE_SECONDS", 0.05)
    monkeypatch.setattr(connection, "TICK_SECONDS", 0.05)
    save, threads = OwnFile.save, []

    def saving(self: OwnFile) -> None:
        threads.append(threading.current_thread())
        save(self)

    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        own = running.source._own.path
        before = own.read_text()
        monkeypatch.setattr(OwnFile, "save", saving)
        await until(lambda: own.read_text() != before)
        assert threading.main_thread() not in threads


async def test_nothing_is_remembered_of_what_was_waited_for(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path, flags=["IN_CLOSE_WRITE"])
    async with bridge.running() as running:
        await running.healed()
        lookups, moves = running.session.lookups, running.session.moves
        told = Occurrence(
            directory="/data/in", name="a", mask=["IN_MOVED_TO"], cookie="c", event="1"
        ).spooled("1")
        assert isinstance(await lookups.resolve(told), Later)  # its other half may come
        now = asyncio.get_running_loop().time()
        moves.came("c", Half("/data/in/a", now))
        moves.left("c", Half("/data/in/b", now))
        await site.upload("/data/in/a", b"x")
        assert not isinstance(await lookups.resolve(told), Later)
        assert not any(len(waits) for waits in lookups.waits)


# --- what is told of an answer ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<html><body>Maintenance of intranet-7, call +31 20 555</body></html>", ""),
        ('{"message": "intranet-7"}', ""),
        ('{"errors": [{"message": "Internal problem", "status": "503"}]}', ": Internal problem"),
        ('{"title": "Service Unavailable", "detail": "no pool manager"}', ": no pool manager"),
    ],
)
async def test_of_a_proxy_s_page_the_status_alone_is_told_and_the_text_is_logged(
    tmp_path: Path, text: str, told: str
) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(status=503, text=text)

    async with serving(web.route("*", "/{path:.*}", page)) as url:
        config = source(None, None, tmp_path, endpoint=url)._config  # type: ignore[arg-type]
        async with Connection(config) as asked:
            with capture_logs() as logs, pytest.raises(Unanswered) as stream:
                async with asked.stream("channel", None, silence=60):
                    pass
            with pytest.raises(Unanswered) as listing:
                await asked.list_page("/data/in", offset=0, limit=1)
    assert str(stream.value) == f"the stream answered 503{told}"
    assert str(listing.value).endswith(f"answered 503{told}")
    assert [line["text"] for line in logs] == ([] if told else [text])
