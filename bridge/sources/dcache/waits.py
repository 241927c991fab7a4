"""Since when occurrences wait for something that should come soon."""

from __future__ import annotations

import time

_MOST = 30_000
"""Occurrences remembered: more than the backlog holds, as one that is forgotten begins to wait again."""


class Waits:
    """Lets each occurrence, known by its key, wait for one thing and for so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[str, float] = {}
        """When waiting began (monotonic), by key."""

    def __contains__(self, key: str) -> bool:
        return key in self._since

    def __len__(self) -> int:
        return len(self._since)

    def goes_on(self, key: str) -> bool:
        """Return whether `key` has not waited for too long. The first call begins."""
        now = time.monotonic()
        if now - self._since.setdefault(key, now) >= self._seconds:
            self.end(key)
            return False
        while len(self._since) > _MOST:
            del self._since[next(iter(self._since))]
        return True

    def end(self, key: str) -> None:
        """Forget since when `key` has waited."""
        self._since.pop(key, None)
