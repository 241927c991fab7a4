"""What is told, and kept, of a job that has ended."""

from __future__ import annotations

import asyncio

import structlog

from bridge.core.errors import StoreError
from bridge.core.jobs import JobOutcome, JobSeen
from bridge.core.journal import Journal
from bridge.core.ports import DeadLetter, Keeper
from bridge.pipeline.dead import note_dead
from bridge.pipeline.job import Job
from bridge.pipeline.retry import STORE_BACKOFF
from bridge.telemetry.metrics import LaneMetrics

_LOG_END = 2000
"""Characters of the log of a job that failed."""

_log = structlog.get_logger(__name__)


class JobOutcomes:
    """Counts how jobs have ended, and tells of those that failed."""

    def __init__(
        self, key: str, keeper: Keeper, journal: Journal, metrics: LaneMetrics, *, buries: bool
    ) -> None:
        """Serve the lane `key`; if it `buries`, the event of a job that failed becomes a dead letter."""
        self._key = key
        self._keeper = keeper
        self._journal = journal
        self._metrics = metrics
        self._buries = buries

    def count(self, job: Job, outcome: JobOutcome, seen: JobSeen | None) -> None:
        """Count `job`, and how long it took as far as `seen` tells; write down how it ended."""
        self._journal.note("ended", job.event, self._key, job=job.name, cause=outcome.value)
        started = None if seen is None else seen.started
        finished = None if seen is None else seen.finished
        accepted, happened = job.accepted_at, job.event.seconds
        self._metrics.job_finished(
            outcome.value,
            None if started is None or accepted is None else started - accepted,
            None if finished is None or started is None else finished - started,
            None if finished is None or happened is None else finished - happened,
        )

    async def failed(self, job: Job, log: str) -> None:
        """Tell the end of its log; return once what is to be kept of it is on disk."""
        log = log.strip()[-_LOG_END:]
        _log.warning(
            "a job failed", service=self._key, job=job.name, source=job.event.source, id=job.event.id, log=log
        )
        if self._buries:
            await self._bury(job, log)

    async def _bury(self, job: Job, log: str) -> None:
        failures = 0
        while True:
            try:
                event = await self._keeper.event_of_job(self._key, job.name)
                if event is not None:
                    now = self._keeper.now()
                    letter = DeadLetter(
                        event=event,
                        service=self._key,
                        cause="job_failed",
                        detail=log or "its job failed, and has no log",
                        attempts=1,
                        first_attempt=job.accepted_at,
                        last_attempt=now if job.accepted_at is None else job.accepted_at,
                    )
                    await self._keeper.bury(letter)
                    note_dead(self._journal, letter)
                return
            except StoreError as error:
                failures += 1
                _log.error("the dead letter of a job can't be kept", service=self._key, error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
