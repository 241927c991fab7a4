"""What the store remembers of one event, for `oscar-bridge where`."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.store import beside, schema
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
    """Source's identity and service → the id that the last replay as new gave it, or what it was sent in."""
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
    try:
        return beside.read(state_dir, lambda connection: _find(connection, sources, event_id))
    except beside.NoStoreError:
        return Traces()


def removed(state_dir: Path, jobs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of `jobs` (lane and name) that succeeded and were removed. Raises as `find` does."""

    def question(connection: sqlite3.Connection) -> set[tuple[str, str]]:
        return {job for job in jobs if is_remembered(connection, *job)}

    try:
        return beside.read(state_dir, question)
    except beside.NoStoreError:
        return set()


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
            for service, generation in connection.execute(
                f"SELECT service, generation FROM generations {these}",  # noqa: S608 - no outside text
                (schema.raw(source), schema.raw(first)),
            ):
                renewed[source, service] = f"{first}+{generation}"
                ids.append(renewed[source, service])
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
