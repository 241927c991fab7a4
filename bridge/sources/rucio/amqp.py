"""A link over AMQP 0-9-1, to RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity, InvalidFrameError
from yarl import URL

from bridge import __version__
from bridge.core.errors import CredentialError
from bridge.sources.rucio.config import DeclareConfig, RucioConfig
from bridge.sources.rucio.link import LinkLost, Message, Place, Tag, Take, Wire, explain, first_end, patience
from bridge.telemetry.logging import excerpt

_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 2.0

# What it says at ERROR of every connection that is refused or cut, the bridge says once in its own words.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)


class _Door(TransportFactory):
    """Gives aiormq the connection that is already there."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._wire.reader, self._wire.writer


class _AmqpLink:
    def __init__(
        self, connection: aiormq.Connection, channel: AbstractChannel, wire: Wire, silence: float, take: Take
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._aside: AbstractChannel | None = None
        """For questions: a cancelled one would close the channel it was asked on, with what it holds."""
        self._wire = wire
        self._silence = silence
        self._take = take
        self._queue = ""
        self._end: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        """Fails when the link has ended, though its connection has not."""
        self._open: dict[Tag, None] = {}
        """Delivery tags without an answer, in their order."""

    async def consume(self, config: RucioConfig, prefetch: int) -> None:
        """Consume the queue. Raises AMQPError."""
        queue = self._queue = str(config.queue)
        channel = self._channel
        gone = LinkLost("the broker cancelled the consumer: its queue is gone, or has moved")
        channel.on_consumer_cancel_callbacks.add(lambda _frame: self._fail(gone))
        if config.declare is not None:
            await _declare(channel, queue, config.declare)
        await channel.basic_qos(prefetch_count=min(prefetch, 65535))
        await channel.basic_consume(queue, self._delivered)

    async def lost(self) -> NoReturn:
        await first_end(self._wire.silent(self._silence), self._ended())

    async def _ended(self) -> NoReturn:
        closings = (self._channel.closing, self._connection.closing)
        try:
            done, _ = await asyncio.wait((self._end, *closings), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for closing in closings:
                closing.cancel()  # these are observers: what they observe goes on
        if self._end.done():
            self._end.result()
        raise LinkLost(max(map(_why, done), key=len))

    async def answer(self, done: Sequence[Tag], back: Sequence[Tag]) -> None:
        # One by one: `multiple` would acknowledge what the broker sent and this link has not seen, too.
        with _losing():
            async with asyncio.timeout(_ANSWER_SECONDS):
                for tag in done:
                    if tag in self._open:
                        await self._channel.basic_ack(int(tag), wait=False)
                        del self._open[tag]
                for tag in back:
                    if tag in self._open:
                        await self._channel.basic_nack(int(tag), requeue=True, wait=False)
                        del self._open[tag]

    async def waiting(self) -> int | None:
        with _losing():
            async with asyncio.timeout(_ANSWER_SECONDS):
                if self._aside is None or self._aside.is_closed:
                    self._aside = await self._connection.channel(publisher_confirms=False)
                return (await self._aside.queue_declare(self._queue, passive=True)).message_count

    async def close(self) -> None:
        with _losing():
            await self._channel.close()  # the answers before it are seen before it; the rest is requeued
            await self._connection.close()

    async def _delivered(self, message: DeliveredMessage) -> None:
        tag = message.delivery_tag or 0
        self._open[tag] = None
        attributes = {
            name: str(value)
            for name, value in (message.header.properties.headers or {}).items()
            if isinstance(value, (str, int, float))
        }
        attributes |= {"exchange": message.exchange or "", "routing_key": message.routing_key or ""}
        try:
            self._take(Message(tag, message.body, attributes))
        except Exception as error:  # noqa: BLE001 - aiormq would only log it, and the message be stuck
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)
            self._end.exception()  # seen: it is no defect when nobody waits for the end any more


@asynccontextmanager
async def open_link(config: RucioConfig, place: Place, prefetch: int, take: Take) -> AsyncIterator[_AmqpLink]:
    """Connect to `place` and consume (`link.Opener`)."""
    async with _connected(config, place) as (connection, channel, wire):
        link = _AmqpLink(connection, channel, wire, 2 * config.heartbeat, take)
        with _losing():
            async with asyncio.timeout(patience(config)):
                await link.consume(config, prefetch)
        yield link


async def look(config: RucioConfig, place: Place) -> tuple[int, int] | None:
    """Give how many messages wait in the queue and how many consumers it has; None where there is none.

    Nothing is made, and nothing is taken. Raises LinkLost.
    """
    async with _connected(config, place) as (connection, channel, _):
        with _losing():
            try:
                async with asyncio.timeout(patience(config)):
                    told = await channel.queue_declare(str(config.queue), passive=True)
            except ChannelNotFoundEntity:
                return None
            await connection.close()
        return told.message_count or 0, told.consumer_count or 0


@asynccontextmanager
async def _connected(
    config: RucioConfig, place: Place
) -> AsyncIterator[tuple[aiormq.Connection, AbstractChannel, Wire]]:
    """Give a connection with a channel; cut at the end, if it was not closed. Raises LinkLost."""
    wire: Wire | None = None
    connection: aiormq.Connection | None = None
    try:
        with _losing():
            async with asyncio.timeout(patience(config)):
                password = config.read_password()
                wire = await Wire.connect(config, place)
                connection = aiormq.Connection(
                    _url(config, password, place),
                    transport_factory=_Door(wire),
                    client_properties={"product": "oscar-event-bridge", "version": __version__},
                )
                connection.vhost = config.virtual_host  # a URL's path can't say all of them
                await _log_in(connection, wire)
                channel = await connection.channel(publisher_confirms=False)
        yield connection, channel, wire
    finally:
        if wire is not None:
            wire.abort()
        if connection is not None:
            # Without this its tasks end by themselves, but after us.
            with suppress(AMQPError, OSError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()


async def _log_in(connection: aiormq.Connection, wire: Wire) -> None:
    connecting = asyncio.create_task(connection.connect())
    try:
        await asyncio.wait([connecting])
    finally:
        if not connecting.done():
            wire.abort()  # aiormq closes TLS in order first, and a silent broker makes that half a minute
            connecting.cancel()
            await asyncio.wait([connecting])
    try:
        connecting.result()
    except InvalidFrameError as error:
        if "OpenOk" not in str(error):
            raise
        # RabbitMQ says why in its Connection.Close, which aiormq does not pass on.
        raise LinkLost(f"refused: no virtual host {connection.vhost} for this user") from None


def _url(config: RucioConfig, password: str | None, place: Place) -> URL:
    """Give what aiormq wants to know; without a user name the certificate says who we are (EXTERNAL)."""
    return URL.build(
        scheme="amqp",
        user=config.username,
        password=password,
        host=place.address,
        port=place.port,
        query={
            "heartbeat": str(int(config.heartbeat)),
            "auth": "plain" if config.username is not None else "external",
        },
    )


async def _declare(channel: AbstractChannel, queue: str, config: DeclareConfig) -> None:
    await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": config.queue_type})
    if config.exchange is not None:
        await channel.queue_bind(queue, config.exchange, config.routing_key)


@contextmanager
def _losing() -> Iterator[None]:
    """Turn what aiormq and the network raise into LinkLost."""
    try:
        yield
    except (AMQPError, OSError, CredentialError) as error:  # TimeoutError is an OSError
        raise LinkLost(_why(error)) from None
    except RuntimeError:  # so aiormq says that a channel or a connection is closed
        raise LinkLost("the connection is closed") from None


def _why(error: BaseException | asyncio.Future[Any]) -> str:
    if isinstance(error, asyncio.Future):
        if error.cancelled():
            return "the connection ended"
        return _why(error.exception() or LinkLost("the connection ended"))
    return excerpt(explain(error))
