"""What an AMQP client can find out about a queue of RabbitMQ, and how a missing one is made.

AMQP has no question for a queue's type or limits. RabbitMQ tells them when it refuses something; each
question is asked on a channel of its own, since the refusal closes that.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from bridge.sources.broker.config import DeclareConfig

_DEFAULT_LIMIT = 20
"""Of a quorum queue that says nothing of it, since RabbitMQ 4.0 (its documentation, "Quorum Queues", "Poison
Message Handling")."""
_MOST_QUESTIONS = 16
"""A queue has fewer arguments."""
_INEQUIVALENT = re.compile(
    r"inequivalent arg '([\w-]+)'.*: received .*"
    r"(?:but current is (none)|current is the value '(.*)' of type '(\w+)'|current is '(.*)')",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class QueueFound:
    """A queue that is there."""

    waiting: int
    consumers: int
    is_stream: bool
    delivery_limit: int | None
    """How often a message may come back before the broker drops it; None where no limit is known of. A policy
    can set a lower one, which no client is told."""


async def look(connection: aiormq.Connection, queue: str) -> QueueFound | None:
    """Look at `queue`, without taking a message; None where there is none. Raises AMQPError."""
    async with _aside(connection) as channel:
        try:
            told = await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            return None
    return QueueFound(
        told.message_count or 0,
        told.consumer_count or 0,
        await is_stream(connection, queue),
        await _delivery_limit(connection, queue),
    )


async def is_stream(connection: aiormq.Connection, queue: str) -> bool:
    """Tell whether `queue` is a stream: of all queues, only these can be read from an offset.

    From "next", where nothing comes but what is sent meanwhile, and reading a stream takes nothing from it.
    Raises AMQPError.
    """
    if _version(connection) < (3, 9):  # it has no streams, or is none of RabbitMQ's and may not know offsets
        return False
    async with _aside(connection) as channel:
        await channel.basic_qos(prefetch_count=1)
        try:
            await channel.basic_consume(queue, _ignore, arguments={"x-stream-offset": "next"})
        except ChannelClosed:  # if it is for another reason, who consumes in earnest hears of it too
            return False
    return True


async def make_if_missing(connection: aiormq.Connection, queue: str, config: DeclareConfig) -> None:
    """Declare `queue` unless it is there, and bind it. Raises AMQPError.

    One that is there is not declared anew: that fails when it differs in anything at all.
    """
    async with _aside(connection) as channel:
        try:
            await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            missing = True
        else:
            missing = False
    async with _aside(connection) as channel:
        if missing:
            arguments: dict[str, Any] = {"x-queue-type": config.queue_type}
            if config.queue_type == "quorum" and _version(connection) >= (4, 0):
                # No limit. Before 4.0 there is none by default, and -1 drops what comes back a first time.
                arguments["x-delivery-limit"] = -1
            await channel.queue_declare(queue, durable=True, arguments=arguments)
        if config.exchange is not None:
            await channel.queue_bind(queue, config.exchange, config.routing_key)


async def _delivery_limit(connection: aiormq.Connection, queue: str) -> int | None:
    """Return the delivery limit of `queue`; None where there is none, or who asks may not know.

    It is declared with a limit that is none, and told of the first argument in which that differs from the
    queue. That one is then declared as it is, until the limit's turn comes. A leader locator that is none
    comes after the limit: with it no queue can be made, should this one be deleted meanwhile.
    """
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": "?",
        "x-queue-leader-locator": "?",
    }
    for _ in range(_MOST_QUESTIONS):
        async with _aside(connection) as channel:
            try:
                await channel.queue_declare(queue, durable=True, arguments=arguments)
            except ChannelPreconditionFailed as refusal:
                found = _INEQUIVALENT.search(str(refusal))
            except (ChannelAccessRefused, ChannelNotFoundEntity):
                return None
            else:
                return None
        if found is None or found[1] == "x-queue-type":  # it is none of quorum's, and has no limit
            return None
        name, value = found[1], found[3] if found[3] is not None else found[5]
        if name == "x-delivery-limit":
            if found[2]:
                return _DEFAULT_LIMIT if _version(connection) >= (4, 0) else None
            limit = int(value) if re.fullmatch(r"-?\d+", value or "") else -1
            return limit if limit >= 0 else None
        if found[2]:  # this one it does not have
            arguments.pop(name, None)
        else:
            arguments[name] = _typed(value, found[4] or "")
    return None


def _typed(value: str, kind: str) -> str | int | bool:
    """Return a value as RabbitMQ tells it: `'7' of type 'signedint'`, `'true' of type 'bool'`."""
    if kind == "bool":
        return value == "true"
    return int(value) if "int" in kind or kind in ("byte", "short", "long") else value


@asynccontextmanager
async def _aside(connection: aiormq.Connection) -> AsyncIterator[AbstractChannel]:
    """Open a channel for what may be refused."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        yield channel
    finally:
        if not channel.is_closed:
            await channel.close()


async def _ignore(_message: Any) -> None:
    pass


def _version(connection: aiormq.Connection) -> tuple[int, ...]:
    """Return RabbitMQ's version; () for another broker, which is less than any."""
    told = connection.server_properties
    found = re.match(r"(\d+)\.(\d+)", str(told.get("version", "")))
    if told.get("product") != "RabbitMQ" or found is None:
        return ()
    return int(found[1]), int(found[2])
