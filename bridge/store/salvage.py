"""A damaged file: what is readable is copied to a new one, and nobody goes on before the loss is accepted.

The steps are such that a crash between any two of them is made good by the next start:
1. rows are copied to `…-partial`;
2. `…-loss` is written: what was lost. It makes every start fail until the loss is accepted;
3. `…-partial` becomes `…-salvaged`: from now on the copy counts;
4. the damaged file and its log are moved aside, and the copy takes its place (`finish`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from bridge.core.errors import StoreError
from bridge.store import schema
from bridge.store.schema import SIDES, VERSION, BrokenRowError, Row

_log = structlog.get_logger(__name__)

_CHECK_SECONDS = 0.5
"""How long a start looks for damage: all of a small file, the first part of a big one."""
_UNKNOWN_TAIL = 100_000
"""How far past the last row known is looked where the file does not tell how many there were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss:
    """What a salvage came to."""

    damage: str
    aside: str
    """Where the damaged file is kept."""
    saved: int
    lost: int
    """Rows that an index of the damaged file names, and that can't be read."""
    suspected: int | None
    """At most so many more may be lost; None where nothing tells."""

    def __str__(self) -> str:
        more = {0: "", None: ", and how many more can't be told"}.get(
            self.suspected, f", and up to {self.suspected} more may be"
        )
        return (
            f"the store was damaged ({self.damage}): {self.saved} events were saved, "
            f"{self.lost} are known to be lost{more}; the damaged file is kept as {self.aside}"
        )


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}-{name}")


def suspect(path: Path) -> None:
    """Remember that the file was found broken while in use: the next start looks at all of it."""
    with suppress(OSError):
        _beside(path, "suspect").touch(mode=0o600)


def check(path: Path, connection: sqlite3.Connection) -> None:
    """Look for damage, as far as there is time. Raises sqlite3.DatabaseError with SQLITE_CORRUPT on it."""
    suspected = _beside(path, "suspect")
    too_long = threading.Timer(_CHECK_SECONDS, connection.interrupt)
    if not suspected.exists():
        too_long.start()
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        too_long.cancel()
        if too_long.ident is not None:
            too_long.join()
    if found != "ok":
        broken = sqlite3.DatabaseError(str(found).replace("\n", ": "))
        broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise broken
    suspected.unlink(missing_ok=True)


def tell(path: Path, *, accept_loss: bool) -> None:
    """Raise StoreError while a loss is not accepted; when it is, log it once and forget it."""
    marker = _beside(path, "loss")
    try:
        text = marker.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    told = "; before that, ".join(str(_Loss(**loss)) for loss in reversed(_losses(text)))
    if not accept_loss:
        raise StoreError(f"{told}. Start with --accept-loss to go on with what was saved")
    _log.error("loss accepted", loss=told)
    marker.unlink()
    _sync(path.parent)


def _losses(text: str) -> list[dict[str, Any]]:
    return list(json.loads(text))


def finish(path: Path) -> None:
    """Put a complete copy in the place of the damaged file, where that was begun."""
    copy = _beside(path, "salvaged")
    if not copy.exists():
        return
    aside = Path(_losses(_beside(path, "loss").read_text(encoding="utf-8"))[-1]["aside"])
    for side in SIDES:
        with suppress(FileNotFoundError):
            moved = Path(f"{path}{side}").rename(f"{aside}{side}")
            moved.chmod(0o600)
    copy.rename(path)
    _sync(path.parent)


def salvage(path: Path, damage: str) -> None:
    """Copy what is readable of the damaged file, and put the copy in its place.

    Raises OSError and sqlite3.Error when the copy can't be written; then all is as before.
    """
    _log.error("the store is damaged: what is readable is saved", damage=damage)
    partial, marker, written = (_beside(path, name) for name in ("partial", "loss", "loss-partial"))
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    try:
        with closing(schema.connect(partial, mode="rw")) as copy:
            # No journal: the copy counts once it is complete and on disk, not before.
            copy.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            schema.upgrade(copy)
            with schema.transaction(copy):
                saved, lost, suspected = _copy(path, copy)
        _sync(partial)
        aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        loss = _Loss(damage=damage, aside=str(aside), saved=saved, lost=lost, suspected=suspected)
        earlier = _losses(marker.read_text(encoding="utf-8")) if marker.exists() else []
        written.touch(mode=0o600)
        written.write_text(json.dumps([*earlier, asdict(loss)]), encoding="utf-8")
        _sync(written)
        written.rename(marker)
        _sync(path.parent)
        partial.rename(_beside(path, "salvaged"))
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
        written.unlink(missing_ok=True)
    finish(path)
    _beside(path, "suspect").unlink(missing_ok=True)


def _copy(path: Path, copy: sqlite3.Connection) -> tuple[int, int, int | None]:
    """Copy the rows; give how many were saved, are lost, and may be lost besides."""
    copy.execute("CREATE TEMP TABLE named (number INTEGER PRIMARY KEY)")
    try:
        with closing(schema.connect(path, mode="ro")) as old:
            # Else SQLite refuses a file that is shorter than its first page says.
            old.execute("PRAGMA writable_schema = ON")
            (version,) = old.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise StoreError(f"the store is damaged, and of version {version}: run the newer bridge")
            kinds = {row[1]: row[2] for row in old.execute("PRAGMA table_info(kept)")}
            if "number" not in kinds:
                return 0, 0, None
            return _copy_from(old, kinds, copy)
    except sqlite3.DatabaseError as error:
        if schema.damaged(error):
            return 0, 0, None
        raise


