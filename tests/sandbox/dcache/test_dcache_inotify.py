"""Watches: what may be subscribed to, and which events each change of the namespace makes."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from bridge.sandbox.dcache import SandboxDcache
from tests.servers.dcache import line, listening, new_channel, subscribe, watch


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


@pytest.fixture
async def channel(http: httpx.AsyncClient) -> str:
    return await new_channel(http)


def told(lines: list[str]) -> list[str]:
    """The lines without their ids."""
    return [one if one.startswith("SYSTEM") else one.partition(" ")[2] for one in lines]


# --- subscribing ---


async def test_a_second_watch_of_a_directory_is_the_first_with_other_flags(
    http: httpx.AsyncClient, channel: str
) -> None:
    location = await watch(http, channel, "/data/in", "IN_CREATE")
    again = await subscribe(http, channel, {"path": "/data/in", "flags": ["IN_CLOSE_WRITE"]})
    assert (again.status_code, again.headers["Location"]) == (303, location)
    assert (await http.get(location)).json() == {"path": "/data/in", "flags": ["IN_CLOSE_WRITE"]}
    assert (await http.get(f"{channel}/subscriptions")).json() == [location]


async def test_flags_of_a_second_watch_replace_the_firsts_even_with_mask_add(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    location = await watch(http, channel, "/data/in", "IN_CREATE")
    both = {"path": "/data/in", "flags": ["IN_DELETE", "IN_MASK_ADD"]}
    assert (await subscribe(http, channel, both)).status_code == 303
    assert (await http.get(location)).json() == {"path": "/data/in", "flags": ["IN_CREATE", "IN_DELETE"]}
    async with listening(http, channel) as listener:
        await site.mkdir("/data/in/a")
        await site.remove("/data/in/a")
        assert await listener.take(1) == ["0 IN_DELETE|IN_ISDIR a"]


async def test_a_subscription_that_was_deleted_tells_nothing_more(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    location = await watch(http, channel, "/data/in", "IN_CREATE")
    await watch(http, channel, "/data", "IN_CREATE")
    async with listening(http, channel) as listener:
        assert (await http.delete(location)).status_code == 204
        assert await listener.take(2) == ["SYSTEM SUBSCRIPTION_CLOSED", "0 IN_IGNORED"]
        await site.mkdir("/data/in/a")
        await site.mkdir("/data/b")
        assert await listener.take(1) == ["1 IN_CREATE|IN_ISDIR b"]
    for method in ("GET", "DELETE"):
        assert (await http.request(method, location)).status_code == 404


@pytest.mark.parametrize(
    ("selector", "status", "message"),
    [
        ({"path": "/nowhere"}, 400, "Not found: Problem with path: No such file or directory: /nowhere"),
        ({"path": "/data/secret"}, 400, "Permission denied: Not allowed."),
        ({"path": "/data/secret/within"}, 400, "Permission denied: Not allowed."),
        ({"path": "/data/in/"}, 400, "Bad selector: the path '/data/in/' does not match ^/(.*[^/])?$"),
        ({"path": "data"}, 400, "Bad selector: the path 'data' does not match ^/(.*[^/])?$"),
        ({"path": "/data/file", "flags": ["IN_ONLYDIR"]}, 400, "Failed condition: IN_ONLYDIR with"),
        ({"path": "/data", "flags": ["IN_EXCL_UNLINK"]}, 400, "Bad selector: Unsupported flags: [IN_EXCL_"),
        ({"path": "/data", "flags": ["IN_DONT_FOLLOW"]}, 400, "Bad selector: Unsupported flags: [IN_DONT_"),
        ({"path": "/data", "flags": ["IN_ISDIR"]}, 400, "Bad selector: Bad selector value: Cannot deser"),
        ({"path": "/data", "flags": "IN_CREATE"}, 400, "Bad selector: Bad selector value: Cannot deser"),
        ({"path": "/data", "recursive": True}, 400, "Bad selector: Bad selector value: Unrecognized"),
        ([], 400, "Bad selector: Bad selector value: not an object"),
        ({"flags": []}, 500, "Internal error: java.lang.IllegalStateException: path was not specified"),
    ],
)
async def test_a_selector_that_dcache_does_not_take_is_refused(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str, selector: object, status: int, message: str
) -> None:
    await site.upload("/data/file")
    await site.mkdir("/data/secret/within")
    site.mark_unreadable("/data/secret")
    answer = await subscribe(http, channel, selector)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["status"]) == (status, str(status))
    assert error["message"].startswith(message)
    assert (await http.get(f"{channel}/subscriptions")).json() == []


async def test_other_event_types_and_missing_selectors_are_refused(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    site.settings.metronome = False
    answer = await http.post(f"{channel}/subscriptions/metronome", json={"frequency": 1})
    assert answer.json()["errors"][0]["message"] == "Unknown event type: metronome"
    answer = await http.post(f"{channel}/subscriptions/inotify")
    assert answer.json()["errors"][0]["message"] == "Missing JSON entity in POST request"


async def test_subscription_urls_hold_whatever_base64_has(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    # The id is the target's pnfsId in base64, so some have a slash or a plus in them.
    locations = []
    for number in range(100):
        await site.mkdir(f"/data/{number}")
        locations.append(await watch(http, channel, f"/data/{number}"))
    assert any("%2F" in location for location in locations)
    assert any("+" in location for location in locations)
    for number, location in enumerate(locations):
        assert (await http.get(location)).json() == {"path": f"/data/{number}"}
    assert (await http.get(f"{channel}/subscriptions")).json() == locations


# --- events ---


async def test_an_upload_creates_opens_modifies_and_closes(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await watch(http, channel, "/data/in")
    async with listening(http, channel) as listener:
        await site.upload("/data/in/a", b"1")
        flags = ["IN_CREATE", "IN_OPEN", "IN_MODIFY", "IN_ATTRIB", "IN_CLOSE_WRITE"]
        assert told(await listener.take(5)) == [f"{flag} a" for flag in flags]
        await site.upload("/data/in/empty")
        assert "IN_MODIFY empty" not in told(await listener.take(4))


async def test_an_overwrite_through_a_door_is_a_removal_and_another_file(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    first = await site.upload("/data/in/a", b"1")
    await watch(http, channel, "/data/in", "IN_CREATE", "IN_DELETE", "IN_CLOSE_WRITE")
    async with listening(http, channel) as listener:
        second = await site.overwrite("/data/in/a", b"22")
        assert told(await listener.take(3)) == ["IN_DELETE a", "IN_CREATE a", "IN_CLOSE_WRITE a"]
    assert first.pnfs_id != second.pnfs_id
    assert site.versions() == [second]
    with pytest.raises(FileNotFoundError):
        await site.overwrite("/data/in/b")


async def test_a_rewrite_through_nfs_keeps_the_pnfsid_and_closes_as_often_as_it_writes(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    first = await site.upload("/data/in/a", b"1")
    await watch(http, channel, "/data/in", "IN_CREATE", "IN_DELETE", "IN_CLOSE")
    async with listening(http, channel) as listener:
        second = await site.rewrite("/data/in/a", b"2", closes=3)
        await site.close_again("/data/in/a", 2)
        assert told(await listener.take(5)) == ["IN_CLOSE_WRITE a"] * 5
    assert (first.pnfs_id, first.size) == (second.pnfs_id, second.size)
    assert first.mtime < second.mtime
    assert site.versions() == [second]


async def test_a_rewrite_without_a_close_is_a_version_that_is_not_closed(site: SandboxDcache) -> None:
    await site.upload("/data/in/a", b"1")
    version = await site.rewrite("/data/in/a", b"22", closes=0)
    assert (version.size, version.closed) == (2, False)
    await site.close_again("/data/in/a")
    assert [one.closed for one in site.versions()] == [True]


async def test_a_failed_upload_is_closed_without_ever_having_had_a_size(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await watch(http, channel, "/data/in", "IN_CREATE", "IN_CLOSE_WRITE", "IN_DELETE")
    async with listening(http, channel) as listener:
        upload = await site.begin_upload("/data/in/a")
        await site.abort_upload(upload)
        assert told(await listener.take(3)) == ["IN_CREATE a", "IN_CLOSE_WRITE a", "IN_DELETE a"]
    assert site.versions() == []


async def test_a_file_renamed_or_removed_during_its_upload_is_closed_under_its_old_name(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await watch(http, channel, "/data/in", "IN_CLOSE_WRITE")
    async with listening(http, channel) as listener:
        renamed, removed = [await site.begin_upload(f"/data/in/{name}") for name in "ab"]
        await site.rename("/data/in/a", "/data/in/z")
        await site.remove("/data/in/b")
        assert (await site.finish_upload(renamed, b"1")).path == "/data/in/z"
        await site.finish_upload(removed, b"1")
        assert told(await listener.take(2)) == ["IN_CLOSE_WRITE a", "IN_CLOSE_WRITE b"]
    assert [(version.path, version.closed) for version in site.versions()] == [("/data/in/z", True)]


@pytest.mark.parametrize("moved_to_first", [True, False])
async def test_a_rename_tells_both_names_with_one_cookie_in_either_order(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str, moved_to_first: bool
) -> None:
    site.faults.moved_to_first = moved_to_first
    await site.mkdir("/data/out")
    await site.upload("/data/in/a")
    source = await watch(http, channel, "/data/in", "IN_MOVE")
    target = await watch(http, channel, "/data/out", "IN_MOVE")
    async with listening(http, channel) as listener:
        await site.rename("/data/in/a", "/data/out/b")
        events = [await listener.next() for _ in range(2)]
    expected = [("IN_MOVED_FROM a", source), ("IN_MOVED_TO b", target)]
    if moved_to_first:
        expected.reverse()
    documents = [json.loads(event.data) for event in events]
    assert told([line(event) for event in events]) == [one for one, _ in expected]
    assert [document["subscription"] for document in documents] == [location for _, location in expected]
    assert len({document["event"]["cookie"] for document in documents}) == 1


async def test_the_dice_decide_the_order_of_a_renames_events(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await site.upload("/data/in/0")
    await watch(http, channel, "/data/in", "IN_MOVE")
    async with listening(http, channel) as listener:
        for number in range(20):
            await site.rename(f"/data/in/{number}", f"/data/in/{number + 1}")
        lines = told(await listener.take(40))
    firsts = {one.partition(" ")[0] for one in lines[::2]}
    assert firsts == {"IN_MOVED_FROM", "IN_MOVED_TO"}


async def test_a_rename_over_a_file_tells_nothing_of_the_one_that_vanished(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    moved = await site.upload("/data/in/a", b"1")
    await site.upload("/data/in/b", b"22")
    site.faults.moved_to_first = False
    await watch(http, channel, "/data/in")
    async with listening(http, channel) as listener:
        await site.rename("/data/in/a", "/data/in/b")
        await site.mkdir("/data/in/mark")
        expected = ["IN_MOVED_FROM a", "IN_MOVED_TO b", "IN_CREATE|IN_ISDIR mark"]
        assert told(await listener.take(3)) == expected
    assert [(version.path, version.pnfs_id) for version in site.versions()] == [("/data/in/b", moved.pnfs_id)]


async def test_a_watch_follows_its_directory(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    location = await watch(http, channel, "/data/in", "IN_CREATE", "IN_MOVE_SELF")
    async with listening(http, channel) as listener:
        await site.rename("/data/in", "/moved")
        await site.mkdir("/moved/a")
        assert told(await listener.take(2)) == ["IN_MOVE_SELF|IN_ISDIR", "IN_CREATE|IN_ISDIR a"]
    assert (await http.get(location)).json()["path"] == "/data/in"


async def test_the_end_of_a_directory_ends_its_watch(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    location = await watch(http, channel, "/data/in", "IN_DELETE_SELF")
    silent = await new_channel(http)
    await watch(http, silent, "/data/in", "IN_CREATE")
    async with listening(http, channel) as listener, listening(http, silent) as other:
        await site.remove("/data/in")
        end = ["SYSTEM SUBSCRIPTION_CLOSED", "IN_IGNORED"]
        assert told(await listener.take(3)) == ["IN_DELETE_SELF|IN_ISDIR", *end]
        assert told(await other.take(2)) == end
    assert (await http.get(location)).status_code == 404


async def test_a_watched_file_tells_of_itself_without_a_name(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await site.upload("/data/in/a", b"1")
    await watch(http, channel, "/data/in/a", "IN_CLOSE_WRITE", "IN_MOVE_SELF")
    async with listening(http, channel) as listener:
        await site.rewrite("/data/in/a", b"2")
        await site.rename("/data/in/a", "/data/in/b")
        assert told(await listener.take(2)) == ["IN_CLOSE_WRITE", "IN_MOVE_SELF"]


async def test_a_oneshot_watch_ends_after_its_first_event(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await watch(http, channel, "/data/in", "IN_CREATE", "IN_ONESHOT")
    async with listening(http, channel) as listener:
        await site.mkdir("/data/in/a")
        await site.mkdir("/data/in/b")
        expected = ["IN_CREATE|IN_ISDIR a", "SYSTEM SUBSCRIPTION_CLOSED", "IN_IGNORED"]
        assert told(await listener.take(3)) == expected
    assert site.watched == []


async def test_watches_are_not_recursive(http: httpx.AsyncClient, site: SandboxDcache, channel: str) -> None:
    await watch(http, channel, "/data", "IN_CREATE", "IN_CLOSE_WRITE")
    async with listening(http, channel) as listener:
        await site.upload("/data/in/deep/a")
        await site.mkdir("/data/mark")
        assert told(await listener.take(1)) == ["IN_CREATE|IN_ISDIR mark"]


async def test_a_listing_and_a_reading_are_events_too(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str
) -> None:
    await site.upload("/data/in/a", b"1")
    await watch(http, channel, "/data/in")
    async with listening(http, channel) as listener:
        assert (await http.get("namespace/data/in?children=true")).status_code == 200
        assert told(await listener.take(2)) == ["IN_OPEN|IN_ISDIR", "IN_CLOSE_NOWRITE|IN_ISDIR"]
        assert (await http.get(f"{site.url}/data/in/a")).content == b"1"
        assert told(await listener.take(3)) == ["IN_OPEN a", "IN_ACCESS a", "IN_CLOSE_NOWRITE a"]


@pytest.mark.parametrize("name", ["a b", "100%", "a+b", "%41", "Blätter", "a\nb", 'say "x"', "🌱", "a?b#c"])
async def test_an_event_carries_any_name(
    http: httpx.AsyncClient, site: SandboxDcache, channel: str, name: str
) -> None:
    await watch(http, channel, "/data/in", "IN_CREATE")
    async with listening(http, channel) as listener:
        await site.upload(f"/data/in/{name}")
        assert json.loads((await listener.next()).data)["event"] == {"name": name, "mask": ["IN_CREATE"]}
