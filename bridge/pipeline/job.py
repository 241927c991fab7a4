"""One job of a lane, as far as it is known."""

from __future__ import annotations

from bridge.core.delivery import Delivery
from bridge.core.event import Event
from bridge.core.jobs import Progress

_NEVER = float("inf")


class Job:
    """A job that is there, or may be."""

    __slots__ = (
        "absence_tells_from", "accepted_at", "deliveries", "ended_at", "event", "kept", "name", "perhaps",
        "progress", "told", "under_way",
    )  # fmt: skip

    def __init__(self, name: str, event: Event) -> None:
        self.name = name
        self.event = event
        """Without its data."""
        self.progress = Progress.NOTED
        self.accepted_at: float | None = None
        """Seconds since 1970."""
        self.kept = False
        """Whether its name is on disk."""
        self.deliveries: set[Delivery] = set()
        """Of its event, in the lane."""
        self.under_way = 0
        """Attempts."""
        self.perhaps = False
        """Whether an attempt may have made it that was not accepted, as far as is known."""
        self.absence_tells_from = _NEVER
        """Monotonic time: a sweep that begins later shows it, if it is there."""
        self.ended_at = -_NEVER
        """Monotonic time at which the last attempt ended: what a listing showed before may be another job."""
        self.told = False
        """Whether a person was told that it does not begin."""
