"""The words of the store, how a row is written and read, and how SQLite is opened for it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bridge.core.event import Event
from bridge.core.ports import DeadLetter

FILE = "events.sqlite3"
SIDES = ("", "-wal", "-shm")
"""What SQLite adds to the name of a file for the others that belong to it (https://sqlite.org/wal.html)."""

LARGEST = 2**63 - 1
"""Of SQLite's integers."""
DEAD, PARKED, SPOOLED, WINDOW = "dead", "parked", "spooled", "window"
"""Why an event is kept: one event is kept for one service for one reason at a time."""
ROUTES = frozenset({"route", "not_json", "undecodable"})
"""The causes of a dead letter of a route that can't be evaluated for it: where that chooses the service, or
can't decode the event, it has none."""
JOB_FAILED = "job_failed"
"""The cause of a dead letter whose job OSCAR accepted and saw fail. Its identity is used up: OSCAR would call
another attempt a duplicate. So it waits for nothing but a replay as a new event."""

_quoted = json.encoder.encode_basestring_ascii
_read_json = json.JSONDecoder().raw_decode

Row = tuple[Any, ...]
"""The parameters of KEEP and KEEP_NEW; the first three are those of FIND."""

# CAST, because Python refuses to bind the lone surrogates that an upstream's broken text leaves.
FIND = """
    SELECT number, reason, cause FROM kept
    WHERE source = CAST(? AS TEXT) AND id = CAST(? AS TEXT) AND service = CAST(? AS TEXT)
"""
KEEP_NEW = """
    INSERT INTO kept (source, id, service, type, subject, time, attributes, data,
                      reason, cause, detail, status, attempts, first_attempt, last_attempt, kept_at,
                      order_key)
    VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?,
            ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?)
    ON CONFLICT (source, id, service) DO NOTHING
"""
KEEP = KEEP_NEW.replace(
    "NOTHING",
    """UPDATE SET
        reason = excluded.reason, cause = excluded.cause, detail = excluded.detail, status = excluded.status,
        attempts = max(attempts, excluded.attempts),
        first_attempt = coalesce(first_attempt, excluded.first_attempt),
        last_attempt = coalesce(excluded.last_attempt, last_attempt),
        order_key = coalesce(excluded.order_key, order_key),
        kept_at = iif(reason = 'parked' AND excluded.reason = 'parked', kept_at, excluded.kept_at)
    """,
)
EVENT = "source, id, type, subject, time, attributes, data"
"""The columns that `to_event` reads."""


def dead_row(letter: DeadLetter) -> Row:
    """Give the row of a dead letter."""
    return (
        *event_columns(letter.event, letter.service),
        DEAD,
        raw(letter.cause),
        raw(letter.detail),
        letter.status,
        letter.attempts,
        letter.first_attempt,
        letter.last_attempt,
        time.time(),
        letter.order_key,
    )


def parked_row(
    event: Event, service: str, attempts: int, first_attempt: float | None, order_key: int | None = None
) -> Row:
    """Give the row of an event that waits for `service`."""
    past = (attempts, first_attempt, None, time.time(), order_key)
    return (*event_columns(event, service), PARKED, b"", b"", None, *past)


def event_columns(event: Event, service: str) -> Row:
    """Give the columns of an event for `service`, as INSERT has them here."""
    return (
        raw(event.source),
        raw(event.id),
        raw(service),
        raw(event.type),
        None if event.subject is None else raw(event.subject),
        None if event.time is None else event.time.isoformat(),
        _json(event.attributes),
        event.data,
    )


def _json(attributes: Mapping[str, str]) -> str:
    # `json.dumps` makes an encoder at each call: five times as long.
    return "{" + ", ".join([f"{_quoted(name)}: {_quoted(value)}" for name, value in attributes.items()]) + "}"


def _attributes(text: str) -> Mapping[str, str]:
    """Read what `_json` wrote, with no white space around it to be looked for. Raise ValueError."""
    attributes: Mapping[str, str]
    attributes, end = _read_json(text)
    if end != len(text):
        raise ValueError("something is behind its attributes")
    return attributes


def to_event(columns: Sequence[Any]) -> Event:
    """Make the event of the columns EVENT. Raises BrokenRowError when they hold none."""
    source, event_id, kind, subject, when, attributes, data = columns
    try:
        return Event(
            id=event_id,
            source=source,
            type=kind,
            subject=subject,
            time=None if when is None else datetime.fromisoformat(when),
            attributes={} if attributes == "{}" else _attributes(attributes),
            data=data,
        )
    except ValueError as error:
        raise BrokenRowError(f"the row of event {event_id} of {source} holds no event: {error}") from error


class BrokenRowError(Exception):
    """A row does not hold what was written."""


def raw(text: str) -> bytes:
    """Return the bytes of `text`, for a parameter inside CAST(? AS TEXT)."""
    return text.encode("utf-8", "surrogatepass")


def text(encoded: bytes) -> str:
    """Undo `raw`. Raises BrokenRowError."""
    try:
        return encoded.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise BrokenRowError(f"a row holds a text that was never written: {error}") from error


def connect(path: Path, *, mode: str) -> sqlite3.Connection:
    """Open the file at `path`: `rw`, or `ro` from beside the daemon. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=5,
        isolation_level=None,
        check_same_thread=False,  # interrupt() and the last close() may come from another thread
    )
    connection.text_factory = text
    return connection


@contextmanager
def strict_texts(connection: sqlite3.Connection) -> Iterator[None]:
    """Have texts decoded as UTF-8 while inside, at a fifth of the time that `text` takes.

    sqlite3.OperationalError is raised of one that is none, such as one with lone surrogates.
    """
    connection.text_factory = str
    try:
        yield
    finally:
        connection.text_factory = text


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make all that is written inside durable at the end, or nothing of it. Raises sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.rollback()


def primary_code(error: Exception) -> int:
    """Return the primary result code of an error (https://sqlite.org/rescode.html); 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def damaged(error: Exception) -> bool:
    """Return whether the file was found to be broken, not merely out of reach."""
    return isinstance(error, BrokenRowError) or primary_code(error) in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )
