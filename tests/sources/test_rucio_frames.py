"""What brokers send, byte for byte: no item spoils the next, nothing raises, and memory is bounded."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from itertools import cycle, pairwise
from typing import Any

import pamqp.frame
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from stompman.frames import HeartbeatFrame
from stompman.serde import FRAMES_TO_COMMANDS, FrameParser

from bridge.sources.broker import door, link, properties
from bridge.sources.broker.door import Frames
from bridge.sources.broker.link import LinkLost
from bridge.sources.broker.properties import Foreign
from bridge.sources.rucio import stomp_frames
from bridge.sources.rucio.stomp_frames import Frame, Parser

UNHURRIED = settings(deadline=None)  # a loaded machine is no failure

NAMES = b"\x00\x03key"
"""No exchange, and a routing key."""


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def table(*fields: bytes) -> bytes:
    whole = b"".join(fields)
    return struct.pack(">HI", 0x2000, len(whole)) + whole


def split(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at = 0
    for size in cycle(sizes):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


# What AMQP tells beside a body.

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
values = st.recursive(
    texts
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, width=32)
    | st.binary(max_size=20).map(bytearray)
    | st.none()
    | st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001 - it gets one
        lambda time: time.replace(microsecond=0)
    )
    | st.integers(0, 10_000).map(lambda number: Decimal(number) / 100),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
good = st.builds(
    Basic.Properties,
    **dict.fromkeys(
        ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "app_id"),
        st.none() | texts.filter(lambda text: len(text.encode()) < 256),
    ),
    headers=st.none()
    | st.dictionaries(texts.filter(lambda text: len(text.encode()) < 129), values, max_size=5),
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.just(datetime(2026, 1, 2, tzinfo=UTC)),
)


@UNHURRIED
@given(good)
def test_good_properties_are_read_as_pamqp_reads_them(told: Basic.Properties) -> None:
    raw = ContentHeader(0, 3, told).marshal()[12:]
    theirs = ContentHeader()
    theirs.unmarshal(bytes(12) + raw)
    expected = {
        name: value
        for name, value in (theirs.properties.headers or {}).items()
        if isinstance(value, (str, int, float))
    }
    found = properties.read(NAMES, raw)
    assert (found.headers, found.fault, found.routing_key) == (expected, None, "key")
    assert {name: value for name, value in found.properties.items() if value} == {
        name: str(int(value.timestamp()) if isinstance(value, datetime) else value)
        for name, value in theirs.properties
        if name != "headers" and value not in (None, "")
    }


@UNHURRIED
@given(st.binary(max_size=60), st.binary(max_size=200))
@example(b"", b"")
@example(NAMES, b"\xff\xff" * 20)
def test_whatever_the_bytes_are_reading_properties_does_not_raise(envelope: bytes, raw: bytes) -> None:
    found = properties.read(envelope, raw)
    assert found.fault is None or found.fault.isprintable()
    for text in (found.exchange, found.routing_key, *found.headers, *found.headers.values()):
        assert str(text).encode("utf-8") is not None  # each can be stored and sent


@pytest.mark.parametrize(
    ("envelope", "raw", "fault"),
    [
        (NAMES, b"\x04\x00" + short(b"\xe9\x9f"), "its correlation_id is not UTF-8: e9 9f"),
        (NAMES, b"\x80\x00" + short(b"\xff"), "its content_type is not UTF-8: ff"),
        (NAMES, b"\x00\x04" + short(b"\xc3"), "its cluster_id is not UTF-8: c3"),
        (b"\x00" + short(b"\xe9\x9f"), b"\x00\x00", "its routing key is not UTF-8: e9 9f"),
        (short(b"\xe9\x9f") + b"\x00", b"\x00\x00", "its exchange is not UTF-8: e9 9f"),
        (NAMES, table(short(b"\xe9\x9f"), b"t\x01"), "its name of a header is not UTF-8: e9 9f"),
        (NAMES, table(short(b"a"), b"Z\x01"), "one of its headers has an unknown type: 5a"),
        (NAMES, table(short(b"a"), b"S\x00\x00\xff\xffa"), "its header ends too early"),
        (NAMES, b"\x04\x00\xffabc", "its header ends too early"),
        (b"", b"\x00\x00", "its header ends too early"),
    ],
)
def test_properties_that_can_not_be_read_are_a_fault(envelope: bytes, raw: bytes, fault: str) -> None:
    assert properties.read(envelope, raw).fault == fault


DEEP = b"F\x00\x00\x00\x00"
for _ in range(2000):
    DEEP = b"F" + struct.pack(">I", len(DEEP) + 2) + b"\x01a" + DEEP


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x40" + b"\xff" * 8,  # a time in µs, or beyond any calendar
        table(short(b"a"), b"T" + b"\xff" * 8),
        table(short(b"a"), DEEP),
        table(short(b"a"), b"A\x00\x00\x00\x02\xff\xff"),
        table(short(b"a"), b"S\x00\x00\x00\x02\xe9\x9f"),
        table(short(b"a"), b"F\x00\x00\x00\x03\x01\xff\xff"),
        b"\x00\x01\x00\x00",  # a second word of flags
    ],
)
def test_what_nobody_asks_for_is_no_fault(raw: bytes) -> None:
    found = properties.read(NAMES, raw)
    assert (found.headers, found.exchange, found.routing_key, found.fault) == ({}, "", "key", None)


def test_a_huge_header_is_an_attribute() -> None:
    found = properties.read(NAMES, table(short(b"a"), b"S" + struct.pack(">I", 100_000) + b"x" * 100_000))
    assert found.headers == {"a": "x" * 100_000}


# The frames of AMQP: deliveries are put together, all others are aiormq's.


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def delivery(
    body_frames: list[bytes], raw: bytes = b"\x00\x00", *, size: int | None = None, channel: int = 1
) -> bytes:
    """Make the frames of one message."""
    deliver = struct.pack(">HH", 60, 60) + short(b"tag") + struct.pack(">QB", 7, 0) + NAMES
    told = sum(map(len, body_frames)) if size is None else size
    header = struct.pack(">HHQ", 60, 0, told) + raw
    return b"".join(
        frame(kind, channel, payload)
        for kind, payload in [(1, deliver), (2, header), *((3, part) for part in body_frames)]
    )


BEGUN = delivery([])[: -len(frame(2, 1, b"\x00" * 14))]
"""A delivery whose header is still to come."""


class Pieces:
    """A reader that has its bytes in pieces."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._pieces = split(data, sizes)
        self._next = next(self._pieces, b"")

    def at_eof(self) -> bool:
        return not self._next

    async def read(self, _most: int) -> bytes:
        piece, self._next = self._next, next(self._pieces, b"")
        return piece


