"""How all parts of a store reach its file: by a thread that writes, and one that reads."""

from __future__ import annotations

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn, TypeVar

import structlog

from bridge.core.errors import StoreError
from bridge.store.changes import Change, Done, Keep
from bridge.store.config import StoreConfig
from bridge.store.reader import Reader
from bridge.store.schema import FILE, Row
from bridge.store.writer import GROUP_ITEMS, Answer, Work, Writer

_T = TypeVar("_T")
_CLOSE_SECONDS = 5.0
"""For the read that is under way when the store closes."""
_GATHER_SECONDS = 0.1
"""How long what is done with waits for others to be taken away with."""
_HANG_SECONDS = 20.0
"""How long one transaction, or one question, may be under way before it is a problem to be told."""
_log = structlog.get_logger(__name__)


def _hang(what: str, since: float | None) -> str | None:
    if since is None or (seconds := monotonic() - since) < _HANG_SECONDS:
        return None
    return f"the disk does not answer: a {what} has been under way for {seconds:.0f} s"


class Access(ABC):
    """What holds the state directory for this process alone, and answers whoever waits for its file.

    One thread writes, another reads: SQLite's write-ahead log keeps them out of each other's way.
    """

    def __init__(self, state_dir: Path, config: StoreConfig, *, accept_loss: bool) -> None:
        self._path = state_dir / FILE
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(state_dir, config, self._heard, self._broke, accept_loss=accept_loss)
        self._reader = Reader(self._path)
        self._over: str | None = None
        """Why nothing more is taken: closed, or broken by a defect."""
        self._broken = asyncio.Event()
        self._going: list[int | Done] = []
        """What is done with, and not yet handed to the writing thread."""
        self._handing_over: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """Own the file while inside; leaving writes what was taken."""
        writer = self._writer
        writer.thread.start()
        try:
            await writer.opened
            yield
        finally:
            self._hand_over()
            self._over, writer.closing = self._over or "the store is closed", True
            writer.queue.put(None)
            stopped = self._reader.stop()
            await writer.closed.wait()
            writer.thread.join()
            # A disk that hangs under a read may keep its thread for ever, but not who closes.
            await asyncio.wait([stopped], timeout=_CLOSE_SECONDS)

    # What is asked of the file

    async def read(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        """Have the reading thread ask the file. Raises StoreError."""
        if self._over is not None:
            raise StoreError(self._over)
        return await self._reader.ask(question)

    async def write(self, call: Callable[[sqlite3.Connection], tuple[_T, Change]], size: int = 0) -> _T:
        """Have the writing thread make one transaction of `call`; return what that did once it is on disk.

        Raises StoreFullError when the budget has no room for the `size` bytes it takes, StoreError.
        """
        if self._over is not None:
            raise StoreError(self._over)
        done: asyncio.Future[_T] = self._loop.create_future()
        self._put(Work(call, done, size))
        return await done

    def _keep(self, row: Row) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        if self._over is not None:
            done.set_exception(StoreError(self._over))
        else:
            self._put(Keep.of(row, done))
        return done

    def _put(self, item: Keep | Work) -> None:
        self._hand_over()  # what was done before is gone before: `item` may keep the same again
        self._writer.queue.put(item)

    def _put_soon(self, item: int | Done) -> None:
        """Have one taken away with others: each alone would wake the writing thread, in the loop's time."""
        self._going.append(item)
        if len(self._going) >= GROUP_ITEMS:
            self._hand_over()
        elif self._handing_over is None:
            self._handing_over = self._loop.call_later(_GATHER_SECONDS, self._hand_over)

    def _hand_over(self) -> None:
        if self._handing_over is not None:
            self._handing_over.cancel()
            self._handing_over = None
        if self._going:
            self._writer.queue.put(tuple(self._going))
            self._going.clear()

    def finish(self, done: Done) -> bool:
        """Have an occurrence taken away, for a spool; False once the store is closed."""
        if self._over is None:
            self._put_soon(done)
        return self._over is None

    def now(self) -> float:
        """Return the time by which what is kept has an age (`Clock.now`)."""
        return self._writer.file.clock.now()

    def steady(self) -> float:
        """Return a time that goes on steadily (`Clock.steady`)."""
        return self._writer.file.clock.steady()

    # What is told of it

    def problems(self) -> list[str]:
        """Return why the last write or read failed or hangs, that the budget is reached, and a defect."""
        writer = self._writer
        told = (
            writer.trouble,
            writer.file.full,
            self._reader.trouble,
            self._over if self._broken.is_set() else None,
        )
        hangs = (_hang("write", writer.writing_since), _hang("read", self._reader.reading_since))
        return [problem for problem in (*told, *hangs) if problem is not None]

    async def broken(self) -> NoReturn:
        """Wait for a defect after which nothing can be kept any more. Raises StoreError, which tells it.

        Until the process ends by it whoever waits for the store, or asks it anything, gets a StoreError.
        """
        await self._broken.wait()
        raise StoreError(self._over)

    def _broke(self, defect: Exception, left: Iterable[asyncio.Future[Any]] = ()) -> None:
        """Take nothing more, and fail those in `left`, whom nobody else will answer."""
        _log.critical("the store is broken by a defect: the bridge must end", exc_info=defect)
        self._over = f"the store {self._path} is broken by a defect: {type(defect).__name__}: {defect}"
        self._broken.set()
        for future in left:
            if not future.done():
                future.set_exception(StoreError(self._over))

    def _heard(self, change: Change, answers: Sequence[Answer]) -> None:
        """Take in what the writer did, before those who waited for it go on."""
        try:
            self._take_in(change)
        except Exception as defect:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            self._broke(defect)
        for future, result in answers:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    @abstractmethod
    def _take_in(self, change: Change) -> None:
        """Hear what a transaction has changed, on the loop."""
