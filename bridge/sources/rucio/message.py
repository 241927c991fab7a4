"""A message of Rucio's hermes as an Event.

Its body is `{"event_type": "close", "payload": {…}, "created_at": "2026-01-02 03:04:05.678901"}` (rucio,
`lib/rucio/daemons/hermes/hermes.py`), with no id of the message: a hermes that dies between sending and
deleting sends the same body again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from bridge.core.event import Event
from bridge.sources import NoEvent
from bridge.sources.broker.message import Message, Unreadable, Unwanted
from bridge.sources.json_reader import load

UNKNOWN = "rucio.unknown"
"""The type of what has none."""


def read(message: Message, source: str, wanted: frozenset[str]) -> Event | Unwanted | Unreadable:
    """Make the Event of one message of hermes'; `wanted` are the types to take, all when it is empty.

    The id is a digest of the body, so that what hermes repeats is one event. The subject is `scope:name`
    of the payload, as Rucio writes a DID; the time is `created_at`, which is UTC (`core/message.py`).
    """

    body = message.body

    def event(kind: str, subject: str | None = None, time: datetime | None = None) -> Event:
        return Event(
            id=blake2b(body, digest_size=20).hexdigest(),
            source=source,
            type=kind,
            subject=subject,
            time=time,
            data=body,
            attributes=message.attributes,
        )

    try:
        told = load(body)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return Unreadable(event(UNKNOWN), f"not JSON: {error}")
    kind = told.get("event_type") if isinstance(told, dict) else None
    if not isinstance(kind, str) or not kind or not _encodes(kind):
        return Unreadable(event(UNKNOWN), "no event_type")
    lower = kind.lower()  # hermes sends lower case; a database written by others need not have it
    if lower == "email":
        return Unwanted("email")
    if wanted and lower not in wanted:
        return Unwanted("event_type")
    payload = told.get("payload")
    if not isinstance(payload, dict):
        return Unreadable(event(kind), "no payload")
    return event(kind, _subject(payload), _time(told.get("created_at")))


def events_of(event: Event, wanted: frozenset[str]) -> Sequence[Event | NoEvent]:
    """Return what is made of one message, taken as `event`, as `SourceKind` says."""
    found = read(Message("", event.data, event.attributes), event.source, wanted)
    if isinstance(found, Unwanted):
        return [NoEvent(found.reason)]
    if isinstance(found, Unreadable):
        return [NoEvent(found.reason, dead=True)]
    return [found.replace(attributes={**event.attributes, **found.attributes})]


def _subject(payload: Mapping[str, Any]) -> str | None:
    scope, name = payload.get("scope"), payload.get("name")
    if not isinstance(scope, str) or not isinstance(name, str):
        return None
    subject = f"{scope}:{name}"
    return subject if _encodes(subject) else None


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _time(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
