"""What becomes of an occurrence that is looked up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bridge.core.event import Event
from bridge.core.ports import Spooled


@dataclass(frozen=True, slots=True)
class Found:
    """An occurrence became an event."""

    event: Event
    version: bytes | None = None
    """A digest of 16 bytes of the version of what it is about, which enters once. None: it is always new."""
    fault: str | None = None
    """Why it can't be more than a dead letter, for a person."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """An occurrence is none of ours."""

    reason: str
    """A bounded word for the metrics."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an occurrence can't be looked up."""

    cause: str
    """A bounded word for the metrics."""
    reason: str
    """For a person."""
    by_itself: bool = False
    """It is about this occurrence: others may be looked up well meanwhile."""


@dataclass(frozen=True, slots=True)
class Later:
    """What an occurrence is about could not be looked up; it keeps its place."""

    seconds: float
    """Before the second look-up."""
    doubles: bool = True
    """Whether the pause doubles with each look-up that fails."""
    trouble: Trouble | None = None
    """What is wrong; None where something is only waited for."""
    aside: bool = False
    """It is left to the store meanwhile: many wait so, and others shall not wait for them."""


Resolve = Callable[[Spooled], Awaitable[Found | Dropped | Later]]
