"""The limit that a person sets: nothing begins until it is told so."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from bridge.core.ports import Answer
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt


class Pause:
    """Lets nothing begin while it is on. What is under way goes on."""

    def __init__(self) -> None:
        self.since: float | None = None
        """Monotonic time at which it began; None while it is off."""
        self._when_changed: list[Callable[[], None]] = []

    def when_changed(self, call: Callable[[], None]) -> None:
        """Have `call` made each time that it begins or ends."""
        self._when_changed.append(call)

    def set(self, on: bool) -> None:
        """Begin it or end it; nothing changes if it is so already."""
        if on is (self.since is not None):
            return
        self.since = monotonic() if on else None
        for call in self._when_changed:
            call()

    def pause(self) -> float:
        """Give 0 while it is off."""
        return 0.0 if self.since is None else NOT_BEFORE_TOLD

    def began(self, _attempt: Attempt) -> None:
        """Count nothing."""

    def ended(self, _attempt: Attempt, _answer: Answer, _seconds: float) -> None:
        """Count nothing."""
