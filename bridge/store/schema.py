"""The one table of kept events, its versions, and how a row is written and read."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.ports import DeadLetter

FILE = "events.sqlite3"

MIGRATIONS = (
    # `number` is the public name of a row, never given twice. `reason` is `dead` and, with the next issue,
    # `spooled`, `parked` or `window`: one event is kept for one service for one reason at a time.
    """
    CREATE TABLE kept (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        id TEXT NOT NULL,
        service TEXT NOT NULL,
        type TEXT NOT NULL,
        subject TEXT,
        time TEXT,
        attributes TEXT NOT NULL,
        data BLOB NOT NULL,
        reason TEXT NOT NULL,
        cause TEXT NOT NULL,
        detail TEXT NOT NULL,
        status INTEGER,
        attempts INTEGER NOT NULL,
        first_attempt REAL,
        last_attempt REAL,
        kept_at REAL NOT NULL,
        UNIQUE (source, id, service)
    ) STRICT;
    CREATE INDEX kept_by_reason ON kept (reason, service, cause, number);
    """,
)
"""What takes a file from the version of its place in this list to the next; `user_version` counts them."""

_EVENT = "type, subject, time, attributes"
_CIRCUMSTANCES = "cause, detail, status, attempts, first_attempt, last_attempt, kept_at"
_LISTED = f"number, source, id AS event_id, service, type, subject, {_CIRCUMSTANCES}, length(data) AS size"

# CAST, because Python refuses to bind the lone surrogates that an upstream's broken text leaves.
FIND_CAUSE = """
    SELECT cause FROM kept WHERE source = CAST(? AS TEXT) AND id = CAST(? AS TEXT)
    AND service = CAST(? AS TEXT) AND reason = 'dead'
"""
BURY = f"""
    INSERT INTO kept (source, id, service, {_EVENT}, data, {_CIRCUMSTANCES}, reason)
    VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?,
            CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, 'dead')
    ON CONFLICT (source, id, service) DO UPDATE SET
        reason = excluded.reason, cause = excluded.cause, detail = excluded.detail, status = excluded.status,
        attempts = excluded.attempts, first_attempt = coalesce(first_attempt, excluded.first_attempt),
        last_attempt = coalesce(excluded.last_attempt, last_attempt), kept_at = excluded.kept_at
"""  # noqa: S608 - columns named above, no outside text
COUNT_DEAD = "SELECT service, cause, count(*) FROM kept WHERE reason = 'dead' GROUP BY service, cause"

Row = tuple[Any, ...]


def to_row(letter: DeadLetter) -> Row:
    """Give the parameters of BURY for `letter`; its first three are those of FIND_CAUSE."""
    event = letter.event
    return (
        _raw(event.source),
        _raw(event.id),
        _raw(letter.service),
        _raw(event.type),
        None if event.subject is None else _raw(event.subject),
        None if event.time is None else event.time.isoformat(),
        json.dumps(dict(event.attributes)),
        event.data,
        _raw(letter.cause),
        _raw(letter.detail),
        letter.status,
        letter.attempts,
        letter.first_attempt,
        letter.last_attempt,
        time.time(),
    )


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def connect(path: Path, *, mode: str) -> sqlite3.Connection:
    """Open the file at `path`: `rw` for the writer, `ro` for a reader beside it. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=5,
        isolation_level=None,
        check_same_thread=False,  # interrupt() comes from another thread; nothing else does
    )
    connection.text_factory = _text
    return connection


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest version, and write to it at least once: so it can be written.

    Raises StoreError when it is newer than this bridge, sqlite3.Error when it can't be written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    known = len(MIGRATIONS)
    if version > known:
        raise StoreError(
            f"the store has version {version} and this bridge knows versions up to {known}: "
            "run the newer bridge that wrote it"
        )
    # One transaction: a failure leaves the file as it was, once the connection is closed.
    steps = "".join(MIGRATIONS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {known}; COMMIT;")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One dead letter as a list shows it: all but the event's data."""

    number: int
    """Its public name: stays the same and is never given to another."""
    source: str
    """The identity of the event's source."""
    event_id: str
    service: str
    type: str
    subject: str | None
    cause: str
    detail: str
    status: int | None
    attempts: int
    first_attempt: float | None
    last_attempt: float | None
    kept_at: float
    """Seconds since 1970 UTC, as the attempts' times are."""
    size: int
    """Bytes of the event's data."""


def read_dead_letters(
    state_dir: Path, service: str | None = None, cause: str | None = None, limit: int | None = None
) -> list[Summary]:
    """List the dead letters, the newest first; works beside a running daemon and without one.

    Raises StoreError when there is no store, or it can't be read.
    """
    wanted, parameters = "reason = 'dead'", []
    for column, value in (("service", service), ("cause", cause)):
        if value is not None:
            wanted += f" AND {column} = CAST(? AS TEXT)"
            parameters.append(_raw(value))
    rows = _read(
        state_dir,
        f"SELECT {_LISTED} FROM kept WHERE {wanted} ORDER BY number DESC LIMIT ?",  # noqa: S608 - our columns
        (*parameters, -1 if limit is None else limit),
    )
    return [Summary(**dict(row)) for row in rows]


def read_dead_letter(state_dir: Path, number: int) -> tuple[Summary, Event] | None:
    """Give one dead letter and its event as it was received, or None when there is none of that number.

    Raises StoreError when there is no store, or it can't be read.
    """
    rows = _read(
        state_dir,
        f"SELECT {_LISTED}, time, attributes, data FROM kept WHERE reason = 'dead' AND number = ?",  # noqa: S608 - our columns
        (number,),
    )
    if not rows:
        return None
    columns = dict(rows[0])
    time, attributes, data = (columns.pop(name) for name in ("time", "attributes", "data"))
    found = Summary(**columns)
    return found, Event(
        id=found.event_id,
        source=found.source,
        type=found.type,
        subject=found.subject,
        time=None if time is None else datetime.fromisoformat(time),
        attributes=json.loads(attributes),
        data=data,
    )


def _read(state_dir: Path, query: str, parameters: tuple[Any, ...]) -> list[sqlite3.Row]:
    path = state_dir / FILE
    try:
        path.stat()
        with closing(connect(path, mode="ro")) as connection:
            connection.row_factory = sqlite3.Row
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != len(MIGRATIONS):
                raise StoreError(
                    f"the store in {state_dir} has version {version} and this command reads version "
                    f"{len(MIGRATIONS)}: use the command of the bridge that runs, or start this one once"
                )
            return connection.execute(query, parameters).fetchall()
    except FileNotFoundError:
        raise StoreError(
            f"there is no store in {state_dir}: is state_dir right, and has the bridge run?"
        ) from None
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the store in {state_dir} can't be read: {error}") from error
