"""The names of jobs on disk: which of those that OSCAR lists are this bridge's own."""

from __future__ import annotations

import json
import sqlite3

from bridge.core.event import Event
from bridge.core.jobs import JobChanges, JobRecord, Progress
from bridge.store import schema
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
_WITHOUT_DATA = schema.EVENT.replace("data", "x''")


def size_of(changes: JobChanges) -> int:
    """Estimate the bytes of the new rows in `changes`."""
    return sum(event.size + len(event.id) + len(event.source) + _OVERHEAD for event in changes.note.values())


def change(connection: sqlite3.Connection, service: str, changes: JobChanges) -> tuple[None, Change]:
    """Write `changes` to the jobs of the lane `service`."""
    key = raw(service)
    if changes.forget:
        connection.execute(
            "DELETE FROM jobs WHERE service = CAST(? AS TEXT) AND name IN (SELECT value FROM json_each(?))",
            (key, json.dumps(sorted(changes.forget))),
        )
    rows = [(name, *schema.event_columns(event, service)) for name, event in changes.note.items()]
    connection.executemany(_NOTE, rows)
    connection.executemany(
        _PROGRESS,
        [(progress, accepted, key, name) for name, (progress, accepted) in changes.progress.items()],
    )
    return None, Change()


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