class Seen:
    """What came of some bytes: frames for aiormq, as it has them, and deliveries."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.deliveries: list[tuple[int, bytes, Foreign]] = []

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body, _ in self.deliveries]


async def seen(data: bytes, sizes: Sequence[int] = (2**16,)) -> Seen:
    """Read frames as aiormq does, to the end of `data`."""
    frames, found = Frames(Pieces(data, sizes)), Seen()  # type: ignore[arg-type] # it has what is asked for
    frames.hand_on(1, lambda *told: found.deliveries.append(told))
    with suppress(asyncio.IncompleteReadError):  # aiormq learns so that the broker has hung up
        while not frames.at_eof():
            head = await frames.readexactly(1) + await frames.readexactly(6)
            length = struct.unpack(">I", head[3:])[0]
            found.frames.append(head + await frames.readexactly(length + 1))
    return found


names = texts.filter(lambda text: len(text.encode()) < 256)


@UNHURRIED
@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**63 - 1),
            st.text(st.sampled_from("az09-_.:"), max_size=127),
            names,
            good,
            st.lists(st.binary(min_size=1), max_size=3),
        ),
        max_size=4,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
)
def test_deliveries_are_as_pamqp_reads_them_however_they_are_split_and_what_is_between_is_aiormqs(
    told: list[tuple[int, str, str, Basic.Properties, list[bytes]]], sizes: list[int]
) -> None:
    between = [pamqp.frame.marshal(Heartbeat(), 0), pamqp.frame.marshal(Basic.QosOk(), 2)]
    data, others = b"", []
    for tag, exchange, routing_key, its_properties, parts in told:
        deliver = Basic.Deliver("consumer", tag, redelivered=True, exchange=exchange, routing_key=routing_key)
        header = ContentHeader(0, len(b"".join(parts)), its_properties)
        for at, each in enumerate([deliver, header, *map(ContentBody, parts)]):
            others.append(between[at % 2])
            data += pamqp.frame.marshal(each, 1) + others[-1]
    found = asyncio.run(seen(data, sizes))
    assert found.frames == others
    assert [
        (tag, body, foreign.exchange, foreign.routing_key, foreign.fault)
        for tag, body, foreign in found.deliveries
    ] == [
        (tag, b"".join(parts), exchange, routing_key, None) for tag, exchange, routing_key, _, parts in told
    ]
    for (_, _, foreign), (*_, its_properties, _) in zip(found.deliveries, told, strict=True):
        same = properties.read(NAMES, its_properties.marshal())
        assert (foreign.headers, foreign.properties) == (same.headers, same.properties)


@pytest.mark.parametrize("raw", [b"\x04\x00" + short(b"\xe9\x9f"), b"\xff\xff", b""])
async def test_a_header_that_can_not_be_read_is_a_fault_of_its_message_alone(raw: bytes) -> None:
    found = await seen(delivery([b"1"]) + delivery([b"{", b"}"], raw) + delivery([b"3"]))
    assert found.bodies == [b"1", b"{}", b"3"]
    assert [bool(foreign.fault) for _, _, foreign in found.deliveries] == [False, True, False]
    assert {(tag, foreign.routing_key) for tag, _, foreign in found.deliveries} == {(7, "key")}
    assert found.frames == []


@pytest.mark.parametrize("sizes", [(1,), (2**16,)])
async def test_of_a_body_that_is_too_large_the_beginning_is_kept_and_the_next_message_is_whole(
    sizes: tuple[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (link, door):
        monkeypatch.setattr(module, "MOST_BODY", 100)
        monkeypatch.setattr(module, "OVERSIZE_KEPT", 10)
    found = await seen(delivery([b"x" * 7] * 20) + delivery([b"y" * 100]) + delivery([]), sizes)
    assert found.bodies == [b"x" * 10, b"y" * 100, b""]
    assert [foreign.fault for _, _, foreign in found.deliveries] == [
        "its body has 140 bytes, more than 100: the first 10 are kept",
        None,
        None,
    ]


async def test_of_a_body_that_is_too_large_no_more_is_held_than_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "MOST_BODY", 100)
    data = delivery([b"x" * 2**12] * 1000)
    tracemalloc.start()
    try:
        (body,) = (await seen(data)).bodies
        assert len(body) == link.OVERSIZE_KEPT
        assert tracemalloc.get_traced_memory()[1] < 8 * link.OVERSIZE_KEPT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "is no AMQP"),
        (b"\x03\x00\x01\xff\xff\xff\xff" + b"x" * 100, "is no AMQP"),
        (delivery([b"x"], size=2) + delivery([b"x"]), "breaks off"),
        (delivery([b"x"])[:-1] + b"\x00", "without its end"),
        (delivery([b"x" * 6], size=2), "longer than its header"),
        (delivery([], size=5) + frame(2, 1, struct.pack(">HHQ", 60, 0, 0) + b"\x00\x00"), "or its second"),
        (BEGUN + frame(2, 1, b"short"), "no header"),
        (BEGUN + frame(3, 1, b"x"), "longer than its header"),
        (delivery([b"x"], size=2**63), "a body of 9223372036854775808 bytes"),
    ],
)
async def test_what_is_no_amqp_ends_the_connection(said: bytes, why: str) -> None:
    with pytest.raises(ConnectionError, match=why):
        await seen(said)


async def test_what_is_delivered_on_a_channel_that_is_not_consumed_is_dropped_until_it_ends() -> None:
    aside, ended = delivery([b"no", b"ne"], channel=2), frame(1, 2, struct.pack(">HH", 20, 41))
    content = frame(2, 2, struct.pack(">HHQ", 60, 0, 0))  # not of a delivery: aiormq's
    found = await seen(aside + delivery([b"1"]) + aside + ended + content + delivery([b"2"]))
    assert found.bodies == [b"1", b"2"]
    assert found.frames == [ended, content]
    within = aside.replace(frame(3, 2, b"ne"), delivery([b"3"]) + frame(3, 2, b"ne"))
    assert (await seen(within)).bodies == [b"3"]


async def test_who_consumes_nothing_is_delivered_nothing() -> None:
    frames = Frames(Pieces(delivery([b"x"]) + frame(8, 0, b""), [2**16]))  # type: ignore[arg-type] # likewise
    assert await frames.readexactly(8) == frame(8, 0, b"")


@pytest.mark.parametrize("closing", [(20, 40), (20, 41)])
@pytest.mark.parametrize("channel", [1, 2])
async def test_half_a_delivery_ends_with_its_channel(closing: tuple[int, int], channel: int) -> None:
    half, ended = delivery([b"x"], size=3, channel=channel), frame(1, channel, struct.pack(">HH", *closing))
    found = await seen(half + ended + delivery([b"{}"]))
    assert (found.frames, found.bodies) == ([ended], [b"{}"])


@UNHURRIED
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 8, 9]), st.integers(0, 3), st.binary(max_size=40)), max_size=6
    ),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_frames_of_any_content_are_handed_on_as_they_came(
    told: list[tuple[int, int, bytes]], sizes: list[int]
) -> None:
    data = [frame(kind, channel, payload) for kind, channel, payload in told]
    assert asyncio.run(seen(b"".join(data), sizes)).frames == data


async def test_while_nothing_but_deliveries_come_aiormq_hears_that_the_connection_is_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would leave it after three heartbeats: a broker that sends messages sends no heartbeats beside."""
    data = delivery([b"{}"]) * 3
    assert (await seen(data, [len(data) // 3])).frames == []
    monkeypatch.setattr(door, "_TELL_SECONDS", 0)
    alive = await seen(data, [len(data) // 3])
    assert [pamqp.frame.unmarshal(raw)[2].name for raw in alive.frames] == ["Heartbeat"] * 3
    assert len(alive.deliveries) == 3


async def test_of_many_deliveries_that_are_there_at_once_others_have_their_turn_between() -> None:
    many, taken, turns = 2000, [0], [0]
    reader = asyncio.StreamReader()
    reader.feed_data(delivery([b"x" * 1000]) * many)
    frames = Frames(reader)
    frames.hand_on(1, lambda *told: taken.append(len(told[1])))
    reading = asyncio.create_task(frames.readexactly(1))
    while len(taken) <= many:
        turns.append(len(taken))
        await asyncio.sleep(0)
    reading.cancel()
    assert max(after - before for before, after in pairwise(turns)) <= 1 + door._CHUNK // 1000


@UNHURRIED
@given(st.integers(1, 2**16 - 1), st.lists(st.integers(0, 2**63 - 1)))
def test_acknowledgements_are_as_pamqp_reads_them_each_of_one_alone(channel: int, tags: list[int]) -> None:
    raw, read = door.acknowledgements(channel, tags), []
    while raw:
        size, at, ack = pamqp.frame.unmarshal(raw)
        assert (at, ack.multiple) == (channel, False)
        read.append(ack.delivery_tag)
        raw = raw[size:]
    assert read == tags


# STOMP.

GOOD = b"MESSAGE\nack:%d\n\n{}\x00\n"


def parsed(data: bytes, size: int = 2**16) -> list[Frame]:
    parser = Parser()
    return [frame for at in range(0, len(data), size) for frame in parser.feed(data[at : at + size])]


@pytest.mark.parametrize("size", [1, 3, 2**16])
@pytest.mark.parametrize(
    ("bad", "fault", "headers", "body"),
    [
        (
            b"ack:1\nx:\xe9\x9f\n\n{}\x00",
            "one of its headers is not UTF-8: x:\\xe9\\x9f",
            {"ack": "1"},
            b"{}",
        ),
        (
            b"ack:1\n\xe9\x9f:x\n\n{}\x00",
            "one of its headers is not UTF-8: \\xe9\\x9f:x",
            {"ack": "1"},
            b"{}",
        ),
        (b"ack:\xe9\n\n{}\x00", "one of its headers is not UTF-8: ack:\\xe9", {}, b"{}"),
        (
            b"ack:1\nx:a\\tb\n\n{}\x00",
            "one of its headers has an escape that STOMP has not: x:a\\tb",
            {"ack": "1"},
            b"{}",
        ),
        (
            b"ack:1\\\n\n{}\x00",
            "one of its headers has an escape that STOMP has not: ack:1\\",
            {},
            b"{}",
        ),
        (b"ack:1\nnothing\n\n{}\x00", "one of its headers has no colon: nothing", {"ack": "1"}, b"{}"),
        (
            b"ack:1\ncontent-length:x\n\n{}\x00",
            "its content-length is no number: 'x'",
            {"ack": "1", "content-length": "x"},
            b"{}",
        ),
        (
            b"ack:1\ncontent-length:1\n\n{}\x00",
            "its content-length of 1 is not the length of its body",
            {"ack": "1", "content-length": "1"},
            b"{}",
        ),
        (
            b"ack:1\ncontent-length:5\n\n{}\x00",
            "its content-length of 5 is not the length of its body",
            {"ack": "1", "content-length": "5"},
            b"{}",
        ),
    ],
)
def test_a_frame_of_stomp_that_can_not_be_read_is_faulty_and_those_beside_it_are_read(
    bad: bytes, fault: str, headers: dict[str, str], body: bytes, size: int
) -> None:
    frames = parsed(GOOD % 0 + b"MESSAGE\n" + bad + b"\n" + GOOD % 2 + GOOD % 3, size)
    assert frames == [
        Frame("MESSAGE", {"ack": "0"}, b"{}"),
        Frame("MESSAGE", headers, body, fault),
        Frame("MESSAGE", {"ack": "2"}, b"{}"),
        Frame("MESSAGE", {"ack": "3"}, b"{}"),
    ]


@pytest.mark.parametrize(
    ("raw", "headers"),
    [
        (b"a:b:c\n", {"a": "b:c"}),
        (b"a:b\na:c\n", {"a": "b"}),
        (b"a: b \r\n", {"a": " b "}),
        (b"a\\c:\\r\\n\\\\n\n", {"a:": "\r\n\\n"}),
        (b":\n", {"": ""}),
    ],
)
def test_odd_headers_of_stomp_are_as_they_were_sent(raw: bytes, headers: dict[str, str]) -> None:
    assert parsed(b"MESSAGE\n" + raw + b"\n\x00") == [Frame("MESSAGE", headers)]


sent = st.tuples(
    st.sampled_from(["1.0", "1.1", "1.2"]),
    st.sampled_from(["CONNECTED", "MESSAGE", "RECEIPT", "ERROR"]),
    st.lists(st.tuples(*[st.text(st.sampled_from("ab\\:\né"), max_size=5)] * 2), max_size=5),
    st.binary(max_size=30) | st.sampled_from([b"\x00", b"a\x00\n\nMESSAGE\n\n\x00", b"\n\n", b"\x00\x00"]),
    st.booleans(),
    st.sampled_from([b"", b"\n", b"\n\n\n"]),
)
"""A frame of a version: its command, headers, body, whether that is counted, and the heart-beats after it."""


def written(
    version: str, command: str, headers: list[tuple[str, str]], body: bytes, counted: bool, beats: bytes
) -> bytes:
    """Write a frame as the specification of its version has it."""
    lines = [command]
    if version != "1.0" and command == "CONNECTED":
        lines.append(f"version:{version}")
    for told in headers:
        name, value = told
        if version == "1.0" or command == "CONNECTED":  # without escapes
            name, value = ("".join(letter for letter in text if letter not in "\\:\n") for text in told)
        else:
            for raw, escape in (("\\", r"\\"), (":", r"\c"), ("\n", r"\n")):
                name, value = name.replace(raw, escape), value.replace(raw, escape)
        lines.append(f"{name}:{value}")
    if command not in ("MESSAGE", "ERROR"):
        body = b""
    if counted:
        lines.append(f"content-length:{len(body)}")
    else:
        body = body.replace(b"\x00", b"")
    end = "\r\n" if version == "1.2" and len(headers) % 2 else "\n"
    return end.join([*lines, "", ""]).encode() + body + b"\x00" + beats


@UNHURRIED
@given(st.lists(sent, min_size=1, max_size=4), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_frames_of_every_version_are_as_stompman_reads_them_however_they_are_split(
    frames: list[tuple[str, str, list[tuple[str, str]], bytes, bool, bytes]], sizes: list[int]
) -> None:
    data = b"".join(written(*frame) for frame in frames)
    theirs = [
        (FRAMES_TO_COMMANDS[type(frame)].decode(), dict(frame.headers), getattr(frame, "body", b""), None)  # type: ignore[union-attr] # no heart-beat
        for frame in FrameParser().parse_frames_from_chunk(data)
        if not isinstance(frame, HeartbeatFrame)
    ]
    parser = Parser()
    ours = [frame for piece in split(data, sizes) for frame in parser.feed(piece)]
    assert [(frame.command, frame.headers, frame.body, frame.fault) for frame in ours] == theirs
    assert len(theirs) == len(frames)


def test_frames_are_read_wherever_they_are_split() -> None:
    headers = [("message-id", "ID:host-1:2"), ("x", "a\\b\nc")]
    data = b"".join(
        written(version, "MESSAGE", headers[:count], b'{"a": "\x00\n\n"}\r\n\n', True, b"\n" * count)
        for version in ("1.1", "1.2")
        for count in (1, 2)
    )
    whole = parsed(data)
    assert [len(frame.headers) for frame in whole] == [2, 3, 2, 3]
    for at in range(1, len(data)):
        parser = Parser()
        assert parser.feed(data[:at]) + parser.feed(data[at:]) == whole


def test_what_the_broker_says_of_itself_is_not_escaped() -> None:
    assert parsed(b"CONNECTED\nserver:a\\b\n\n\x00") == [Frame("CONNECTED", {"server": "a\\b"})]
    assert stomp_frames.dump("CONNECT", {"passcode": "a\\b:c"}) == b"CONNECT\npasscode:a\\b:c\n\n\x00"
    assert stomp_frames.dump("ACK", {"id": "a\\b:c\r\n"}) == b"ACK\nid:a\\\\b\\cc\\r\\n\n\n\x00"


@UNHURRIED
@given(
    st.lists(
        st.sampled_from([b"MESSAGE", b"\n", b"\r", b"\x00", b":", b"\\", b"a", b"\xff", b"content-length:3"])
    ),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_whatever_is_sent_only_the_end_of_a_link_is_raised(parts: list[bytes], sizes: list[int]) -> None:
    data, parser, at, step = b"".join(parts), Parser(), 0, 0
    while at < len(data):
        parser.feed(data[at : at + sizes[step % len(sizes)]])
        at, step = at + sizes[step % len(sizes)], step + 1
    # And once the frame that had begun is over, the next one is read.
    found = parser.feed(b"\n\n\x00\n\n\x00" + b"\x00" * 4 + GOOD % 7 + GOOD % 8)
    assert found[-1] == Frame("MESSAGE", {"ack": "8"}, b"{}")


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (link, stomp_frames):
        monkeypatch.setattr(module, "MOST_BODY", 1000)
        monkeypatch.setattr(module, "OVERSIZE_KEPT", 10)
    for name, value in (("_MOST_LINE", 100), ("_MOST_HEAD", 500), ("MOST_PASSED_OVER", 50_000)):
        monkeypatch.setattr(stomp_frames, name, value)


@pytest.mark.parametrize("size", [1, 64, 2**16])
@pytest.mark.parametrize(
    ("bad", "fault", "body"),
    [
        (b"x:" + b"y" * 20_000 + b"\nack:1\n\n{}\x00", "more than 100 bytes: x:yyyy", b"{}"),
        (
            b"".join(b"%d:x\n" % n for n in range(500)) + b"ack:1\n\n{}\x00",
            "its headers have more than 500",
            b"{}",
        ),
        (b"ack:1\n\n" + b"z" * 2000 + b"\x00", "its body has 2000 bytes, more than 1000", b"z" * 10),
        (
            b"ack:1\ncontent-length:2000\n\n" + b"\x00" * 2000 + b"\x00",
            "its body has 2000 bytes, more than 1000",
            b"\x00" * 10,
        ),
    ],
)
def test_a_frame_of_stomp_that_is_too_large_is_faulty_and_can_be_acknowledged(
    bad: bytes, fault: str, body: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    first, second, third = parsed(GOOD % 0 + b"MESSAGE\n" + bad + b"\n" + GOOD % 2, size)
    assert (first.headers["ack"], third.headers["ack"]) == ("0", "2")
    assert fault in (second.fault or "")
    assert (second.headers["ack"], second.body) == ("1", body)


@pytest.mark.parametrize("length", [100, 2000, 40_000])
def test_a_body_that_is_counted_much_too_long_keeps_none_behind_it(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    parser = Parser()
    assert parser.feed(b"MESSAGE\nack:1\ncontent-length:%d\n\n{}\x00\n" % length + GOOD % 2) == []
    assert parser.is_in_doubt
    first, second = parser.end_body()
    assert (first.headers["ack"], first.body) == ("1", b"{}")
    assert first.fault == f"its content-length of {length} is not the length of its body"
    assert second.headers["ack"] == "2"
    assert not parser.is_in_doubt


@pytest.mark.parametrize(
    ("begin", "more", "reason"),
    [
        (b"MESSAGE\nack:1\nx:", b"y", "a line of more than 50000 bytes"),
        (b"MESSAGE\nack:1\n", b"x:y\n", "headers of more than 50000 bytes"),
        (b"MESSAGE\nack:1\n\n", b"y", "a body of more than 50000 bytes"),
        (b"MESSAGE\nack:1\ncontent-length:60000\n\n", b"y", "a body of 60000 bytes"),
        (b"MESSAGE\nack:1\ncontent-length:2000\n\n", b"y", "not the 2000 bytes of its content-length"),
        (b"", b"<p>\n", "no STOMP"),
        (b"", b"y", "a line of more than 50000 bytes"),
    ],
)
def test_a_frame_of_stomp_without_end_ends_the_link_and_takes_no_memory(
    begin: bytes, more: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    monkeypatch.setattr(stomp_frames, "_MOST_GARBAGE", 50_000)
    parser = Parser()

    def feed() -> None:
        parser.feed(begin)
        for _ in range(2000):
            parser.feed(more * 64)

    tracemalloc.start()
    try:
        with pytest.raises(LinkLost, match=reason):
            feed()
        assert tracemalloc.get_traced_memory()[1] < 40_000
    finally:
        tracemalloc.stop()
