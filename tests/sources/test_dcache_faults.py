"""What a site, a network or a disk may do to the dCache source."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.core.identity import invocation_name
from bridge.sandbox.dcache import SandboxDcache, Settings
from bridge.sources.dcache import following, lookups
from bridge.sources.dcache.listing import lister
from bridge.sources.dcache.rest import connection
from bridge.sources.dcache.rest.answers import Denied, Unanswered
from bridge.sources.dcache.rest.connection import Connection
from bridge.store import Store
from bridge.store.config import StoreConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import Room, until
from tests.sources.dcache import Bridge, source

LOGIN = {"Authorization": "Bearer bridge-token"}

pytestmark = pytest.mark.usefixtures("told_no_longer")


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


def lose_store(state_dir: Path) -> Path:
    """Remove the store; give the small file beside it."""
    for file in state_dir.iterdir():
        if not file.name.startswith("dcache-"):
            file.unlink()
    (own,) = state_dir.glob("dcache-*.json")
    return own


async def test_another_client_on_the_channel_is_told_and_left_alone_for_long(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "COMPETING_SECONDS", (0.4, 0.4))
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        (channel,) = site._events.channels
        url = f"{site.base}/events/channels/{channel}"
        headers = {"Accept": "text/event-stream"}
        async with aiohttp.ClientSession(headers=LOGIN) as other, other.get(url, headers=headers) as answer:
            assert answer.status == 200
            await until(lambda: any("another client" in one for one in running.source.problems()))
            await site.upload("/data/in/a", b"x")
            (event,) = await running.accept(1)  # once the channel was taken back
            assert event.subject == "/data/in/a"
        await until(lambda: running.source.problems() == [])


async def test_a_shutdown_that_was_announced_is_no_trouble(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        for channel in site._events.channels.values():
            channel.system("SHUTDOWN")
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        assert running.source.problems() == []


async def test_a_stalled_stream_is_noticed_and_opened_again(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "QUIET_SECONDS", 0.5)
    site.settings.metronome = False
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        site.trouble.stall()
        await site.upload("/data/in/b", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/b"


async def test_a_metronome_s_ticks_keep_a_stream_and_show_that_one_has_stalled(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TICK_SECONDS", 0.3)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        (channel,) = site._events.channels.values()
        streams = list(site._streams)
        await until(lambda: channel._next_id >= 6)
        assert list(site._streams) == streams, "a quiet stream is kept"
        site.trouble.stall()
        await site.upload("/data/in/a", b"x")
        began = asyncio.get_running_loop().time()
        (event,) = await running.accept(1)
        assert 3 * 0.3 - 0.35 < asyncio.get_running_loop().time() - began < 60
        assert event.attributes["found"] == "event", "resumed from the last tick"
        assert not bridge.metrics.registry.get_sample_value(
            "bridge_source_gaps_total", {"source": "arrivals", "reason": "no_event_to_resume_from"}
        )


async def test_a_full_store_disconnects_and_nothing_is_lost(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_FULL_SECONDS", (0.05, 2.0))
    monkeypatch.setattr(lister, "FULL_SECONDS", 0.5)
    site.settings.ring = 500
    bridge = Bridge(site, tmp_path)
    bridge.store_config = StoreConfig(max_bytes=2**20)
    count = 6000
    async with bridge.running(limit=400) as running:
        await running.healed()
        for n in range(count):
            await site.upload(f"/data/in/{n % 40:02}/{n}", b"x")
        await until(lambda: any("full" in one for one in running.source.problems()), 30)
        seen: set[str | None] = set()
        async with asyncio.timeout(100):
            while len(seen) < count:
                seen |= {event.subject for event in await running.accept(1)}
        assert len(bridge.events) == count
        assert len({event.id for event in bridge.events}) == count
        await running.nothing_more()
        await until(lambda: running.source.problems() == [], 20)


async def test_a_lost_store_lets_enter_only_what_came_since(site: SandboxDcache, tmp_path: Path) -> None:
    old = await site.upload("/data/in/old", b"x")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
    own = lose_store(tmp_path)
    kept = json.loads(own.read_text())
    # As if the last known time was an hour after `old` and before `b`, with the margin an hour holds.
    kept["heard"] = old.mtime / 1000 + 3600.001
    own.write_text(json.dumps(kept))
    await asyncio.sleep(0.01)
    await site.upload("/data/in/b", b"x")
    async with bridge.running() as running:
        events = await running.accept(2)
        assert {event.subject for event in events} == {"/data/in/a", "/data/in/b"}
        await running.healed()
        await running.nothing_more()


async def test_a_source_that_can_not_know_what_entered_asks(site: SandboxDcache, tmp_path: Path) -> None:
    await site.upload("/data/in/old", b"x")
    metrics = Metrics()
    for answer, found in (("now", 0), ("everything", 1)):
        directory = tmp_path / answer
        directory.mkdir()
        bridge = Bridge(site, directory)
        async with bridge.running() as running:
            await running.healed()
        lose_store(directory).write_text("broken")
        async with Store.open(directory, metrics, StoreConfig()) as store:
            with pytest.raises(SourceLost, match="--rescan=now"):
                async with source(site, store, directory).open(Room()):
                    pass
        async with bridge.running(rescan=answer) as running:  # type: ignore[arg-type]  # one of the two
            await running.accept(found)
            await running.healed()
            await running.nothing_more()


async def test_look_ups_that_fail_are_made_again(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        site.faults.lookup_failures = 3
        await site.upload("/data/in/a", b"x")
        await until(lambda: any("look-ups fail" in one for one in running.source.problems()))
        await running.accept(1, timeout=30)
        assert running.source.problems() == []


async def test_watches_that_fail_are_made_again(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        site.faults.subscription_failures = 2
        await site.upload("/data/in/new/a", b"x")
        await running.accept(1)


@pytest.mark.parametrize("refused", [{"username": "bridge", "password": "wrong"}])
async def test_a_wrong_password_is_told(site: SandboxDcache, tmp_path: Path, refused: dict[str, str]) -> None:
    async with Store.open(tmp_path, Metrics(), StoreConfig()) as store:
        made = source(site, store, tmp_path, auth={"type": "basic", **refused})
        with pytest.raises(SourceLost, match="401"):
            async with made.open(Room()):
                pass
    assert sum(site.requests.values()) <= 2


async def test_a_token_is_read_again_when_it_is_refused(site: SandboxDcache, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("bridge-token\n")
    bridge = Bridge(site, tmp_path / "state", auth={"type": "bearer", "token_file": str(token)})
    async with bridge.running() as running:
        await running.healed()
        site.settings.tokens = {"another": "bridge"}
        token.write_text("another\n")
        await site.upload("/data/in/a", b"x")
        await running.accept(1)


async def test_a_client_certificate_is_a_login(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    own = authority.issue_cert("bridge.example.org")
    (tmp_path / "ca").mkdir()
    authority.cert_pem.write_to_path(tmp_path / "ca" / "igtf.pem")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "proxy.pem")
    async with SandboxDcache(Settings(tls=context)) as site:
        await site.mkdir("/data/in")
        bridge = Bridge(
            site,
            tmp_path / "state",
            auth={"type": "x509", "cert_file": str(tmp_path / "proxy.pem")},
            tls={"ca_path": str(tmp_path / "ca")},
        )
        async with bridge.running() as running:
            await running.healed()
            await site.upload("/data/in/a", b"x")
            await running.accept(1)


async def test_two_replicas_make_events_of_one_identity(site: SandboxDcache, tmp_path: Path) -> None:
    one, two = Bridge(site, tmp_path / "one"), Bridge(site, tmp_path / "two")
    async with one.running() as first, two.running() as second:
        await first.healed()
        await second.healed()
        for n in range(10):
            await site.upload(f"/data/in/{n}", b"x")
        ours, theirs = await first.accept(10), await second.accept(10)
        names = [
            {invocation_name(event.source, event.id, "plants") for event in events}
            for events in (ours, theirs)
        ]
        assert names[0] == names[1]
        assert len(names[0]) == 10


async def test_a_released_event_comes_again(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        (delivery,) = await running.hands.take(1)
        delivery.settle(Outcome.RELEASED)
        await running.accept(1)
        await running.nothing_more()


async def test_a_vanished_file_is_an_event_where_that_is_asked_for(
    site: SandboxDcache, tmp_path: Path
) -> None:
    await site.upload("/data/in/a", b"x")
    bridge = Bridge(site, tmp_path, flags=["IN_DELETE"])
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/b", b"x")
        await site.remove("/data/in/a")
        (event,) = await running.accept(1)
        assert (event.type, event.subject) == ("org.dcache.inotify.IN_DELETE", "/data/in/a")
        await running.nothing_more()


async def test_a_root_that_is_made_later_is_watched_then(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lister, "RETRY_SECONDS", 0.2)
    bridge = Bridge(site, tmp_path, paths=["/data/in", "/data/late"])
    async with bridge.running() as running:
        await until(lambda: any("/data/late" in one for one in running.source.problems()))
        await site.upload("/data/late/a", b"x")
        await running.accept(1)
        await site.upload("/data/late/b", b"x")
        await running.accept(1)
        assert running.source.problems() == []


async def test_an_unknown_directory_s_event_is_dropped_in_the_end(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "UNKNOWN_SECONDS", 0.2)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        (channel,) = site._events.channels
        async with aiohttp.ClientSession(headers=LOGIN) as http:
            await site.mkdir("/data/foreign")
            url = f"{site.base}/events/channels/{channel}/subscriptions/inotify"
            await http.post(url, json={"path": "/data/foreign", "flags": ["IN_CLOSE_WRITE"]})
        await site.upload("/data/foreign/a", b"x")
        await until(
            lambda: bridge.metrics.registry.get_sample_value(
                "bridge_events_filtered_total", {"source": "arrivals", "reason": "unwatched"}
            )
        )


@pytest.mark.parametrize("lost", [False, True])
async def test_a_file_closed_before_a_new_channel_s_stream_is_connected_is_found(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Without a Last-Event-ID dCache replays nothing, though the directory was watched."""
    stream_of = Connection.stream
    names: list[str] = [] if lost else ["early"]

    @asynccontextmanager
    async def late(*arguments: Any, **more: Any) -> AsyncIterator[Any]:
        if names:
            await asyncio.sleep(0.5)  # more than it takes to list what there is
            await site.upload(f"/data/in/{names.pop()}", b"x")
        async with stream_of(*arguments, **more) as source:
            yield source

    monkeypatch.setattr(Connection, "stream", late)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        if lost:
            await running.healed()
            names.append("late")
            site.trouble.forget_channels()
        await running.accept(1)
        await running.healed()
        await running.nothing_more()
    reasons = ("channel_lost", "no_event_to_resume_from")
    told = [
        bridge.metrics.registry.get_sample_value(
            "bridge_source_gaps_total", {"source": "arrivals", "reason": reason}
        )
        for reason in reasons
    ]
    assert told == [lost, 0], "and a gap is told once"


