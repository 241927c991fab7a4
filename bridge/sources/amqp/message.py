"""A message of AMQP as an Event."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import blake2b

from bridge.core.event import Event
from bridge.sources.broker.message import Message

MESSAGE = "com.rabbitmq.message"
_COUNTED = frozenset({"x-delivery-count", "x-acquired-count"})
"""Headers of RabbitMQ's that tell how often a message was delivered: they change from time to time."""
_TELLING = (
    "message_id",
    "type",
    "app_id",
    "correlation_id",
    "content_type",
    "content_encoding",
    "reply_to",
    "user_id",
    "timestamp",
    "priority",
)
"""Properties that a reader or a route may want; the others are between the publisher and the broker."""


def to_event(message: Message, source: str) -> Event:
    """Make the Event of one message.

    AMQP has no name for a message that outlives a redelivery, so the id is a digest of all that the publisher
    said, `message_id` in it. Two messages that are alike in all of it are one event. (Not of `message_id`
    alone: where a publisher means a device by it, all but the first would be lost.)

    The type is the header `cloudEvents:type` (CloudEvents' binding for AMQP) or the property `type`, the
    subject the header `cloudEvents:subject` or the routing key, the time the property `timestamp`, which
    counts seconds. Attributes: `exchange`, `routing_key`, the properties by their names, `header.NAME`.
    """
    told = {name: message.properties[name] for name in _TELLING if message.properties.get(name)}
    headers = {
        name: value for name, value in message.attributes.items() if name not in ("exchange", "routing_key")
    }
    routing_key = message.attributes.get("routing_key", "")
    return Event(
        id=_identity(message, told),
        source=source,
        type=_header(headers, "type") or told.get("type") or MESSAGE,
        subject=_header(headers, "subject") or routing_key or None,
        time=_time(told.get("timestamp", "")),
        data=message.body,
        attributes={
            "exchange": message.attributes.get("exchange", ""),
            "routing_key": routing_key,
            **told,
            **{f"header.{name}": value for name, value in headers.items()},
        },
    )


def _identity(message: Message, told: dict[str, str]) -> str:
    named = {name: value for name, value in message.attributes.items() if name not in _COUNTED}
    digest = blake2b(json.dumps([sorted(told.items()), sorted(named.items())]).encode(), digest_size=20)
    digest.update(message.body)
    return digest.hexdigest()


def _header(headers: dict[str, str], name: str) -> str:
    return headers.get(f"cloudEvents:{name}") or headers.get(f"cloudEvents_{name}", "")


def _time(seconds: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(seconds), UTC) if seconds else None
    except (ValueError, OverflowError, OSError):
        return None
