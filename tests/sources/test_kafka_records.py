from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from bridge.sources.kafka.records import to_delivery, to_event

PLACE = TopicPartition("uploads", 3)


def record(**changes: Any) -> SimpleNamespace:
    """Return what an event is made of, by the names of aiokafka's records."""
    values = {"offset": 42, "timestamp": 1_700_000_000_123, "key": None, "value": b"{}", "headers": []}
    return SimpleNamespace(**(values | changes))


def test_an_event_tells_where_its_record_stood() -> None:
    event = to_event(record(key=b"a/b", headers=(("h", b"v"),)), PLACE, "identity")
    assert event.id == "uploads/3/42@1700000000123"
    assert event.source == "identity"
    assert event.type == "org.apache.kafka.record"
    assert event.subject == "a/b"
    assert event.time == datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)
    assert event.data == b"{}"
    assert event.attributes == {
        "topic": "uploads",
        "partition": "3",
        "offset": "42",
        "key": "a/b",
        "header.h": "v",
    }


def test_a_topic_made_anew_gives_new_ids_for_the_same_offsets() -> None:
    assert to_event(record(), PLACE, "s").id != to_event(record(timestamp=1_700_000_000_124), PLACE, "s").id


def test_a_tombstone_is_an_event_without_data() -> None:
    event = to_event(record(key=b"k", value=None), PLACE, "s")
    assert (event.type, event.data, event.subject) == ("org.apache.kafka.tombstone", b"", "k")


def test_an_empty_value_is_no_tombstone() -> None:
    assert to_event(record(value=b""), PLACE, "s").type == "org.apache.kafka.record"


def test_headers_give_type_and_subject_as_cloudevents_say() -> None:
    event = to_event(record(key=b"k", headers=(("ce_type", b"org.x"), ("ce_subject", b"file"))), PLACE, "s")
    assert (event.type, event.subject) == ("org.x", "file")


def test_a_key_that_is_not_text_is_given_as_base64_and_says_so() -> None:
    event = to_event(record(key=b"\xff\xfe"), PLACE, "s")
    assert event.subject == "//4="
    assert event.attributes["key"] == "//4="
    assert event.attributes["key_encoding"] == "base64"


def test_a_record_without_key_has_no_subject() -> None:
    event = to_event(record(), PLACE, "s")
    assert event.subject is None
    assert "key" not in event.attributes


@pytest.mark.parametrize(("raw", "text"), [(b"\xc3\xa9", "é"), (b"\xff", "\ufffd"), (None, "")])
def test_headers_are_text_with_replacement(raw: bytes | None, text: str) -> None:
    assert to_event(record(headers=(("h", raw),)), PLACE, "s").attributes["header.h"] == text


def test_the_last_of_several_headers_counts() -> None:
    event = to_event(record(headers=(("h", b"1"), ("h", b"2"))), PLACE, "s")
    assert event.attributes["header.h"] == "2"


def test_a_record_of_the_oldest_format_has_no_time() -> None:
    delivery = to_delivery(record(timestamp=None), PLACE, "s", lambda *_: None)
    assert delivery.fault is None
    assert delivery.event.time is None
    assert delivery.event.id == "uploads/3/42@-1"


def test_a_record_that_can_not_be_an_event_is_given_with_what_was_received_and_why() -> None:
    delivery = to_delivery(record(key="not bytes", value=b"received"), PLACE, "s", lambda *_: None)
    assert "AttributeError" in (delivery.fault or "")
    assert delivery.event.data == b"received"
    assert delivery.event.attributes == {"topic": "uploads", "partition": "3", "offset": "42"}


@pytest.mark.parametrize("timestamp", [-2, -(2**63)])
def test_a_negative_timestamp_is_none(timestamp: int) -> None:
    assert to_event(record(timestamp=timestamp), PLACE, "s").time is None


def test_a_record_without_timestamp_has_no_time() -> None:
    event = to_event(record(timestamp=-1), PLACE, "s")
    assert event.time is None
    assert event.id == "uploads/3/42@-1"


@pytest.mark.parametrize("timestamp", [1_700_000_000_123_000, 1_700_000_000_123_000_000, 2**63 - 1])
def test_a_producer_that_counts_micro_or_nanoseconds_stops_nobody(timestamp: int) -> None:
    event = to_event(record(timestamp=timestamp), PLACE, "s")
    assert event.time is None
    assert event.id == f"uploads/3/42@{timestamp}"
