"""What the store remembers of one event, and which events it has of a name, for `oscar-bridge why`."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bridge.store.beside as beside
import bridge.store.moves as moves
import bridge.store.schema as schema
import bridge.store.spool_rows as spool_rows
from bridge.core.ports import NO_LANE
from bridge.store.jobs import is_remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One row of the store: an event kept for a service."""

    number: int
    source: str
    """The identity of the event's source."""
    event_id: str
    """With `+1`, `+2` … behind it once it was replayed as new."""
    service: str
    """The lane's key; empty when the event never reached one."""
    reason: str
    """`parked`, `dead` or `window`."""
    cause: str
    detail: str
    attempts: int
    first_attempt: float | None
    last_attempt: float | None
    kept_at: float
    """Seconds since 1970 UTC, as the attempts' times are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """The window in which an event waits to be sent with others."""

    key: str
    members: int
    due: float
    """When it closes, as far as is known now, in seconds since 1970 UTC; 0 once it is closed."""
    reason: str
    """Why it closes then."""


@dataclass(frozen=True, slots=True)
class Traces:
    """All that is remembered of one event."""

    kept: Sequence[Kept] = ()
    renewed: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Source's identity and service → the id that the last replay as new gave it, or what it was sent in.

    With NO_LANE for the service: of all services that have no later one."""
    merged: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Source's identity and service → the id of the event that it was sent in, with others."""
    windows: Mapping[int, Waited] = field(default_factory=dict)
    """Of those that are kept in a window, by their number."""


_SENT_IN = """
    SELECT merges.service, merges.id FROM merged CROSS JOIN merges ON merges.number = merged.merge
    WHERE merged.id = CAST(? AS TEXT) AND merges.source = CAST(? AS TEXT) AND merges.id != ''
    ORDER BY merges.number
"""
_WINDOW = """
    SELECT key, members, due, windows.reason FROM windows
    WHERE number = (SELECT in_window FROM kept WHERE kept.number = ?)
"""
_MEMBERS = """
    SELECT merged.id FROM merges JOIN merged ON merged.merge = merges.number
    WHERE merges.source = CAST(? AS TEXT) AND merges.id IN (CAST(? AS TEXT), CAST(? AS TEXT))
        AND merges.id != '' ORDER BY merged.id
"""
_COLUMNS = ", ".join("id" if name == "event_id" else name for name in Kept.__dataclass_fields__)


def find(state_dir: Path, sources: Collection[str], event_id: str) -> Traces:
    """Look for an event of any of `sources` (identities); works beside a running daemon and without one.

    A store that was never made holds nothing. Raises StoreError when it is there and can't be read.
    """
    return beside.read_if_made(state_dir, lambda connection: _find(connection, sources, event_id), Traces())


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An event in the store that goes by a name."""

    source: str
    """The identity of its source."""
    event_id: str
    """The key of an occurrence, where it is spooled."""
    subject: str | None
    key: str | None
    """Of a Kafka record."""
    kept_at: float
    """Seconds since 1970 UTC; 0 for one that is remembered for its job alone."""
    unread: bytes | None = None
    """What its source was told, where no event is made of it yet; None for an event."""


@dataclass(frozen=True, slots=True)
class Names:
    """The events in the store that go by a name."""

    found: Sequence[Named] = ()
    """The newest first."""
    complete: bool = True
    """Whether all of the store was looked at in the time there was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A name that events may go by: their id, subject, key or job."""

    part: str
    """A part that all its matches have, letter for letter; it may be empty."""
    fits: Callable[[str], bool]
    job: Callable[[str, str, str], str | None] | None = None
    """Names the job of a source's identity, an id and a service; None where no job is asked for."""


_MOST_NAMED = 1000
_STEPS = 10_000
"""Of SQLite's machine between two looks at the time."""
# `instr` first, as it spares Python the most rows; what is behind `attributes` in a row is not read.
_EVENTS = """
    SELECT number, source, id, service, subject, attributes FROM kept NOT INDEXED
    WHERE substr(id, 1, 8) != 'spooled:' AND
        (?1 OR instr(id, CAST(?2 AS TEXT)) OR instr(subject, CAST(?2 AS TEXT)) OR instr(attributes, ?3))
    ORDER BY number DESC
"""
_UNREAD = """
    SELECT number, source, id, data FROM kept INDEXED BY spooled_by_source
    WHERE reason = 'spooled' AND (instr(data, CAST(?1 AS BLOB)) OR instr(id, CAST(?1 AS TEXT)))
    ORDER BY number DESC
"""
_JOBS = """
    SELECT 0, source, id, service, subject, attributes, name FROM jobs
    WHERE ?1 OR instr(id, CAST(?2 AS TEXT)) OR instr(subject, CAST(?2 AS TEXT)) OR instr(attributes, ?3)
"""


def named(state_dir: Path, wanted: Wanted, seconds: float) -> Names:
    """Look for at most that long for events that go by a name. Raises StoreError as `find` does."""

    def question(connection: sqlite3.Connection) -> Names:
        ends = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > ends, _STEPS)
        found: list[Named] = []
        complete = True
        try:
            for one in _named(connection, wanted):
                found.append(one)
                if len(found) >= _MOST_NAMED:
                    complete = False
                    break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            complete = False
        connection.set_progress_handler(None, 0)
        return Names(found, complete)

    return beside.read_if_made(state_dir, question, Names())


