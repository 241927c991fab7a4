"""STOMP as brokers may speak it: split anywhere, without lengths, with errors, without signs of life."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.broker.link import LinkLost, Place, Wire
from bridge.sources.broker.message import Message
from bridge.sources.rucio import stomp
from bridge.sources.rucio.stomp import open_link
from bridge.testing import opened, settle, until
from tests.servers.hermes import message
from tests.sources.rucio import source
from tests.sources.test_rucio_message import config

Send = Callable[[bytes], None]
CONNECTED = b"CONNECTED\nversion:1.2\nheart-beat:%s\n\n\x00"
RECEIPT = b"RECEIPT\nreceipt-id:subscribed\n\n\x00"

pytestmark = pytest.mark.usefixtures("told_no_longer")


class Broker:
    """Speaks as it is told to: `script` gets each frame of a client, and what sends to it."""

    def __init__(self, script: Callable[[bytes, Send], Awaitable[None]]) -> None:
        self.port = 0
        self.heard: list[bytes] = []
        """Frames and heart-beats, of all connections."""
        self.connections: list[asyncio.StreamWriter] = []
        self._script = script

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        buffer = b""
        try:
            while data := await reader.read(65536):
                buffer += data
                while buffer:
                    if buffer.startswith(b"\n"):
                        self.heard.append(b"\n")
                        buffer = buffer[1:]
                        continue
                    frame, end, rest = buffer.partition(b"\x00")
                    if not end:
                        break
                    buffer = rest
                    self.heard.append(frame)
                    await self._script(frame, writer.write)
        except OSError:
            pass  # the client hung up
        finally:
            writer.close()


def says(*messages: bytes, beats: bytes = b"0,0", instead: bytes | None = None) -> Any:
    """Make a script that lets a client in and sends `messages`; `instead` answers CONNECT."""

    async def script(frame: bytes, send: Send) -> None:
        if frame.startswith(b"CONNECT"):
            send(CONNECTED % beats if instead is None else instead)
        elif frame.startswith(b"SUBSCRIBE"):
            send(RECEIPT + b"".join(messages))
        elif frame.startswith(b"DISCONNECT"):
            send(b"RECEIPT\nreceipt-id:left\n\n\x00")

    return script


@asynccontextmanager
async def broker(script: Any) -> AsyncIterator[Broker]:
    broker = Broker(script)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()
        for writer in broker.connections:
            writer.transport.abort()
        await server.wait_closed()


def at(broker: Broker, **more: Any) -> dict[str, Any]:
    return {
        "protocol": "stomp",
        "brokers": f"127.0.0.1:{broker.port}",
        "destination": "/queue/rucio",
        "username": "bridge",
        "password": "swordfish",
        **more,
    }


def told(body: bytes, ack: str = "1", **headers: str) -> bytes:
    """Make a MESSAGE without content-length."""
    lines = {"subscription": "oscar-bridge", "message-id": ack, "ack": ack, **headers}
    return b"MESSAGE\n" + b"".join(f"{k}:{v}\n".encode() for k, v in lines.items()) + b"\n" + body + b"\x00"


def escaped(text: str) -> str:
    """As STOMP 1.2 has it in headers ("Value Encoding")."""
    for raw, code in (("\\", "\\\\"), ("\n", "\\n"), (":", "\\c")):
        text = text.replace(raw, code)
    return text


texts = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"]), min_size=1)
"""A carriage return has an escape too, which neither broker's clients send."""


