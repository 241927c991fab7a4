"""The one thread that writes to the store: in groups, each durable before anyone is told."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import structlog

from bridge.core.errors import StoreError, StoreFullError
from bridge.store import changes, salvage, schema, spooled, windows
from bridge.store.ages import Ages
from bridge.store.budget import Budget
from bridge.store.changes import Change, Keep
from bridge.store.clock import Clock, newest_seen
from bridge.store.config import StoreConfig
from bridge.store.directory import claim
from bridge.store.expiry import Expiry
from bridge.store.schema import SIDES, VERSION, BrokenRowError
from bridge.store.spooled import Done

_log = structlog.get_logger(__name__)

GROUP_ITEMS = 1024
_GROUP_BYTES = 16 * 2**20
"""What one transaction holds at most; one event is always let in."""
_PROBE_SECONDS = 1.0
"""Between looks at whether a store in trouble can be written again."""
_LOOK_SECONDS = 600.0
"""Between looks around while nothing is to be done."""
_WAL_BYTES = 64 * 2**20
"""A write-ahead log above this is brought into the file even if readers must be waited for."""
_DISK_BYTES = 2**20
"""Left free on the disk, for what takes away: it is written to the log too."""
_FOR_LETTERS = 16
"""One part in so many of the budget is for dead letters alone: what waits for a dead service leaves room for
what the others reject."""
_CHECKPOINT_MILLISECONDS = 100
"""How long readers are waited for then."""

Answer = tuple["asyncio.Future[Any]", object]
"""A future with its result, or the exception it raises."""


@dataclass(slots=True, eq=False)
class Work:
    """A transaction of its own, and who waits for what it returns."""

    call: Callable[[sqlite3.Connection], tuple[Any, Change]]
    done: asyncio.Future[Any]
    size: int
    """About how many bytes it adds."""


class Writer:
    """Owns the state directory and the file from `start` to the end of the thread.

    It takes from `queue`: events to keep, numbers to forget and occurrences that are done, some at once, a
    command's or a spool's work; None ends it, once all before it is written. What happened goes to `heard`
    on the loop. A defect that ends the thread goes to `broke` there, with all who still wait: nothing more is
    taken then.
    """

    def __init__(
        self,
        state_dir: Path,
        config: StoreConfig,
        heard: Callable[[Change, Sequence[Answer]], object],
        broke: Callable[[Exception, Sequence[asyncio.Future[Any]]], object],
        *,
        accept_loss: bool,
    ) -> None:
        self._state_dir = state_dir
        self._path = state_dir / schema.FILE
        self._config = config
        self._heard = heard
        self._broke = broke
        self._accept_loss = accept_loss
        self._loop = asyncio.get_running_loop()
        self.queue: SimpleQueue[Keep | tuple[int | Done, ...] | Work | None] = SimpleQueue()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.clock = Clock(0.0)
        """Made anew when the file is opened."""
        self.closed = asyncio.Event()
        self.closing = False
        """Set by the loop before None goes into the queue."""
        self.trouble: str | None = None
        """Why the last write failed."""
        self.writing_since: float | None = None
        """Monotonic time at which the write under way began."""
        self.bytes = 0
        """On the disk."""
        self._used = self._wal_bytes = self._reusable = 0
        self._disk = 0
        """Bytes of new rows that the disk has room for, as last measured."""
        limit = f"is at its limit of {_size(config.max_bytes)} (store.max_bytes)"
        self._for_letters = Budget(config.max_bytes, limit, "nothing more is kept")
        self._for_events = Budget(
            config.max_bytes - config.max_bytes // _FOR_LETTERS,
            f"{limit}, but for what is kept free for dead letters",
            "no more events are kept",
        )
        self._taken: list[Keep | tuple[int | Done, ...] | Work] = []
        """What this turn took from the queue."""
        self._ended = False
        self._forgets: list[int | Done] = []
        """Which could not be written: again with the next group."""
        self._expiry = Expiry(config.keep_dead_for)
        self._checkpoint_at = monotonic()
        self._ages = Ages()
        """Begun anew with each connection, since what it saw of a transaction that failed never was."""
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        # Not a daemon thread: should the loop go first, the interpreter waits for what is being written.
        self.thread = threading.Thread(target=self._run, name="store")

    @property
    def full(self) -> str | None:
        """That the budget is reached: for all that is kept, or for all but dead letters."""
        return self._for_letters.refusal or self._for_events.refusal

    @property
    def used(self) -> int:
        """Bytes that rows take in the file. What the log takes beside it is free again when room is short."""
        return self._used - self._wal_bytes

    def _run(self) -> None:
        try:
            with ExitStack() as held:
                held.callback(os.close, claim(self._state_dir))
                held.callback(self._disconnect)
                self._tell(self._start(), [(self.opened, None)])
                while not self._ended:
                    self._turn()
                if self._forgets:
                    _log.error("accepted events stay kept and will be attempted again", reason=self.trouble)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            with suppress(RuntimeError):  # the loop was closed before the store: nobody waits
                self._loop.call_soon_threadsafe(self._end_by, error)
        finally:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.closed.set)

    def _end_by(self, error: Exception) -> None:
        """On the loop: what the start ran into is raised by `Store.open`, anything later is a defect."""
        if not self.opened.done():
            self.opened.set_exception(error)
        elif not self.opened.cancelled():
            left = self._taken
            with suppress(Empty):
                while (item := self.queue.get_nowait()) is not None:
                    left.append(item)
            self._broke(error, [item.done for item in left if isinstance(item, Keep | Work)])

    def _tell(self, change: Change, answers: Sequence[Answer]) -> None:
        with suppress(RuntimeError):  # the loop was closed before the store: nobody waits
            self._loop.call_soon_threadsafe(self._heard, change, answers)

    def _start(self) -> Change:
        try:
            salvage.finish(self._path)
            try:
                change = self._open()
            except (sqlite3.Error, BrokenRowError) as error:
                if not schema.damaged(error):
                    raise
                self._disconnect()
                salvage.salvage(self._path, str(error))
                change = self._open()
            salvage.tell(self._path, accept_loss=self._accept_loss)
            self._measure()
        except OSError as error:
            raise StoreError(f"the store {self._path} can't be written: {error.strerror}") from error
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} can't be used: {error}") from error
        return change

    def _open(self) -> Change:
        self._path.touch(mode=0o600)
        for side in SIDES:  # SQLite makes the two others with the mode of the first
            with suppress(FileNotFoundError):
                Path(f"{self._path}{side}").chmod(0o600)
        connection = self._connect()
        salvage.check(self._path, connection)
        schema.upgrade(connection)
        self.clock = Clock(newest_seen(connection))
        change = changes.totals(connection)
        self._ages.look(connection, change)
        spooled.totals(connection, change)
        windows.totals(connection, change)
        return change

    # One turn

    def _turn(self) -> None:
        group, work = self._gather()
        # What was forgotten before a work must be gone before it: it may keep the same again.
        failure = self._keep(group) if group else None
        if work is not None and failure is not None:
            self._tell(Change(), [(work.done, failure)])
        elif work is not None:
            self._do(work)
        if self.trouble is not None and not group and work is None:
            self._attempt(self._probe)
        if self.trouble is None and monotonic() >= self._expiry.due and not self._ended:
            self._attempt(self._expire)
        if self.trouble is None:
            self._attempt(self._look_around)

    def _look_around(self) -> None:
        self._measure()
        if self._wal_bytes > _WAL_BYTES and monotonic() >= self._checkpoint_at:
            self._checkpoint_at = monotonic() + _PROBE_SECONDS
            self._checkpoint()
        for budget in (self._for_letters, self._for_events):
            if budget.refusal is not None:
                budget.look(self._used + self._left(budget), partial(self._room, budget))

    def _gather(self) -> tuple[list[Keep | int | Done], Work | None]:
        """Wait for something to do, and take all that waits with it; nothing if it is time to look around."""
        group: list[Keep | int | Done] = list(self._forgets)
        self._taken = []
        pause = _PROBE_SECONDS if self.trouble or self.full or self._forgets else _LOOK_SECONDS
        until = monotonic() + pause
        if self.trouble is None:
            until = min(until, self._expiry.due)
        size, urgent = 0, False
        while len(group) < GROUP_ITEMS + len(self._forgets) and size < _GROUP_BYTES:
            try:
                item = self.queue.get(not urgent, None if urgent else max(0.0, until - monotonic()))
            except Empty:
                break
            if item is None:
                self._ended = True
                break
            self._taken.append(item)
            if isinstance(item, Work):
                return group, item
            if isinstance(item, Keep):
                urgent = True
                size += item.size
                group.append(item)
            else:
                urgent = urgent or not self._forgets  # else they go with those, when it is time to try again
                group += item
        return group, None

    def _keep(self, group: Sequence[Keep | int | Done]) -> StoreError | None:
        """Write a group; give what went wrong."""
        keeps = [item for item in group if isinstance(item, Keep)]
        wanted = [item for item in group if not (isinstance(item, Keep) and item.done.cancelled())]
        written: list[tuple[Change, Collection[Keep]]] = []
        failure = self._attempt(lambda: written.append(self._commit(wanted)))
        if failure is not None:
            self._forgets = [item for item in group if not isinstance(item, Keep)]
            self._tell(Change(), [(keep.done, failure) for keep in keeps])
            return failure
        self._forgets = []
        ((change, refused),) = written
        self._tell(change, [(keep.done, self._refuse(keep) if keep in refused else None) for keep in keeps])
        return None

    def _refuse(self, keep: Keep) -> StoreFullError:
        budget = self._for_letters if keep.is_letter else self._for_events
        budget.refuse(self._path, keep.size)
        return StoreFullError(budget.refusal)

    def _commit(self, group: Sequence[Keep | int | Done]) -> tuple[Change, Collection[Keep]]:
        connection = self._ready()
        keeps = [item for item in group if isinstance(item, Keep)]
        letters_alone = all(keep.is_letter for keep in keeps)
        budget = self._for_letters if letters_alone else self._for_events
        of_events = self._room(budget, sum([keep.size for keep in keeps]))
        room = max(0, self._for_letters.left(self._used, self._disk))
        with schema.transaction(connection):
            events = [item for item in group if not isinstance(item, Done)]
            change, refused = changes.write(connection, events, room, room - of_events)
            spooled.finish(connection, [item for item in group if isinstance(item, Done)], change)
            self._ages.look(connection, change)
        return change, refused

    def _do(self, work: Work) -> None:
        done: list[tuple[object, Change]] = []

        def call() -> None:
            connection = self._ready()
            budget = self._for_events
            if work.size and self._room(budget, work.size) < work.size:
                budget.refuse(self._path, work.size)
                done.append((StoreFullError(budget.refusal), Change()))
                return
            with schema.transaction(connection):
                result = work.call(connection)
                self._ages.look(connection, result[1])
            done.append(result)

        failure = self._attempt(call)
        if failure is not None:
            self._tell(Change(), [(work.done, failure)])
        else:
            ((result, change),) = done
            self._tell(change, [(work.done, result)])

    def _probe(self) -> None:
        """Do all that a write needs, so that what is in its way is told until it is gone."""
        self._disk_left()
        self._ready().execute(f"PRAGMA user_version = {VERSION}")

    def _expire(self) -> None:
        change = self._expiry.expire(self._ready())
        if change is not None:
            self._tell(change, ())

    def _attempt(self, call: Callable[[], object]) -> StoreError | None:
        """Call what writes; give what went wrong. Another program that holds the file is waited for."""
        while True:
            self.writing_since = monotonic()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                self.trouble = f"{self._path} can't be written: {error}"
                if schema.primary_code(error) == sqlite3.SQLITE_BUSY and not self.closing:
                    continue  # it took longer than the timeout of `connect`
                if schema.damaged(error):
                    salvage.suspect(self._path)
                self._disconnect()
                return StoreError(self.trouble)
            finally:
                self.writing_since = None
            self.trouble = None
            return None

    # The file

    def _ready(self) -> sqlite3.Connection:
        connection = self._connection or self._connect_again()
        if self._path.stat().st_ino != self._inode:
            raise StoreError("another file took its place")
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = self._connection = schema.connect(self._path, mode="rw")
        self._inode = self._path.stat().st_ino
        self._ages = Ages()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        connection.execute("PRAGMA secure_delete = OFF")  # zeros would be written over all that is accepted
        return connection

    def _connect_again(self) -> sqlite3.Connection:
        """Connect after a failure, and begin the log anew.

        What a failed fsync has left in the log may never reach the disk, though it can be read and a later
        fsync is good (https://wiki.postgresql.org/wiki/Fsync_Errors): nothing may be written behind it.
        """
        connection = self._connect()
        if not self._checkpoint():
            raise StoreError("its log is being read and can't be emptied yet")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _room(self, budget: Budget, wanted: int) -> int:
        """Give the bytes that `budget` has for new rows, having made room where that is possible."""
        if self._left(budget) < wanted:
            self._checkpoint()
            self._measure()
        return max(0, self._left(budget))

    def _left(self, budget: Budget) -> int:
        self._disk = self._disk_left()
        return budget.left(self._used, self._disk)

    def _disk_left(self) -> int:
        """Give the bytes of new rows that the disk has room for, in pages of the file that are free or new.

        What is in the log will take its place in the file too. On a disk that is full to the last byte it
        never could, and nothing could be taken away any more: it would stay full until a person makes room.
        """
        disk = os.statvfs(self._path.parent)
        free = disk.f_bavail * disk.f_frsize - self._wal_bytes - _DISK_BYTES
        # A row takes twice its bytes in whole pages of the log, and as much of the file where none are free.
        return min(free // 2, (free + self._reusable) // 4)

    def _measure(self) -> None:
        """Count the pages in use, and the log: deleted pages are written again before the file grows."""
        pages, free, size = (
            self._ready()
            .execute("SELECT * FROM pragma_page_count, pragma_freelist_count, pragma_page_size")
            .fetchone()
        )
        self._wal_bytes = 0
        with suppress(FileNotFoundError):
            self._wal_bytes = Path(f"{self._path}-wal").stat().st_size
        self._used = (pages - free) * size + self._wal_bytes
        self._reusable = free * size
        self.bytes = pages * size + self._wal_bytes

    def _checkpoint(self) -> bool:
        """Bring the log into the file and empty it, unless a reader that is slow needs it: then False."""
        connection = self._ready()
        (timeout,) = connection.execute("PRAGMA busy_timeout").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_MILLISECONDS}")
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute(f"PRAGMA busy_timeout = {timeout}")
        return not busy


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
