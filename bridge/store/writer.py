"""The one thread that writes to the store: in groups, each durable before anyone is told."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import structlog

import bridge.store.changes as changes
import bridge.store.schema as schema
import bridge.store.spool_rows as spool_rows
from bridge.core.errors import StoreError, StoreFullError
from bridge.store.changes import Change, Done, Keep
from bridge.store.config import StoreConfig
from bridge.store.directory import claim
from bridge.store.expiry import Expiry
from bridge.store.file import StoreFile

_log = structlog.get_logger(__name__)

GROUP_ITEMS = 1024
_GROUP_BYTES = 16 * 2**20
"""What one transaction holds at most; one event is always let in."""
_PROBE_SECONDS = 1.0
"""Between looks at whether a store in trouble can be written again."""
_LOOK_SECONDS = 600.0
"""Between looks around while nothing is to be done."""

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
        self._heard = heard
        self._broke = broke
        self._accept_loss = accept_loss
        self._loop = asyncio.get_running_loop()
        self.queue: SimpleQueue[Keep | tuple[int | Done, ...] | Work | None] = SimpleQueue()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self.closed = asyncio.Event()
        self.closing = False
        """Set by the loop before None goes into the queue."""
        self.file = StoreFile(state_dir / schema.FILE, config.max_bytes)
        self.trouble: str | None = None
        """Why the last write failed."""
        self.writing_since: float | None = None
        """Monotonic time at which the write under way began."""
        self._taken: list[Keep | tuple[int | Done, ...] | Work] = []
        """What this turn took from the queue."""
        self._ended = False
        self._forgets: list[int | Done] = []
        """Which could not be written: again with the next group."""
        self._expiry = Expiry(config.keep_dead_for)
        # Not a daemon thread: should the loop go first, the interpreter waits for what is being written.
        self.thread = threading.Thread(target=self._run, name="store")

    def _run(self) -> None:
        try:
            with ExitStack() as held:
                held.callback(os.close, claim(self._state_dir))
                held.callback(self.file.close)
                self._tell(self.file.open(accept_loss=self._accept_loss), [(self.opened, None)])
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
            self._attempt(self.file.probe)
        if self.trouble is None and monotonic() >= self._expiry.due and not self._ended:
            self._attempt(self._expire)
        if self.trouble is None:
            self._attempt(self.file.look_around)

    def _gather(self) -> tuple[list[Keep | int | Done], Work | None]:
        """Wait for something to do, and take all that waits with it; nothing if it is time to look around."""
        group: list[Keep | int | Done] = list(self._forgets)
        self._taken = []
        pause = _PROBE_SECONDS if self.trouble or self.file.full or self._forgets else _LOOK_SECONDS
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
        """Write a group; return what went wrong."""
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
        budget = self.file.for_letters if keep.is_letter else self.file.for_events
        budget.refuse(self.file.path, keep.size)
        return StoreFullError(budget.refusal)

    def _commit(self, group: Sequence[Keep | int | Done]) -> tuple[Change, Collection[Keep]]:
        file, connection = self.file, self.file.ready()
        keeps = [item for item in group if isinstance(item, Keep)]
        letters_alone = all(keep.is_letter for keep in keeps)
        budget = file.for_letters if letters_alone else file.for_events
        of_events = file.room(budget, sum([keep.size for keep in keeps]))
        room = file.room_for_letters()
        with schema.transaction(connection):
            events = [item for item in group if not isinstance(item, Done)]
            change, refused = changes.write(connection, events, room, room - of_events)
            spool_rows.finish(connection, [item for item in group if isinstance(item, Done)], change)
            file.ages.look(connection, change)
        return change, refused

    def _do(self, work: Work) -> None:
        done: list[tuple[object, Change]] = []

        def call() -> None:
            file, connection = self.file, self.file.ready()
            budget = file.for_events
            if work.size and file.room(budget, work.size) < work.size:
                budget.refuse(file.path, work.size)
                done.append((StoreFullError(budget.refusal), Change()))
                return
            with schema.transaction(connection):
                result = work.call(connection)
                file.ages.look(connection, result[1])
            done.append(result)

        failure = self._attempt(call)
        if failure is not None:
            self._tell(Change(), [(work.done, failure)])
        else:
            ((result, change),) = done
            self._tell(change, [(work.done, result)])

    def _expire(self) -> None:
        change = self._expiry.expire(self.file.ready())
        if change is not None:
            self._tell(change, ())

    def _attempt(self, call: Callable[[], object]) -> StoreError | None:
        """Call what writes; return what went wrong. Another program that holds the file is waited for."""
        while True:
            self.writing_since = monotonic()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                self.trouble = f"{self.file.path} can't be written: {error}"
                if schema.primary_code(error) == sqlite3.SQLITE_BUSY and not self.closing:
                    continue  # it took longer than the timeout of `connect`
                self.file.failed(error)
                return StoreError(self.trouble)
            finally:
                self.writing_since = None
            self.trouble = None
            return None
