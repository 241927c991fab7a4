"""How long to wait before the next of several tries."""

from __future__ import annotations

import random

_MOST_DOUBLINGS = 64
"""Far above every `longest`; much more would be too large for a float."""


class Backoff:
    """Full jitter: a pause drawn evenly from 0 to `first * 2**(failures - 1)`, at most `longest` seconds.

    Spreads the tries of many events, lanes, sources and replicas best (AWS Architecture Blog,
    "Exponential Backoff And Jitter").
    """

    def __init__(self, *, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest

    def seconds(self, failures: int) -> float:
        """Draw the pause after `failures` failures in a row (from 1)."""
        doublings = min(failures - 1, _MOST_DOUBLINGS)
        return random.uniform(0.0, min(self._longest, self._first * 2.0**doublings))
