"""Copying what is readable of a damaged store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import bridge.store.pages as pages
import bridge.store.schema as schema
from bridge.core.errors import StoreError
from bridge.core.windows import SALVAGED
from bridge.store.migrations import VERSION
from bridge.store.schema import DEAD, PARKED, SPOOLED, WINDOW, BrokenRowError, Row
from bridge.store.spool_rows import number_of

_UNKNOWN_TAIL = 1_000_000
"""Numbers left out behind the last row known, where the file does not tell which were given."""
_INDEXES = {"kept_by_reason": ("reason", "service"), "sqlite_autoindex_kept_1": ("source", "id", "service")}
_PLACE = {name: place for place, name in enumerate(pages.COLUMNS)}
_EVENT = [_PLACE[name] for name in schema.EVENT.split(", ")]
_INSERT = (
    f"INSERT INTO kept ({', '.join(pages.COLUMNS)}) VALUES "  # noqa: S608 - our columns
    f"({', '.join('CAST(? AS TEXT)' if str in kinds else '?' for kinds in pages.COLUMNS.values())})"
)
_INSERT_MARK = "INSERT OR IGNORE INTO entered VALUES (?, ?, ?)"
_SPOOLS_SINCE = 3
"""The version of a file that has spools."""
_JOBS_SINCE = 5
"""The version of a file that has jobs."""
_REMOVED_JOBS_SINCE = 6
"""The version of a file that has jobs that were removed."""
_WINDOWS_SINCE = 7
"""The version of a file that has windows, and remembers what they were sent as."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """What came of it."""

    saved: int
    lost: int
    """Rows that an index of the damaged file names, and that can't be read."""
    suspected: int | None
    """At most so many more may be lost; None where nothing tells."""
    marks_lost: int | None = 0
    """Versions that had entered, and are forgotten; None where nothing tells how many."""
    positions_lost: bool = False
    """Whether a stream's position is lost."""


def rescue(path: Path, copy: sqlite3.Connection) -> Rescued:
    """Copy the rows of the damaged file at `path` into the new store `copy`, inside its transaction.

    They are read as SQLite reads them, from both ends; what lies between is taken from the bare pages.
    Raises StoreError for a store of a newer version, OSError, and sqlite3.Error when `copy` fails.
    """
    copy.execute("CREATE TEMP TABLE named (number INTEGER PRIMARY KEY)")
    try:
        with closing(schema.connect(path, mode="ro")) as old:
            # Else SQLite refuses a file that is shorter than its first page says.
            old.execute("PRAGMA writable_schema = ON")
            (version,) = old.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreError(f"the store is damaged, and of version {version}: run the newer bridge")
            complete = any(_copy_numbers(old, index, copy) for index in _INDEXES)
            gap = _copy_from_both_ends(old, copy)
            last = _last_number(old)
            _copy_generations(old, copy)
            if version >= _JOBS_SINCE:
                _copy_jobs(old, copy)
            if version >= _REMOVED_JOBS_SINCE:
                _copy_removed_jobs(old, copy)
            if version >= _WINDOWS_SINCE:
                _copy_windows(old, copy)
            spools_broken = version >= _SPOOLS_SINCE and _copy_spools(old, copy)
            marks_broken = version >= _SPOOLS_SINCE and _copy_marks(old, copy)
    except sqlite3.DatabaseError as error:
        if not schema.damaged(error):
            raise
        complete, gap, last, spools_broken, marks_broken = False, (1, None), None, False, True
    if gap is not None or spools_broken or marks_broken:
        for table, row in pages.rows(path):
            if table == "spools":
                _put_spool(copy, row)
            elif table == "entered":
                copy.execute(_INSERT_MARK, row)
            # Of a row that was deleted alone its page may show a trace: an index that is whole knows.
            elif not complete or copy.execute("SELECT 1 FROM named WHERE number = ?", row[:1]).fetchone():
                _put(copy, row)
    _mend_windows(copy)
    marks_lost, positions_lost = _mend_spools(copy, spools_broken=spools_broken, marks_broken=marks_broken)
    return _result(copy, gap, last, complete=complete, marks_lost=marks_lost, positions_lost=positions_lost)


def _copy_numbers(old: sqlite3.Connection, index: str, copy: sqlite3.Connection) -> bool:
    """Note the numbers that an index names, from both its ends; tell whether that is all of them."""
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{column} {direction}" for column in _INDEXES[index])
        found = _UntilBroken(old, f"SELECT number FROM kept INDEXED BY {index} ORDER BY {order}")  # noqa: S608 - our columns
        copy.executemany("INSERT OR IGNORE INTO named VALUES (?)", found)
        if not found.broken:
            return True
    return False


