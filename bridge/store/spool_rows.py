"""Occurrences of streams whose upstream keeps nothing, with what goes with them: in SQL.

Each source has its part, its *spool*: rows of `kept` with the reason `spooled`, one row of `spools` for the
stream's position, and in `entered` a mark for each version of a thing that has entered the pipeline.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import closing
from hashlib import blake2b
from itertools import islice

from bridge.core.ports import Spooled
from bridge.store.changes import THESE, Change, Done, groups
from bridge.store.schema import SPOOLED, Row, raw

KEY = b"spooled:"
"""Before an occurrence's key in `kept.id`, so that no dead letter of the same source has the name of one."""
MARK_BYTES = 50
"""About what a mark takes on the disk."""

_BYTES = 16 * 2**20
"""Data that is given at once; one occurrence is always given."""
_ASKED_AT_ONCE = 500

_APPEND = """
    INSERT INTO kept (source, id, service, type, attributes, data, reason, cause, detail, attempts, kept_at)
    VALUES (CAST(? AS TEXT), CAST(? AS TEXT), '', '', '{}', ?, 'spooled', '', '', 0, ?)
    ON CONFLICT (source, id, service) DO NOTHING
"""
_OPEN = """
    INSERT INTO spools (number, source, position) VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT))
    ON CONFLICT (number) DO UPDATE SET position = coalesce(excluded.position, position)
"""
_MARK = "INSERT INTO entered VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_SHOW = "UPDATE entered SET listing = ?1 WHERE spool = ?2 AND version = ?3 AND listing < ?1"


def number_of(source: str) -> int:
    """Return the number of a source's spool: made of its identity alone, so a mark tells whose it is."""
    return int.from_bytes(blake2b(raw(source), digest_size=6).digest(), "big")


def rows_of(source: str, occurrences: Sequence[Spooled]) -> tuple[list[Row], int]:
    """Return what `append` writes, and about how many bytes it takes: keys twice (an index has them too)."""
    now, name = time.time(), raw(source)
    rows = [(name, KEY + raw(each.key), each.data, now) for each in occurrences]
    return rows, sum([len(row[2]) + 2 * len(row[1]) for row in rows]) + len(rows) * (3 * len(name) + 200)


# Writing, each inside a transaction


def append(
    connection: sqlite3.Connection, spool: int, source: str, rows: Sequence[Row], position: str | None
) -> tuple[None, Change]:
    """Keep the occurrences that are not kept yet, and the position."""
    change = Change()
    if rows:
        added = connection.executemany(_APPEND, rows).rowcount
        change.tally["", SPOOLED, ""] = change.spooled[spool] = added
    _open(connection, spool, source, position)
    return None, change


def finish(connection: sqlite3.Connection, done: Sequence[Done], change: Change) -> None:
    """Take occurrences away and mark their versions as shown by the last listing begun."""
    if not done:
        return
    where = f"FROM kept NOT INDEXED WHERE {THESE} AND reason = 'spooled'"
    these = (json.dumps([each.number for each in done]),)
    for source, count in connection.execute(f"SELECT source, count(*) {where} GROUP BY source", these):
        change.spooled[number_of(source)] -= count
        change.tally["", SPOOLED, ""] -= count
    connection.execute(f"DELETE {where}", these)
    versions: defaultdict[int, list[bytes]] = defaultdict(list)
    for each in done:
        if each.entered is not None:
            versions[each.spool].append(each.entered)
    for spool, entered in versions.items():
        _mark(connection, spool, entered, _listing(connection, spool), change)
    change.finished += done


def tried(
    connection: sqlite3.Connection, numbers: Collection[int], aside: Collection[int]
) -> tuple[None, Change]:
    """Note when `numbers` were tried first, and lay those in `aside` aside: `attempts` says so of a row."""
    where = f"WHERE {THESE} AND reason = 'spooled'"
    connection.execute(
        f"UPDATE kept SET first_attempt = coalesce(first_attempt, ?) {where}",  # noqa: S608 - no outside text
        (time.time(), json.dumps(list(numbers))),
    )
    if aside:
        connection.execute(f"UPDATE kept SET attempts = 1 {where}", (json.dumps(list(aside)),))  # noqa: S608 - likewise
    return None, Change()


def take_up(connection: sqlite3.Connection, source: str, after: int, limit: int) -> tuple[int | None, Change]:
    """Lay aside no longer the first `limit` behind number `after`; return the last of them."""
    numbers = [
        number
        for (number,) in connection.execute(
            "SELECT number FROM kept INDEXED BY spooled_by_source WHERE reason = 'spooled' "
            "AND source = CAST(? AS TEXT) AND number > ? AND attempts > 0 ORDER BY number LIMIT ?",
            (raw(source), after, limit),
        )
    ]
    connection.execute(
        "UPDATE kept SET attempts = 0 WHERE number IN (SELECT value FROM json_each(?))",
        (json.dumps(numbers),),
    )
    return (numbers[-1] if numbers else None), Change()


def mark(
    connection: sqlite3.Connection, spool: int, source: str, versions: Collection[bytes], listing: int
) -> tuple[None, Change]:
    """Mark versions as entered, and as shown by a listing."""
    change = Change()
    _open(connection, spool, source)
    _mark(connection, spool, versions, listing, change)
    return None, change


