"""What the reader knows of a connection to one broker, whichever protocol it speaks."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, SupportsIndex

from aiohappyeyeballs import start_connection

from bridge.core.errors import CredentialError, root_cause
from bridge.net.addresses import host_and_port
from bridge.net.certificates import refusal
from bridge.net.loop import NEXT_ADDRESS_SECONDS
from bridge.sources.broker.config import BrokerConfig
from bridge.sources.broker.message import Message, Tag
from bridge.values import ClientTls

_RESOLVE_SECONDS = 10.0
_STEP_SECONDS = 20.0
_BUFFER = 2**18
"""Bytes that a connection reads ahead."""
MOST_BODY = 2**24
"""Bytes of one message's body; an event has some hundreds."""
MOST_PASSED_OVER = 2**30
"""Bytes of one message that are passed over; no broker takes one of so many."""
OVERSIZE_KEPT = 2**16
"""What is kept of a body that has more, for a person to look at."""
FIRST_PREFETCH = 32
"""Of a link that has settled nothing yet. What is in hand when the bridge dies has used up one of the
deliveries that a quorum queue allows, so a bridge that dies again and again shall have little."""
NEARLY_DEAD = 2
"""So often a message has come back, and is parked as it comes. The limit of its queue may be 20 (the default
since RabbitMQ 4.0) or any other, which a policy can set and no client is told."""
_DELIVERY_COUNT = "x-delivery-count"
"""RabbitMQ's header of a quorum queue's message: how often it has come back."""
NO_STREAM = (
    "which does not tell what was read of it: what is sent while the bridge is away would be lost. Have a "
    "quorum queue bound to its exchange, and read that"
)
"""Why a stream of RabbitMQ is not read, and what to do."""


def returns(attributes: Mapping[str, str]) -> int:
    """Return how often the message with these attributes has come back; 0 where its broker does not tell."""
    count = attributes.get(_DELIVERY_COUNT, "")
    return int(count) if count.isascii() and count.isdigit() and len(count) < 9 else 0


class LinkLost(Exception):  # noqa: N818 - what became of one connection, not an error of the bridge
    """One broker can't be reached or used now; carries why."""


def oversize(size: int) -> str:
    """Return why a body of `size` bytes is not read."""
    return f"its body has {size} bytes, more than {MOST_BODY}: the first {OVERSIZE_KEPT} are kept"


@dataclass(frozen=True, slots=True)
class Place:
    """One address behind one of the configured brokers."""

    broker: str
    """As configured: `HOST:PORT`."""
    host: str
    """The name in its certificate."""
    address: str
    """Numeric."""
    port: int
    other: str | None = None
    """The same broker's address of the other family, where it has one of each."""

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return self.broker if self.address == self.host else f"{self.broker} ({address})"

    async def plug(self) -> socket.socket:
        """Connect to the address that answers. Raises OSError."""
        loop = asyncio.get_running_loop()
        addresses = [
            address
            for one in (self.address, self.other)
            if one is not None
            for address in await loop.getaddrinfo(one, self.port, type=socket.SOCK_STREAM)
        ]
        return await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)


Take = Callable[[Message], None]


class Link(Protocol):
    """One subscription at one broker. Messages go to the Take it was opened with, until it is left."""

    async def lost(self) -> NoReturn:
        """Wait for its end. Raises LinkLost with the reason."""

    def answer(self, done: Sequence[Tag]) -> None:
        """Acknowledge `done`, in one piece. Raises LinkLost.

        Nothing is given back before `close`: it would come again at once, on this very link.
        """

    async def waiting(self) -> int | None:
        """Count what waits at the broker, in nobody's hands; None where it does not tell. Raises LinkLost."""

    async def close(self) -> None:
        """Hang up in order, once the broker has seen every answer; what has none goes back.

        Nothing else of this link is under way then. Raises LinkLost and OSError.
        """


Opener = Callable[[Place, int, Take], AbstractAsyncContextManager[Link]]
"""Opens a link with a prefetch. Raises LinkLost. Leaving it cuts the connection, if it was not closed."""


def patience(config: BrokerConfig) -> float:
    """Give the seconds for one step of opening a link."""
    return min(_STEP_SECONDS, 2 * config.heartbeat)


def context_of(tls: ClientTls) -> ssl.SSLContext:
    """Make the context for connecting. Raises OSError or ValueError when a file can't be used."""
    context = tls.context()
    tls.show(context)
    return context


async def resolve(broker: str) -> list[Place]:
    """Give the addresses behind `HOST:PORT`: of IPv4 where there are any, as hermes does. Raises LinkLost.

    Where there is one address of each family they are the same broker's, which is reached by either of them.
    """
    host, port = host_and_port(broker)
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        reason = getattr(error, "strerror", None) or str(error) or "no answer of the DNS"
        raise LinkLost(f"{host} can't be resolved: {reason}") from None
    by_family: dict[int, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for family, *_, address in found:
        if family in by_family and str(address[0]) not in by_family[family]:
            by_family[family].append(str(address[0]))
    four, six = by_family[socket.AF_INET], by_family[socket.AF_INET6]
    if len(four) == len(six) == 1:
        return [Place(broker, host, four[0], port, other=six[0])]
    return [Place(broker, host, address, port) for address in four or six]


class _Ear(asyncio.StreamReader):
    """Remembers when anything was last heard."""

    heard = 0.0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        self.heard = time.monotonic()
        super().feed_data(data)


class Wire:
    """A connection to one place."""

    def __init__(self, reader: _Ear, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        reader.heard = time.monotonic()

    @classmethod
    async def connect(cls, config: BrokerConfig, place: Place) -> Wire:
        """Connect, with TLS if the configuration has it. Raises OSError (TLS too) and CredentialError."""
        context: ssl.SSLContext | None = None
        if config.tls is not None:
            try:
                # In a thread: a directory of authorities takes time.
                context = await asyncio.to_thread(context_of, config.tls)
            except (OSError, ValueError) as error:
                raise CredentialError(f"the TLS files can't be used: {error}") from error
        loop = asyncio.get_running_loop()
        reader = _Ear(limit=_BUFFER, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        plug = await place.plug()
        # Where a broker of STOMP gives no signs of life, this still notices a machine that is gone.
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, math.ceil(config.heartbeat))
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, math.ceil(config.heartbeat / 3))
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol,
                sock=plug,
                ssl=context,
                server_hostname=None if context is None else place.host,
            )
        except BaseException:
            plug.close()
            raise
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def silent(self, seconds: float) -> NoReturn:
        """Wait until nothing was heard for `seconds`. Raises LinkLost then."""
        rest = seconds
        while rest > 0:
            await asyncio.sleep(rest)
            rest = self.reader.heard + seconds - time.monotonic()
        raise LinkLost(f"nothing heard for {seconds:g} s")

    def abort(self) -> None:
        """Close at once; what is unsent is dropped."""
        with suppress(AttributeError):  # Python 3.11's TLS transport, when its connection is lost already
            self.writer.transport.abort()


async def first_end(*ends: Coroutine[Any, Any, NoReturn]) -> NoReturn:
    """Run `ends` until the first of them raises, and raise that."""
    tasks = [asyncio.create_task(end) for end in ends]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    raise AssertionError("unreachable: each ends by raising")


def explain(error: BaseException) -> str:
    """Say in a few words why a connection did not come about, or ended."""
    error = root_cause(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not believed: {error.verify_message}"
    if (said := refusal(error)) is not None:
        return said
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
