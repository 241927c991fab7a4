"""The limit `active_jobs`: jobs of this bridge's own that have not ended."""

from __future__ import annotations

from math import inf

from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD


class Backlog:
    """Lets at most `most` jobs be active, as far as anybody can know.

    OSCAR accepts any number of jobs, so what it can take shows in what has ended alone, which a listing tells
    later. Until one tells otherwise a job for which an attempt began is active: it may be made long after its
    caller gave up. Names that an earlier process left behind are in doubt, for it may have died before it
    made an attempt: they count as active too, but none of their events may go before there is a place.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self._active: dict[str, bool] = {}
        """By name: whether it is certain that an attempt was made, so that another adds no job."""
        self._known = False

    @property
    def active(self) -> int:
        """How many jobs count as active."""
        return len(self._active)

    def names(self) -> list[str]:
        """Give the names of those that count."""
        return list(self._active)

    def knows(self) -> None:
        """Hear that all jobs of an earlier process are known: a sweep has ended, or there were none."""
        self._known = True

    def pause(self, name: str) -> float:
        """Give 0 while an attempt at the job `name` may begin, else `NOT_BEFORE_TOLD`.

        After a start nothing may before the first sweep, unless any number may be active.
        """
        if self.most == inf:
            return 0.0
        if not self._known:
            return NOT_BEFORE_TOLD
        if self._active.get(name):
            return 0.0
        others = len(self._active) - (name in self._active)
        return 0.0 if others < self.most else NOT_BEFORE_TOLD

    def counts(self, name: str) -> bool:
        """Tell whether the job `name` counts as active."""
        return name in self._active

    def doubt(self, name: str) -> None:
        """Count a job of an earlier process, for which an attempt may have been made."""
        self._active.setdefault(name, False)

    def take(self, name: str) -> None:
        """Count a job for which an attempt begins, or that was seen active."""
        self._active[name] = True

    def free(self, name: str) -> None:
        """Count a job no more: it has ended, or was never made."""
        self._active.pop(name, None)