def show(
    connection: sqlite3.Connection, spool: int, versions: Collection[bytes], listing: int
) -> tuple[None, Change]:
    """Note that a listing shows those of `versions` that are marked."""
    connection.executemany(_SHOW, [(listing, spool, version) for version in versions])
    return None, Change()


def forget_unshown(
    connection: sqlite3.Connection, spool: int, listing: int, after: bytes, limit: int
) -> tuple[tuple[int, bytes | None], Change]:
    """Look at `limit` marks behind `after`, and forget those that no listing from `listing` on has shown.

    Return how many, and the last one looked at; None at the end.
    """
    change = Change()
    found = connection.execute(
        "SELECT version FROM entered WHERE spool = ? AND version > ? ORDER BY version LIMIT 1 OFFSET ?",
        (spool, after, limit - 1),
    ).fetchone()
    last: bytes | None = None if found is None else found[0]
    end = "" if last is None else "AND version <= ?"
    forgotten = connection.execute(
        f"DELETE FROM entered WHERE spool = ? AND listing < ? AND version > ? {end}",  # noqa: S608 - no outside text
        (spool, listing, after) if last is None else (spool, listing, after, last),
    ).rowcount
    _count(connection, spool, -forgotten, change)
    return (forgotten, last), change


def next_listing(connection: sqlite3.Connection, spool: int, source: str) -> tuple[int, Change]:
    """Count one more listing."""
    _open(connection, spool, source)
    connection.execute("UPDATE spools SET listing = listing + 1 WHERE number = ?", (spool,))
    return _listing(connection, spool), Change()


def _open(connection: sqlite3.Connection, spool: int, source: str, position: str | None = None) -> None:
    """Make the spool's row where it is missing, and note the stream's position in it if one is given."""
    connection.execute(_OPEN, (spool, raw(source), None if position is None else raw(position)))


def _listing(connection: sqlite3.Connection, spool: int) -> int:
    found = connection.execute("SELECT listing FROM spools WHERE number = ?", (spool,)).fetchone()
    return 0 if found is None else int(found[0])


def _mark(
    connection: sqlite3.Connection, spool: int, versions: Collection[bytes], listing: int, change: Change
) -> None:
    added = connection.executemany(_MARK, [(spool, version, listing) for version in versions]).rowcount
    if added < len(versions):
        show(connection, spool, versions, listing)
    _count(connection, spool, added, change)


def _count(connection: sqlite3.Connection, spool: int, difference: int, change: Change) -> None:
    if difference:
        connection.execute("UPDATE spools SET marks = marks + ? WHERE number = ?", (difference, spool))
        change.marks[spool] += difference


# Reading


def position(connection: sqlite3.Connection, spool: int) -> str | None:
    """Return the stream's position, if one was kept."""
    found = connection.execute("SELECT position FROM spools WHERE number = ?", (spool,)).fetchone()
    return None if found is None else found[0]


def oldest(
    connection: sqlite3.Connection, source: str, without: Collection[int], limit: int
) -> list[tuple[int, Spooled]]:
    """Return the oldest occurrences of `source` but for the numbers in `without` and those laid aside.

    They are at most `limit`, and fewer where they are big; none only when there is none.
    """
    numbers = connection.execute(
        "SELECT number FROM kept INDEXED BY spooled_by_source "
        "WHERE reason = 'spooled' AND source = CAST(? AS TEXT) AND attempts = 0 ORDER BY number",
        (raw(source),),
    )
    with closing(numbers):  # those in `without` are the oldest: the walk over them is short
        chosen = list(islice((number for (number,) in numbers if number not in without), limit))
    rows = connection.execute(
        "SELECT number, id, data, first_attempt FROM kept NOT INDEXED "
        "WHERE number IN (SELECT value FROM json_each(?)) AND reason = 'spooled' ORDER BY number",
        (json.dumps(chosen),),
    )
    found: list[tuple[int, Spooled]] = []
    size, prefix = 0, KEY.decode()
    with closing(rows):
        for number, key, data, first_attempt in rows:
            kept = Spooled(key=key.removeprefix(prefix), data=data, first_attempt=first_attempt)
            found.append((number, kept))
            size += len(data)
            if size >= _BYTES:
                break
    return found


def entered(connection: sqlite3.Connection, spool: int, versions: Sequence[bytes]) -> set[bytes]:
    """Return those of `versions` that are marked."""
    found: set[bytes] = set()
    for at in range(0, len(versions), _ASKED_AT_ONCE):
        some = versions[at : at + _ASKED_AT_ONCE]
        places = ",".join("?" * len(some))
        found.update(
            version
            for (version,) in connection.execute(
                f"SELECT version FROM entered WHERE spool = ? AND version IN ({places})",  # noqa: S608 - no outside text
                (spool, *some),
            )
        )
    return found


def totals(connection: sqlite3.Connection, change: Change) -> None:
    """Count the occurrences and the marks."""
    for source, count in groups(connection, SPOOLED):
        number = number_of(source)
        change.spooled[number], change.sources[number] = count, source
        change.tally["", SPOOLED, ""] += count
    change.marks.update(dict(connection.execute("SELECT number, marks FROM spools WHERE marks > 0")))
