"""The store's one file as the writing thread has it: opened, measured, and room made in it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

import bridge.store.changes as changes
import bridge.store.migrations as migrations
import bridge.store.salvage as salvage
import bridge.store.schema as schema
import bridge.store.spool_rows as spool_rows
import bridge.store.window_rows as window_rows
from bridge.core.errors import StoreError
from bridge.store.ages import Ages
from bridge.store.budget import Budget
from bridge.store.changes import Change
from bridge.store.clock import Clock, newest_seen
from bridge.store.schema import SIDES, BrokenRowError

_WAL_BYTES = 64 * 2**20
"""A write-ahead log above this is brought into the file even if readers must be waited for."""
_CHECKPOINT_SECONDS = 1.0
"""Between two tries of that."""
_CHECKPOINT_MILLISECONDS = 100
"""How long readers are waited for then."""
_DISK_BYTES = 2**20
"""Left free on the disk, for what takes away: it is written to the log too."""
_FOR_LETTERS = 16
"""One part in so many of the budget is for dead letters alone: what waits for a dead service leaves room for
what the others reject."""


class StoreFile:
    """The connection that writes, the bytes that the file takes, and those that it may take.

    A call may take as long as the disk does. Those that reach the file raise sqlite3.Error, OSError and
    StoreError; `failed` makes the next one begin anew.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.connection: sqlite3.Connection | None = None
        self.clock = Clock(0.0)
        """Made anew when the file is opened."""
        self.ages = Ages()
        """Begun anew with each connection, since what it saw of a transaction that failed never was."""
        self.bytes = 0
        """On the disk."""
        limit = f"is at its limit of {_size(max_bytes)} (store.max_bytes)"
        self.for_letters = Budget(max_bytes, limit, "nothing more is kept")
        self.for_events = Budget(
            max_bytes - max_bytes // _FOR_LETTERS,
            f"{limit}, but for what is kept free for dead letters",
            "no more events are kept",
        )
        self._inode = 0
        self._used = self._wal_bytes = self._reusable = 0
        self._disk = 0
        """Bytes of new rows that the disk has room for, as last measured."""
        self._checkpoint_at = monotonic()

    # Opening

    def open(self, *, accept_loss: bool) -> Change:
        """Open the file, made where it is missing, and return what is in it.

        What is readable of a damaged one is saved first; then StoreError tells what was lost, at every start
        until `accept_loss`. Raise StoreError when it can't be used.
        """
        try:
            salvage.finish(self.path)
            try:
                change = self._open()
            except (sqlite3.Error, BrokenRowError) as error:
                if not schema.damaged(error):
                    raise
                self.close()
                salvage.salvage(self.path, str(error))
                change = self._open()
            salvage.tell(self.path, accept_loss=accept_loss)
            self._measure()
        except OSError as error:
            raise StoreError(f"the store {self.path} can't be written: {error.strerror}") from error
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} can't be used: {error}") from error
        return change

    def _open(self) -> Change:
        self.path.touch(mode=0o600)
        for side in SIDES:  # SQLite makes the two others with the mode of the first
            with suppress(FileNotFoundError):
                Path(f"{self.path}{side}").chmod(0o600)
        connection = self.connect()
        salvage.check(self.path, connection)
        migrations.upgrade(connection)
        self.clock = Clock(newest_seen(connection))
        change = changes.totals(connection)
        self.ages.look(connection, change)
        spool_rows.totals(connection, change)
        window_rows.totals(connection, change)
        return change

    def connect(self) -> sqlite3.Connection:
        """Make the connection that `ready` returns from now on."""
        connection = self.connection = schema.connect(self.path, mode="rw")
        self._inode = self.path.stat().st_ino
        self.ages = Ages()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = OFF")  # zeros would be written over all that is accepted
        return connection

    def ready(self) -> sqlite3.Connection:
        """Return the connection, made anew after a failure."""
        connection = self.connection or self._connect_again()
        if self.path.stat().st_ino != self._inode:
            raise StoreError("another file took its place")
        return connection

    def _connect_again(self) -> sqlite3.Connection:
        """Connect after a failure, and begin the log anew.

        What a failed fsync has left in the log may never reach the disk, though it can be read and a later
        fsync is good (https://wiki.postgresql.org/wiki/Fsync_Errors): nothing may be written behind it.
        """
        connection = self.connect()
        if not self._checkpoint():
            raise StoreError("its log is being read and can't be emptied yet")
        return connection

    def failed(self, error: Exception) -> None:
        """Hear that a write raised `error`: the next one gets another connection."""
        if schema.damaged(error):
            salvage.suspect(self.path)
        self.close()

    def probe(self) -> None:
        """Do all that a write needs, so that what is in its way is told until it is gone."""
        self._disk_left()
        self.ready().execute(f"PRAGMA user_version = {migrations.VERSION}")

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    # Room

    @property
    def full(self) -> str | None:
        """That the budget is reached: for all that is kept, or for all but dead letters."""
        return self.for_letters.refusal or self.for_events.refusal

    @property
    def used(self) -> int:
        """Bytes that rows take in the file. What the log takes beside it is free again when room is short."""
        return self._used - self._wal_bytes

    def look_around(self) -> None:
        """Measure, empty a log that has grown, and no longer refuse what has room again."""
        self._measure()
        if self._wal_bytes > _WAL_BYTES and monotonic() >= self._checkpoint_at:
            self._checkpoint_at = monotonic() + _CHECKPOINT_SECONDS
            self._checkpoint()
        for budget in (self.for_letters, self.for_events):
            if budget.refusal is not None:
                budget.look(self._used + self._left(budget), partial(self.room, budget))

    def room(self, budget: Budget, wanted: int) -> int:
        """Return the bytes that `budget` has for new rows, having made room where that is possible."""
        if self._left(budget) < wanted:
            self._checkpoint()
            self._measure()
        return max(0, self._left(budget))

    def room_for_letters(self) -> int:
        """Return the bytes that dead letters may take, by the disk as it was when last asked."""
        return max(0, self.for_letters.left(self._used, self._disk))

    def _left(self, budget: Budget) -> int:
        self._disk = self._disk_left()
        return budget.left(self._used, self._disk)

    def _disk_left(self) -> int:
        """Return the bytes of new rows that the disk has room for, in pages of the file that are free or new.

        What is in the log will take its place in the file too. On a disk that is full to the last byte it
        never could, and nothing could be taken away any more: it would stay full until a person makes room.
        """
        disk = os.statvfs(self.path.parent)
        free = disk.f_bavail * disk.f_frsize - self._wal_bytes - _DISK_BYTES
        # A row takes twice its bytes in whole pages of the log, and as much of the file where none are free.
        return min(free // 2, (free + self._reusable) // 4)

    def _measure(self) -> None:
        """Count the pages in use, and the log: deleted pages are written again before the file grows."""
        pages, free, size = (
            self.ready()
            .execute("SELECT * FROM pragma_page_count, pragma_freelist_count, pragma_page_size")
            .fetchone()
        )
        self._wal_bytes = 0
        with suppress(FileNotFoundError):
            self._wal_bytes = Path(f"{self.path}-wal").stat().st_size
        self._used = (pages - free) * size + self._wal_bytes
        self._reusable = free * size
        self.bytes = pages * size + self._wal_bytes

    def _checkpoint(self) -> bool:
        """Bring the log into the file and empty it, unless a reader that is slow needs it: then False."""
        connection = self.ready()
        (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_MILLISECONDS}")
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {timeout}")
        return not busy


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
