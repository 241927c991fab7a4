"""Events that are sent as one: each part starts a job, and the supervisor takes it whole."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any, Literal

import pytest
from faassupervisor.events import parse_event

from bridge.core.event import Event
from bridge.core.windows import Name
from bridge.destinations.oscar.payload import (
    MAX_EVENT_BYTES,
    MAX_INTERLINK_BYTES,
    PayloadTooLargeError,
    encode,
)
from bridge.pipeline.merged import merged
from bridge.pipeline.merging import Manner

NAME = Name("uploads", "plants", "folder", "/data/in")
WORDS = ["plain", "a  b", "ñandú 🌿", "\x00\x1f", '"\\', "$(HOME) $$", "*?[", "\ud83d", "</script>"]


def members(count: int, seed: int) -> list[Event]:
    """Events as different as upstreams make them, JSON and not."""
    dice = random.Random(seed)

    def data() -> bytes:
        kind = dice.random()
        if kind < 0.1:
            return dice.randbytes(dice.randrange(300))
        text = " ".join(dice.choices(WORDS, k=dice.randrange(1, 40)))
        return json.dumps({"event": {"name": text, "mask": ["IN_CLOSE_WRITE"]}}).encode()

    return [Event(id=str(n), source="uploads", type="t", data=data()) for n in range(count)]


@pytest.mark.parametrize("as_", ["json", "text"])
@pytest.mark.parametrize("mode", ["auto", "base64", "cloudevent"])
@pytest.mark.parametrize("limit", [MAX_EVENT_BYTES, MAX_INTERLINK_BYTES, 2_000])
def test_every_part_starts_a_job_and_no_part_is_smaller_than_it_must_be(
    as_: str, mode: Literal["auto", "base64", "cloudevent"], limit: int
) -> None:
    def size(event: Event) -> int:
        return len(encode(event, mode=mode, max_bytes=10**9))

    def fits(event: Event) -> bool:
        try:
            encode(event, mode=mode, max_bytes=limit)
        except PayloadTooLargeError:
            return False
        return True

    left, parts = members(1500 if limit > 2_000 else 60, limit), []
    manner = Manner(as_=as_)
    while left:
        count, event = merged(left, NAME, manner, records=False, fits=fits)
        parts.append(left[:count])
        assert size(event) <= limit or count == 1
        if count < len(left):
            _, larger = merged(left[: count + 1], NAME, manner, records=False, fits=lambda _: True)
            assert size(larger) > limit
        left = left[count:]
    assert len(parts) > 1


def test_the_supervisor_hands_the_script_all_of_it(tmp_path: Path) -> None:
    events = members(50, 1)
    count, event = merged(events, NAME, Manner(), records=False, fits=lambda _: True)
    assert count == 50
    saved = Path(parse_event(encode(event).decode()).save_event(str(tmp_path)))
    told = json.loads(saved.read_text())["events"]
    for one, given in zip(told, events, strict=True):
        if set(one) == {"data_base64"}:
            assert base64.b64decode(one["data_base64"]) == given.data
        else:
            assert one == json.loads(given.data)


def test_lines_are_handed_to_the_script_as_they_are(tmp_path: Path) -> None:
    events = [Event(id=str(n), source="uploads", type="t", data=b'{"n": %d}' % n) for n in range(3)]
    _, event = merged(events, NAME, Manner(as_="text"), records=False, fits=lambda _: True)
    saved = Path(parse_event(encode(event).decode()).save_event(str(tmp_path)))
    assert saved.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}'


def record(key: str) -> dict[str, Any]:
    return {
        "eventSource": "aws:s3",
        "eventTime": "2026-01-31T12:00:00.123Z",
        "requestParameters": {"principalId": "root"},
        "s3": {"bucket": {"name": "field", "arn": "arn:aws:s3:::field"}, "object": {"key": key}},
    }


def test_notifications_in_one_keep_every_record_and_choose_no_credentials() -> None:
    events = [
        Event(id=key, source="bucket", type="t", data=json.dumps({"Records": [record(key)]}).encode())
        for key in ("a%20b", "c")
    ]
    _, event = merged(events, NAME, Manner(), records=True, fits=lambda _: True)
    body = encode(event)
    told = json.loads(body)["Records"]
    assert [one["s3"]["object"]["key"] for one in told] == ["a%20b", "c"]
    assert b"principalId" not in body
    assert parse_event(body.decode()).object_key == "a b"


def test_encoding_is_done_to_all_together_and_what_it_saves_is_room() -> None:
    events = [Event(id=str(n), source="u", type="t", data=b'{"n": "%s"}' % (b"x" * 1000)) for n in range(200)]
    manner = Manner(encode=["gzip", "base64"])
    count, event = merged(events, NAME, manner, records=False, fits=lambda one: len(one.data) < 10_000)
    assert count == 200
    assert base64.b64decode(event.data).startswith(b"\x1f\x8b")
