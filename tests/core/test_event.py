"""An Event: what it is made of, and what is made of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from bridge.core.event import Event

SECONDS = 1_700_000_000.123
TIME = datetime(2023, 11, 14, 22, 13, 20, 123000, UTC)


def event(**more: Any) -> Event:
    return Event(**({"id": "1", "source": "uploads", "type": "t", "data": b"abc"} | more))


def test_it_happened_at_the_same_time_whichever_way_that_is_told() -> None:
    by_seconds, by_date = event(time=SECONDS), event(time=TIME)
    assert by_seconds.seconds == by_date.seconds == SECONDS
    assert by_seconds.time == by_date.time == TIME
    assert by_seconds.time is not None
    assert by_seconds.time.tzinfo is UTC
    assert by_seconds.seconds == SECONDS, "also once it was asked for a date"


def test_a_date_keeps_its_zone() -> None:
    zone = timezone(timedelta(hours=2))
    there = TIME.astimezone(zone)
    assert event(time=there).time is there
    assert event(time=there).seconds == SECONDS


def test_without_a_time_there_are_no_seconds() -> None:
    assert event().time is event().seconds is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "2"),
        ("source", "others"),
        ("type", "u"),
        ("data", b""),
        ("subject", "a"),
        ("time", TIME),
        ("attributes", {"key": "a"}),
    ],
)
def test_one_that_is_changed_differs_in_that_alone(name: str, value: object) -> None:
    before = event()
    after = before.replace(**{name: value})
    assert getattr(after, name) == value
    assert after != before
    assert after.replace(**{name: getattr(before, name)}) == before == event()


def test_its_size_is_that_of_its_data_and_attributes() -> None:
    one = event(attributes={"key": "four", "topic": "sixsix"})
    assert one.size == 3 + 4 + 6
    assert one.replace(data=b"").size == 4 + 6
