"""How long to wait before trying again, and when to stop trying."""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydantic import Field

from bridge.values import Model, Seconds

_MOST_DOUBLINGS = 64
"""Far above every `longest`; much more would be too large for a float."""


class RetryConfig(Model):
    """A service's patience with one event."""

    give_up_after: Seconds = 24 * 3600.0
    """From the event's first attempt; then it becomes a dead letter."""
    max_attempts: int = Field(default=8, ge=1, le=1000)
    """Failures of an event's own, while the service accepts others; then it becomes a dead letter."""
    max_backoff: Seconds = 60.0
    """Longest pause between two attempts."""


@dataclass(slots=True)
class Past:
    """What is remembered of an event once an attempt has failed."""

    first_attempt: float
    """Seconds since 1970, for the store and the dead letter."""
    began: float
    """Monotonic time of the first attempt: `give_up_after` counts from it, whatever becomes of the clock."""
    tried_at: float
    """Monotonic time at which the newest attempt that failed began."""
    attempts: int = 0
    own_failures: int = 0
    put_off: bool = False
    """Whether one of them was answered "not now", or not at all."""


class Backoff:
    """Full jitter: a pause drawn evenly from 0 to `first * 2**(failures - 1)`, at most `longest` seconds.

    Spreads the retries of many events, lanes and replicas best (AWS Architecture Blog,
    "Exponential Backoff And Jitter").
    """

    def __init__(self, *, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest

    def seconds(self, failures: int) -> float:
        """Draw the pause after `failures` failures in a row (from 1)."""
        doublings = min(failures - 1, _MOST_DOUBLINGS)
        return random.uniform(0.0, min(self._longest, self._first * 2.0**doublings))


STORE_BACKOFF = Backoff(first=0.5, longest=15.0)
"""Between two tries of a store that fails."""
