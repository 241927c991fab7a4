"""Copies what is readable of a damaged store into a new one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

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
_BESIDE = {
    "generations": ("source", "id", "service"),
    "jobs": ("number",),
    "removed_jobs": ("number",),
    "windows": ("number",),
    "merges": ("number",),
    "merged": ("id",),
}
"""Tables of which nobody is told what is lost, and the columns by which they are read. A job whose name is
lost is not known as the bridge's own; an event whose removal is lost makes another job."""
_SPOOLS_SINCE = 3
"""The version of a file that has spools."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """What was saved of a damaged store, and what was lost."""

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
    new = _Copy(copy)
    try:
        with closing(schema.connect(path, mode="ro")) as old:
            # Else SQLite refuses a file that is shorter than its first page says.
            old.execute("PRAGMA writable_schema = ON")
            (version,) = old.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreError(f"the store is damaged, and of version {version}: run the newer bridge")
            complete = any(_copy_numbers(old, index, copy) for index in _INDEXES)
            gap = new.take(old, "kept", ("number",))
            last = _last_number(old)
            for table, order in _BESIDE.items():
                new.take(old, table, order)
            has_spools = version >= _SPOOLS_SINCE
            spools_broken = new.take(old, "spools", ("number",)) is not None and has_spools
            marks_broken = new.take(old, "entered", ("spool", "version")) is not None and has_spools
    except sqlite3.DatabaseError as error:
        if not schema.damaged(error):
            raise
        complete, gap, last, spools_broken, marks_broken = False, (None, None), None, False, True
    if gap is not None or spools_broken or marks_broken:
        for table, row in pages.rows(path):
            # Of a row that was deleted alone its page may show a trace: an index that is whole knows.
            if table != "kept" or not complete or _is_named(copy, row[0]):
                new.put(table, row)
    _mend_windows(copy)
    marks_lost, positions_lost = _mend_spools(new, spools_broken=spools_broken, marks_broken=marks_broken)
    return _result(copy, gap, last, complete=complete, marks_lost=marks_lost, positions_lost=positions_lost)


_Ends = tuple[Any, Any]
"""The first columns of the last rows that could be read from a table's begin and from its end, or None."""
_TYPES = {"TEXT": (str,), "BLOB": (bytes,), "INTEGER": (int,), "REAL": (int, float)}


class _Copy:
    """The new store, which is written to."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._statements: dict[tuple[str, int], tuple[str, dict[str, str]]] = {}
        """By table and number of columns: the statement that writes a row, and the types of its columns."""

    def take(self, old: sqlite3.Connection, table: str, order: Sequence[str]) -> _Ends | None:
        """Copy rows up to the first and from the last that can't be read; return None if all could be."""
        ends: list[Any] = []
        for direction in ("ASC", "DESC"):
            by = ", ".join(f"{column} {direction}" for column in order)
            rows = _UntilBroken(old, f"SELECT * FROM {table} NOT INDEXED ORDER BY {by}")  # noqa: S608 - our tables
            end = None
            for row in rows:
                end = row[0]
                self.put(table, row)
            if not rows.broken:
                return None
            ends.append(end)
        return ends[0], ends[1]

    def put(self, table: str, row: Row) -> None:
        """Write a row, unless it is there: of a file that is older it has only the first columns.

        What was read, but is not what was written, counts as not read.
        """
        key = (table, len(row))
        statement, columns = self._statements.get(key) or self._statements.setdefault(key, self._insert(*key))
        with suppress(BrokenRowError, TypeError, sqlite3.IntegrityError):
            for kind, value in zip(columns.values(), row, strict=True):
                if value is not None and not isinstance(value, _TYPES[kind]):
                    raise BrokenRowError("a value of another type than was written")
            if table == "kept":
                _check_event(dict(zip(columns, row, strict=True)))
            self.connection.execute(
                statement, [schema.raw(value) if isinstance(value, str) else value for value in row]
            )

    def _insert(self, table: str, width: int) -> tuple[str, dict[str, str]]:
        info = islice(self.connection.execute(f"PRAGMA table_info({table})"), width)
        columns = {name: kind for _, name, kind, *_ in info}
        places = ", ".join("CAST(? AS TEXT)" if kind == "TEXT" else "?" for kind in columns.values())
        names = ", ".join(columns)
        return f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({places})", columns  # noqa: S608 - our tables


def _check_event(row: dict[str, Any]) -> None:
    schema.to_event([row[name] for name in schema.EVENT.split(", ")])
    if row["reason"] not in (PARKED, DEAD, SPOOLED, WINDOW) or "\0" in row["service"]:
        raise BrokenRowError("no lane's event")


def _copy_numbers(old: sqlite3.Connection, index: str, copy: sqlite3.Connection) -> bool:
    """Note the numbers that an index names, from both its ends; return whether that is all of them."""
    for direction in ("ASC", "DESC"):
        order = ", ".join(f"{column} {direction}" for column in _INDEXES[index])
        found = _UntilBroken(old, f"SELECT number FROM kept INDEXED BY {index} ORDER BY {order}")  # noqa: S608 - our columns
        copy.executemany("INSERT OR IGNORE INTO named VALUES (?)", found)
        if not found.broken:
            return True
    return False


def _is_named(copy: sqlite3.Connection, number: int) -> bool:
    return copy.execute("SELECT 1 FROM named WHERE number = ?", (number,)).fetchone() is not None


def _last_number(old: sqlite3.Connection) -> int | None:
    """Return the greatest number ever given, where the file tells."""
    for row in _UntilBroken(old, "SELECT seq FROM sqlite_sequence WHERE name = 'kept'"):
        return int(row[0])
    return None


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


def _mend_spools(new: _Copy, *, spools_broken: bool, marks_broken: bool) -> tuple[int | None, bool]:
    """Make the counts of the spools fit the marks; return how many are lost, and whether a position is."""
    copy = new.connection
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
        new.put("spools", (number, sources.get(number, ""), None, 0, 0))
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
    gap: _Ends | None,
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
    first, end = (gap[0] or 0) + 1, last if gap[1] is None else gap[1] - 1
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