@settings(max_examples=40)  # each opens a connection
@given(
    st.lists(st.tuples(st.binary(), st.dictionaries(texts, texts, max_size=3)), min_size=1, max_size=5),
    st.lists(st.integers(1, 40), min_size=1),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_frames_are_read_however_they_are_split(
    frames: list[tuple[bytes, dict[str, str]]], sizes: list[int], line: bytes
) -> None:
    """Binary bodies, headers with every escape, heart-beats between; several frames in one read, too."""
    data, expected = CONNECTED % b"0,0" + RECEIPT, []
    for number, (body, headers) in enumerate(frames):
        taken = {f"x-{name}": value for name, value in headers.items()}
        lines = [b"MESSAGE", b"ack:%d" % number, b"content-length:%d" % len(body)]
        lines += [f"{escaped(name)}:{escaped(value)}".encode() for name, value in taken.items()]
        data += line.join([*lines, b"", b""]) + body + b"\x00" + line
        expected.append(Message(str(number), body, taken))

    async def script(frame: bytes, send: Send) -> None:
        if frame.startswith(b"CONNECT"):
            at, step = 0, 0
            while at < len(data):
                send(data[at : at + sizes[step % len(sizes)]])
                at += sizes[step % len(sizes)]
                step += 1
                await asyncio.sleep(0)  # a packet of its own, mostly

    async def take() -> list[Message]:
        got: list[Message] = []
        async with broker(script) as server:
            place = Place(f"127.0.0.1:{server.port}", "127.0.0.1", "127.0.0.1", server.port)
            async with open_link(config(), place, 10, got.append) as link:
                reading = asyncio.create_task(link.lost())
                await until(lambda: len(got) == len(expected))
                reading.cancel()
                await asyncio.wait([reading])
        return got

    assert asyncio.run(take()) == expected


async def test_what_is_asked_for_is_the_prefetch_and_nothing_is_ever_refused() -> None:
    """On ActiveMQ a NACK is the end of a message."""
    async with broker(says(told(b"{}", "1"), told(b"{}", "2"))) as server:
        async with opened(source(**at(server, max_in_flight=7))) as hands:
            one, two = await hands.take(2)
            settle([one])
            settle([two], Outcome.RELEASED)
        (subscribed,) = [frame for frame in server.heard if frame.startswith(b"SUBSCRIBE")]
        for header in (b"activemq.prefetchSize:7", b"prefetch-count:7", b"ack:client-individual"):
            assert header in subscribed.split(b"\n")
        commands = [frame.partition(b"\n")[0] for frame in server.heard]
        assert commands == [b"CONNECT", b"SUBSCRIBE", b"ACK", b"DISCONNECT"]


async def test_many_frames_in_one_read_are_taken_in_their_order() -> None:
    bodies = [str(message(number=n)).encode() for n in range(500)]
    async with (
        broker(says(*(told(body, str(n)) for n, body in enumerate(bodies)))) as server,
        opened(source(**at(server))) as hands,
    ):
        taken = await hands.take(500)
        assert [delivery.event.data for delivery in taken] == bodies
        settle(taken)
        await until(lambda: sum(frame.startswith(b"ACK") for frame in server.heard) == 500)


async def test_of_many_frames_that_are_there_at_once_others_have_their_turn_between() -> None:
    many = [told(b"x" * 1000, str(n)) for n in range(2000)]
    taken, turns = [], [0]

    async def turn() -> None:
        while len(taken) < len(many):
            turns.append(len(taken))
            await asyncio.sleep(0)

    async with broker(says(*many)) as server:
        place = Place("", "127.0.0.1", "127.0.0.1", server.port)
        async with open_link(config(), place, 1, taken.append) as link:
            losing = asyncio.create_task(link.lost())
            await turn()
            losing.cancel()
            await asyncio.wait([losing])
    assert max(after - before for before, after in pairwise(turns)) <= stomp._CHUNK // 1000


async def test_an_error_in_the_middle_gives_back_and_is_told_without_its_stack_trace() -> None:
    async with broker(says(told(b"{}"))) as server, opened(source(**at(server))) as hands:
        (delivery,) = await hands.take(1)
        server.connections[0].write(
            b"ERROR\nmessage:oops\n\norg.example.Oops: first\nsecond\n\tat org.example.A(A.java:7)\n"
            b"Caused by: third\n\t... 2 more\n\x00"
        )
        await until(lambda: hands.source.problems())
        (problem,) = hands.source.problems()
        assert problem.endswith(": refused: oops: org.example.Oops: first second Caused by: third")
        assert delivery.outcome is Outcome.RELEASED
        settle(await hands.take(1))


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        (b"CONNECTED\nversion:1.1\n\n\x00", "speaks STOMP 1.1"),
        (b"CONNECTED\n\n\x00", "speaks STOMP 1.0"),
        (b"CONNECTED\nversion:1.2\nheart-beat:x\n\n\x00", "heart-beat 'x'"),
        (RECEIPT, "answered RECEIPT"),
        (b"ERROR\nmessage:no swordfish for you\n\n\x00", r"refused: no \[redacted\] for you"),
        (b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n<html></html>", "no answer in time"),
        (b"", "no answer in time"),
        (b"A" * 1000, "no answer in time"),
    ],
)
async def test_what_is_no_welcome_is_told_in_bounded_time(instead: bytes, reason: str) -> None:
    async with broker(says(instead=instead)) as server:
        begun = time.monotonic()
        with pytest.raises(SourceLost, match=reason) as raised:
            async with opened(source(**at(server, heartbeat=1))):
                pass
        assert time.monotonic() - begun < 20
        assert "swordfish" not in str(raised.value)


async def test_messages_that_can_not_be_acknowledged_are_faulty_and_those_beside_them_are_taken() -> None:
    without = b"MESSAGE\nmessage-id:1\n\n{}\x00"
    async with (
        broker(says(told(b"1", "1"), without, without, told(b"2", "2"))) as server,
        opened(source(**at(server))) as hands,
    ):
        taken = await hands.take(4)
        assert ["acknowledged" in (delivery.fault or "") for delivery in taken] == [False, True, True, False]
        settle(taken)
        await until(lambda: sum(frame.startswith(b"ACK") for frame in server.heard) == 2)
        assert len(server.connections) == 1


