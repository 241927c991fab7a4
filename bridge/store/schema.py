"""The tables of the store, their versions, and how a row is written and read."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bridge.core.errors import StoreError
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

MIGRATIONS = (
    # `number` is the public name of a row, never given twice; parked events go back in its order.
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
    # Parked events are read in order by service; a million of them must not be walked to find the dead.
    # `generations` remembers the last identity given to an event that was replayed as new: also when its row
    # is gone, the event comes again, dies again and is replayed again, it must get one that OSCAR never saw.
    """
    DROP INDEX kept_by_reason;
    CREATE INDEX kept_by_reason ON kept (reason, service, number);
    CREATE INDEX dead_by_number ON kept (number, service, cause) WHERE reason = 'dead';
    CREATE INDEX dead_by_age ON kept (kept_at) WHERE reason = 'dead';
    ALTER TABLE kept ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE generations (
        source TEXT NOT NULL,
        id TEXT NOT NULL,
        service TEXT NOT NULL,
        generation INTEGER NOT NULL,
        given_at REAL NOT NULL,
        PRIMARY KEY (source, id, service)
    ) STRICT, WITHOUT ROWID;
    """,
    # What a source needs whose upstream keeps nothing (`spooled.py`). A spool's number is made of the
    # source's identity alone; `marks` counts its rows of `entered`, of which there may be millions.
    """
    CREATE INDEX spooled_by_source ON kept (source, number) WHERE reason = 'spooled';
    CREATE TABLE spools (
        number INTEGER PRIMARY KEY,
        source TEXT NOT NULL,
        position TEXT,
        listing INTEGER NOT NULL DEFAULT 0,
        marks INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE entered (
        spool INTEGER NOT NULL,
        version BLOB NOT NULL,
        listing INTEGER NOT NULL,
        PRIMARY KEY (spool, version)
    ) STRICT, WITHOUT ROWID;
    """,
    # The newest time that the store has seen, in seconds since 1970: whether the clock can be believed.
    """
    CREATE TABLE clock (seen REAL NOT NULL) STRICT;
    INSERT INTO clock SELECT coalesce(max(kept_at), 0) FROM kept INDEXED BY dead_by_age WHERE reason = 'dead';
    """,
    # The jobs that are this bridge's own and not known to have ended (`jobs.py`), each noted before it is
    # asked for.
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        service TEXT NOT NULL,
        progress INTEGER NOT NULL CHECK (progress BETWEEN 0 AND 2),
        accepted_at REAL,
        source TEXT NOT NULL,
        id TEXT NOT NULL,
        type TEXT NOT NULL,
        subject TEXT,
        time TEXT,
        attributes TEXT NOT NULL,
        data BLOB NOT NULL,
        UNIQUE (service, name)
    ) STRICT;
    """,
    # The jobs that succeeded and that this bridge has removed, in that order; an identity is made of the
    # lane's key and the job's name.
    """
    CREATE TABLE removed_jobs (
        number INTEGER PRIMARY KEY,
        identity BLOB NOT NULL UNIQUE,
        removed_at REAL NOT NULL
    ) STRICT;
    """,
    # Events that wait to be sent as one (`windows.py`). `merged` has the ids of those that were, and `merges`
    # what they went in; `bytes` is about what the two take.
    """
    ALTER TABLE kept ADD COLUMN in_window INTEGER;
    CREATE INDEX members ON kept (in_window, number) WHERE reason = 'window';
    CREATE TABLE windows (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        service TEXT NOT NULL,
        route TEXT NOT NULL,
        key TEXT NOT NULL,
        manner TEXT NOT NULL,
        opened REAL NOT NULL,
        last REAL NOT NULL,
        members INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        marked REAL,
        late INTEGER NOT NULL,
        due REAL NOT NULL,
        reason TEXT NOT NULL,
        closed INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX open_windows ON windows (source, service, route, key) WHERE closed = 0;
    CREATE INDEX windows_by_due ON windows (due);
    CREATE TABLE merges (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        service TEXT NOT NULL,
        route TEXT NOT NULL,
        key TEXT NOT NULL,
        id TEXT NOT NULL,
        reason TEXT NOT NULL,
        members INTEGER NOT NULL,
        until REAL NOT NULL,
        size INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX merges_by_key ON merges (source, service, route, key);
    CREATE INDEX merges_by_age ON merges (until);
    CREATE TABLE merged (
        id TEXT NOT NULL,
        merge INTEGER NOT NULL,
        PRIMARY KEY (id, merge)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX merged_by_merge ON merged (merge);
    CREATE TABLE remembered (bytes INTEGER NOT NULL) STRICT;
    INSERT INTO remembered VALUES (0);
    """,
    # What an event has in common with those that it goes one after another with. The events of one key are
    # read apart from the others.
    """
    ALTER TABLE kept ADD COLUMN order_key INTEGER;
    CREATE INDEX parked_by_key ON kept (service, order_key, number)
        WHERE reason = 'parked' AND order_key IS NOT NULL;
    """,
)
"""What takes a file from the version of its place in this list to the next; `user_version` counts them."""

VERSION = len(MIGRATIONS)

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
    """Give the bytes of `text`, for a parameter inside CAST(? AS TEXT)."""
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


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest version, and write to it at least once: so it can be written.

    Raises StoreError when it is newer than this bridge, sqlite3.Error when it can't be written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreError(
            f"the store has version {version} and this bridge knows versions up to {VERSION}: "
            "run the newer bridge that wrote it"
        )
    # One transaction: a failure leaves the file as it was, once the connection is closed.
    steps = "".join(MIGRATIONS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;")


def primary_code(error: Exception) -> int:
    """Give the primary result code of an error (https://sqlite.org/rescode.html); 0 where it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def damaged(error: Exception) -> bool:
    """Tell whether the file was found to be broken, not merely out of reach."""
    return isinstance(error, BrokenRowError) or primary_code(error) in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )
