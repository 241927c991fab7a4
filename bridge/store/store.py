"""What is kept on this machine's disk: durable before anything settles."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import bridge.store.changes as changes
import bridge.store.jobs as jobs
import bridge.store.parked as parked
import bridge.store.schema as schema
from bridge.core.event import Event
from bridge.core.jobs import JobChanges, JobRecord
from bridge.core.ports import DeadLetter, InOrder, Parked
from bridge.store.access import Access
from bridge.store.changes import Change, Keep
from bridge.store.config import StoreConfig
from bridge.store.counts import Counts
from bridge.store.schema import PARKED
from bridge.store.spool import SourceSpool
from bridge.store.waiting import Known, Stranded
from bridge.store.windows import Windows, most_remembered
from bridge.telemetry.metrics import Metrics


class Store(Access):
    """The kept events, a Keeper. Made by `Store.open`."""

    def __init__(self, state_dir: Path, metrics: Metrics, config: StoreConfig, *, accept_loss: bool) -> None:
        super().__init__(state_dir, config, accept_loss=accept_loss)
        metrics.store_bytes.set_function(lambda: self._writer.file.bytes)
        metrics.store_used.set_function(lambda: self._writer.file.used)
        metrics.store_limit.set(config.max_bytes)
        self._counts = Counts(metrics, self.now)
        self._wakes: dict[str, Callable[[], None]] = {}
        self._given: dict[int, str] = {}
        """Numbers given by `parked`, with their services."""
        self._leaving: dict[int, str | None] = {}
        """Numbers forgotten that may not be gone yet, with their services; `""` for those not given, and None
        for what is not parked any more."""
        self._leaving_of: Counter[str] = Counter()
        self._spools: dict[int, SourceSpool] = {}
        self.windows = Windows(self, most_remembered(config.max_bytes))
        """Events that wait to be sent as one."""

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
        async with store._running():
            yield store

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
        """Return what is done when `event` is on disk for the lane `service`: a new row, or the one it has.

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

    # Parked events

    async def parked(
        self,
        service: str,
        *,
        without: Collection[int],
        limit: int,
        order_key: int | None = None,
        without_keys: Collection[int] = (),
        after: int = 0,
    ) -> Sequence[Parked]:
        """Give the oldest parked events of `service`, but for the numbers in `without` and those forgotten.

        They are at most `limit`, and fewer where they are big; none only when there is none. They are of
        `order_key` if it is given, none of them is of `without_keys`, and all have numbers above `after`.
        Raises StoreError.
        """
        if limit <= 0:
            return ()
        others = [number for number in (*without, *self._leaving) if number > after]
        keys = tuple(without_keys)  # as they are now: another thread reads
        found = await self.read(
            lambda connection: parked.oldest(
                connection, service, others, limit, order_key=order_key, without_keys=keys, after=after
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
        return self._counts.kept[service, PARKED] - self._leaving_of[service]

    def on_parked(self, service: str, wake: Callable[[], None]) -> None:
        """Have `wake` called on the loop whenever a replay has parked events of `service`."""
        self._wakes[service] = wake
        if service:
            self._counts.tell_age(service)

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
        """Return the Spool of the source with the identity `source`: always the same one."""
        spool = SourceSpool(source, self, self._counts.spooled, self._counts.marks)
        return self._spools.setdefault(spool.number, spool)

    # What there is

    def stranded(self, known: Known) -> list[Stranded]:
        """Count what waits for a service, or of a source, that is not among those `known`."""
        return self._counts.stranded(known)

    @property
    def used_bytes(self) -> int:
        """What is used of `store.max_bytes`, as of the last write."""
        return self._writer.file.used

    def _take_in(self, change: Change) -> None:
        # Before it is opened, a change is what was there at the start.
        self._counts.add(change, opening=not self._writer.opened.done())
        for number in change.unparked:
            self._given.pop(number, None)
            self._left(number)
        for number in change.forgotten:
            self._left(number)
            del self._leaving[number]
        for done in change.finished:
            self._spools[done.spool].finished(done)
        for service in change.returned & self._wakes.keys():
            self._wakes[service]()

    def _left(self, number: int) -> None:
        """Count a number that was forgotten no more among those that wait."""
        if (service := self._leaving.get(number)) is not None:
            self._leaving_of[service] -= 1
            self._leaving[number] = None
