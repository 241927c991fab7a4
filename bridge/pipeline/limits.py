"""What a service may be given: attempts at once, and attempts in time."""

from __future__ import annotations

from time import monotonic

from pydantic import Field

from bridge.values import Model, Rate


class LimitsConfig(Model):
    """A lane's limits. They count attempts, not events: a retry is as much work for OSCAR."""

    concurrency: int = Field(default=16, ge=1, le=1000)
    """Attempts under way at once."""
    rate: Rate | None = None
    """Attempts begun in time, evenly spread; unlimited when not given."""


class Pace:
    """Spreads attempts evenly at `rate` a second (GCRA, ITU-T I.371).

    A timer that fires late may be made up for within `_LATE` seconds, so that the rate is reached.
    """

    _LATE = 0.05

    def __init__(self, rate: float | None) -> None:
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._next = 0.0

    def take(self) -> float:
        """Take a turn and give 0, or give the seconds until one is free."""
        if not self._interval:
            return 0.0
        now = monotonic()
        if now < self._next:
            return self._next - now
        self._next = max(self._next, now - self._LATE) + self._interval
        return 0.0
