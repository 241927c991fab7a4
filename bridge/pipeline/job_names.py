"""The names of a lane's jobs on disk: there before the first attempt, gone when nobody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import nsmallest

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.jobs import JobChanges, JobKeeper, JobRecord, Progress
from bridge.pipeline.job import Job
from bridge.pipeline.retry import STORE_BACKOFF
from bridge.pipeline.waiting import Waiting

_AHEAD = 32
"""Events that may go as far as their jobs' names are concerned: when half of them have gone, as many names
are written in one transaction."""
_ROUND = 1000
"""Events of which the next are chosen by their jobs' names: as many as a lane lets in by default."""
_SOON = 0.5
"""Seconds within which is written what nobody waits for, with others."""
_LAST_SECONDS = 5.0
"""For what is left to be written at the end."""

_log = structlog.get_logger(__name__)


class JobNames:
    """Makes an event wait until the name of its job is on disk, and keeps there what is known of the job."""

    def __init__(
        self,
        key: str,
        keeper: JobKeeper,
        waiting: Waiting,
        jobs: Mapping[Delivery, Job],
        *,
        with_data: bool,
        in_rounds: bool,
        look: Callable[[], None],
    ) -> None:
        """Keep the names of the lane `key`, those of `jobs` among them, and the events' data if `with_data`.

        If `in_rounds`, events go in the order of the names, round and round, else as they came. `look` is
        called once events may go.
        """
        self._key = key
        self._keeper = keeper
        self._waiting = waiting
        self._jobs = jobs
        self._with_data = with_data
        self._in_rounds = in_rounds
        self._last = ""
        """The newest name chosen: those behind it are the next."""
        self._look = look
        self._changes = JobChanges()
        self._something_to_write = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None

    def ahead(self) -> None:
        """Have names written if few events are left that may go."""
        if self._waiting.missing(_AHEAD // 2):
            self._something_to_write.set()

    def progress(self, job: Job, progress: Progress, accepted_at: float | None) -> None:
        """Note how much is known of `job`: never less than before."""
        progress = max(job.progress, progress)
        accepted_at = job.accepted_at or accepted_at
        if (progress, accepted_at) != (job.progress, job.accepted_at):
            job.progress, job.accepted_at = progress, accepted_at
            self._changes.progress[job.name] = (progress, accepted_at)
            self._write_soon()

    def forget(self, job: Job) -> None:
        """Have the name of `job` taken away, soon."""
        self._changes.progress.pop(job.name, None)
        self._changes.forget.add(job.name)
        self._write_soon()

    async def remember(self, names: Collection[str]) -> bool:
        """Tell whether it is on disk that the jobs `names` succeeded, whatever becomes of them."""
        try:
            await self._keeper.change_jobs(self._key, JobChanges(remember=set(names)))
        except StoreError as error:
            _log.warning(
                "jobs are not removed: their names can't be kept", service=self._key, error=str(error)
            )
            return False
        return True

    async def load(self) -> Sequence[JobRecord]:
        """Return the names that an earlier process has left, once they can be read."""
        failures = 0
        while True:
            try:
                return await self._keeper.jobs(self._key)
            except StoreError as error:
                failures += 1
                _log.error("the names of jobs can't be read", service=self._key, error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))

    async def run(self) -> None:
        """Write until cancelled, and then what is left."""
        try:
            await self._write()
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            await self._write_the_last()

    def _write_soon(self) -> None:
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(_SOON, self._write_now)

    def _write_now(self) -> None:
        self._alarm = None
        self._something_to_write.set()

    async def _write(self) -> None:
        failures = 0
        while True:
            self.ahead()
            await self._something_to_write.wait()
            self._something_to_write.clear()
            # What is forgotten makes room in a full store: each second try is without names.
            noted = self._next() if failures % 2 == 0 else []
            try:
                removed = await self._write_once(noted)
            except StoreError as error:
                failures += 1
                _log.error("the names of jobs can't be kept", service=self._key, error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
                self._something_to_write.set()
                continue
            failures = 0
            for delivery in noted:
                job = self._jobs.get(delivery)
                if job is None:
                    continue
                if job.name in removed:
                    event = delivery.event
                    _log.info(
                        "an event came again whose job had succeeded and was removed: it makes no other",
                        service=self._key,
                        job=job.name,
                        source=event.source,
                        id=event.id,
                    )
                    delivery.settle(Outcome.ACCEPTED)
                else:
                    job.kept = True
                    self._waiting.ready(delivery)
            if noted:
                self._look()

    def _next(self) -> list[Delivery]:
        """Choose those whose names are written next.

        In rounds they go in the order of their names, out of those longest here. So the names of jobs active
        at one time lie close together in a listing, which has that order, and few pages have them all. What
        waits in a lane that is held waits for one round, as it would in a queue.
        """
        missing = self._waiting.missing(_AHEAD)
        if not self._in_rounds:
            return self._waiting.unready(missing)
        names = {delivery: self._jobs[delivery].name for delivery in self._waiting.unready(_ROUND)}
        last = self._last
        chosen = nsmallest(missing, names, key=lambda delivery: (names[delivery] <= last, names[delivery]))
        if chosen:
            self._last = names[chosen[-1]]
        return chosen

    async def _write_once(self, noted: Collection[Delivery]) -> Collection[str]:
        """Write the names for `noted`, and all other changes; return those names whose jobs were removed.

        Raise StoreError; the changes are then kept for later.
        """
        changes, self._changes = self._changes, JobChanges()
        for delivery in noted:
            job = self._jobs[delivery]
            if not job.kept:
                changes.note[job.name] = delivery.event if self._with_data else job.event
        if not changes:
            return ()
        try:
            return await self._keeper.change_jobs(self._key, changes)
        except StoreError:
            newer = self._changes
            newer.forget |= changes.forget
            for name, progress in changes.progress.items():
                if name not in newer.forget:
                    newer.progress.setdefault(name, progress)
            raise

    async def _write_the_last(self) -> None:
        """Write what is known at the end. What can't be written a sweep finds out after the next start."""
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._write_once(())
        except (StoreError, TimeoutError) as error:
            _log.warning("the names of jobs can't be kept", service=self._key, error=str(error))
