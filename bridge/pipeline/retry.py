"""How long to wait before trying again, and when to stop trying."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from bridge.core.backoff import Backoff
from bridge.values import Model, Seconds


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


STORE_BACKOFF = Backoff(first=0.5, longest=15.0)
"""Between two tries of a store that fails."""
