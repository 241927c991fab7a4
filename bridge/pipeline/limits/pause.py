"""What a person sets: nothing begins until it is told so."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class Pause:
    """Lets nothing begin while it is on, which a lane looks after. What is under way goes on."""

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
