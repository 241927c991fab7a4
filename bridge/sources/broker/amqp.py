"""A link over AMQP 0-9-1, to RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NoReturn, cast

import aiormq
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, InvalidFrameError
from yarl import URL

from bridge import __version__
from bridge.core.errors import CredentialError
from bridge.sources.broker import amqp_queue
from bridge.sources.broker.amqp_queue import QueueFound
from bridge.sources.broker.config import BrokerConfig, DeclareConfig
from bridge.sources.broker.door import Door, acknowledgements
from bridge.sources.broker.link import (
    FIRST_PREFETCH,
    NEARLY_DEAD,
    NO_STREAM,
    LinkLost,
    Place,
    Take,
    Wire,
    explain,
    first_end,
    patience,
    returns,
)
from bridge.sources.broker.message import Message, Tag
from bridge.sources.broker.properties import Foreign
from bridge.telemetry.logging import excerpt

_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_WARY_SECONDS = 1.0
"""How long a link waits for what has come back before, before it takes as many as any other begins with."""

# What it says at ERROR of every connection that is refused or cut, the bridge says once in its own words.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)


class _AmqpLink:
    def __init__(
        self, connection: aiormq.Connection, channel: AbstractChannel, door: Door, silence: float, take: Take
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._number = cast("Channel", channel).number
        door.frames.hand_on(self._number, self._delivered)
        self._aside: AbstractChannel | None = None
        """For questions: a cancelled one would close the channel it was asked on, with what it holds."""
        self._wire = door.wire
        self._silence = silence
        self._take = take
        self._queue = ""
        self._consumer = ""
        self._prefetch = 0
        self._most = 0
        """What the prefetch grows to."""
        self._answered = 0
        """Messages acknowledged since the prefetch has last grown."""
        self._growing: asyncio.Task[None] | None = None
        self._is_fresh = False
        """A message came that has not come back before."""
        self._trusting: asyncio.TimerHandle | None = None
        self._end: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        """Fails when the link has ended, though its connection has not."""

    async def consume(self, queue: str, declare: DeclareConfig | None, prefetch: int) -> None:
        """Consume the queue. Raises LinkLost when it is a stream, and AMQPError."""
        self._queue = queue
        gone = LinkLost("the broker cancelled the consumer: its queue is gone, or has moved")
        self._channel.on_consumer_cancel_callbacks.add(lambda _frame: self._fail(gone))
        if declare is not None:
            await amqp_queue.make_if_missing(self._connection, queue, declare)
        if await amqp_queue.is_stream(self._connection, queue):
            raise LinkLost(f"{queue} is a stream, {NO_STREAM}")
        self._most = min(prefetch, 65535)
        if self._most < 2 * FIRST_PREFETCH:
            # While a link grows, what it had in hand comes beside: here that would be more than may be.
            await self._consume(min(self._most, FIRST_PREFETCH))
            return
        await self._consume(1)
        if self._is_fresh:
            self._trust()
        else:
            self._trusting = asyncio.get_running_loop().call_later(_WARY_SECONDS, self._trust)

    async def _consume(self, prefetch: int) -> None:
        """Consume with `prefetch`, which holds for consumers that begin after it is set."""
        await self._channel.basic_qos(prefetch_count=prefetch)
        consuming = await self._channel.basic_consume(self._queue, _never)
        self._prefetch, self._consumer = prefetch, str(consuming.consumer_tag)

    def _trust(self) -> None:
        """Go on with as many messages as a link usually begins with.

        Until then there is one in hand, and two, four …, as they are settled: those that have come back
        before. Else a bridge that is killed again and again within moments of its start would use up the
        deliveries of all of them before it has kept any.
        """
        if self._prefetch < min(FIRST_PREFETCH, self._most):
            self._grow_to(FIRST_PREFETCH)
            # Nothing grows while it grows: it is looked again.
            self._trusting = asyncio.get_running_loop().call_later(_WARY_SECONDS, self._trust)

    def _trust_no_more(self) -> None:
        if self._trusting is not None:
            self._trusting.cancel()

    def _grow_to(self, prefetch: int) -> None:
        if self._growing is None or self._growing.done():
            # In a task: who is cancelled while he asks something of the broker has his channel closed.
            self._answered = 0
            self._growing = asyncio.create_task(self._grow(min(prefetch, self._most)), name="amqp prefetch")

    async def _grow(self, prefetch: int) -> None:
        before = self._consumer
        try:
            with _losing():
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._consume(prefetch)
                    await self._channel.basic_cancel(before)  # what it was sent stays in hand
        except LinkLost as lost:
            self._fail(lost)

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

    def answer(self, done: Sequence[Tag]) -> None:
        # Past aiormq, which would make a frame, an entry of its queue and a write of each of them.
        if self._channel.is_closed or self._wire.writer.is_closing():
            raise LinkLost("the connection is closed")
        self._wire.writer.write(acknowledgements(self._number, done))
        self._answered += len(done)
        if self._answered >= self._prefetch < self._most:
            self._grow_to(2 * self._prefetch)

    async def waiting(self) -> int | None:
        with _losing():
            async with asyncio.timeout(_ANSWER_SECONDS):
                if self._aside is None or self._aside.is_closed:
                    self._aside = await self._connection.channel(publisher_confirms=False)
                return (await self._aside.queue_declare(self._queue, passive=True)).message_count

    async def close(self) -> None:
        self._trust_no_more()
        with _losing():
            if self._growing is not None:
                await asyncio.wait([self._growing])
            # Given back by a nack, since RabbitMQ counts that for no delivery (from 4.3; a close it counts).
            # All of them, also those on their way: none is sent after the cancel.
            await self._channel.basic_cancel(self._consumer, nowait=True)
            await self._channel.basic_nack(0, multiple=True, requeue=True, wait=False)
            await self._channel.close()  # the answers before it are seen before it
            await self._connection.close()

    async def end(self) -> None:
        """Let nothing run on. The connection is cut before, so that nothing takes long."""
        self._trust_no_more()
        if self._growing is not None:
            self._growing.cancel()
            await asyncio.wait([self._growing])

    def _delivered(self, tag: int, body: bytes, found: Foreign) -> None:
        attributes = {name: str(value) for name, value in found.headers.items()}
        attributes |= {"exchange": found.exchange, "routing_key": found.routing_key}
        if not self._is_fresh and returns(attributes) < NEARLY_DEAD:
            self._is_fresh = True
            if self._prefetch:
                self._trust_no_more()
                self._trust()
        try:
            self._take(Message(tag, body, attributes, found.properties, found.fault))
        except Exception as error:  # noqa: BLE001 - aiormq's reader would end of it, and not say why
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)
            self._end.exception()  # seen: it is no defect when nobody waits for the end any more


@asynccontextmanager
async def open_link(
    config: BrokerConfig, queue: str, declare: DeclareConfig | None, place: Place, prefetch: int, take: Take
) -> AsyncIterator[_AmqpLink]:
    """Connect to `place` and consume `queue`, made first where it is missing if `declare` says how.

    With its first three arguments it is a `link.Opener`.
    """
    async with _connected(config, place) as (connection, channel, door):
        link = _AmqpLink(connection, channel, door, 2 * config.heartbeat, take)
        with _losing():
            async with asyncio.timeout(patience(config)):
                await link.consume(queue, declare, prefetch)
        try:
            yield link
        finally:
            door.wire.abort()
            await link.end()


async def look(config: BrokerConfig, queue: str, place: Place) -> QueueFound | None:
    """Look at `queue`: None where there is none. Nothing is made, and nothing is taken. Raises LinkLost."""
    async with _connected(config, place) as (connection, _channel, _door):
        with _losing():
            async with asyncio.timeout(patience(config)):
                found = await amqp_queue.look(connection, queue)
                await connection.close()
        return found


@asynccontextmanager
async def _connected(
    config: BrokerConfig, place: Place
) -> AsyncIterator[tuple[aiormq.Connection, AbstractChannel, Door]]:
    """Give a connection with a channel; cut at the end, if it was not closed. Raises LinkLost."""
    wire: Wire | None = None
    connection: aiormq.Connection | None = None
    try:
        with _losing():
            async with asyncio.timeout(patience(config)):
                password = config.read_password()
                wire = await Wire.connect(config, place)
                door = Door(wire)
                connection = aiormq.Connection(
                    _url(config, password, place),
                    transport_factory=door,
                    client_properties={"product": "oscar-event-bridge", "version": __version__},
                )
                connection.vhost = config.virtual_host  # a URL's path can't say all of them
                await _log_in(connection, wire)
                channel = await connection.channel(publisher_confirms=False)
        yield connection, channel, door
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


async def _never(_message: DeliveredMessage) -> None:
    """Stand where aiormq wants to be told who takes what is delivered: the door does not let it see any."""


def _url(config: BrokerConfig, password: str | None, place: Place) -> URL:
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


@contextmanager
def _losing() -> Iterator[None]:
    """Turn what aiormq and the network raise into LinkLost."""
    try:
        yield
    except (AMQPError, OSError, CredentialError) as error:  # TimeoutError is an OSError
        raise LinkLost(_why(error)) from None
    except (RuntimeError, StopAsyncIteration):  # so aiormq says that a channel or a connection is closed
        raise LinkLost("the connection is closed") from None


def _why(error: BaseException | asyncio.Future[Any]) -> str:
    if isinstance(error, asyncio.Future):
        if error.cancelled():
            return "the connection ended"
        return _why(error.exception() or LinkLost("the connection ended"))
    return excerpt(explain(error))
