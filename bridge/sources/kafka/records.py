"""A Kafka record as an Event."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from aiokafka import TopicPartition

from bridge.core.delivery import Delivery, Watcher
from bridge.core.event import Event
from bridge.sources.kafka.batches import Record

RECORD = "org.apache.kafka.record"
TOMBSTONE = "org.apache.kafka.tombstone"
"""The type of a record without a value; its `data` is empty."""

_YEAR_10000 = 253_402_300_800_000
"""In milliseconds since 1970: no date is beyond it."""


def to_delivery(
    record: Any, place: TopicPartition, source: str, settled: Watcher, since: float | None = None
) -> Delivery:
    """Make the Delivery of one record of `place`, as aiokafka reads it or taken apart.

    One that is no Event tells why. It came `since` that monotonic time, now if that is not given.
    """
    fault = record.fault if type(record) is Record else None
    try:
        if fault is None:
            return Delivery(to_event(record, place, source), settled, since=since)
    except Exception as error:  # noqa: BLE001 - one odd record must not stop its neighbours, whatever it is
        fault = f"the record can't be made an event: {type(error).__name__}: {error}"
    event = to_bare_event(place.topic, place.partition, record.offset, record.value, source)
    return Delivery(event, settled, fault=fault, since=since)


def to_event(record: Any, place: TopicPartition, source: str) -> Event:
    """Make the Event of one record of `place`, as aiokafka reads it or taken apart.

    The id holds the record's timestamp beside topic, partition and offset, since offsets repeat when a
    topic is made anew. Headers `ce_type` and `ce_subject` give type and subject (CloudEvents' Kafka
    binding, binary mode). A key that is not UTF-8 is given as base64, with `key_encoding: base64`.
    Of a header that comes several times the last one counts.
    """
    topic, partition, offset = place.topic, str(place.partition), str(record.offset)
    raw_key, value, timestamp = record.key, record.value, record.timestamp
    attributes = {"topic": topic, "partition": partition, "offset": offset}
    key: str | None = None
    if raw_key is not None:
        try:
            key = raw_key.decode("utf-8")
        except UnicodeDecodeError:
            key = b64encode(raw_key).decode("ascii")
            attributes["key_encoding"] = "base64"
        attributes["key"] = key
    kind = subject = ""
    if record.headers:
        for name, raw in record.headers:
            attributes[f"header.{name}"] = "" if raw is None else raw.decode("utf-8", "replace")
        kind, subject = attributes.get("header.ce_type", ""), attributes.get("header.ce_subject", "")
    # Message format v0, from before Kafka 0.10, has no timestamp: the same as Kafka's NO_TIMESTAMP, -1.
    if timestamp is None:
        timestamp = -1
    return Event(
        id=f"{topic}/{partition}/{offset}@{timestamp}",
        source=source,
        type=kind or (TOMBSTONE if value is None else RECORD),
        subject=subject or key,
        # -1 is Kafka's NO_TIMESTAMP. A producer that counts micro- or nanoseconds is beyond the year 9999;
        # brokers before Kafka 4.0 take that from it (`message.timestamp.after.max.ms`).
        time=timestamp / 1000 if 0 <= timestamp < _YEAR_10000 else None,
        data=value or b"",
        attributes=attributes,
    )


def to_bare_event(topic: str, partition: int, offset: int, data: bytes | None, source: str) -> Event:
    """Make the Event of a record of which only its place is understood; `data` is what was received."""
    return Event(
        id=f"{topic}/{partition}/{offset}@-1",
        source=source,
        type=RECORD,
        data=data or b"",
        attributes={"topic": topic, "partition": str(partition), "offset": str(offset)},
    )
