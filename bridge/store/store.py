"""What is kept on this machine's disk: durable before anything settles, by one writer thread."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVarTuple

from bridge.core.errors import StoreError
from bridge.core.ports import DeadLetter
from bridge.store import schema
from bridge.store.directory import claim
from bridge.telemetry.metrics import Metrics

_Ts = TypeVarTuple("_Ts")

_WAITING = 4096
"""Letters taken before a further `bury` waits for room."""
_GROUP_LETTERS = 1024
_GROUP_BYTES = 16 * 2**20
"""What one transaction holds at most; one letter is always let in."""
_CHECK_SECONDS = 0.5
"""How long the start looks for damage: all of a small file, the first part of a big one."""


@dataclass(slots=True, eq=False)
class _Waiting:
    letter: DeadLetter
    row: schema.Row
    done: asyncio.Future[None]


class Store:
    """The kept events. Made by `Store.open`, which holds the state directory for this process alone."""

    def __init__(self, state_dir: Path, metrics: Metrics) -> None:
        self._state_dir = state_dir
        self._path = state_dir / schema.FILE
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._closing = False
        self._room = asyncio.Semaphore(_WAITING)
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._trouble: str | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        # Not a daemon thread: should the loop go first, the interpreter waits for what is being written.
        self._thread = threading.Thread(target=self._run, name="store")

    @classmethod
    @asynccontextmanager
    async def open(cls, state_dir: Path, metrics: Metrics) -> AsyncIterator[Store]:
        """Own the store in `state_dir`, made where it is missing.

        Leaving writes what was taken, closes, and frees the directory. Raises StoreLockedError when
        another process has it, StoreError when it can't be written, is damaged, is newer than this
        bridge, or lies on a network file system.
        """
        store = cls(state_dir, metrics)
        store._thread.start()
        try:
            await store._opened
            yield store
        finally:
            store._closing = True
            store._queue.put(None)
            await store._closed.wait()
            store._thread.join()

    async def bury(self, letter: DeadLetter) -> None:
        """Return when `letter` is on disk; the same event for the same service again stays one row.

        Raises StoreError when it is not on disk; a later call tries anew. Cancelling leaves open whether
        it was written.
        """
        row = schema.to_row(letter)
        await self._room.acquire()
        if self._closing:
            self._room.release()
            raise StoreError("the store is closed")
        waiting = _Waiting(letter, row, self._loop.create_future())
        self._queue.put(waiting)
        await waiting.done

    def problems(self) -> list[str]:
        """Tell why the last write failed; empty when it did not."""
        trouble = self._trouble
        return [] if trouble is None else [trouble]

    # The loop's side of the writer's answers.

    def _written(self, group: Sequence[_Waiting], error: StoreError | None) -> None:
        for waiting in group:
            self._room.release()
            _answer(waiting.done, error)

    # The writer thread's side.

    def _run(self) -> None:
        try:
            with ExitStack() as held:
                held.callback(os.close, claim(self._state_dir))
                held.callback(self._disconnect)
                self._start()
                self._tell(_answer, self._opened, None)
                while group := self._next_group():
                    self._keep(group)
        except Exception as error:  # noqa: BLE001 - whatever the start ran into is raised by `open`
            self._tell(_answer, self._opened, error)
        finally:
            self._tell(self._closed.set)

    def _tell(self, call: Callable[[*_Ts], object], *arguments: *_Ts) -> None:
        with suppress(RuntimeError):  # the loop was closed before the store: nobody waits
            self._loop.call_soon_threadsafe(call, *arguments)

    def _start(self) -> None:
        try:
            self._path.touch(mode=0o600)
            for suffix in ("", "-wal", "-shm"):  # SQLite makes the two others with the mode of the first
                with suppress(FileNotFoundError):
                    Path(f"{self._path}{suffix}").chmod(0o600)
            connection = self._connect()
            if damage := _damage(connection):
                raise StoreError(f"the store {self._path} is damaged: {damage}")
            schema.upgrade(connection)
            for service, cause, count in connection.execute(schema.COUNT_DEAD):
                self._metrics.dead_letters.labels(service, cause).set(count)
        except OSError as error:
            raise StoreError(f"the store {self._path} can't be written: {error.strerror}") from error
        except sqlite3.Error as error:
            raise StoreError(f"the store {self._path} can't be used: {error}") from error
        self._measure()

    def _next_group(self) -> list[_Waiting]:
        """Wait for a letter and take all that wait with it; empty when the store closes."""
        group: list[_Waiting] = []
        size = 0
        with suppress(Empty):
            while len(group) < _GROUP_LETTERS and size < _GROUP_BYTES:
                waiting = self._queue.get(block=not group)
                if waiting is None:
                    self._queue.put(None)  # nothing comes after it: the next group is the empty one
                    break
                group.append(waiting)
                size += len(waiting.letter.event.data)
        return group

    def _keep(self, group: Sequence[_Waiting]) -> None:
        wanted = [waiting for waiting in group if not waiting.done.cancelled()]
        failure: StoreError | None = None
        while True:
            try:
                self._commit(wanted)
                self._trouble = None
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                self._trouble = f"{self._path} can't be written: {error}"
                if _busy(error) and not self._closing:
                    continue  # another program holds it for longer than the timeout of `connect`
                self._disconnect()
                failure = StoreError(self._trouble)
            break
        self._measure()
        self._tell(self._written, group, failure)

    def _commit(self, group: Sequence[_Waiting]) -> None:
        connection = self._connection or self._connect()
        if self._path.stat().st_ino != self._inode:
            raise StoreError("another file took its place")
        changes: Counter[tuple[str, str]] = Counter()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for waiting in group:
                letter = waiting.letter
                if before := connection.execute(schema.FIND_CAUSE, waiting.row[:3]).fetchone():
                    changes[letter.service, before[0]] -= 1
                connection.execute(schema.BURY, waiting.row)
                changes[letter.service, letter.cause] += 1
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.rollback()
        for labels, change in changes.items():
            self._metrics.dead_letters.labels(*labels).inc(change)

    def _connect(self) -> sqlite3.Connection:
        connection = self._connection = schema.connect(self._path, mode="rw")
        self._inode = self._path.stat().st_ino
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _measure(self) -> None:
        size = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                size += Path(f"{self._path}{suffix}").stat().st_size
        self._metrics.store_bytes.set(size)


def _answer(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def _damage(connection: sqlite3.Connection) -> str:
    """Say what is broken in the file, as far as that is found in the time there is; empty when nothing is."""
    too_long = threading.Timer(_CHECK_SECONDS, connection.interrupt)
    too_long.start()
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return ""
    finally:
        too_long.cancel()
        too_long.join()
    return "" if found == "ok" else str(found)
