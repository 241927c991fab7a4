"""What the rooms know of each other: sources, destinations and the store as the pipeline sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Protocol

from bridge.core.delivery import Delivery
from bridge.core.event import Event
from bridge.core.jobs import JobKeeper


class Slots(Protocol):
    """How many more Deliveries a source may have in the bridge's hands (`max_in_flight`, and bytes)."""

    @property
    def free(self) -> int:
        """Deliveries that may be handed over now; 0 when full or stopping."""

    async def wait(self) -> None:
        """Return when `free` is above 0. Cancelling is safe."""


class Source(Protocol):
    """One upstream. It knows its broker and nothing else."""

    def open(self, slots: Slots) -> AbstractAsyncContextManager[AsyncIterator[Sequence[Delivery]]]:
        """Connect, and give batches of Deliveries, never more than `slots` has free.

        Entering the context returns only with proof that the upstream serves this source, such as an
        answered poll, receive or subscription; a connection alone is none. Readiness and
        `bridge_source_up` rest on it.

        The iterator's `__anext__` may be cancelled without losing a batch. It raises SourceLost when
        the upstream is gone; every Delivery not settled by then is settled RELEASED by the source,
        which forgets it. Leaving the context commits what is settled and closes. Any other exception is a
        defect: the runner takes it for a lost source too, and logs its traceback.
        """

    def problems(self) -> Sequence[str]:
        """What an operator must know though the source is open, such as events the upstream lost."""


class Verdict(Enum):
    """What one attempt at a destination came to (README, "What the bridge does with each answer")."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """It had been accepted before: success."""
    CAPACITY = "capacity"
    """It has too much to do, or its caller has used up what it may: again later, and less at once."""
    UNAVAILABLE = "unavailable"
    """The destination can't take anything now: again, after a pause."""
    FAILED = "failed"
    """A server error that may be the event's own, or the destination's: the lane can tell by its siblings."""
    REFUSED = "refused"
    """Not about the event: credentials, or no such service. The lane's gate closes."""
    REJECTED = "rejected"
    """This event can never be taken: dead letter at once."""
    UNKNOWN = "unknown"
    """Sent, the answer lost, and nothing prevents a second run: dead letter."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and each attempt looks one up


_TAKEN = (Verdict.ACCEPTED, Verdict.DUPLICATE)

NO_DESCRIPTORS = "no_descriptors"
"""The cause where the bridge can open no file or socket any more (`errors.no_descriptors`)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt's verdict with what a log line or a dead letter tells about it."""

    verdict: Verdict
    cause: str = ""
    """A short, bounded word for metrics and dead letters: `timeout`, `http_500`, `too_large`."""
    detail: str = ""
    """For a person: status, excerpt of the body, sizes. Never a secret."""
    status: int | None = None
    retry_after: float | None = None
    """Seconds the destination asked for."""
    ours: bool = False
    """Whether the attempt failed for a lack of the bridge's own, which tells nothing of the service."""
    perhaps_its_own: bool = False
    """Whether it may be for this event alone that it was not accepted: the lane can tell by its siblings.

    Not where nothing of the event was sent, nor where the credentials or the service were refused. REJECTED
    and UNKNOWN need no sibling to tell."""
    accepted: bool = field(init=False, repr=False)
    """Whether the destination has the event: now, or before."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "accepted", self.verdict in _TAKEN)  # asked four times at each attempt


class Invocation(Protocol):
    """One event ready for one service."""

    @property
    def job(self) -> str:
        """Name the job that it makes; empty where it makes none."""

    async def attempt(self) -> Answer:
        """Make one attempt. Never raises for what the network or the destination does."""


class Destination(Protocol):
    """One service that events are put to."""

    def prepare(self, event: Event) -> Invocation:
        """Do what needs no network. Never raises: what can't be sent is an attempt that is rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event given up, with the cause. Times are seconds since 1970 UTC."""

    event: Event
    service: str
    """The lane's key; `NO_LANE` when the event never reached one."""
    cause: str
    """A bounded word: `route`, `too_large`, `http_413`, `gave_up` …"""
    detail: str
    status: int | None = None
    attempts: int = 0
    first_attempt: float | None = None
    last_attempt: float | None = None
    order_key: int | None = None
    """As a `Parked` has it: a replay takes its turn among the events of its key."""


