"""A damaged file: what is readable is copied to a new one, and nobody goes on before the loss is accepted.

The steps are such that a crash between any two of them is made good by the next start:
1. rows are copied to `…-partial`;
2. `…-loss` is written: what was lost. It makes every start fail until the loss is accepted;
3. `…-partial` becomes `…-salvaged`: from now on the copy counts;
4. the damaged file and its log are moved aside, and the copy takes its place (`finish`).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

import bridge.store.migrations as migrations
import bridge.store.schema as schema
from bridge.core.errors import StoreError
from bridge.store.directory import replace, sync
from bridge.store.rescue import Rescued, rescue
from bridge.store.schema import SIDES

_log = structlog.get_logger(__name__)

_CHECK_SECONDS = 0.5
"""How long a start looks for damage: all of a small file, the first part of a big one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loss(Rescued):
    """A salvage, as it is told."""

    damage: str
    aside: str
    """Where the damaged file is kept."""

    def __str__(self) -> str:
        more = {0: "", None: ", and how many more can't be told"}.get(
            self.suspected, f", and up to {self.suspected} more may be"
        )
        return (
            f"the store was damaged ({self.damage}): {self.saved} events were saved, "
            f"{self.lost} are known to be lost{more}; {self._of_streams()}"
            f"the damaged file is kept as {self.aside}"
        )

    def _of_streams(self) -> str:
        told = "the position of a stream is lost; " if self.positions_lost else ""
        if self.marks_lost != 0:
            count = "how many can't be told" if self.marks_lost is None else str(self.marks_lost)
            told += f"versions that had entered are forgotten ({count}) and may enter again; "
        return told


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}-{name}")


def suspect(path: Path) -> None:
    """Remember that the file was found broken while in use: the next start looks at all of it."""
    with suppress(OSError):
        _beside(path, "suspect").touch(mode=0o600)


def check(path: Path, connection: sqlite3.Connection) -> None:
    """Look for damage, as far as there is time; for one that was found in use, at every row.

    Raises sqlite3.DatabaseError and BrokenRowError for which `schema.damaged` is true.
    """
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
    if suspected.exists():
        for row in connection.execute(f"SELECT {schema.EVENT} FROM kept"):  # noqa: S608 - our columns
            schema.to_event(row)
        suspected.unlink()


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
    sync(path.parent)


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
            beside = Path(f"{path}{side}")
            if beside.stat().st_size and side != "-shm":  # which SQLite makes anew from the log
                beside.rename(f"{aside}{side}").chmod(0o600)
            else:
                beside.unlink()
    copy.rename(path)
    sync(path.parent)


def salvage(path: Path, damage: str) -> None:
    """Copy what is readable of the damaged file, and put the copy in its place.

    Raises OSError, sqlite3.Error and StoreError when the copy can't be written; then all is as before.
    """
    _log.error("the store is damaged: what is readable is saved", damage=damage)
    partial, marker = _beside(path, "partial"), _beside(path, "loss")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    try:
        with closing(schema.connect(partial, mode="rw")) as copy:
            # No journal: the copy counts once it is complete and on disk, not before.
            copy.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            migrations.upgrade(copy)
            with schema.transaction(copy):
                found = rescue(path, copy)
        sync(partial)
        aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        loss = _Loss(damage=damage, aside=str(aside), **asdict(found))
        earlier = _losses(marker.read_text(encoding="utf-8")) if marker.exists() else []
        replace(marker, json.dumps([*earlier, asdict(loss)]))
        partial.rename(_beside(path, "salvaged"))
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    finish(path)
    _beside(path, "suspect").unlink(missing_ok=True)
