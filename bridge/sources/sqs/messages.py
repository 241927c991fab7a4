"""An SQS message as an Event."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bridge.core.event import Event

MESSAGE = "com.amazonaws.sqs.message"

_SYSTEM = {
    "ApproximateReceiveCount": "receive_count",
    "ApproximateFirstReceiveTimestamp": "first_received",
    "SenderId": "sender_id",
    "MessageGroupId": "message_group_id",
    "MessageDeduplicationId": "message_deduplication_id",
    "SequenceNumber": "sequence_number",
    "DeadLetterQueueSourceArn": "dead_letter_source",
    "AWSTraceHeader": "trace_header",
}


def to_event(message: Mapping[str, Any], source: str) -> Event:
    """Make the Event of one message of ReceiveMessage (SQS API reference, Message).

    The id is the MessageId, which outlives redeliveries; the time is when it was sent. Attributes:
    `attribute.NAME` for each of the message's own (strings and numbers as text, binary as base64), and as
    far as SQS tells them `receive_count`, `first_received` (milliseconds since 1970), `sender_id`,
    `message_group_id`, `message_deduplication_id`, `sequence_number`, `dead_letter_source` and
    `trace_header`.
    """
    told = _mapping(message.get("Attributes"))
    attributes = {name: _text(told[theirs]) for theirs, name in _SYSTEM.items() if theirs in told}
    for name, value in _mapping(message.get("MessageAttributes")).items():
        attributes[f"attribute.{_text(name)}"] = _value(_mapping(value))
    body = message.get("Body")
    return Event(
        id=_text(message["MessageId"]),
        source=source,
        type=MESSAGE,
        time=_sent(told.get("SentTimestamp")),
        data=(body if isinstance(body, str) else "").encode("utf-8", "surrogatepass"),
        attributes=attributes,
    )


def fault_of(message: Mapping[str, Any]) -> str | None:
    """Return why there is nothing to read in a message; None where there is."""
    return None if isinstance(message.get("Body"), str) else "its body is no text"


def nearly_dead(event: Event, most_receipts: int | None) -> bool:
    """Return whether half of the receipts that the queue allows are used up, and 2 at least; or all."""
    count = event.attributes.get("receive_count", "")
    if most_receipts is None or not count.isdecimal():
        return False
    return int(count) >= min(most_receipts, max(2, most_receipts / 2))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    """Give text that can be encoded: half of a surrogate pair as its escape."""
    text = value if isinstance(value, str) else str(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _value(attribute: Mapping[str, Any]) -> str:
    binary = attribute.get("BinaryValue")
    if isinstance(binary, str):  # it is base64 in SQS's answer
        return _text(binary)
    return _text(attribute.get("StringValue", ""))


def _sent(milliseconds: Any) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
    except (OSError, OverflowError, TypeError, ValueError):
        return None
