"""What the dCache source decides without a site: watches, renames, patterns, and what is kept of an event."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.core.ports import Spooled
from bridge.sources import dcache
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.inotify import read
from bridge.sources.dcache.moves import PAIR_SECONDS, Half, Moves
from bridge.sources.dcache.occurrence import (
    BrokenOccurrenceError,
    Occurrence,
    digest_of,
    event_of,
    unreadable,
    version_of,
)
from bridge.sources.dcache.rest.connection import key_of, limits_of
from bridge.sources.dcache.rest.namespace import Entry, Unreadable, entry_of, page_of
from bridge.sources.dcache.rest.sse import Parser, ServerSentEvent
from bridge.sources.dcache.scope import Scope, joined
from bridge.sources.dcache.watches import Watches

NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=8)
PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


def config(**more: Any) -> DcacheConfig:
    values = {
        "type": "dcache",
        "endpoint": "https://dcache.example.org:3880/api/v1",
        "auth": {"type": "bearer", "token": "t"},
        "paths": ["/data/in"],
        **more,
    }
    return DcacheConfig.model_validate(values)


# Watches


@given(st.lists(st.tuples(st.sampled_from("pqrs"), PATHS), max_size=20))
def test_a_subscription_has_one_path_and_a_path_one_subscription(added: list[tuple[str, str]]) -> None:
    watches = Watches()
    for key, path in added:
        watches.add(f"https://x/subscriptions/inotify/{key}", path)
    for key, path in added:
        at = watches.path_of(f"http://y/subscriptions/inotify/{key}")
        if at is not None:
            assert watches.key_at(at) == f"inotify/{key}"
        assert (
            watches.key_at(path) is None or watches.path_of(f"/subscriptions/{watches.key_at(path)}") == path
        )
    last = dict(added)
    paths = {path: key for key, path in added}
    for key, path in last.items():
        if paths[path] == key:
            assert watches.path_of(f"/subscriptions/inotify/{key}") == path


@given(st.sets(PATHS, max_size=12), PATHS, PATHS)
def test_a_moved_directory_takes_along_what_was_below_it(paths: set[str], old: str, new: str) -> None:
    new = f"/elsewhere{new}"
    watches = Watches()
    for path in paths:
        watches.add(f"/subscriptions/{path}", path)
    keys = [key for key, _ in watches.below(old)]
    watches.move(keys, old, new)
    for path in paths:
        expected = new + path[len(old) :] if path == old or path.startswith(old + "/") else path
        assert watches.path_of(f"/subscriptions/{path}") == expected


def test_what_came_to_the_old_place_meanwhile_stays_there() -> None:
    watches = Watches()
    watches.add("/subscriptions/1", "/a")
    keys = frozenset(key for key, _ in watches.below("/a"))
    watches.add("/subscriptions/2", "/a")
    watches.move(keys, "/a", "/b")
    assert watches.path_of("/subscriptions/2") == "/a"


def test_a_subscription_is_known_by_the_end_of_its_url() -> None:
    assert key_of("https://h:1/api/v1/events/channels/C/subscriptions/inotify/A%2FB") == "inotify/A%2FB"


# Renames


@given(st.permutations([("left", "x"), ("came", "x"), ("left", "y"), ("came", "y"), ("left", "z")]))
def test_halves_are_paired_in_whatever_order_they_come(order: list[tuple[str, str]]) -> None:
    moves, pairs = Moves(), []
    for at, (what, cookie) in enumerate(order):
        half = Half(f"/{what}/{cookie}", at * 0.1)
        other = moves.left(cookie, half) if what == "left" else moves.came(cookie, half)
        if other is not None:
            pairs.append({half.path, other.path})
    assert sorted(map(sorted, pairs)) == [["/came/x", "/left/x"], ["/came/y", "/left/y"]]  # type: ignore[arg-type]
    assert moves.was_within("x")
    assert not moves.was_within("z")
    assert [half.path for half in moves.gone(0.5 + PAIR_SECONDS)] == ["/left/z"]
    assert moves.gone(100) == []
    assert moves.due() is None


def test_halves_too_far_apart_are_no_pair() -> None:
    moves = Moves()
    assert moves.left("x", Half("/a", 0.0)) is None
    assert moves.came("x", Half("/b", PAIR_SECONDS + 0.1)) is None
    assert not moves.was_within("x")


# Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.nc", "/data/in/a.nc", True),
        ("*.nc", "/data/in/deep/a.nc", True),
        ("*.nc", "/data/in/a.txt", False),
        ("raw/*.nc", "/data/in/raw/a.nc", True),
        ("raw/*.nc", "/data/in/a.nc", False),
        ("raw/*.nc", "/data/in/other/raw/a.nc", False),
    ],
)
def test_a_pattern_fits_the_name_or_the_path_below(pattern: str, path: str, fits: bool) -> None:
    assert Scope(config(include=[pattern])).has_file(path) is fits


@given(st.sampled_from(["NFC", "NFD"]), st.sampled_from(["NFC", "NFD"]))
def test_a_pattern_fits_however_a_name_writes_its_accents(of_pattern: Any, of_name: Any) -> None:
    pattern, name = normalize(of_pattern, "*/caf\u00e9?.nc"), normalize(of_name, "\u00fc/caf\u00e9\u00e9.nc")
    assert Scope(config(include=[pattern])).has_file(f"/data/in/{name}")
    assert Scope(config(exclude=[normalize(of_pattern, "\u00fc")])).has_file(f"/data/in/{name}") is False


def test_what_is_excluded_is_so_with_all_below_it() -> None:
    scope = Scope(config(exclude=["tmp", "raw/old"]))
    assert not scope.has_directory("/data/in/tmp")
    assert not scope.has_directory("/data/in/x/tmp/y")
    assert not scope.has_directory("/data/in/raw/old/x")
    assert scope.has_directory("/data/in/old")
    assert not scope.has_file("/data/in/tmp/a")
    assert scope.has_file("/data/in/a")


def test_depth_counts_from_the_watched_path() -> None:
    scope = Scope(config(depth=1))
    assert [scope.has_directory(path) for path in ("/data/in", "/data/in/a", "/data/in/a/b", "/data")] == [
        True,
        True,
        False,
        False,
    ]
    assert not Scope(config(recursive=False)).has_directory("/data/in/a")


@given(PATHS, NAMES)
def test_the_path_below_and_the_watched_one_make_the_path(directory: str, name: str) -> None:
    for root in ("/", "/a"):
        scope = Scope(config(paths=[root]))
        path = joined(directory, name)
        if scope.root_of(path) == root:
            assert joined(root, scope.relative(path)) == path


# What is kept


@given(
    st.builds(
        Occurrence,
        directory=st.none() | PATHS,
        name=NAMES,
        mask=st.sampled_from([["IN_CLOSE_WRITE"], ["IN_MOVED_TO"], ["IN_CREATE", "IN_ISDIR"]]),
        cookie=st.none() | NAMES,
        subscription=NAMES,
        channel=NAMES,
        event=st.integers(0).map(str),
        is_new=st.booleans(),
    )
)
def test_what_is_kept_of_an_event_is_read_again(occurrence: Occurrence) -> None:
    assert Occurrence.of(occurrence.spooled("key")) == occurrence


@given(NAMES, st.integers(0, 2**62), st.integers(0, 2**41))
def test_what_is_kept_of_a_listed_file_is_read_again(name: str, size: int, mtime: int) -> None:
    occurrence = Occurrence(
        directory="/a",
        name=name,
        mask=["IN_CLOSE_WRITE"],
        entry=Entry(name, "REGULAR", "00AB", size, mtime),
        found="listing",
    )
    assert Occurrence.of(occurrence.spooled("key")) == occurrence


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a", "DIR", "REGULAR", "IN_CREATE", "unlimited", 10**30, -1, 253402300800000])
    | st.sampled_from(["a\ud800", "..", "a/b", ""]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                (
                    *("event", "subscription", "mask", "name", "cookie", "fileName", "fileType", "pnfsId"),
                    *("size", "mtime", "children", "channels", "maximumPerUser", "maximum"),
                    "lifetimeWhenDisconnected",
                )
            )
            | st.text(max_size=3),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
"""What may be told in place of what is meant."""


@given(st.text(), st.text())
def test_any_text_is_an_event_or_the_reason_why_it_is_none(event_id: str, data: str) -> None:
    assert isinstance(read(ServerSentEvent(event_id, "inotify", data)), str)


@pytest.mark.parametrize("data", ["[" * 100_000, '{"a":' * 100_000, '{"event": ' + "9" * 5000 + "}"])
def test_what_no_parser_takes_is_no_event(data: str) -> None:
    assert isinstance(read(ServerSentEvent("1", "inotify", data)), str)


@given(JSON)
def test_any_json_is_an_event_or_the_reason_why_it_is_none(document: Any) -> None:
    told = read(ServerSentEvent("1", "inotify", json.dumps(document)))
    assert isinstance(told, str) or isinstance(told.action, str)


@given(JSON, st.dictionaries(st.sampled_from(["fileName", "fileType", "pnfsId", "size", "mtime"]), JSON))
def test_any_json_is_an_entry_or_says_why_it_is_none(document: Any, fields: dict[str, Any]) -> None:
    for told in (document, {"fileName": "a", "fileType": "REGULAR", "pnfsId": "0", "mtime": 0, **fields}):
        try:
            entry = entry_of(told)
        except Unreadable as error:
            kept = unreadable("1", str(error), error.received)
            with pytest.raises(BrokenOccurrenceError):
                Occurrence.of(kept)
            continue
        occurrence = Occurrence(directory="/data/in", name=entry.name, mask=["IN_CLOSE_WRITE"], entry=entry)
        again = Occurrence.of(occurrence.spooled("1"))
        event = event_of(
            again, f"/data/in/{entry.name}", entry, event_id="1", identity="a", scope=Scope(config())
        )
        assert event.attributes["mtime"] == str(entry.mtime)


@given(JSON, st.lists(JSON, max_size=5))
def test_of_any_listing_each_child_is_an_entry_or_unreadable(document: Any, children: list[Any]) -> None:
    page = page_of({"fileType": "DIR", "pnfsId": document, "children": children})
    assert page.size == len(children)
    assert page_of({"fileType": "DIR", "children": document}).size >= 0


@given(JSON)
def test_any_json_tells_limits(document: Any) -> None:
    for told in (document, {"channels": document}, {"channels": {"maximumPerUser": document}}):
        limits = limits_of(told)
        assert limits.per_user is None or limits.per_user >= 0
        assert limits.longest_timeout >= 0


@given(JSON | st.text())
def test_any_row_of_the_store_is_an_occurrence_or_a_broken_one(document: Any) -> None:
    try:
        occurrence = Occurrence.of(Spooled(key="1", data=json.dumps(document).encode()))
    except BrokenOccurrenceError:
        return
    assert occurrence.action


@pytest.mark.parametrize("mtime", [253_402_300_800_000, 10**29, -(10**29)])
def test_a_time_that_no_calendar_has_is_no_event_s_time(mtime: int) -> None:
    entry = Entry("a", "REGULAR", "00AB", 7, mtime)
    occurrence = Occurrence(directory="/data/in", name="a", mask=["IN_CLOSE_WRITE"], entry=entry)
    event = event_of(occurrence, "/data/in/a", entry, event_id="1", identity="a", scope=Scope(config()))
    assert event.time is None
    assert event.attributes["mtime"] == str(mtime)


def test_what_is_kept_of_something_unreadable_tells_why_and_what_was_received() -> None:
    with pytest.raises(BrokenOccurrenceError, match="no name") as raised:
        Occurrence.of(unreadable("1", "it has no name", b"{}"))
    assert raised.value.received == b"{}"


# Server-sent events


def parsed(text: bytes, *sizes: int) -> list[ServerSentEvent]:
    """What comes out when it is fed in pieces of these sizes, over and over."""
    parser, found, at, number = Parser(), [], 0, 0
    while at < len(text):
        size = sizes[number % len(sizes)] if sizes else len(text)
        found += parser.feed(text[at : at + size])
        at, number = at + size, number + 1
    return found


@given(
    st.lists(
        st.sampled_from([b"data: x", b"data:y", b"id: 7", b"event: e", b":c", b"", b"data", b"retry: 1"])
    ),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_a_stream_is_the_same_in_whatever_pieces_and_with_whatever_line_ends(
    lines: list[bytes], end: bytes, sizes: list[int]
) -> None:
    text = end.join([*lines, b"", b""])
    assert parsed(text, *sizes) == parsed(b"\n".join([*lines, b"", b""]))


def test_a_line_feed_of_its_own_is_an_empty_line_also_behind_one_that_belonged_to_a_carriage_return() -> None:
    assert parsed(b"data: x\r\n\ndata: y\r\n\n", 1) == parsed(b"data: x\n\ndata: y\n\n")


def test_an_event_has_its_own_id_kind_and_data() -> None:
    text = "\ufeffevent: inotify\nid: 1\ndata: a\ndata:  é\n\n: x\n\ndata: b\n\nid: 3\n\ndata: cut".encode()
    assert parsed(text) == [ServerSentEvent("1", "inotify", "a\n é"), ServerSentEvent("", "message", "b")]


@pytest.mark.parametrize(
    "long",
    [
        b"data: " + b"x" * 10**6,
        b"data: 1234567\n" * 10_000,
        b"id: " + b"x" * 10**6,
        b"data: x\nevent:" + b" " * 10**6,
    ],
    ids=["line", "lines", "id", "kind"],
)
def test_what_is_too_long_is_told_cut_and_its_neighbours_go_on(long: bytes) -> None:
    first, second, third = parsed(b"id: 1\ndata: a\n\n" + long + b"\n\nid: 3\ndata: c\n\n", 1000)
    assert (first.data, first.fault, third.data, third.fault) == ("a", None, "c", None)
    assert second.fault == "it is longer than 65536 bytes"
    assert len(second.data) <= 65536


def test_a_line_that_never_ends_takes_no_memory() -> None:
    parser = Parser()
    for _ in range(100):
        assert parser.feed(b"x" * 2**16) == []
    assert len(parser._line) == 2**16


def test_what_is_not_utf_8_is_told_so() -> None:
    (event,) = parsed(b"data: a\xff\n\n")
    assert event.fault == "it is not UTF-8"


def test_the_version_has_the_path_only_where_a_rename_makes_a_new_one() -> None:
    entry = Entry("a", "REGULAR", "00AB", 7, 1000)
    assert version_of("/x/a", entry, with_path=False) == version_of("/y/b", entry, with_path=False)
    assert version_of("/x/a", entry, with_path=True) != version_of("/y/b", entry, with_path=True)
    assert len(digest_of("x")) == 16


def test_a_listed_file_and_a_told_one_are_one_event_but_for_how_it_was_found() -> None:
    entry = Entry("a", "REGULAR", "00AB", 7, 1_700_000_000_123)
    scope = Scope(config())
    told = Occurrence(
        directory="/data/in", name="a", mask=["IN_CLOSE_WRITE"], subscription="s", channel="c", event="1"
    )
    listed = Occurrence(
        directory="/data/in",
        name="a",
        mask=["IN_CLOSE_WRITE"],
        subscription="s",
        entry=entry,
        found="listing",
    )
    events = [
        event_of(each, "/data/in/a", entry, event_id="i", identity="arrivals", scope=scope)
        for each in (told, listed)
    ]
    assert events[0].data == events[1].data
    assert events[0].time == events[1].time
    assert events[0].type == events[1].type
    assert str(events[0].time) == "2023-11-14 22:13:20.123000+00:00"


# The configuration


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"paths": ["data"]}, "absolute path"),
        ({"paths": ["/data/"]}, "absolute path"),
        ({"paths": ["/data/../etc"]}, "absolute path"),
        ({"paths": ["/a", "/a/b"]}, "below /a"),
        ({"paths": ["/a", "/a"]}, "twice"),
        ({"recursive": False, "depth": 2}, "depth"),
        ({"flags": []}, "at least 1"),
        ({"flags": ["IN_CLOSE"]}, "IN_CLOSE_WRITE"),
        ({"auth": {"type": "bearer"}}, "token"),
        ({"auth": {"type": "x509", "cert_file": __file__}}, "certificate"),
        ({"client_id": "a b"}, "pattern"),
        ({"include": ["/data/in/*.nc"]}, "as seen from the watched one"),
        ({"exclude": ["/"]}, "pattern of a name"),
        ({"settle": 0}, "duration above 0"),
    ],
)
def test_what_is_wrong_is_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**wrong)


# The rooms


def test_each_room_is_named_where_they_are_drawn() -> None:
    folder = Path(dcache.__file__).parent
    rooms = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    drawn = set(re.findall(r"[a-z]+", dcache.__doc__ or ""))
    assert rooms - {"__init__", "config"} <= drawn
