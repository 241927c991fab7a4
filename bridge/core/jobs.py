"""What the rooms know of each other about jobs: the names that are kept, and what a listing shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from bridge.core.event import Event


class Phase(Enum):
    """What a listing says of a job."""

    WAITING = "waiting"
    """It has no pod yet, or its pod no place."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ENDED = "ended"
    """Whether well is told later (`JobWatch.judged`)."""


class JobOutcome(Enum):
    """What became of a job."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    GONE = "gone"
    """It was deleted before anybody saw it end."""
    UNJUDGED = "unjudged"
    """It ended, and it can't be told whether it left the output that makes it one that succeeded."""
    UNLISTED = "unlisted"
    """It was accepted a day ago, and no listing has shown it since: what became of it can't be known."""


@dataclass(frozen=True, slots=True)
class JobSeen:
    """One job, as a listing shows it. Times are seconds since 1970 UTC; None where they are not told."""

    name: str
    phase: Phase
    started: float | None = None
    finished: float | None = None


class Progress(IntEnum):
    """How much is known of a job whose name is kept."""

    NOTED = 0
    """An attempt may have been made."""
    ACCEPTED = 1
    """The destination said that it has it."""
    SEEN = 2
    """A listing has shown it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job's name, as it is kept."""

    name: str
    event: Event
    """Without its data, unless that is kept for a dead letter."""
    progress: Progress
    accepted_at: float | None
    """Seconds since 1970 UTC."""


@dataclass(slots=True)
class JobChanges:
    """What is to be written about jobs, by their names, in one transaction and in this order."""

    forget: set[str] = field(default_factory=set)
    note: dict[str, Event] = field(default_factory=dict)
    """Before the first attempt; one that is noted already stays as it is."""
    progress: dict[str, tuple[Progress, float | None]] = field(default_factory=dict)
    """With the time of acceptance; None leaves what is kept of that."""
    remember: set[str] = field(default_factory=set)
    """Names of jobs that are about to be deleted: with them OSCAR refuses no second job any more."""

    def __bool__(self) -> bool:
        return bool(self.note or self.progress or self.forget or self.remember)


@dataclass(slots=True)
class Ended:
    """A lane's jobs, by name, that are seen to have ended, and about which something is to be done."""

    failed: list[str] = field(default_factory=list)
    """`JobWatch.failed` is called next for each, with its log."""
    removable: list[str] = field(default_factory=list)
    """They succeeded, and are to be deleted, once `JobWatch.remember` has returned them."""
    unjudged: list[tuple[JobSeen, Event]] = field(default_factory=list)
    """`JobWatch.judged` is called later with each. The events are without their data."""


class JobMaker(Protocol):
    """A destination that makes jobs, each with a name that the event alone decides."""

    @property
    def afterwards(self) -> float:
        """For how many seconds a job may still be made by a call that its caller has given up."""

    def job_of(self, event: Event) -> str:
        """Name the job of `event`."""


class JobKeeper(Protocol):
    """The part of the store that knows which jobs are this bridge's own."""

    async def jobs(self, service: str) -> Sequence[JobRecord]:
        """Return the jobs of a lane that are kept. Raise StoreError."""

    async def event_of_job(self, service: str, name: str) -> Event | None:
        """Return the event of a job with what is kept of its data; None for no such job. Raise StoreError."""

    async def change_jobs(self, service: str, changes: JobChanges) -> Collection[str]:
        """Return when `changes` are on disk. Raise StoreFullError at the budget, StoreError.

        Those names are returned, and not noted, that are remembered: their jobs had succeeded.
        """


class JobWatch(Protocol):
    """One lane's jobs, for whoever lists them. Nothing here blocks or raises."""

    async def wanted(self) -> None:
        """Return once there is a job to look for."""

    def sweep_began(self) -> Collection[str]:
        """Hear that a listing begins; return the names of the jobs that are looked for."""

    def saw(self, jobs: Collection[JobSeen], asked_at: float) -> Ended:
        """Hear what a part of the listing shows, jobs that are not the lane's own among them.

        It was asked for at the monotonic time `asked_at`.
        """

    def judged(self, outcomes: Collection[tuple[JobSeen, JobOutcome]]) -> Ended:
        """Hear what became of jobs that had ended."""

    async def failed(self, name: str, log: str) -> None:
        """Hear the end of the log of a job that failed; return once what is to be kept of it is on disk."""

    async def remember(self, names: Collection[str]) -> Sequence[str]:
        """Return those of the jobs to be deleted whose names are kept now, so that no event makes another."""

    def removed(self, name: str) -> None:
        """Hear that a job was deleted."""

    async def sweep_ended(self, *, seen: int, absence_tells: bool) -> None:
        """Hear that the listing has shown all of those looked for that were there when it began.

        It had `seen` jobs, others' among them.
        `absence_tells` says whether a job that it has not shown is not there, though it was accepted: else
        only one that was shown before is gone.
        """