def _named(connection: sqlite3.Connection, wanted: Wanted) -> Iterator[Named]:
    parameters = (wanted.job is not None, schema.raw(wanted.part), json.dumps(wanted.part)[1:-1])
    for query in (_EVENTS, _JOBS):
        rows = connection.execute(query, parameters)
        for number, source, event_id, service, subject, attributes, *job in rows:
            key = json.loads(attributes).get("key") if '"key"' in attributes else None
            names = [event_id, subject, key, *job]
            if wanted.job is not None and not job:
                names.append(wanted.job(source, event_id, service))
            if any(name is not None and wanted.fits(name) for name in names):
                yield Named(
                    source=source,
                    event_id=event_id,
                    subject=subject,
                    key=key,
                    kept_at=_kept_at(connection, number),
                )
    if wanted.part:
        prefix = spool_rows.KEY.decode()
        # Directory and name of a file stand apart there.
        part = json.dumps(max(wanted.part.split("/"), key=len), ensure_ascii=False)[1:-1]
        for number, source, key, data in connection.execute(_UNREAD, (schema.raw(part),)):
            yield Named(
                source=source,
                event_id=key.removeprefix(prefix),
                subject=None,
                key=None,
                kept_at=_kept_at(connection, number),
                unread=data,
            )


def _kept_at(connection: sqlite3.Connection, number: int) -> float:
    found = connection.execute("SELECT kept_at FROM kept WHERE number = ?", (number,)).fetchone()
    return 0.0 if found is None else float(found[0])


def first_of(state_dir: Path, source: str, event_id: str) -> str:
    """Return the id that an event had before it was renewed. Raises as `find` does."""

    def question(connection: sqlite3.Connection) -> str:
        return schema.text(moves.first_of(connection, schema.raw(source), schema.raw(event_id))[0])

    return beside.read_if_made(state_dir, question, event_id)


def removed(state_dir: Path, jobs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of `jobs` (lane and name) that succeeded and were removed. Raises as `find` does."""

    def question(connection: sqlite3.Connection) -> set[tuple[str, str]]:
        return {job for job in jobs if is_remembered(connection, *job)}

    return beside.read_if_made(state_dir, question, set())


def entered(state_dir: Path, source: str, versions: Sequence[bytes]) -> set[bytes]:
    """Return those of `versions` that have entered by the source of that identity. Raises as `find` does."""

    def question(connection: sqlite3.Connection) -> set[bytes]:
        return spool_rows.entered(connection, spool_rows.number_of(source), versions)

    return beside.read_if_made(state_dir, question, set())


def members_of(state_dir: Path, source: str, event_id: str) -> list[str]:
    """Return the ids of those that were sent together as that event, while they are remembered.

    Raises StoreError when there is no store, or it can't be read.
    """
    # A replay as new has `+1`, `+2` … behind the id that they were sent as.
    ids = (schema.raw(source), schema.raw(event_id), schema.raw(event_id.rpartition("+")[0]))
    return beside.read(
        state_dir, lambda connection: [found for (found,) in connection.execute(_MEMBERS, ids)]
    )


def _find(connection: sqlite3.Connection, sources: Collection[str], event_id: str) -> Traces:
    kept: list[Kept] = []
    renewed: dict[tuple[str, str], str] = {}
    merged: dict[tuple[str, str], str] = {}
    # By source and id, the beginning of the index on both tables: there may be a million rows.
    these = "WHERE source = CAST(? AS TEXT) AND id = CAST(? AS TEXT)"
    for source in sources:
        for service, merged_id in connection.execute(_SENT_IN, (schema.raw(event_id), schema.raw(source))):
            merged[source, service] = renewed[source, service] = merged_id
        ids = [event_id, *(merged_id for (of, _), merged_id in merged.items() if of == source)]
        for first in tuple(ids):
            given = connection.execute(
                f"SELECT service, generation FROM generations {these}",  # noqa: S608 - no outside text
                (schema.raw(source), schema.raw(first)),
            ).fetchall()
            everywhere = max((generation for service, generation in given if service == NO_LANE), default=0)
            for service, generation in given:
                renewed[source, service] = f"{first}+{max(generation, everywhere)}"
                ids += [f"{first}+{generation}", renewed[source, service]]
        for one in dict.fromkeys(ids):
            kept += [
                Kept(**dict(zip(Kept.__dataclass_fields__, row, strict=True)))
                for row in connection.execute(
                    f"SELECT {_COLUMNS} FROM kept {these}",  # noqa: S608 - no outside text
                    (schema.raw(source), schema.raw(one)),
                )
            ]
    windows = {
        row.number: Waited(**dict(zip(Waited.__dataclass_fields__, found, strict=True)))
        for row in kept
        if row.reason == schema.WINDOW
        for found in connection.execute(_WINDOW, (row.number,))
    }
    return Traces(kept, renewed, merged, windows)
