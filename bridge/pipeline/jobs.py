"""The jobs of one lane: noted before the first attempt, and followed until they have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from time import monotonic

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.jobs import Ended, JobMaker, JobOutcome, JobRecord, JobSeen, Phase, Progress
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.core.ports import Answer, Keeper, Verdict
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.job import Job
from bridge.pipeline.job_names import JobNames
from bridge.pipeline.job_outcomes import JobOutcomes
from bridge.pipeline.limits.backlog import Backlog
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.waiting import Waiting
from bridge.telemetry.metrics import LaneMetrics

_MOST_FOLLOWED = 10_000
"""Jobs that are followed at once where their number is not limited; what comes then is not followed."""
_IN_ONE_RUN = 500
"""Jobs looked at before the other tasks of the process have their turn."""
_LONG_SWEEP = 60.0
"""Seconds of a sweep that is too long, since places are empty meanwhile, if most of it was for other jobs."""
_TELL_SECONDS = 3600.0
"""Between two log lines about the same trouble."""
_DAY = 86400.0

_NEVER = float("inf")

_log = structlog.get_logger(__name__)

_OUTCOMES = {Phase.SUCCEEDED: JobOutcome.SUCCEEDED, Phase.FAILED: JobOutcome.FAILED, Phase.ENDED: None}
"""The phases of jobs that have ended; None where it is told later what became of them."""


class _ToDo(Enum):
    """What is still to be done about a job that has ended."""

    TELL = "tell"
    """That it failed."""
    WRITE = "write"
    """What is to be kept of it: that is under way."""
    REMOVE = "remove"


class Jobs:
    """What a lane knows of its jobs, and their limit; a JobWatch for whoever lists them.

    An event waits, and takes no place, until the name of its job is on disk. So after a kill every job that
    may have been made is known by its name.
    """

    def __init__(
        self,
        key: str,
        config: LaneConfig,
        maker: JobMaker,
        keeper: Keeper,
        metrics: LaneMetrics,
        waiting: Waiting,
        *,
        look: Callable[[], None],
        journal: Journal = NO_JOURNAL,
    ) -> None:
        """Serve the lane `key`, which looks at what may begin whenever `look` is called."""
        self._key = key
        self._maker = maker
        self._waiting = waiting
        self._look = look
        self._removes = config.remove_finished
        self._backlog = Backlog(self._most(config.limits.active_jobs))
        self._metrics = metrics
        self._jobs: dict[str, Job] = {}
        self._of: dict[Delivery, Job] = {}
        self._under_way: dict[Attempt, Job] = {}
        self._left_to_do: dict[str, _ToDo] = {}
        """By the names of jobs that have ended."""
        self._unjudged: set[str] = set()
        """Names of jobs that have ended, and nobody has said yet whether well."""
        buries = config.on_failure == "dead-letter"
        in_rounds = self._backlog.most < _NEVER
        self._names = JobNames(
            key, keeper, waiting, self._of, with_data=buries, in_rounds=in_rounds, look=look
        )
        self._journal = journal
        self._outcomes = JobOutcomes(key, keeper, journal, metrics, buries=buries)
        self._some = asyncio.Event()
        """Whether jobs are active."""
        self._since = monotonic()
        """From when on a sweep is missed: since then some were active."""
        self._sweep_began = 0.0
        self._not_shown: set[str] = set()
        """Of the jobs that the present sweep looks for."""
        self._sought = 0
        """How many those are."""
        self._unlisted = 0
        """Accepted jobs that the last sweep has not shown, nor any before, though they may be there."""
        self._told: dict[str, float] = {}
        metrics.follow(lambda: self._backlog.active, lambda: self.sweep_age, lambda: self._unlisted)

    @property
    def sweep_age(self) -> float:
        """Seconds since the last whole listing began; 0 while none is needed, for no job is active."""
        return monotonic() - self._since if self._some.is_set() else 0.0

    @property
    def has_room(self) -> bool:
        """Whether one more may be active."""
        return self._backlog.pause("") <= 0

    # The lane's side

    def limit(self, most: int | None) -> None:
        """Let `most` be active from now on, any number if None. The lane has to look then.

        What was not followed, since too many were while there was no limit, does not count.
        """
        self._backlog.most = self._most(most)

    def _most(self, most: int | None) -> float:
        if most is not None:
            return most
        # One that is not followed would make a second job if its event came again after it was removed.
        return _MOST_FOLLOWED if self._removes else _NEVER

    def come(self, delivery: Delivery) -> None:
        """Let `delivery` wait in the lane until its job's name is on disk."""
        name = self._maker.job_of(delivery.event)
        job = self._jobs.get(name)
        if job is None:
            if len(self._jobs) >= _MOST_FOLLOWED and self._backlog.most == _NEVER:
                self._metrics.job_finished("not_followed")
                self._waiting.come(delivery)
                return
            job = self._jobs[name] = Job(name, delivery.event.replace(data=b""))
        job.deliveries.add(delivery)
        self._of[delivery] = job
        self._waiting.come_unready(delivery)
        if job.kept:
            self._waiting.ready(delivery)
        self._names.ahead()

    def pause(self, delivery: Delivery) -> float:
        """Give 0 while an attempt at `delivery` may begin, else `NOT_BEFORE_TOLD`."""
        job = self._of.get(delivery)
        return self._backlog.pause(job.name) if job is not None else 0.0

    def began(self, attempt: Attempt) -> None:
        """Count the job of `attempt`."""
        job = self._of.get(attempt.delivery)
        if job is None:
            return
        self._under_way[attempt] = job
        self._left_to_do.pop(job.name, None)  # if it is gone by now, the attempt makes another
        self._unjudged.discard(job.name)
        job.under_way += 1
        job.absence_tells_from = _NEVER
        self._backlog.take(job.name)
        self._count()
        self._names.ahead()

    def ended(self, attempt: Attempt, answer: Answer) -> None:
        """Count the job no more if there is none for certain."""
        job = self._under_way.pop(attempt, None)
        if job is None:
            return
        job.under_way -= 1
        now = job.ended_at = monotonic()
        if answer.accepted:
            self._names.progress(job, Progress.ACCEPTED, time.time())
            job.absence_tells_from = now
        elif _made_none(answer) and not (job.perhaps or job.under_way) and job.progress is Progress.NOTED:
            self._backlog.free(job.name)
            self._count()
        else:
            job.perhaps = True
            job.absence_tells_from = now + self._maker.afterwards
        self._tidy(job)

    def left(self, delivery: Delivery) -> None:
        """Hear that `delivery` has left the lane."""
        job = self._of.pop(delivery, None)
        if job is not None:
            job.deliveries.discard(delivery)
            self._tidy(job)

    async def run(self) -> None:
        """Read what an earlier process knew, and write until cancelled."""
        await self._take_in(await self._names.load())
        await self._names.run()

    async def _take_in(self, records: Sequence[JobRecord]) -> None:
        now = monotonic()
        for number, record in enumerate(records):
            if number % _IN_ONE_RUN == 0:
                await asyncio.sleep(0)
            job = self._jobs.get(record.name)
            if job is None:
                job = self._jobs[record.name] = Job(record.name, record.event)
            job.perhaps = True
            job.kept = not self._removes  # it may have been removed just before the process ended
            job.progress, job.accepted_at = record.progress, record.accepted_at
            doubtful = record.progress is Progress.NOTED
            job.absence_tells_from = now + self._maker.afterwards if doubtful else now
            self._backlog.doubt(record.name)
        if not records:
            self._backlog.knows()
        self._count()

    # The listing's side

    async def wanted(self) -> None:
        """Return once there is a job to look for."""
        await self._some.wait()

    def sweep_began(self) -> Collection[str]:
        """Hear that a listing begins; return the names of the jobs that are looked for."""
        self._sweep_began = monotonic()
        names = {*self._backlog.names(), *self._left_to_do}
        self._not_shown, self._sought = set(names), len(names)
        return names

    def saw(self, jobs: Collection[JobSeen], asked_at: float) -> Ended:
        """Hear what a part of the listing shows, jobs that are not the lane's own among them.

        It was asked for at the monotonic time `asked_at`.
        """
        ended = Ended()
        for seen in jobs:
            job = self._jobs.get(seen.name)
            if job is None:
                continue
            self._not_shown.discard(job.name)
            if job.under_way or job.ended_at >= asked_at:
                continue  # it may have been deleted, and made anew since
            if seen.phase in _OUTCOMES:
                self._saw_the_end(job, seen, ended)
            elif not self._has_ended(job):  # of one that has, the pod may be collected
                self._names.progress(job, Progress.SEEN, None)
                self._backlog.take(job.name)
                self._tell_of_one_that_waits(job, seen)
            for delivery in list(job.deliveries):  # an attempt would be called a duplicate
                self._journal.note("duplicate", delivery.event, self._key, since=delivery.since, job=job.name)
                delivery.settle(Outcome.ACCEPTED)
        self._count()
        self._look()
        return ended

    def _saw_the_end(self, job: Job, seen: JobSeen, ended: Ended) -> None:
        if not self._has_ended(job):
            outcome = _OUTCOMES[seen.phase]
            if outcome is not None:
                self._over(job, outcome, seen)
            else:
                self._unjudged.add(job.name)
                self._backlog.free(job.name)
                ended.unjudged.append((seen, job.event))
        self._tell_what_to_do(job, ended)

    def _has_ended(self, job: Job) -> bool:
        return job.name in self._left_to_do or job.name in self._unjudged

    def _tell_what_to_do(self, job: Job, ended: Ended) -> None:
        to_do = self._left_to_do.get(job.name)
        if to_do is _ToDo.TELL:
            ended.failed.append(job.name)
        elif to_do is _ToDo.REMOVE:
            job.kept = False  # whoever comes next has to ask whether it was removed
            ended.removable.append(job.name)

    def judged(self, outcomes: Collection[tuple[JobSeen, JobOutcome]]) -> Ended:
        """Hear what became of jobs that had ended."""
        ended = Ended()
        for seen, outcome in outcomes:
            if seen.name in self._unjudged:
                self._unjudged.discard(seen.name)
                job = self._jobs[seen.name]
                self._over(job, outcome, seen)
                self._tell_what_to_do(job, ended)
        self._count()
        return ended

    async def failed(self, name: str, log: str) -> None:
        """Hear the end of the log of a job that failed; return once what is to be kept of it is on disk."""
        if self._left_to_do.get(name) is _ToDo.TELL:
            self._left_to_do[name] = _ToDo.WRITE
            await self._outcomes.failed(self._jobs[name], log)
            self._done(name)

    async def remember(self, names: Collection[str]) -> Sequence[str]:
        """Return those of the jobs to be deleted whose names are kept now, so that no event makes another.

        Not one whose event is here again: it may have been let go before its name was kept.
        """
        if not await self._names.remember(names):
            return ()
        return [
            name
            for name in names
            if self._left_to_do.get(name) is _ToDo.REMOVE and not self._jobs[name].deliveries
        ]

    def removed(self, name: str) -> None:
        """Hear that a job was deleted."""
        self._done(name)

    def _done(self, name: str) -> None:
        if self._left_to_do.pop(name, None) is not None:
            self._tidy(self._jobs[name])
            self._count()

    async def sweep_ended(self, *, seen: int, absence_tells: bool) -> None:
        """Hear that the listing has shown all of those looked for that were there when it began.

        It had `seen` jobs, others' among them. `absence_tells` says whether a job that was accepted and that
        it has not shown is not there; else only one that was shown before is gone.
        """
        began, self._unlisted = self._sweep_began, 0
        for number, name in enumerate(list(self._not_shown)):
            if number % _IN_ONE_RUN == _IN_ONE_RUN - 1:
                await asyncio.sleep(0)
            job = self._jobs.get(name)
            if job is None or job.absence_tells_from >= began:
                continue
            if job.name in self._left_to_do:
                self._done(job.name)  # it is gone
            elif job.progress is Progress.SEEN or (job.progress is Progress.ACCEPTED and absence_tells):
                self._over(job, JobOutcome.GONE, None)
            elif job.progress is Progress.ACCEPTED:
                if _seconds_since(job.accepted_at) >= _DAY:
                    self._over(job, JobOutcome.UNLISTED, None)
                else:
                    self._unlisted += 1
            else:
                job.perhaps = False
                self._backlog.free(job.name)
                self._tidy(job)
        self._since = began
        self._backlog.knows()
        self._count()
        seconds = monotonic() - began
        if seconds > _LONG_SWEEP and seen > 2 * self._sought:
            self._tell(
                "the listing of jobs takes long, so places stay empty: lower TTL_JOB of OSCAR, so that "
                "fewer jobs that have ended are listed, or set `remove_finished: true`",
                seconds=round(seconds),
                listed=seen,
            )
        if self._unlisted:
            self._tell(
                "OSCAR lists no such jobs to this user, so they count as active for a day: it lists those "
                "alone that carry the user's label",
                jobs=self._unlisted,
            )
        self._look()

    # What both come to

    def _over(self, job: Job, outcome: JobOutcome, seen: JobSeen | None) -> None:
        self._outcomes.count(job, outcome, seen)
        self._backlog.free(job.name)
        if outcome is JobOutcome.FAILED:
            self._left_to_do[job.name] = _ToDo.TELL
        elif outcome is JobOutcome.SUCCEEDED and self._removes:
            self._left_to_do[job.name] = _ToDo.REMOVE
        self._tidy(job)

    def _tidy(self, job: Job) -> None:
        """Forget a job that nobody needs to know any more."""
        if job.deliveries or job.under_way or self._has_ended(job) or self._backlog.counts(job.name):
            return
        if self._jobs.get(job.name) is job:
            del self._jobs[job.name]
            self._names.forget(job)

    def _count(self) -> None:
        if not (self._backlog.active or self._left_to_do):
            self._some.clear()
        elif not self._some.is_set():
            self._since = monotonic()
            self._some.set()

    # What a person is told

    def _tell_of_one_that_waits(self, job: Job, seen: JobSeen) -> None:
        seconds = _seconds_since(job.accepted_at)
        if seen.phase is not Phase.RUNNING and not job.told and seconds >= _DAY:
            job.told = True
            _log.warning(
                "a job has not begun for a day: it holds one of `active_jobs` until it ends or is deleted",
                service=self._key,
                job=job.name,
                id=job.event.id,
                hours=round(seconds / 3600),
            )

    def _tell(self, message: str, **facts: object) -> None:
        now = monotonic()
        if now - self._told.get(message, -_NEVER) >= _TELL_SECONDS:
            self._told[message] = now
            _log.warning(message, service=self._key, **facts)


def _seconds_since(moment: float | None) -> float:
    """Tell how long ago `moment` was, in seconds since 1970; 0 where it is not known."""
    return 0.0 if moment is None else time.time() - moment


def _made_none(answer: Answer) -> bool:
    """Tell whether the answer says that there is no job of it: then it needs no place while it waits.

    A 500 may come from a Kubernetes that has written the job down and then failed, and a gateway's answer or
    none says nothing. Of what was not sent `perhaps_its_own` is false.
    """
    if answer.status is None:
        return answer.verdict is Verdict.REJECTED or not answer.perhaps_its_own
    return answer.status < 500 or answer.status == 503
