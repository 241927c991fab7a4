"""The ids of members that were sent together, remembered for as long as their route says and there is room.

`merges` has a row for each event that was sent for others, `merged` one for each id in it, and `remembered`
about what the two take on the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from bridge.core.ports import DeadLetter
from bridge.core.windows import Part
from bridge.store.schema import raw

_FORGOTTEN_AT_ONCE = 100
"""Events sent whose members are forgotten by one transaction."""
# CROSS JOIN: by the id first, of which there are few (https://sqlite.org/optoverview.html, 8.2).
_WAS_MERGED = """
    SELECT 1 FROM merged CROSS JOIN merges ON merges.number = merged.merge
    WHERE merged.id = CAST(? AS TEXT) AND merges.source = CAST(? AS TEXT) AND merges.service = CAST(? AS TEXT)
"""
_WAS_COMPLETE = """
    SELECT 1 FROM merges
    WHERE source = CAST(? AS TEXT) AND service = CAST(? AS TEXT) AND route = CAST(? AS TEXT)
        AND key = CAST(? AS TEXT) AND reason = 'complete' LIMIT 1
"""
_REMEMBER = """
    INSERT INTO merges (source, service, route, key, id, reason, members, until, size)
    VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?)
"""


def was_merged(connection: sqlite3.Connection, event_id: bytes, source: bytes, service: bytes) -> bool:
    """Return whether that event was sent to `service` with others, and is remembered."""
    return connection.execute(_WAS_MERGED, (event_id, source, service)).fetchone() is not None


def was_complete(connection: sqlite3.Connection, name: Sequence[bytes]) -> bool:
    """Return whether a window of that `name` was sent for it was complete, and is remembered."""
    return connection.execute(_WAS_COMPLETE, name).fetchone() is not None


def remember(connection: sqlite3.Connection, part: Part, ids: Sequence[bytes], now: float) -> None:
    """Note that `ids` were sent as `part`."""
    sent = part.sent.event if isinstance(part.sent, DeadLetter) else part.sent
    name, merged_id = [raw(each) for each in part.window.name], b"" if sent is None else raw(sent.id)
    # Each id is in the table and in its index.
    size = 2 * sum(len(each) + 15 for each in ids) + 2 * sum(map(len, name)) + 2 * len(merged_id) + 150
    number = connection.execute(
        _REMEMBER,
        (*name, merged_id, part.window.reason, len(part.numbers), now + part.remember, size),
    ).lastrowid
    connection.executemany("INSERT INTO merged VALUES (CAST(? AS TEXT), ?)", [(each, number) for each in ids])
    connection.execute("UPDATE remembered SET bytes = bytes + ?", (size,))


def forget(connection: sqlite3.Connection, now: float, most: int) -> int:
    """Forget members whose time is over, and the oldest while they take too much; count these."""
    over = "SELECT number, size FROM merges WHERE until <= ? ORDER BY until LIMIT ?"
    for number, size in connection.execute(over, (now, _FORGOTTEN_AT_ONCE)).fetchall():
        _forget_one(connection, number, size)
    early = 0
    for _ in range(_FORGOTTEN_AT_ONCE):
        (taken,) = connection.execute("SELECT bytes FROM remembered").fetchone()
        oldest = "SELECT number, size, members FROM merges ORDER BY number LIMIT 1"
        found = connection.execute(oldest).fetchone()
        if taken <= most or found is None:
            break
        _forget_one(connection, *found[:2])
        early += found[2]
    return early


def _forget_one(connection: sqlite3.Connection, number: int, size: int) -> None:
    connection.execute("DELETE FROM merged WHERE merge = ?", (number,))
    connection.execute("DELETE FROM merges WHERE number = ?", (number,))
    connection.execute("UPDATE remembered SET bytes = bytes - ?", (size,))
