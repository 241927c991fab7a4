"""An SQS message as an Event."""

from __future__ import annotations

from base64 import b64encode
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
    told: Mapping[str, str] = message.get("Attributes") or {}
    attributes = {name: told[theirs] for theirs, name in _SYSTEM.items() if theirs in told}
    for name, value in (message.get("MessageAttributes") or {}).items():
        binary = value.get("BinaryValue")
        attributes[f"attribute.{name}"] = (
            value.get("StringValue", "") if binary is None else b64encode(binary).decode("ascii")
        )
    sent = told.get("SentTimestamp", "")
    return Event(
        id=message["MessageId"],
        source=source,
        type=MESSAGE,
        time=datetime.fromtimestamp(int(sent) / 1000, UTC) if sent.isdecimal() else None,
        data=message.get("Body", "").encode("utf-8", "surrogatepass"),
        attributes=attributes,
    )
