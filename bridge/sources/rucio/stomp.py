"""A link over STOMP 1.2, to ActiveMQ or to RabbitMQ with its plugin.

The frames are stompman's. Its client is not used: it reconnects by itself and keeps the messages of the lost
connection, sends no `host` but the broker's name (which RabbitMQ takes for a virtual host), and does not
look whether the broker is still alive.

Messages are given back by closing: on ActiveMQ a NACK sends them to its dead-letter queue
(`StompSubscription`, onStompMessageNack).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn

import stompman

from bridge.core.errors import CredentialError
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.link import LinkLost, Message, Place, Tag, Take, Wire, explain, first_end, patience
from bridge.telemetry.logging import excerpt

_SUBSCRIPTION = "oscar-bridge"
_CHUNK = 2**14
"""Bytes parsed at once: some milliseconds."""
_KNOWN = frozenset(
    {
        "ack",
        "content-length",
        "content-type",
        "message-id",
        "subscription",
        "persistent",
        "priority",
        "expires",
    }
)
"""Headers that say nothing of the event."""


class _StompLink:
    def __init__(self, wire: Wire, take: Take) -> None:
        self._wire = wire
        self._take = take
        self._parser = stompman.FrameParser()
        self._frames: list[Any] = []
        self.sends_every = 0.0
        """Seconds between our signs of life; 0 when the broker wants none."""
        self.hears_every = 0.0
        """Seconds between the broker's; 0 when it gives none."""

    async def connect(self, config: RucioConfig, password: str | None) -> None:
        """Say who we are. Raises LinkLost."""
        beat = int(config.heartbeat * 1000)
        headers = {
            "accept-version": "1.2",
            "host": config.virtual_host,
            "heart-beat": f"{beat},{beat}",
        }
        if config.username is not None:
            headers |= {"login": config.username, "passcode": password or ""}
        if config.client_id is not None:
            headers["client-id"] = config.client_id
        self._send(stompman.ConnectFrame(headers=headers))  # type: ignore[arg-type] # it knows no client-id
        answer = await self._next(password)
        if not isinstance(answer, stompman.ConnectedFrame):
            raise LinkLost(f"answered {type(answer).__name__} to CONNECT")
        told = answer.headers
        if told.get("version") != "1.2":
            raise LinkLost(f"speaks STOMP {told.get('version', '1.0')}, not 1.2")
        ours, theirs = _beats(told.get("heart-beat", "0,0"))
        self.hears_every = max(ours, beat) / 1000 if ours else 0.0
        self.sends_every = max(theirs, beat) / 1000 if theirs else 0.0

    async def subscribe(self, config: RucioConfig, prefetch: int) -> None:
        """Subscribe, and have the broker confirm it. Raises LinkLost."""
        headers = {
            "id": _SUBSCRIPTION,
            "destination": str(config.destination),
            "ack": "client-individual",
            "activemq.prefetchSize": str(prefetch),
            "prefetch-count": str(prefetch),  # RabbitMQ's name of it
            "receipt": "subscribed",
        }
        if config.subscription is not None:
            headers |= {
                "id": config.subscription,  # RabbitMQ names the queue after it
                "activemq.subscriptionName": config.subscription,
                "durable": "true",
                "auto-delete": "false",
            }
        if config.selector is not None:
            headers["selector"] = config.selector
        self._send(stompman.SubscribeFrame(headers=headers))  # type: ignore[arg-type] # brokers' own headers
        while not isinstance(frame := await self._next(), stompman.ReceiptFrame):
            self._receive(frame)  # RabbitMQ may send messages before the receipt

    async def lost(self) -> NoReturn:
        ends = [self._read()]
        if self.sends_every:
            ends.append(self._beat())
        if self.hears_every:
            ends.append(self._wire.silent(2 * self.hears_every))
        with _losing():
            await first_end(*ends)

    async def answer(self, done: Sequence[Tag], back: Sequence[Tag]) -> None:
        for tag in done:
            self._send(stompman.AckFrame(headers={"id": str(tag)}))  # type: ignore[typeddict-item] # as in 1.2

    async def waiting(self) -> int | None:
        return None

    async def close(self) -> None:
        self._send(stompman.DisconnectFrame(headers={"receipt": "left"}))
        while not isinstance(await self._next(), stompman.ReceiptFrame):
            pass  # messages still on their way: closing gives them back

    async def _read(self) -> NoReturn:
        while True:
            self._receive(await self._next())

    def _receive(self, frame: Any) -> None:
        if not isinstance(frame, stompman.MessageFrame):
            return
        headers: Mapping[str, str] = dict(frame.headers)  # type: ignore[arg-type] # texts, all of them
        if "ack" not in headers:
            raise LinkLost("gave a message that can't be acknowledged")
        self._take(
            Message(
                headers["ack"],
                frame.body,
                {name: value for name, value in headers.items() if name not in _KNOWN},
            )
        )

    async def _next(self, *secrets: str | None) -> Any:
        while not self._frames:
            data = await self._wire.reader.read(_CHUNK)
            if not data:
                raise LinkLost("the broker hung up")
            self._frames = [
                frame
                for frame in self._parser.parse_frames_from_chunk(data)
                if not isinstance(frame, stompman.HeartbeatFrame)
            ]
            self._frames.reverse()
        frame = self._frames.pop()
        if isinstance(frame, stompman.ErrorFrame):
            raise LinkLost(f"refused: {excerpt(_said(frame), *(secret for secret in secrets if secret))}")
        return frame

    async def _beat(self) -> NoReturn:
        while True:
            await asyncio.sleep(self.sends_every / 2)
            self._write(b"\n")

    def _send(self, frame: stompman.AnyClientFrame) -> None:
        self._write(stompman.dump_frame(frame))

    def _write(self, data: bytes) -> None:
        if self._wire.writer.is_closing():  # uvloop raises RuntimeError then
            raise LinkLost("the connection is closed")
        self._wire.writer.write(data)