def _copy_from_both_ends(old: sqlite3.Connection, copy: sqlite3.Connection) -> tuple[int, int | None] | None:
    """Copy rows up to the first and from the last that can't be read.

    Gives the numbers between, the second None where no row ends them; None when all could be read.
    """
    there = {row[1] for row in _UntilBroken(old, "PRAGMA table_info(kept)")}
    # Of a file from before there were generations, windows, or keys.
    missing = {
        "generation": "0 AS generation",
        "in_window": "NULL AS in_window",
        "order_key": "NULL AS order_key",
    }
    columns = ", ".join(name if name in there else missing.get(name, name) for name in pages.COLUMNS)
    ends: list[int | None] = []
    for direction in ("ASC", "DESC"):
        end = None
        rows = _UntilBroken(old, f"SELECT {columns} FROM kept NOT INDEXED ORDER BY number {direction}")  # noqa: S608 - our columns
        for row in rows:
            end = row[0]
            _put(copy, row)
        if not rows.broken:
            return None
        ends.append(end)
    first, last = ends
    return (first or 0) + 1, None if last is None else last - 1


def _put(copy: sqlite3.Connection, row: Row) -> None:
    # What was read, but is not what was written, counts as not read.
    with suppress(BrokenRowError, TypeError, sqlite3.IntegrityError):
        schema.to_event(tuple(row[place] for place in _EVENT))
        if row[_PLACE["reason"]] not in (PARKED, DEAD, SPOOLED, WINDOW) or "\0" in row[_PLACE["service"]]:
            raise BrokenRowError("no lane's event")
        copy.execute(_INSERT, _bound(row))


def _bound(row: Row) -> Row:
    return tuple(schema.raw(value) if isinstance(value, str) else value for value in row)


def _last_number(old: sqlite3.Connection) -> int | None:
    """Give the greatest number ever given, where the file tells."""
    for row in _UntilBroken(old, "SELECT seq FROM sqlite_sequence WHERE name = 'kept'"):
        return int(row[0])
    return None


