"""A link over STOMP 1.2, to ActiveMQ or to RabbitMQ with its plugin.

Messages are given back by closing: on ActiveMQ a NACK sends them to its dead-letter queue
(`StompSubscription`, onStompMessageNack).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NoReturn

from bridge.core.errors import CredentialError
from bridge.sources.broker.link import (
    FIRST_PREFETCH,
    LinkLost,
    Place,
    Take,
    Wire,
    explain,
    first_end,
    patience,
)
from bridge.sources.broker.message import Message, Tag
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.stomp_frames import Frame, Parser, acknowledge, dump
from bridge.telemetry.logging import excerpt

_SUBSCRIPTION = "oscar-bridge"
_QUEUES = ("/queue/", "/amq/queue/")
"""How RabbitMQ's destinations begin that are one queue, however many subscribe to it. Of any other, each
subscription has a queue of its own, and with it every message."""
_CHUNK = 2**15
"""Bytes parsed at once: some milliseconds, with what is made of their messages."""
_STALLED_SECONDS = 2.0
"""Without a byte, after which a body that seems to have ended before its content-length has."""
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
        self._parser = Parser()
        self._frames: list[Frame] = []
        self._is_behind = False
        """More was there than is parsed at once."""
        self.sends_every = 0.0
        """Seconds between our signs of life; 0 when the broker wants none."""
        self.hears_every = 0.0
        """Seconds between the broker's; 0 when it gives none."""
        self._server = ""
        """What the broker says it is: `RabbitMQ/4.1.0`; nothing where it does not say."""
        self._destination = ""
        self._prefetch = 0
        """Of all subscriptions together."""
        self._most = 0
        """What the prefetch grows to."""
        self._answered = 0
        """Messages acknowledged since the prefetch has last grown."""

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
        self._send("CONNECT", headers)
        answer = await self._next(password)
        if answer.command != "CONNECTED":
            raise LinkLost(f"answered {answer.command} to CONNECT")
        told = answer.headers
        if told.get("version") != "1.2":
            raise LinkLost(f"speaks STOMP {told.get('version', '1.0')}, not 1.2")
        self._server = told.get("server", "")
        ours, theirs = _beats(told.get("heart-beat", "0,0"))
        self.hears_every = max(ours, beat) / 1000 if ours else 0.0
        self.sends_every = max(theirs, beat) / 1000 if theirs else 0.0

    async def is_stream(self, destination: str) -> bool:
        """Tell whether `destination` is a stream of RabbitMQ; the link is over then. Raises OSError.

        Of all queues, only streams can be read from an offset. From "next", where nothing comes but what is
        sent meanwhile, and reading a stream takes nothing from it.
        """
        if not self._is_rabbitmq or not destination.startswith("/amq/queue/"):
            return False
        self._send(
            "SUBSCRIBE",
            {
                "id": _SUBSCRIPTION,
                "destination": destination,
                "ack": "client-individual",
                "prefetch-count": "1",
                "x-stream-offset": "next",
                "receipt": "subscribed",
            },
        )
        try:
            return (await self._next()).command == "RECEIPT"
        except LinkLost:  # refused: it is none
            return False

    @property
    def _is_rabbitmq(self) -> bool:
        return self._server.startswith("RabbitMQ/")

    async def subscribe(self, config: RucioConfig, prefetch: int) -> None:
        """Subscribe, and have the broker confirm it. Raises LinkLost."""
        self._destination, self._most = str(config.destination), prefetch
        # ActiveMQ drops nothing for having come back often: that is for its clients to count (JMS's do).
        grows = self._is_rabbitmq and self._destination.startswith(_QUEUES)
        more: dict[str, str] = {"receipt": "subscribed"}
        if config.subscription is not None:
            more |= {
                "id": config.subscription,  # RabbitMQ names the queue after it
                "activemq.subscriptionName": config.subscription,
                "durable": "true",
                "auto-delete": "false",
            }
        if config.selector is not None:
            more["selector"] = config.selector
        self._subscribe(min(prefetch, FIRST_PREFETCH) if grows else prefetch, more)
        while (frame := await self._next()).command != "RECEIPT":
            self._receive(frame)  # RabbitMQ may send messages before the receipt

    def _subscribe(self, prefetch: int, more: Mapping[str, str]) -> None:
        """Ask for `prefetch` messages beside those that were asked for before."""
        headers = {
            "id": f"{_SUBSCRIPTION}-{self._prefetch}" if self._prefetch else _SUBSCRIPTION,
            "destination": self._destination,
            "ack": "client-individual",
            "activemq.prefetchSize": str(prefetch),
            "prefetch-count": str(prefetch),  # RabbitMQ's name of it
        }
        self._prefetch += prefetch
        self._send("SUBSCRIBE", {**headers, **more})

    async def lost(self) -> NoReturn:
        ends = [self._read()]
        if self.sends_every:
            ends.append(self._beat())
        if self.hears_every:
            ends.append(self._wire.silent(2 * self.hears_every))
        with _losing():
            await first_end(*ends)

    def answer(self, done: Sequence[Tag]) -> None:
        self._write(acknowledge(done))
        self._answered += len(done)
        if self._answered >= self._prefetch < self._most:
            # Beside those there are: a subscription's prefetch stays as it is, and what has come by one that
            # has ended can't be acknowledged any more. Nothing need be waited for: a refusal ends the link.
            self._answered = 0
            self._subscribe(min(self._prefetch, self._most - self._prefetch), {})

    async def waiting(self) -> int | None:
        return None

    async def close(self) -> None:
        self._send("DISCONNECT", {"receipt": "left"})
        while (await self._next()).command != "RECEIPT":
            pass  # messages still on their way: closing gives them back

    async def _read(self) -> NoReturn:
        while True:
            self._receive(await self._next())
            while self._frames:  # without a step of the loop's for each
                self._receive(self._frame())

    def _receive(self, frame: Frame) -> None:
        if frame.command != "MESSAGE":
            return
        tag = frame.headers.get("ack", "")
        if not tag:
            frame.is_faulty("it can't be acknowledged: it has no `ack` header")
        self._take(
            Message(
                tag,
                frame.body,
                {name: value for name, value in frame.headers.items() if name not in _KNOWN},
                fault=frame.fault,
            )
        )

    async def _next(self, *secrets: str | None) -> Frame:
        while not self._frames:
            self._frames = await self._more()
            self._frames.reverse()
        return self._frame(*secrets)

    def _frame(self, *secrets: str | None) -> Frame:
        frame = self._frames.pop()
        if frame.command == "ERROR":
            raise LinkLost(f"refused: {excerpt(_said(frame), *(secret for secret in secrets if secret))}")
        return frame

    async def _more(self) -> list[Frame]:
        if self._is_behind:
            await asyncio.sleep(0)  # what was read ahead would be read without a pause
        reading = self._wire.reader.read(_CHUNK)
        if self._parser.is_in_doubt:
            try:
                data = await asyncio.wait_for(reading, _STALLED_SECONDS)
            except TimeoutError:
                return self._parser.end_body()
        else:
            data = await reading
        if not data:
            raise LinkLost("the broker hung up")
        self._is_behind = len(data) == _CHUNK
        return self._parser.feed(data)

    async def _beat(self) -> NoReturn:
        while True:
            await asyncio.sleep(self.sends_every / 2)
            self._write(b"\n")

    def _send(self, command: str, headers: Mapping[str, str]) -> None:
        self._write(dump(command, headers))

    def _write(self, data: bytes) -> None:
        if self._wire.writer.is_closing():  # uvloop raises RuntimeError then
            raise LinkLost("the connection is closed")
        self._wire.writer.write(data)


@asynccontextmanager
async def open_link(
    config: RucioConfig, place: Place, prefetch: int, take: Take
) -> AsyncIterator[_StompLink]:
    """Connect to `place` and subscribe. With its first argument it is a `link.Opener`."""
    async with _connected(config, place, take) as link:
        with _losing():
            async with asyncio.timeout(patience(config)):
                await link.subscribe(config, prefetch)
        yield link


async def is_stream(config: RucioConfig, place: Place) -> bool:
    """Log in, and tell whether the destination is a stream. No message is taken. Raises LinkLost."""
    async with _connected(config, place, lambda _message: None) as link:
        with _losing():
            async with asyncio.timeout(patience(config)):
                return await link.is_stream(str(config.destination))


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


def _said(frame: Frame) -> str:
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
