"""What a limit is: one answer to "may one more attempt begin now, and if not, when?"."""

from __future__ import annotations

from typing import Protocol

from bridge.core.delivery import Delivery
from bridge.core.ports import Answer

NOT_BEFORE_TOLD = float("inf")
"""A pause that no time ends: only what ends, or comes, changes it."""


class Attempt:
    """One call under way."""

    __slots__ = ("began", "delivery", "job", "place", "probe")

    def __init__(self, delivery: Delivery, began: float, place: int = 0, probe: bool = False) -> None:
        self.delivery = delivery
        self.began = began
        """Monotonic time."""
        self.job = ""
        """The name of the job that it makes, once it is under way."""
        self.place = place
        """Where its event stands among those that came."""
        self.probe = probe
        """Whether its service takes nothing for all that is known: by failing it says nothing new."""

    @property
    def event(self) -> tuple[str, str]:
        """Names the event, also where it comes back from the store as another Delivery."""
        event = self.delivery.event
        return event.source, event.id


class Limit(Protocol):
    """What a lane, or a cluster for its lanes, asks before each attempt.

    Asking takes nothing; `began` does, and the lane calls it on all its limits in one step, without an
    await. Nothing here blocks or raises.
    """

    def pause(self) -> float:
        """Give the seconds until one more may begin: 0 now, `NOT_BEFORE_TOLD` once something has ended."""

    def began(self, attempt: Attempt) -> None:
        """Count `attempt`, which begins now."""

    def ended(self, attempt: Attempt, answer: Answer, seconds: float) -> None:
        """Hear that `attempt` came to `answer` after so many seconds."""
