"""The names of jobs on disk: which of those that OSCAR lists are this bridge's own."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from hashlib import blake2b

import bridge.store.schema as schema
from bridge.core.event import Event
from bridge.core.jobs import JobChanges, JobRecord, Progress
from bridge.store.changes import Change
from bridge.store.schema import raw

_OVERHEAD = 300
"""About how many bytes a row takes beside the event's own texts and data."""

_NOTE = """
    INSERT INTO jobs (name, progress, source, id, service, type, subject, time, attributes, data)
    VALUES (?, 0, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT),
            ?, ?, ?)
    ON CONFLICT (service, name) DO NOTHING
"""
_PROGRESS = """
    UPDATE jobs SET progress = max(progress, ?), accepted_at = coalesce(accepted_at, ?)
    WHERE service = CAST(? AS TEXT) AND name = ?
"""
_REMEMBER = "INSERT INTO removed_jobs (identity, removed_at) VALUES (?, ?) ON CONFLICT DO NOTHING"
_REMEMBER_SECONDS = 30 * 86_400.0
"""As long as OSCAR keeps a job that is not removed, by default (`TTL_JOB`): it protects no longer either."""
_MOST_REMEMBERED = 1_000_000
"""Names, of some 60 bytes on the disk: the oldest go first."""
_REMEMBERED_BYTES = 60
_LOOKED_AT = 1000
"""The oldest names that are looked at, whether they are too old, whenever others are remembered."""
_WITHOUT_DATA = schema.EVENT.replace("data", "x''")


def size_of(changes: JobChanges) -> int:
    """Estimate the bytes of the new rows in `changes`."""
    noted = sum(event.size + len(event.id) + len(event.source) + _OVERHEAD for event in changes.note.values())
    return noted + _REMEMBERED_BYTES * len(changes.remember)


def change(
    connection: sqlite3.Connection, service: str, changes: JobChanges, now: float
) -> tuple[Collection[str], Change]:
    """Write `changes` to the jobs of the lane `service`, at the time `now` (seconds since 1970).

    Return the names that are to be noted and are remembered: they are not noted.
    """
    key = raw(service)
    if changes.remember:
        _remember(connection, service, changes.remember, now)
    removed = {name for name in changes.note if is_remembered(connection, service, name)}
    if changes.forget:
        connection.execute(
            "DELETE FROM jobs WHERE service = CAST(? AS TEXT) AND name IN (SELECT value FROM json_each(?))",
            (key, json.dumps(sorted(changes.forget))),
        )
    rows = [
        (name, *schema.event_columns(event, service))
        for name, event in changes.note.items()
        if name not in removed
    ]
    connection.executemany(_NOTE, rows)
    connection.executemany(
        _PROGRESS,
        [(progress, accepted, key, name) for name, (progress, accepted) in changes.progress.items()],
    )
    return removed, Change()


def _remember(connection: sqlite3.Connection, service: str, names: Collection[str], now: float) -> None:
    connection.executemany(_REMEMBER, [(_identity(service, name), now) for name in sorted(names)])
    connection.execute(
        "DELETE FROM removed_jobs WHERE number <= (SELECT max(number) FROM removed_jobs) - ?",
        (_MOST_REMEMBERED,),
    )
    connection.execute(
        "DELETE FROM removed_jobs WHERE removed_at < ? AND number IN "
        "(SELECT number FROM removed_jobs ORDER BY number LIMIT ?)",
        (now - _REMEMBER_SECONDS, _LOOKED_AT),
    )


def is_remembered(connection: sqlite3.Connection, service: str, name: str) -> bool:
    """Return whether a job of the lane `service` succeeded and was to be removed. Raise sqlite3.Error."""
    found = connection.execute(
        "SELECT 1 FROM removed_jobs WHERE identity = ?", (_identity(service, name),)
    ).fetchone()
    return found is not None


def _identity(service: str, name: str) -> bytes:
    return blake2b(f"{len(service)}:{service}{name}".encode(), digest_size=16).digest()


def of_service(connection: sqlite3.Connection, service: str) -> list[JobRecord]:
    """Read the jobs of the lane `service`, without their events' data.

    Raise sqlite3.Error and BrokenRowError.
    """
    rows = connection.execute(
        f"SELECT name, progress, accepted_at, {_WITHOUT_DATA} FROM jobs WHERE service = CAST(? AS TEXT)",  # noqa: S608 - our columns
        (raw(service),),
    )
    return [
        JobRecord(
            name=name,
            event=schema.to_event(tuple(columns)),
            progress=Progress(progress),
            accepted_at=accepted_at,
        )
        for name, progress, accepted_at, *columns in rows
    ]


def event_of(connection: sqlite3.Connection, service: str, name: str) -> Event | None:
    """Read the event of a job with its data, where that was noted. Raise sqlite3.Error and BrokenRowError."""
    row = connection.execute(
        f"SELECT {schema.EVENT} FROM jobs WHERE service = CAST(? AS TEXT) AND name = ?",  # noqa: S608 - our columns
        (raw(service), name),
    ).fetchone()
    return None if row is None else schema.to_event(row)