async def test_a_stream_that_comes_back_with_nothing_to_resume_from_is_a_gap_told_once_connected(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()  # and no event was told yet
        site.trouble.drop_streams()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        assert bridge.metrics.registry.get_sample_value(
            "bridge_source_gaps_total", {"source": "arrivals", "reason": "no_event_to_resume_from"}
        )


@pytest.mark.parametrize("nonsense", ['"nonsense"', '{"mask":[]}', "[" * 100_000 + "]" * 100_000])
async def test_an_event_that_can_not_be_read_is_a_dead_letter_and_a_gap(
    site: SandboxDcache, tmp_path: Path, nonsense: str
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        (channel,) = site._events.channels.values()
        (watch,) = site._inotify.watches()
        watch.overflowing = True  # this one is not told
        await site.upload("/data/in/a", b"x")
        watch.overflowing = False
        channel.tell(watch, nonsense)
        deliveries = {one.event.subject: one for one in await running.hands.take(2)}
        assert deliveries["/data/in/a"].fault is None, "found by listing"
        unreadable = deliveries[None]
        assert unreadable.fault is not None
        assert unreadable.event.data.startswith(f'{{"event":{nonsense}'.encode()[:1000])
        assert bridge.metrics.registry.get_sample_value(
            "bridge_source_gaps_total", {"source": "arrivals", "reason": "unreadable"}
        )


async def test_no_channel_left_and_too_many_requests_are_told_apart(
    site: SandboxDcache, tmp_path: Path
) -> None:
    """Both are a 429, and nothing in the answer says which."""
    async with Store.open(tmp_path, Metrics(), StoreConfig()) as store:
        made = source(site, store, tmp_path)
        config = made._config
        async with Connection(config) as asking:
            site.faults.busy = 1
            with pytest.raises(Unanswered, match="too many requests"):
                await asking.make_channel("one")
            site.settings.channels_per_user = 1
            await asking.make_channel("one")
            with pytest.raises(Denied, match="no more channels"):
                await asking.make_channel("two")
