"""Whatever a server gives for a message becomes an Event, or has a fault; nothing raises."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.sources.sqs.messages import fault_of, to_event
from bridge.sources.sqs.policy import most_receipts, number

UNHURRIED = settings(deadline=None)

ANY_TEXT = st.text(st.characters(), max_size=10)  # halves of surrogate pairs too
ANYTHING: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["StringValue", "BinaryValue", "DataType", "SentTimestamp", "MessageGroupId"])
            | ANY_TEXT,
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@UNHURRIED
@given(ANY_TEXT, ANYTHING, ANYTHING, ANYTHING)
def test_no_message_breaks_it_and_every_text_of_its_event_can_be_kept(
    name: str, body: Any, attributes: Any, own: Any
) -> None:
    message = {
        "MessageId": name,
        "ReceiptHandle": "r",
        "Body": body,
        "Attributes": attributes,
        "MessageAttributes": own,
    }
    event = to_event(message, "uploads")
    for text in (event.id, *event.attributes, *event.attributes.values()):
        text.encode("utf-8")
    assert (fault_of(message) is None) == isinstance(body, str)
    assert event.time is None or event.time.tzinfo is UTC


@pytest.mark.parametrize(
    ("told", "time"),
    [
        ("1700000000123", datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)),
        ("9" * 30, None),
        ("soon", None),
        ("", None),
        (None, None),
        ([], None),
    ],
)
def test_a_time_that_is_none_is_not_known(told: Any, time: datetime | None) -> None:
    assert to_event({"MessageId": "m", "Attributes": {"SentTimestamp": told}}, "uploads").time == time


@UNHURRIED
@given(ANYTHING)
def test_no_attribute_of_a_queue_breaks_it(value: Any) -> None:
    attributes = {"VisibilityTimeout": value, "RedrivePolicy": value}
    assert number(attributes, "VisibilityTimeout") is None or value.isdecimal()
    assert most_receipts(attributes) is None


@pytest.mark.parametrize(
    "policy", ["[" * 100_000, "[]", "7", '{"maxReceiveCount": 0}', '{"maxReceiveCount": 1e999}', "{"]
)
def test_a_policy_that_tells_no_number_tells_none(policy: str) -> None:
    assert most_receipts({"RedrivePolicy": policy}) is None
