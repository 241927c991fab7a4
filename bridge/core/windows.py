"""What the rooms know of each other about windows: events kept on disk until they are sent as one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import NamedTuple, Protocol

from bridge.core.event import Event
from bridge.core.ports import DeadLetter

FULL, AGED, QUIET, COMPLETE = "full", "window", "quiet", "complete"
INCOMPLETE, ROUTE_GONE, SALVAGED = "incomplete", "route_gone", "salvaged"
"""Why a window closes. INCOMPLETE: its time was over before it was complete. ROUTE_GONE: the configuration
has no such route any more, so nothing could come to it. SALVAGED: what it was is lost in a damaged store."""


@dataclass(slots=True)
class State:
    """What is known of one open window. Times are seconds since 1970 UTC (`WindowKeeper.now`)."""

    opened: float
    last: float
    """When its newest member came."""
    members: int = 0
    """Markers are none."""
    bytes: int = 0
    """Of the members' data."""
    marked: float | None = None
    """When the marker came that completes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a window closes: whichever comes first. Times are seconds; None: not for this."""

    longest: float | None = None
    """After it was opened."""
    quiet: float | None = None
    """After its newest member came; of a window that a marker completes, after that."""
    most: int | None = None
    """Members with which it is full."""
    most_bytes: int | None = None
    """Bytes of data that its members may have together."""
    count: int | None = None
    """Members with which it is complete. It is closed by nothing else then but `longest`."""
    by_marker: bool = False
    """Whether a marker makes it complete; likewise."""

    @property
    def completes(self) -> bool:
        """Whether it is to be complete before it is sent."""
        return self.by_marker or self.count is not None

    def due(self, state: State) -> tuple[float, str]:
        """Return when a window in this state closes, and why."""
        if self.completes:
            by_time = (inf if self.longest is None else state.opened + self.longest, INCOMPLETE)
            if self.count is not None and state.members >= self.count:
                return state.last, COMPLETE
            if self.by_marker and state.marked is not None:
                return min((state.marked + (self.quiet or 0.0), COMPLETE), by_time)
            return by_time
        if self.most is not None and state.members >= self.most:
            return state.last, FULL
        return min(
            (inf if self.longest is None else state.opened + self.longest, AGED),
            (inf if self.quiet is None else state.last + self.quiet, QUIET),
        )

    def holds(self, state: State, size: int) -> bool:
        """Return whether a member with so many bytes of data still fits beside those that are there."""
        if self.completes or self.most_bytes is None or not state.members:
            return True
        return state.bytes + size <= self.most_bytes


class Name(NamedTuple):
    """Which window: at most one of a name is open."""

    source: str
    """The identity of the members' source."""
    service: str
    """The key of the service that they are for."""
    route: str
    """What tells a route from others of that source to that service, over restarts."""
    key: str
    """What the members have in common."""


class Policy(NamedTuple):
    """What a route says of its windows."""

    rules: Rules
    manner: str
    """How a window is sent, as its route writes it and reads it again: kept with the window, since the route
    may be gone when it closes."""


class Member(NamedTuple):
    """An event on its way into a window."""

    event: Event
    window: Name
    policy: Policy
    is_marker: bool


class Joined(Enum):
    """What became of it."""

    NEW = "new"
    LATE = "late"
    """It is in a window that was opened after a complete one of the same name."""
    THERE = "there"
    """It was kept for that service already."""
    REPEATED = "repeated"
    """It was in a window that is closed."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A window that nothing joins any more."""

    number: int
    name: Name
    manner: str
    reason: str
    """Why it was closed."""
    members: int
    """How many it had when it was closed."""


@dataclass(frozen=True, slots=True)
class Part:
    """Members of a closed window that are sent as one event: durable so before its first attempt."""

    window: Closed
    numbers: Sequence[int]
    """The members, by the store's names for them."""
    sent: Event | DeadLetter | None
    """What they are together: parked for its service, or a dead letter; None where there are none."""
    remember: float
    """Seconds for which the members' ids are remembered."""


class WindowKeeper(Protocol):
    """The part of the store that keeps windows. What is written is durable when the call returns.

    All raise StoreError.
    """

    def now(self) -> float:
        """Return seconds since 1970 UTC, which go on as they do however the machine's clock is set."""

    async def begin(
        self, policy_of: Callable[[Name], Policy | None], sources: Collection[str] | None = None
    ) -> float:
        """Have windows, or those of `sources`, follow their routes as they are now; close the others.

        `quiet` counts from now for them: nobody listened meanwhile. Return when the next is due.
        """

    async def join(self, members: Sequence[Member]) -> tuple[Sequence[Joined], float]:
        """Keep `members` in their windows; return what became of each, and when the next window is due.

        Raise StoreFullError at the budget; then none of them is kept.
        """

    async def close(
        self, limit: int, policy_of: Callable[[Name], Policy | None], unheard: Collection[str]
    ) -> tuple[Sequence[Closed], float]:
        """Close what is due; return up to `limit` windows that are closed, and when the next is due.

        Of sources that are `unheard` nothing is closed for being quiet.
        """

    async def members(self, windows: Sequence[Closed]) -> Mapping[int, Sequence[tuple[int, Event]]]:
        """Return the first members of `windows`, numbered, by the window's number: as many as memory allows.

        Those of one window at least are among them; of a window without members there is an empty list.
        """

    async def send(self, parts: Sequence[Part]) -> tuple[Collection[int], int]:
        """Put what the parts are in the place of their members, whose ids are remembered, in one transaction.

        Return the numbers of the windows that are gone, each with its last member; and how many members were
        forgotten before their time, since ids may take an eighth of the store's budget.
        """
