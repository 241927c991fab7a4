"""The limit `rate`: attempts begun in time."""

from __future__ import annotations

from time import monotonic

from bridge.core.ports import Answer
from bridge.pipeline.limits.limit import Attempt


class Pace:
    """Spreads attempts evenly at `rate` a second (GCRA, ITU-T I.371).

    A timer that fires late may be made up for within `_LATE` seconds, so that the rate is reached. A turn
    that passed before its event came is lost: time without events earns nothing.
    """

    _LATE = 0.05

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._next = float("-inf")

    def change(self, rate: float) -> None:
        """Set another rate, as if the last turn had been taken at it: no old pause is waited for."""
        interval = 1.0 / rate
        self._next += interval - self._interval
        self._interval = interval

    def pause(self) -> float:
        """Give the seconds until the next turn."""
        return max(0.0, self._next - monotonic())

    def began(self, attempt: Attempt) -> None:
        """Take the turn."""
        self._next = max(self._next, monotonic() - self._LATE, attempt.delivery.since) + self._interval

    def ended(self, _attempt: Attempt, _answer: Answer, _seconds: float) -> None:
        """Nothing comes of it: what began has had its turn."""
