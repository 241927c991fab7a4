"""How many events a second a service accepts, as measured over about a minute."""

from __future__ import annotations

from collections import deque

_WINDOW = 60.0
"""Seconds over which the rate is taken, where enough was accepted in them."""
_ENOUGH = 8
"""Acceptances that make a rate: of a service that takes fewer a minute more of the past is looked at."""
_MARK_SECONDS = 5.0
"""Between two marks."""


class Throughput:
    """Counts acceptances, and marks the count from time to time: the rate is that since one of the marks.

    So time in which nothing came, before the oldest mark of the window, makes no service slow, while time
    without an acceptance since the newest makes it slower and slower.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        """Monotonic time of the last acceptance; None until there is one."""
        self._total = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=int(_WINDOW / _MARK_SECONDS) + _ENOUGH)
        """Monotonic times, with the count then, that of the acceptance which set the mark included."""
        self._next_mark = 0.0

    def count(self, now: float) -> None:
        """Count an acceptance at the monotonic time `now`."""
        self.last = now
        self._total += 1
        if now >= self._next_mark:
            self._next_mark = now + _MARK_SECONDS
            self._marks.append((now, self._total))

    def a_second(self, now: float) -> float:
        """Return acceptances a second; 0 until there were two."""
        count, since = 0, now
        for at, total in reversed(self._marks):
            if now - at > _WINDOW and count >= _ENOUGH:
                break
            count, since = self._total - total, at
        return count / (now - since) if count and now > since else 0.0
