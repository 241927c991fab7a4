"""Whether a lane could soon begin more than waits in it: its sources should not be held for others then."""

from __future__ import annotations

from collections.abc import Callable

from bridge.pipeline.jobs import Jobs
from bridge.pipeline.parking import Parking
from bridge.pipeline.waiting import Waiting

_ENOUGH = 64
"""Events with which a lane that starved starves no more: what it uses while its source is asked again."""


class Starving:
    """Tells those who want to hear of it, and looks after it only if there are any."""

    def __init__(
        self,
        queue: int,
        waiting: Waiting,
        parking: Parking,
        jobs: Jobs | None,
        *,
        shut_since: Callable[[], float | None],
    ) -> None:
        """Look at a lane of so long a queue; `shut_since` tells since when nothing begins, if so."""
        self._queue = queue
        self._waiting = waiting
        self._parking = parking
        self._jobs = jobs
        self._shut_since = shut_since
        self._enough = _ENOUGH
        self.now = False
        self.told: list[Callable[[bool], None]] = []
        """Who wants to hear of it."""

    def tell(self, call: Callable[[bool], None], enough: int) -> None:
        """Have `call` made, with True or False, each time that the lane begins or ceases to starve.

        It ceases with `enough` events, if they are fewer than it would have by itself.
        """
        self._enough = max(1, min(self._enough, enough))
        self.told.append(call)
        self.weigh()
        call(self.now)

    def weigh(self) -> None:
        """Tell if it begins to starve, or ceases; not at each event that comes or goes in between."""
        if not self.told:
            return
        least = self._enough if self.now else max(1, self._enough // 4)
        waiting = len(self._waiting)
        if 2 * waiting <= self._queue:  # else keys that are busy, or fail, have their share of it
            waiting -= self._waiting.behind
        now = waiting < least and self._shut_since() is None and not self._parking.backlog
        if self._jobs is not None and not self._jobs.has_room:
            now = False
        if now != self.now:
            self.now = now
            for call in self.told:
                call(now)
