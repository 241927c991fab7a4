"""How many jobs a second a cluster takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

_RUN = 16
"""Acceptances in a row that make a measurement."""
_ASSUMED = 2.5
"""Jobs a second before anything was measured: what an OSCAR takes whose throttle was not raised."""


class Throttle:
    """Acceptances in the time in which calls were under way, and nothing else that the throttle counts.

    The rest of time tells nothing of what the cluster takes.
    """

    def __init__(self) -> None:
        self.is_wanted = False
        """Whether anybody asks for the `rate`: else nobody need tell of calls."""
        self._under_way = 0
        self._aside = 0
        self._since = 0.0
        """Monotonic time from which on the clock runs."""
        self._clock = 0.0
        """Seconds for which it ran before that."""
        self._accepted_at: deque[float] = deque(maxlen=_RUN + 1)
        """By that clock."""

    def began(self) -> None:
        """Hear that a call begins."""
        if self._under_way:  # the clock runs, or stands for what is aside
            self._under_way += 1
        else:
            self._turn(1, self._aside)

    def ended(self, *, accepted: bool) -> None:
        """Hear that a call has ended, and whether it made a job."""
        if accepted and not self._aside:
            self._accepted_at.append(self._clock + monotonic() - self._since)
        if self._under_way > 1:
            self._under_way -= 1
        else:
            self._turn(0, self._aside)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Measure nothing while inside: something else takes from the same throttle."""
        self._turn(self._under_way, self._aside + 1)
        try:
            yield
        finally:
            self._turn(self._under_way, self._aside - 1)

    def _turn(self, under_way: int, aside: int) -> None:
        now = monotonic()
        if self._under_way and not self._aside:
            self._clock += now - self._since
        self._since = now
        self._under_way, self._aside = under_way, aside

    @property
    def rate(self) -> float:
        """Jobs a second, by the newest of those accepted."""
        times = self._accepted_at
        if len(times) <= _RUN:
            return _ASSUMED
        return _RUN / max(times[-1] - times[0], 0.001)
