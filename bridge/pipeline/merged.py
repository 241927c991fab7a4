"""Several events made one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

from bridge.core.event import Event
from bridge.core.windows import Name
from bridge.pipeline.codings import Undecodable, at_once, encode
from bridge.pipeline.context import parse
from bridge.pipeline.merging import Manner

MERGED = "org.oscar-event-bridge.merged"
"""The type of an event that others were made."""


def merged(
    members: Sequence[Event],
    name: Name,
    manner: Manner,
    *,
    records: bool,
    fits: Callable[[Event], bool],
) -> tuple[int, Event]:
    """Make one event of the first of `members`: as many as may be in one and as fit. Return how many.

    The first is in it whether or not it fits. With `records`, S3's notifications become one with the records
    of all. Raise Undecodable where the first alone is too long to be encoded.
    """
    head, between, tail, parts = _written(members, manner, records=records)
    longest = _most(members, manner)

    def made(count: int) -> Event:
        data = head + between.join(parts[:count]) + tail
        return _event(members[:count], name, at_once(encode(data, manner.encode)))

    def fitting(count: int) -> Event | None:
        try:
            event = made(count)
        except Undecodable:  # it is too long to be encoded
            return None
        return event if fits(event) else None

    if longest == 1:
        return 1, made(1)
    if (event := fitting(longest)) is not None:
        return longest, event
    count, too_many, event = 1, longest, made(1)
    while too_many - count > 1:
        middle = (count + too_many) // 2
        if (candidate := fitting(middle)) is None:
            too_many = middle
        else:
            count, event = middle, candidate
    return count, event


def _most(members: Sequence[Event], manner: Manner) -> int:
    """Return how many may be in one event, whatever its service takes."""
    count = len(members) if manner.most is None else min(manner.most, len(members))
    if manner.most_bytes is None:
        return count
    size = 0
    for place, member in enumerate(members[:count]):
        size += len(member.data)
        if size > manner.most_bytes:
            return max(1, place)
    return count


def _event(members: Sequence[Event], name: Name, data: bytes) -> Event:
    """Make the event of `members`: its id tells which they are, and nothing else."""
    digest = blake2b(digest_size=16)
    for member_id in sorted(member.id.encode("utf-8", "surrogatepass") for member in members):
        digest.update(b"%d:%b" % (len(member_id), member_id))
    times = [member.time for member in members if member.time is not None]
    return Event(
        id=f"merged/{len(members)}/{digest.hexdigest()}",
        source=name.source,
        type=MERGED,
        subject=name.key or None,
        time=_newest(times),
        data=data,
        attributes={"members": str(len(members)), "merge_key": name.key},
    )


def _newest(times: Sequence[datetime]) -> datetime | None:
    return max(times, default=None)


def _written(
    members: Sequence[Event], manner: Manner, *, records: bool
) -> tuple[bytes, bytes, bytes, Sequence[bytes]]:
    """Return what begins, parts and ends the data of all, and each one's own."""
    if manner.as_ == "text":
        return b"", manner.demarcator.encode(), b"", [member.data for member in members]
    if records:
        own = [_records(member.data) for member in members]
        if None not in own:
            return b'{"Records":[', b",", b"]}", [one for one in own if one is not None]
    return b'{"events":[', b",", b"]}", [_json(member.data) for member in members]


def _json(data: bytes) -> bytes:
    """Return JSON as it is; what is none in the form that CloudEvents has for it."""
    try:
        parse(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return b'{"data_base64":"' + base64.b64encode(data) + b'"}'
    return data


def _records(data: bytes) -> bytes | None:
    """Return the records of an S3 notification, without the list around them; None for anything else."""
    try:
        told: Any = parse(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.keys() != {"Records"}:
        return None
    records = told["Records"]
    if not isinstance(records, list) or not records or not all(isinstance(one, dict) for one in records):
        return None
    return json.dumps(records, separators=(",", ":")).encode()[1:-1]