def _copy_generations(old: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    for direction in ("ASC", "DESC"):
        order = f"source {direction}, id {direction}, service {direction}"
        for row in _UntilBroken(old, f"SELECT * FROM generations ORDER BY {order}"):  # noqa: S608 - our columns
            with suppress(sqlite3.IntegrityError):
                copy.execute(
                    "INSERT OR IGNORE INTO generations VALUES "
                    "(CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)",
                    _bound(row),
                )


def _copy_jobs(old: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy the names of jobs that can be read; a job whose name is lost is not known as the bridge's own."""
    for direction in ("ASC", "DESC"):
        for row in _UntilBroken(old, f"SELECT * FROM jobs ORDER BY number {direction}"):  # noqa: S608 - our columns
            with suppress(sqlite3.IntegrityError):
                copy.execute(
                    "INSERT OR IGNORE INTO jobs VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, "
                    "CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), "
                    "CAST(? AS TEXT), ?)",
                    _bound(row),
                )


def _copy_removed_jobs(old: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy whose jobs were removed, as far as it can be read: of others an event makes another job."""
    for direction in ("ASC", "DESC"):
        rows = f"SELECT number, identity, removed_at FROM removed_jobs ORDER BY number {direction}"  # noqa: S608 - no outside text
        for row in _UntilBroken(old, rows):
            with suppress(sqlite3.IntegrityError):
                copy.execute("INSERT OR IGNORE INTO removed_jobs VALUES (?, ?, ?)", row)


def _copy_windows(old: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy windows, and what was sent of others, as far as it can be read."""
    for table, order in (("windows", "number"), ("merges", "number"), ("merged", "id")):
        columns = [row[2] for row in copy.execute(f"PRAGMA table_info({table})")]
        places = ", ".join("CAST(? AS TEXT)" if kind == "TEXT" else "?" for kind in columns)
        for direction in ("ASC", "DESC"):
            for row in _UntilBroken(old, f"SELECT * FROM {table} ORDER BY {order} {direction}"):  # noqa: S608 - our tables
                with suppress(sqlite3.IntegrityError):
                    copy.execute(f"INSERT OR IGNORE INTO {table} VALUES ({places})", _bound(row))  # noqa: S608 - likewise


def _mend_windows(copy: sqlite3.Connection) -> None:
    """Make the windows' counts fit their members, and windows to be sent of members that have none.

    Ids whose `merges` row is lost go: a new row would get its number, and take them for its own.
    """
    copy.execute("DELETE FROM merged WHERE merge NOT IN (SELECT number FROM merges)")
    copy.execute(
        "INSERT INTO windows SELECT in_window, source, service, '', '', '{}', 0, 0, 0, 0, NULL, 0, 0, ?, 1 "
        "FROM kept WHERE reason = 'window' AND in_window NOT IN (SELECT number FROM windows) "
        "GROUP BY in_window",
        (SALVAGED,),
    )
    copy.execute(
        "UPDATE windows SET members = (SELECT count(*) FROM kept "
        "WHERE reason = 'window' AND in_window = windows.number AND cause = '')"
    )
    copy.execute("UPDATE remembered SET bytes = (SELECT coalesce(sum(size), 0) FROM merges)")


def _copy_spools(old: sqlite3.Connection, copy: sqlite3.Connection) -> bool:
    """Copy the streams' positions; tell whether some could not be read."""
    rows = _UntilBroken(old, "SELECT number, source, position, listing, marks FROM spools ORDER BY number")
    for row in rows:
        _put_spool(copy, row)
    return rows.broken


def _put_spool(copy: sqlite3.Connection, row: Row) -> None:
    with suppress(sqlite3.IntegrityError):  # a value of a type that was never written
        copy.execute(
            "INSERT OR IGNORE INTO spools VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)", _bound(row)
        )


def _copy_marks(old: sqlite3.Connection, copy: sqlite3.Connection) -> bool:
    """Copy marks up to the first and from the last that can't be read; tell whether there is one."""
    for direction in ("ASC", "DESC"):
        rows = _UntilBroken(
            old,
            f"SELECT spool, version, listing FROM entered ORDER BY spool {direction}, version {direction}",  # noqa: S608 - our columns
        )
        copy.executemany(_INSERT_MARK, (row for row in rows if tuple(map(type, row)) == (int, bytes, int)))
        if not rows.broken:
            return False
    return True


def _mend_spools(
    copy: sqlite3.Connection, *, spools_broken: bool, marks_broken: bool
) -> tuple[int | None, bool]:
    """Make the counts of the spools fit the marks, and give how many are lost; and whether a position is."""
    there = dict(copy.execute("SELECT number, marks FROM spools"))
    sources = {
        number_of(source): source
        for (source,) in copy.execute("SELECT DISTINCT source FROM kept WHERE reason = 'spooled'")
    }
    marked = {
        spool: (count, listing)
        for spool, count, listing in copy.execute(
            "SELECT spool, count(*), max(listing) FROM entered GROUP BY spool"
        )
    }
    missing = (sources.keys() | marked.keys()) - there.keys()
    for number in missing:
        _put_spool(copy, (number, sources.get(number, ""), None, 0, 0))
    for number, (count, listing) in {**dict.fromkeys(there, (0, 0)), **marked}.items():
        copy.execute(
            "UPDATE spools SET marks = ?, listing = max(listing, ?) WHERE number = ?",
            (count, listing, number),
        )
    positions_lost = bool(missing) or (spools_broken and not there)
    if not marks_broken:
        return 0, positions_lost
    lost = sum(max(0, marks - marked.get(number, (0, 0))[0]) for number, marks in there.items())
    return None if positions_lost else lost, positions_lost


def _result(
    copy: sqlite3.Connection,
    gap: tuple[int, int | None] | None,
    last: int | None,
    *,
    complete: bool,
    marks_lost: int | None,
    positions_lost: bool,
) -> Rescued:
    def count(query: str, *parameters: int) -> int:
        return int(copy.execute(query, parameters).fetchone()[0])

    top = max(count("SELECT coalesce(max(number), 0) FROM kept"), last or 0)
    if last is None:
        top += _UNKNOWN_TAIL
    copy.execute("DELETE FROM sqlite_sequence WHERE name = 'kept'")
    copy.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('kept', ?)", (top,))

    copy.execute("UPDATE clock SET seen = max(seen, (SELECT coalesce(max(kept_at), 0) FROM kept))")
    saved = count("SELECT count(*) FROM kept")
    lost = count("SELECT count(*) FROM named WHERE number NOT IN (SELECT number FROM kept)")
    if gap is None or complete:
        return Rescued(saved, lost, 0, marks_lost, positions_lost)
    first, end = gap[0], last if gap[1] is None else gap[1]
    if end is None:
        return Rescued(saved, lost, None, marks_lost, positions_lost)
    between = count("SELECT count(*) FROM kept WHERE number BETWEEN ? AND ?", first, end)
    return Rescued(saved, lost, max(0, end - first + 1 - between - lost), marks_lost, positions_lost)


class _UntilBroken:
    """Rows of a damaged file up to the first that can't be read; `broken` tells then that there was one."""

    def __init__(self, old: sqlite3.Connection, query: str) -> None:
        self.broken = False
        self._old = old
        self._query = query

    def __iter__(self) -> Iterator[Row]:
        try:
            yield from self._old.execute(self._query)
        except (sqlite3.Error, BrokenRowError):
            self.broken = True