@asynccontextmanager
async def open_link(
    config: RucioConfig, place: Place, prefetch: int, take: Take
) -> AsyncIterator[_StompLink]:
    """Connect to `place` and subscribe (`link.Opener`)."""
    async with _connected(config, place, take) as link:
        with _losing():
            async with asyncio.timeout(patience(config)):
                await link.subscribe(config, prefetch)
        yield link


async def look(config: RucioConfig, place: Place) -> None:
    """Log in and out. Nothing is subscribed to, since that would take messages. Raises LinkLost."""
    async with _connected(config, place, lambda _message: None) as link:
        with _losing():
            async with asyncio.timeout(patience(config)):
                await link.close()


@asynccontextmanager
async def _connected(config: RucioConfig, place: Place, take: Take) -> AsyncIterator[_StompLink]:
    """Give a link that is logged in; cut at the end. Raises LinkLost."""
    wire: Wire | None = None
    try:
        with _losing():
            async with asyncio.timeout(patience(config)):
                password = config.read_password()
                wire = await Wire.connect(config, place)
                link = _StompLink(wire, take)
                await link.connect(config, password)
        yield link
    finally:
        if wire is not None:
            wire.abort()


@contextmanager
def _losing() -> Iterator[None]:
    """Turn what the network raises into LinkLost."""
    try:
        yield
    except (OSError, CredentialError) as error:  # TimeoutError is an OSError
        raise LinkLost(explain(error)) from None


def _said(frame: stompman.ErrorFrame) -> str:
    """Give an error's message, with its body but for the steps of ActiveMQ's stack traces."""
    message = frame.headers.get("message", "")
    lines = frame.body.decode("utf-8", "replace").splitlines()
    text = " ".join(line for line in lines if not line.startswith("\t"))
    return text if message in text else f"{message}: {text}"


def _beats(header: str) -> tuple[int, int]:
    """Give what `heart-beat` says: milliseconds between beats of its sender, and between those it wants."""
    sends, _, wants = header.partition(",")
    try:
        return int(sends), int(wants)
    except ValueError:
        raise LinkLost(f"answered heart-beat {header!r}") from None