@dataclass(slots=True, kw_only=True)
class Parked:
    """An event in the store that waits for its lane."""

    number: int
    """The store's name for it."""
    event: Event
    attempts: int
    """Made before it was parked."""
    first_attempt: float | None
    """Seconds since 1970 UTC; `give_up_after` counts from it."""
    order_key: int | None = None
    """What it has in common with those that it goes one after another with; None: it goes in no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InOrder:
    """An event to be parked behind those of its key that are parked already."""

    event: Event
    order_key: int
    attempts: int = 0
    first_attempt: float | None = None


NO_LANE = ""
"""In place of a lane's key: the event never reached one. Parked for it, it goes round its routes again."""


class Keeper(JobKeeper, Protocol):
    """What the pipeline asks of the store. All of it is durable when the call returns."""

    async def bury(self, letter: DeadLetter) -> None:
        """Keep a dead letter; one that was parked for that service is no longer. Raises StoreError."""

    def park(
        self, event: Event, service: str, *, attempts: int = 0, first_attempt: float | None = None
    ) -> Awaitable[None]:
        """Keep an event for its lane; the same event and service again is the same row, in its old place.

        Raises StoreFullError at the budget, StoreError when it can't be written; then nothing may be settled.
        """

    async def park_in_order(self, service: str, events: Sequence[InOrder]) -> None:
        """Keep events for their lane, all or none: no follower is kept without what goes before it.

        Raises as `park` does.
        """

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
        """Give the oldest parked events of a service, but for the numbers in `without`. Raises StoreError.

        Those of one `order_key` if it is given, none of `without_keys`, and none up to the number `after`.
        """

    def forget(self, number: int) -> None:
        """Take away a parked event that OSCAR accepted: soon, with others, in the background.

        A crash before that brings it back, and its identity makes the second attempt harmless.
        """

    def now(self) -> float:
        """Return the time by which what is kept has an age, in seconds since 1970 UTC.

        It lags behind a clock that is set ahead, or is far beyond what the store knows at its opening.
        """

    def waiting(self, service: str) -> int:
        """Count the parked events of a service."""

    def on_parked(self, service: str, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever a command (replay) has parked events of a service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """What a stream told, kept before anything is decided about it."""

    key: str
    """Names the occurrence within its source: the same key again is the same row, in its old place."""
    data: bytes
    first_attempt: float | None = None
    """When `Spool.tried` heard of it first, in seconds since 1970 UTC; None before."""


class Spool(Protocol):
    """One source's part of the store, where the upstream keeps nothing itself.

    Beside the occurrences it keeps the stream's position, and a mark (a digest of 16 bytes) for each version
    of a thing, such as a file, that has entered the pipeline: so that what a listing shows enters once.
    """

    async def append(self, occurrences: Sequence[Spooled], position: str | None = None) -> None:
        """Keep `occurrences` in their order, and `position` (if given), in one transaction.

        Durable when it returns. Raises StoreFullError at the budget, StoreError; then nothing of it is kept.
        """

    async def position(self) -> str | None:
        """Give the last position kept; None when there was never one. Raises StoreError."""

    async def oldest(self, *, without: Collection[int], limit: int) -> Sequence[tuple[int, Spooled]]:
        """Return the oldest occurrences, numbered, but for `without`, those laid aside and those done.

        Raise StoreError.
        """

    async def tried(self, numbers: Collection[int], *, aside: Collection[int]) -> None:
        """Note that `numbers` were tried without success, and lay those of them aside that are in `aside`.

        Durable when it returns. Raise StoreError.
        """

    async def take_up(self, after: int, limit: int) -> int | None:
        """Lay aside no longer the first `limit` behind number `after`; return the last, None without any.

        Raise StoreError.
        """

    def done(self, number: int, entered: bytes | None = None) -> None:
        """Take an occurrence away and mark `entered` in one transaction: soon, in the background.

        A crash before that brings it back unmarked.
        """

    async def entered(self, versions: Collection[bytes]) -> set[bytes]:
        """Give those of `versions` that are marked, what `done` has not written yet among them.

        Raises StoreError.
        """

    async def mark(self, versions: Collection[bytes], listing: int) -> None:
        """Mark `versions` as entered without an occurrence, and as shown by the listing with that number.

        Of those marked before only the listing's number changes. Durable when it returns. Raises
        StoreFullError at the budget, StoreError.
        """

    async def shown(self, versions: Collection[bytes], listing: int) -> None:
        """Note that the listing shows them; those not marked are left alone."""

    async def forget_unshown(self, listing: int) -> int:
        """Forget the marks that neither the complete listing with that number nor a later one has shown.

        A mark made by `done` since the listing began counts as shown by it. Gives how many were forgotten.
        """

    async def next_listing(self) -> int:
        """Give a listing's number, greater than any before it on this store, and durable."""

    def now(self) -> float:
        """Return the time by which `Spooled.first_attempt` has an age, as `Keeper.now` does."""

    @property
    def waiting(self) -> int:
        """How many occurrences are kept; those done are not among them."""

    @property
    def remembered(self) -> int:
        """How many versions are marked."""


class Severity(StrEnum):
    """How much a finding of `check` matters."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing to do."""
    WARNING = "warning"
    """The bridge works, but not as well, or not for as long, as may be thought."""
    PROBLEM = "problem"
    """The bridge can't do its work until this is mended."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what `check` found. Never a secret in it."""

    severity: Severity
    about: str
    """`cluster main`, `service plants`, `source uploads`, `store`, `http`."""
    message: str
    remedy: str = ""
    """What a person does about it."""


@dataclass(slots=True)
class Findings:
    """What is found about one thing, in the order found."""

    about: str
    found: list[Finding] = field(default_factory=list)

    def ok(self, message: str) -> None:
        """Add what is as it should be."""
        self.found.append(Finding(Severity.OK, self.about, message))

    def note(self, message: str, remedy: str = "") -> None:
        """Add what is worth knowing."""
        self.found.append(Finding(Severity.NOTE, self.about, message, remedy))

    def warning(self, message: str, remedy: str) -> None:
        """Add what is not as it should be, though the bridge works."""
        self.found.append(Finding(Severity.WARNING, self.about, message, remedy))

    def problem(self, message: str, remedy: str) -> None:
        """Add what keeps the bridge from working."""
        self.found.append(Finding(Severity.PROBLEM, self.about, message, remedy))

    @property
    def failed(self) -> bool:
        """Whether a problem is among them."""
        return any(finding.severity is Severity.PROBLEM for finding in self.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """What the services that a source's routes reach ask of it: how long their events may be in hand."""

    attempt: float
    """Seconds of the longest attempt (`timeout_seconds`)."""
    unsettled: float
    """Seconds until the last of them is settled upstream, whatever the services do."""
    parks: bool = True
    """Whether every one of the services parks what it can't attempt."""
    alone: bool = False
    """Whether one of the services is for a single replica (`remove_finished`)."""

    def tell_of_company(self, findings: Findings, who: str) -> None:
        """Tell what follows where `who`, such as "3 consumers of queue x", may be several bridges."""
        if self.alone:
            findings.problem(
                f"{who}, and a service with `remove_finished` is for a single replica: the others do not "
                "know which jobs it has removed, and would make them again",
                "leave `remove_finished` out where several replicas run, and lower TTL_JOB of OSCAR in place "
                "of it",
            )
        else:
            findings.note(
                f"{who}: those of them that are bridges keep to limits of their own",
                "divide among them what OSCAR and its services can take (`limits`; docs/scaling.md)",
            )
