"""The dCache source, over real sockets against the sandbox site and on a real store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.sources.dcache import lookups
from bridge.testing import until
from tests.sources.dcache import Bridge

pytestmark = pytest.mark.usefixtures("told_no_longer")


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


async def test_an_upload_becomes_an_event_the_supervisor_can_read(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        version = await site.upload("/data/in/a.nc", b"climate")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/a.nc"
        assert event.type == "org.dcache.inotify.IN_CLOSE_WRITE"
        assert event.source == "arrivals"
        assert event.attributes["pnfsid"] == version.pnfs_id
        assert event.attributes["size"] == "7"
        told = json.loads(event.data)
        assert told["event"] == {"name": "a.nc", "mask": ["IN_CLOSE_WRITE"]}
        assert "/subscriptions/inotify/" in told["subscription"]
        await running.nothing_more()


async def test_directories_are_watched_as_they_appear_and_what_was_in_them_is_found(
    site: SandboxDcache, tmp_path: Path
) -> None:
    await site.mkdir("/data/in/old/deep")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        assert site.watched == ["/data/in", "/data/in/old", "/data/in/old/deep"]
        wanted = {f"/data/in/n{n}/m/f{n}" for n in range(20)} | {"/data/in/old/deep/a"}
        for path in wanted:
            await site.upload(path, b"x")
        events = await running.accept(len(wanted))
        assert {event.subject for event in events} == wanted
        assert json.loads(events[0].data)["event"]["name"] == events[0].attributes["name"]
        assert {event.attributes["name"] for event in events} == {one[len("/data/in/") :] for one in wanted}
        await running.nothing_more()


async def test_what_was_there_before_the_first_start_is_skipped(site: SandboxDcache, tmp_path: Path) -> None:
    await site.upload("/data/in/before", b"x")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await running.nothing_more()
        assert running.spool.remembered == 1


async def test_what_was_there_before_the_first_start_enters_on_request(
    site: SandboxDcache, tmp_path: Path
) -> None:
    versions = [await site.upload(f"/data/in/{n}", b"x") for n in range(3)]
    bridge = Bridge(site, tmp_path, first_start="everything")
    async with bridge.running() as running:
        events = await running.accept(3)
        assert {event.attributes["pnfsid"] for event in events} == {one.pnfs_id for one in versions}
        assert {event.attributes["found"] for event in events} == {"listing"}
        await running.healed()
        await running.nothing_more()


async def test_what_came_while_the_bridge_was_down_is_told_again_by_the_channel(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/first", b"x")
        await running.accept(1)
        await running.nothing_more(0.1)
    await site.upload("/data/in/second", b"x")
    async with bridge.running() as running:
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/second"
        await running.healed()
        await running.nothing_more()
    assert len(site._events.channels) == 1


async def test_what_a_restart_of_dcache_swallowed_is_found_by_listing(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/first", b"x")
        await running.accept(1)
        site.trouble.restart()
        await site.upload("/data/in/sub/second", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/sub/second"
        await running.healed()
        await site.upload("/data/in/sub/third", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/sub/third"
        await running.nothing_more()
        assert bridge.metrics.registry.get_sample_value(
            "bridge_source_gaps_total", {"source": "arrivals", "reason": "channel_lost"}
        )


async def test_event_loss_is_healed_by_listing(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/first", b"x")
        await running.accept(1)
    for n in range(5):
        await site.upload(f"/data/in/lost{n}", b"x")
    site.trouble.lose_events()
    async with bridge.running() as running:
        events = await running.accept(5)
        assert {event.subject for event in events} == {f"/data/in/lost{n}" for n in range(5)}
        await running.healed()
        await running.nothing_more()


async def test_a_dropped_connection_loses_nothing(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        for n in range(30):
            await site.upload(f"/data/in/{n}", b"x")
            if n % 7 == 3:
                site.trouble.drop_streams()
        events = await running.accept(30)
        assert {event.subject for event in events} == {f"/data/in/{n}" for n in range(30)}
        await running.nothing_more()


async def test_an_overflow_is_healed_by_listing_that_directory(site: SandboxDcache, tmp_path: Path) -> None:
    await site.mkdir("/data/in/sub")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        site.trouble.begin_overflow("/data/in/sub")
        for n in range(5):
            await site.upload(f"/data/in/sub/new/{n}", b"x")
        await site.upload("/data/in/told", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/told"
        site.trouble.end_overflow()
        events = await running.accept(5)
        assert {event.subject for event in events} == {f"/data/in/sub/new/{n}" for n in range(5)}
        await running.nothing_more()


async def test_repeated_closes_of_one_version_are_one_event(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await site.close_again("/data/in/a", 5)
        await running.accept(1)
        await site.close_again("/data/in/a", 5)

        def repeated() -> float:
            labels = {"source": "arrivals", "reason": "repeated"}
            return bridge.metrics.registry.get_sample_value("bridge_events_filtered_total", labels) or 0

        await until(lambda: repeated() >= 10)
        await running.nothing_more()
        assert repeated() == 10


async def test_an_overwritten_file_is_another_event(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        first = await running.accept(1)
        await site.overwrite("/data/in/a", b"y")
        second = await running.accept(1)
        await site.rewrite("/data/in/a", b"zz")
        third = await running.accept(1)
        assert len({event.id for event in [*first, *second, *third]}) == 3
        await running.nothing_more()


async def test_a_file_that_is_gone_or_not_finished_makes_no_event(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        upload = await site.begin_upload("/data/in/slow")
        await site.upload("/data/in/gone", b"x")
        await site.remove("/data/in/gone")
        await running.nothing_more()
        await site.finish_upload(upload, b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/slow"
        await running.nothing_more()


@pytest.mark.parametrize("to_first", [True, False])
async def test_a_rename_within_the_tree_is_no_arrival(
    site: SandboxDcache, tmp_path: Path, to_first: bool
) -> None:
    site.faults.moved_to_first = to_first
    await site.mkdir("/data/in/sub")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        await site.rename("/data/in/a", "/data/in/sub/b")
        await running.nothing_more()
    async with bridge.running() as running:
        await running.healed()
        await running.nothing_more()


async def test_a_rename_is_an_arrival_on_request(site: SandboxDcache, tmp_path: Path) -> None:
    bridge = Bridge(site, tmp_path, renames="arrival")
    async with bridge.running() as running:
        await running.healed()
        await site.upload("/data/in/a", b"x")
        await running.accept(1)
        await site.rename("/data/in/a", "/data/in/b")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/b"
        assert event.type == "org.dcache.inotify.IN_MOVED_TO"
        await running.nothing_more()


async def test_a_file_renamed_before_it_was_looked_up_still_enters(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        for n in range(10):
            await site.upload(f"/data/in/{n}.part", b"x")
            await site.rename(f"/data/in/{n}.part", f"/data/in/{n}")
        events = await running.accept(10)
        assert {event.subject for event in events} <= {
            f"/data/in/{n}{end}" for n in range(10) for end in ("", ".part")
        }
        assert len({event.attributes["pnfsid"] for event in events}) == 10
        await running.nothing_more()


async def test_a_file_renamed_long_before_its_upload_ends_enters_then(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "UNFINISHED_SECONDS", 0.1)
    monkeypatch.setattr(lookups, "_RETRY", 0.2)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        upload = await site.begin_upload("/data/in/slow.part")
        await site.rename("/data/in/slow.part", "/data/in/slow")
        await running.hands.takes_nothing(1.0)
        await site.finish_upload(upload, b"x")  # closed under its old name
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/slow"
        await running.nothing_more()


async def test_an_unfinished_file_is_waited_for_where_its_directory_is_moved_to(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_RETRY", 0.2)
    await site.mkdir("/data/in/a")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        upload = await site.begin_upload("/data/in/slow.part")
        asked = site.requests["GET namespace"]
        await site.rename("/data/in/slow.part", "/data/in/a/slow")
        await until(lambda: site.requests["GET namespace"] > asked + 1)
        (stream,) = site._streams
        stream.stall(stalled=True)  # the bridge is told of the directory later than it looks for the file
        await site.rename("/data/in/a", "/data/in/b")
        asked = site.requests["GET namespace"]
        await until(lambda: site.requests["GET namespace"] > asked)
        stream.stall(stalled=False)
        await running.hands.takes_nothing(0.5)
        await site.finish_upload(upload, b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/b/slow"
        await running.nothing_more()


async def test_a_file_moved_and_never_finished_is_given_up_in_the_end(
    site: SandboxDcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "UPLOAD_SECONDS", 1.0)
    monkeypatch.setattr(lookups, "_RETRY", 0.1)
    monkeypatch.setattr(lookups, "_MOST_UPLOADS", 3)
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        for n in range(5):
            await site.begin_upload(f"/data/in/{n}.part")
            await site.rename(f"/data/in/{n}.part", f"/data/in/{n}")
        lag = {"source": "arrivals"}
        await until(lambda: bridge.metrics.registry.get_sample_value("bridge_source_lag", lag) == 3)
        await running.nothing_more()
        assert bridge.metrics.registry.get_sample_value("bridge_source_lag", lag) == 0
        assert (
            bridge.metrics.registry.get_sample_value(
                "bridge_events_filtered_total", {"source": "arrivals", "reason": "unfinished"}
            )
            == 5
        )


async def test_what_is_moved_in_enters_file_or_directory(site: SandboxDcache, tmp_path: Path) -> None:
    await site.upload("/data/out/file", b"x")
    await site.upload("/data/out/dir/deep/other", b"x")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.rename("/data/out/file", "/data/in/file")
        await site.rename("/data/out/dir", "/data/in/dir")
        events = await running.accept(2)
        assert {event.subject for event in events} == {"/data/in/file", "/data/in/dir/deep/other"}
        await site.upload("/data/in/dir/deep/new", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/dir/deep/new"
        await running.nothing_more()


@pytest.mark.parametrize("to_first", [True, False])
async def test_a_moved_directory_keeps_its_watches(
    site: SandboxDcache, tmp_path: Path, to_first: bool
) -> None:
    site.faults.moved_to_first = to_first
    await site.upload("/data/in/a/deep/before", b"x")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        await site.rename("/data/in/a", "/data/in/b")
        await site.upload("/data/in/b/deep/after", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/b/deep/after"
        await site.rename("/data/in/b", "/data/out")
        await until(lambda: len(site.watched) == 1)
        await site.upload("/data/out/deep/elsewhere", b"x")
        await running.nothing_more()


async def test_patterns_and_depth_say_what_is_watched(site: SandboxDcache, tmp_path: Path) -> None:
    await site.mkdir("/data/in/tmp/x")
    await site.mkdir("/data/in/a/b/c")
    bridge = Bridge(site, tmp_path, include=["*.nc"], exclude=["tmp", ".*"], depth=2)
    async with bridge.running() as running:
        await running.healed()
        assert site.watched == ["/data/in", "/data/in/a", "/data/in/a/b"]
        for path in ("tmp/x/1.nc", "a/b/c/2.nc", "a/.3.nc", "a/4.txt", "a/b/5.nc"):
            await site.upload(f"/data/in/{path}", b"x")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/a/b/5.nc"
        await running.nothing_more()


async def test_a_directory_that_may_not_be_read_is_told_and_not_fatal(
    site: SandboxDcache, tmp_path: Path
) -> None:
    await site.mkdir("/data/in/secret")
    site.mark_unreadable("/data/in/secret")
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        assert any("/data/in/secret" in problem for problem in running.source.problems())
        await site.upload("/data/in/open", b"x")
        await running.accept(1)