async def test_a_length_that_takes_in_the_messages_behind_it_holds_them_up_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stomp, "_STALLED_SECONDS", 0.1)
    wrong = b"MESSAGE\nack:1\ncontent-length:5000\n\n{}\x00\n"
    async with (
        broker(says(told(b"0", "0"), wrong, told(b"2", "2"), told(b"3", "3"))) as server,
        opened(source(**at(server))) as hands,
    ):
        taken = await hands.take(4)
        assert [delivery.event.data for delivery in taken] == [b"0", b"{}", b"2", b"3"]
        assert "content-length of 5000" in (taken[1].fault or "")
        settle(taken)
        await until(lambda: sum(frame.startswith(b"ACK") for frame in server.heard) == 4)
        assert len(server.connections) == 1


async def test_signs_of_life_are_given_as_often_as_they_are_wanted_and_missed_when_promised() -> None:
    """The broker wants one each second, and promises one every two seconds and gives none."""
    async with broker(says(beats=b"2000,1000")) as server:
        begun = time.monotonic()
        async with opened(source(**at(server, heartbeat=1))) as hands:
            await until(lambda: hands.source.problems())
            assert time.monotonic() - begun > 3.9
            assert server.heard.count(b"\n") >= 3
            assert "nothing heard for 4 s" in hands.source.problems()[0]


async def test_a_broker_that_promises_no_signs_of_life_is_kept_and_its_machine_watched() -> None:
    """By TCP, which finds out when a machine is gone."""
    async with broker(says(beats=b"0,0")) as server, opened(source(**at(server, heartbeat=1))) as hands:
        await hands.takes_nothing(2.5)
        assert not hands.source.problems()
        assert server.heard.count(b"\n") == 0
        place = Place("", "127.0.0.1", "127.0.0.1", server.port)
        wire = await Wire.connect(config(heartbeat=1), place)
        plug = wire.writer.get_extra_info("socket")
        assert plug.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert plug.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1
        wire.abort()


async def test_a_connection_that_is_closed_takes_no_heart_beat() -> None:
    """An event loop may raise what is no OSError for it (uvloop does)."""
    async with broker(says(beats=b"0,1000")) as server:
        place = Place("", "127.0.0.1", "127.0.0.1", server.port)
        async with open_link(config(heartbeat=1), place, 1, lambda _message: None) as link:
            link._wire.abort()
            with pytest.raises(LinkLost, match="closed"):
                await link._beat()


async def test_a_broker_that_hangs_up_on_everybody_costs_little_and_is_told_once() -> None:
    """With a second one that works, so that the source stays open."""

    async def hang_up(_frame: bytes, _send: Send) -> None:
        raise OSError

    async with broker(hang_up) as bad, broker(says()) as good:
        with structlog.testing.capture_logs() as lines:
            brokers = f"127.0.0.1:{bad.port}, 127.0.0.1:{good.port}"
            async with opened(source(**at(good, brokers=brokers))) as hands:
                await until(lambda: hands.source.problems())
                begun = resource.getrusage(resource.RUSAGE_SELF)
                await hands.takes_nothing(3)
                ended = resource.getrusage(resource.RUSAGE_SELF)
                assert hands.source.problems()
        assert 1 <= len(bad.connections) <= 15
        assert ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime < 0.3
        assert len([line for line in lines if line["log_level"] == "warning"]) == 1


async def test_what_is_settled_for_a_link_that_is_gone_is_not_acknowledged_on_the_next() -> None:
    async with broker(says(told(b"{}", ack="of-the-first"))) as server, opened(source(**at(server))) as hands:
        (first,) = await hands.take(1)
        server.connections[0].transport.abort()
        (second,) = await hands.take(1)
        settle([first])
        await hands.takes_nothing(0.2)
        assert not [frame for frame in server.heard if frame.startswith(b"ACK")]
        settle([second])
        await until(lambda: [frame for frame in server.heard if frame.startswith(b"ACK")])


async def test_what_comes_before_a_link_is_open_is_handed_out_once_it_can_be_answered() -> None:
    confirmed, asked = asyncio.Event(), []

    async def script(frame: bytes, send: Send) -> None:
        if frame.startswith(b"CONNECT"):
            send(CONNECTED % b"0,0")
        elif frame.startswith(b"SUBSCRIBE"):
            asked.append(frame)
            send(told(b"{}"))
            if len(asked) > 1:
                await confirmed.wait()
            send(RECEIPT)
        elif frame.startswith(b"DISCONNECT"):
            send(b"RECEIPT\nreceipt-id:left\n\n\x00")

    async with broker(script) as server:
        async with opened(source(**at(server))) as hands:
            await hands.take(1)
            server.connections[0].transport.abort()
            await until(lambda: len(asked) > 1)
            await hands.takes_nothing(0.2)
            confirmed.set()
            settle(await hands.take(1))
        assert [frame for frame in server.heard if frame.startswith(b"ACK")] == [b"ACK\nid:1\n\n"]


async def test_a_subscription_that_is_never_confirmed_is_told_and_gives_back() -> None:
    async def script(frame: bytes, send: Send) -> None:
        send(CONNECTED % b"1000,0" if frame.startswith(b"CONNECT") else told(b"{}"))

    async with broker(script) as server:
        with pytest.raises(SourceLost, match="no answer in time"):
            async with opened(source(**at(server, heartbeat=1))):
                pass