def _copy_from(
    old: sqlite3.Connection, kinds: dict[str, str], copy: sqlite3.Connection
) -> tuple[int, int, int | None]:
    """Copy the rows, whose columns have the types `kinds`."""
    complete = [_copy_numbers(old, index, copy) for index in ("kept_by_reason", "sqlite_autoindex_kept_1")]
    last = _last_number(old)
    (named,) = copy.execute("SELECT coalesce(max(number), 0) FROM named").fetchone()
    top = max(named, last) if last is not None else named + _UNKNOWN_TAIL

    names = list(kinds)
    columns = ", ".join(names)
    marks = ", ".join("CAST(? AS TEXT)" if kind == "TEXT" else "?" for kind in kinds.values())
    insert = f"INSERT INTO kept ({columns}) VALUES ({marks})"  # noqa: S608 - our columns
    event = [names.index(name) for name in schema.EVENT.split(", ")]
    unreadable: list[tuple[int, int]] = []
    saved = 0
    for row in _rows(old, columns, names.index("number"), top, unreadable):
        try:
            schema.to_event(tuple(row[place] for place in event))
            copy.execute(insert, _bound(row))
            saved += 1
        except (BrokenRowError, TypeError, sqlite3.IntegrityError):  # read, but no longer what was written
            number = row[names.index("number")]
            unreadable.append((number, number))
    _copy_generations(old, copy)
    copy.execute("DELETE FROM sqlite_sequence WHERE name = 'kept'")
    copy.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('kept', ?)", (top,))

    (lost,) = copy.execute(
        "SELECT count(*) FROM named WHERE number NOT IN (SELECT number FROM kept)"
    ).fetchone()
    if any(complete):
        return saved, lost, 0
    if last is None:
        return saved, lost, None
    suspected = sum(end - begin + 1 for begin, end in unreadable)
    return saved, lost, suspected - lost


def _copy_numbers(old: sqlite3.Connection, index: str, copy: sqlite3.Connection) -> bool:
    """Note the numbers that an index names, from both its ends; tell whether that is all of them."""
    for direction in ("ASC", "DESC"):
        order = ", ".join(
            f"{column} {direction}"
            for column in (
                ("reason", "service") if index == "kept_by_reason" else ("source", "id", "service")
            )
        )
        found = _until_broken(old, f"SELECT number FROM kept INDEXED BY {index} ORDER BY {order}", ())  # noqa: S608 - our columns
        copy.executemany("INSERT OR IGNORE INTO named VALUES (?)", found)
        if not found.broken:
            return True
    return False


def _last_number(old: sqlite3.Connection) -> int | None:
    """Give the greatest number ever given, as far as the file tells."""
    for query in (
        "SELECT seq FROM sqlite_sequence WHERE name = 'kept'",
        "SELECT number FROM kept NOT INDEXED ORDER BY number DESC LIMIT 1",
    ):
        for row in _until_broken(old, query, ()):
            return int(row[0])
    return None


def _copy_generations(old: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    for direction in ("ASC", "DESC"):
        query = f"SELECT * FROM generations ORDER BY source {direction}, id {direction}, service {direction}"  # noqa: S608 - our columns
        for row in _until_broken(old, query, ()):
            with suppress(sqlite3.IntegrityError, sqlite3.ProgrammingError):  # there already, or garbage
                copy.execute(
                    "INSERT OR IGNORE INTO generations VALUES "
                    "(CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)",
                    _bound(row),
                )


def _bound(row: Row) -> Row:
    return tuple(schema.raw(value) if isinstance(value, str) else value for value in row)


def _rows(
    old: sqlite3.Connection, columns: str, at: int, top: int, unreadable: list[tuple[int, int]]
) -> Iterator[Row]:
    """Give every row that can be read: each range from both its ends, then its halves likewise.

    `at` is the place of the number among `columns`; `unreadable` takes the ranges of the others.
    """
    select = f"SELECT {columns} FROM kept NOT INDEXED WHERE number"  # noqa: S608 - our columns
    ranges = [(1, top)]
    while ranges:
        begin, end = ranges.pop()
        if begin == end:  # `=` looks no further than the row itself
            found = _until_broken(old, f"{select} = ?", (begin,))
            yield from found
            if found.broken:
                unreadable.append((begin, end))
            continue
        found = _until_broken(old, f"{select} BETWEEN ? AND ? ORDER BY number", (begin, end))
        for row in found:
            begin = row[at] + 1
            yield row
        if not found.broken:
            continue
        found = _until_broken(old, f"{select} BETWEEN ? AND ? ORDER BY number DESC", (begin, end))
        for row in found:
            end = row[at] - 1
            yield row
        if found.broken and begin <= end:
            middle = (begin + end) // 2
            ranges += [(middle + 1, end), (begin, middle)] if begin < end else [(begin, end)]


class _until_broken:  # noqa: N801 - reads as the function it is, with one result more
    """Rows of a damaged file up to the first that can't be read; `broken` tells then that there was one."""

    def __init__(self, old: sqlite3.Connection, query: str, parameters: Row) -> None:
        self.broken = False
        self._rows = self._read(old, query, parameters)

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def _read(self, old: sqlite3.Connection, query: str, parameters: Row) -> Iterator[Row]:
        try:
            yield from old.execute(query, parameters)
        except (sqlite3.Error, BrokenRowError):
            self.broken = True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
