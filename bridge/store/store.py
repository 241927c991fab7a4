"""What is kept on this machine's disk: durable before anything settles."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn, TypeVar

import structlog

from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.jobs import JobChanges, JobRecord
from bridge.core.ports import DeadLetter, InOrder, Parked
from bridge.store import changes, jobs, parked, salvage, schema, waiting
from bridge.store.changes import Change, Keep
from bridge.store.config import StoreConfig
from bridge.store.schema import DEAD, FILE, PARKED, SPOOLED, Row
from bridge.store.spool import SourceSpool
from bridge.store.spooled import Done
from bridge.store.waiting import Known, Stranded
from bridge.store.windows import Windows, most_remembered
from bridge.store.writer import GROUP_ITEMS, Answer, Work, Writer
from bridge.telemetry.metrics import Metrics

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


class Store:
    """The kept events, a Keeper.

    Made by `Store.open`, which holds the state directory for this process alone.
    One thread writes, another reads: SQLite's write-ahead log keeps them out of each other's way.
    """

    def __init__(self, state_dir: Path, metrics: Metrics, config: StoreConfig, *, accept_loss: bool) -> None:
        self._path = state_dir / FILE
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(state_dir, config, self._heard, self._broke, accept_loss=accept_loss)
        metrics.store_bytes.set_function(lambda: self._writer.bytes)
        metrics.store_used.set_function(lambda: self._writer.used)
        metrics.store_limit.set(config.max_bytes)
        self._reading = ThreadPoolExecutor(1, "store reading")
        self._reader: sqlite3.Connection | None = None
        self._read_trouble: str | None = None
        self._reading_since: float | None = None
        self._over: str | None = None
        """Why nothing more is taken: closed, or broken by a defect."""
        self._broken = asyncio.Event()
        self._kept: Counter[tuple[str, str]] = Counter()
        self._parked_since: dict[str, float] = {}
        """When the event longest parked for a service was, in seconds since 1970."""
        self._wakes: dict[str, Callable[[], None]] = {}
        self._given: dict[int, str] = {}
        """Numbers given by `parked`, with their services."""
        self._leaving: dict[int, str | None] = {}
        """Numbers forgotten that may not be gone yet, with their services; `""` for those not given, and None
        for what is not parked any more."""
        self._leaving_of: Counter[str] = Counter()
        self._going: list[int | Done] = []
        """What is done with, and not yet handed to the writing thread."""
        self._handing_over: asyncio.TimerHandle | None = None
        self._spools: dict[int, SourceSpool] = {}
        self._spooled: Counter[int] = Counter()
        """Occurrences, by spool; and marks."""
        self._marks: Counter[int] = Counter()
        self._spool_sources: dict[int, str] = {}
        self.windows = Windows(self, most_remembered(config.max_bytes))
        """Events that wait to be sent as one."""
        self._windows: Counter[str] = Counter()
        """How many there are, by service."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        state_dir: Path,
        metrics: Metrics,
        config: StoreConfig | None = None,
        *,
        accept_loss: bool = False,
    ) -> AsyncIterator[Store]:
        """Own the store in `state_dir`, made where it is missing.

        Leaving writes what was taken, closes, and frees the directory. Raises StoreLockedError when
        another process has it, StoreError when it can't be written, is newer than this bridge, or lies on
        a network file system. What is readable of a damaged store is saved first; then StoreError tells
        what was lost, at every start until `accept_loss`.
        """
        store = cls(state_dir, metrics, config or StoreConfig(), accept_loss=accept_loss)
        writer = store._writer
        writer.thread.start()
        try:
            await writer.opened
            yield store
        finally:
            store._hand_over()
            store._over, writer.closing = store._over or "the store is closed", True
            writer.queue.put(None)
            stopped = store._loop.run_in_executor(store._reading, store._stop_reading)
            store._reading.shutdown(wait=False)
            await writer.closed.wait()
            writer.thread.join()
            # A disk that hangs under a read may keep its thread for ever, but not who closes.
            await asyncio.wait([stopped], timeout=_CLOSE_SECONDS)

    # Keeping

    async def bury(self, letter: DeadLetter) -> None:
        """Return when `letter` is on disk; the same event for the same service again stays one row.

        Raises StoreFullError when the budget has no room for it, StoreError when it is not on disk; a later
        call tries anew. Cancelling leaves open whether it was written.
        """
        await self._keep(schema.dead_row(letter))

    def park(
        self, event: Event, service: str, *, attempts: int = 0, first_attempt: float | None = None
    ) -> asyncio.Future[None]:
        """Give what is done when `event` is on disk for the lane `service`: a new row, or the one it has.

        A dead letter whose job failed stays one. Raises and cancels as `bury` does. A future, since hundreds
        are parked at once: a task for each would cost a quarter of the time.
        """
        return self._keep(schema.parked_row(event, service, attempts, first_attempt))

    async def park_in_order(self, service: str, events: Sequence[InOrder]) -> None:
        """Return when `events` are on disk for the lane `service`, all in one transaction, as `park` does it.

        Raises as `bury` does; none of them is on disk then.
        """
        done: asyncio.Future[None] = self._loop.create_future()
        keeps = [
            Keep.of(
                schema.parked_row(each.event, service, each.attempts, each.first_attempt, each.order_key),
                done,
            )
            for each in events
        ]
        size = sum(keep.size for keep in keeps)
        await self.write(lambda connection: (None, changes.write(connection, keeps, size)[0]), size)

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

    def now(self) -> float:
        """Return the time by which what is kept has an age (`Clock.now`)."""
        return self._writer.clock.now()

    def steady(self) -> float:
        """Return a time that goes on steadily (`Clock.steady`)."""
        return self._writer.clock.steady()

    # Parked events

    async def parked(
        self,
        service: str,
        *,
        without: Collection[int],
        limit: int,
        order_key: int | None = None,
        without_keys: Collection[int] = (),
    ) -> Sequence[Parked]:
        """Give the oldest parked events of `service`, but for the numbers in `without` and those forgotten.

        They are at most `limit`, and fewer where they are big; none only when there is none. They are of
        `order_key` if it is given, and none of them is of `without_keys`.
        Raises StoreError.
        """
        if limit <= 0:
            return ()
        others = {*without, *self._leaving}
        keys = tuple(without_keys)  # as they are now: another thread reads
        found = await self.read(
            lambda connection: parked.oldest(
                connection, service, others, limit, order_key=order_key, without_keys=keys
            )
        )
        self._given.update((row.number, service) for row in found)
        return found

    def forget(self, number: int) -> None:
        """Take away a parked event that was accepted: soon, with others, and before the store closes.

        A crash before that brings it back, and its identity makes the second attempt harmless.
        """
        if number in self._leaving or self._over is not None:
            return
        self._leaving[number] = service = self._given.pop(number, "")
        self._leaving_of[service] += 1
        self._put_soon(number)

    def waiting(self, service: str) -> int:
        """Count the parked events of `service`; those forgotten are not among them."""
        return self._kept[service, PARKED] - self._leaving_of[service]

    def on_parked(self, service: str, wake: Callable[[], None]) -> None:
        """Have `wake` called on the loop whenever a replay has parked events of `service`."""
        self._wakes[service] = wake
        if service:
            self._tell_age(service)

    def _tell_age(self, service: str) -> None:
        self._metrics.parked_oldest.labels(service).set_function(lambda: self._age(service))

    def _age(self, service: str) -> float:
        since = self._parked_since.get(service)
        return 0.0 if since is None else max(0.0, self.now() - since)

    # Jobs

    async def jobs(self, service: str) -> Sequence[JobRecord]:
        """Return the jobs of `service` that are kept, without their events' data. Raise StoreError."""
        return await self.read(lambda connection: jobs.of_service(connection, service))

    async def event_of_job(self, service: str, name: str) -> Event | None:
        """Return the event of a job with what is kept of its data; None for no such job. Raise StoreError."""
        return await self.read(lambda connection: jobs.event_of(connection, service, name))

    async def change_jobs(self, service: str, changes: JobChanges) -> Collection[str]:
        """Return when `changes` to the jobs of the lane `service` are on disk: the names that are remembered.

        Raise StoreFullError when the budget has no room for them, StoreError.
        """
        change = partial(jobs.change, service=service, changes=changes, now=self.now())
        return await self.write(change, jobs.size_of(changes))

    # What streams told

    def spool(self, source: str) -> SourceSpool:
        """Give the Spool of the source with the identity `source`: always the same one."""
        spool = SourceSpool(source, self, self._spooled, self._marks)
        return self._spools.setdefault(spool.number, spool)

    def finish(self, done: Done) -> bool:
        """Have an occurrence taken away, for a spool; False once the store is closed."""
        if self._over is None:
            self._put_soon(done)
        return self._over is None

    # Events that nothing will take

    def stranded(self, known: Known) -> list[Stranded]:
        """Count what waits for a service, or of a source, that is not among those `known`."""
        parked = [
            Stranded(PARKED, key, count) for (key, reason), count in self._kept.items() if reason == PARKED
        ]
        spooled = [
            Stranded(SPOOLED, source, self._spooled[number]) for number, source in self._spool_sources.items()
        ]
        return waiting.stranded([*parked, *spooled], known)

    async def write(self, call: Callable[[sqlite3.Connection], tuple[_T, Change]], size: int = 0) -> _T:
        """Have the writing thread make one transaction of `call`; give what it gave once that is on disk.

        Raises StoreFullError when the budget has no room for the `size` bytes it takes, StoreError.
        """
        if self._over is not None:
            raise StoreError(self._over)
        done: asyncio.Future[_T] = self._loop.create_future()
        self._put(Work(call, done, size))
        return await done

    # State

    @property
    def used_bytes(self) -> int:
        """What is used of `store.max_bytes`, as of the last write."""
        return self._writer.used

    def problems(self) -> list[str]:
        """Tell why the last write or read failed or hangs, that the budget is reached, and a defect."""
        writer = self._writer
        told = (
            writer.trouble,
            writer.full,
            self._read_trouble,
            self._over if self._broken.is_set() else None,
        )
        hangs = (_hang("write", writer.writing_since), _hang("read", self._reading_since))
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

    def _take_in(self, change: Change) -> None:
        for (service, reason, cause), difference in change.tally.items():
            self._kept[service, reason] += difference
            self._metrics.kept_events.labels(service, reason).set(self._kept[service, reason])
            if reason == DEAD:
                self._metrics.dead_letters.labels(service, cause).inc(difference)
                came = self._metrics.dead_lettered.labels(service, cause)
                if difference > 0 and self._writer.opened.done():  # before, it is what was there at the start
                    came.inc(difference)
        for service, since in change.oldest.items():
            if since is None:
                self._parked_since.pop(service, None)
            else:
                self._parked_since[service] = since
                self._tell_age(service)
        for service, difference in change.windows.items():
            self._windows[service] += difference
            self._metrics.windows.labels(service).set(self._windows[service])
        for number in change.unparked:
            self._given.pop(number, None)
            self._left(number)
        for number in change.forgotten:
            self._left(number)
            del self._leaving[number]
        self._spooled.update(change.spooled)
        self._marks.update(change.marks)
        self._spool_sources.update(change.sources)
        for done in change.finished:
            self._spools[done.spool].finished(done)
        for service in change.returned & self._wakes.keys():
            self._wakes[service]()

    def _left(self, number: int) -> None:
        """Count a number that was forgotten no more among those that wait."""
        if (service := self._leaving.get(number)) is not None:
            self._leaving_of[service] -= 1
            self._leaving[number] = None

    # The reading thread's side

    async def read(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        """Have the reading thread ask the file. Raises StoreError."""
        if self._over is not None:
            raise StoreError(self._over)
        return await self._loop.run_in_executor(self._reading, self._answer, question)

    def _answer(self, question: Callable[[sqlite3.Connection], _T]) -> _T:
        self._reading_since = monotonic()
        try:
            if self._reader is None:
                self._reader = schema.connect(self._path, mode="rw")
                self._reader.execute("PRAGMA query_only = ON")
            found = question(self._reader)
        except (sqlite3.Error, schema.BrokenRowError) as error:
            self._stop_reading()
            self._read_trouble = f"{self._path} can't be read: {error}"
            if schema.damaged(error):
                salvage.suspect(self._path)
            raise StoreError(self._read_trouble) from error
        finally:
            self._reading_since = None
        self._read_trouble = None
        return found

    def _stop_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            with suppress(sqlite3.Error):
                reader.close()
