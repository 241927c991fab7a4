"""A cluster's limits, and whose turn it is: the lanes of its services stand in a ring."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from bridge.pipeline.limits.alarm import Alarm
from bridge.pipeline.limits.limit import Limit


class Standing(Protocol):
    """Who stands in the ring: a lane."""

    def look(self) -> None:
        """Begin what may begin."""


class Ring:
    """Gives each place that is free to the next lane that stands here, one attempt a turn.

    A lane stands here once, however much waits in it, so one that is busy does not hold up the others.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self.limits = limits
        """A lane tells them of each attempt as it begins and as it ends, and has the ring `look` then."""
        self.standing: OrderedDict[Standing, None] = OrderedDict()
        """Who waits for a turn."""
        self._turn: Standing | None = None
        self._alarm = Alarm(self.look)

    def grant(self, lane: Standing) -> bool:
        """Tell whether `lane` may begin one now; if not, it stands in the ring until it has a `look`."""
        if self._turn is lane:
            self._turn = None
            return True
        if self._turn is None and not self.standing:
            for limit in self.limits:
                if limit.pause() > 0:
                    break
            else:
                return True
        if lane not in self.standing:
            self.standing[lane] = None
            if self._turn is None:
                self._alarm.set(self._pause())
        return False

    def keeps(self, lane: Standing) -> bool:
        """Tell whether `lane` stands here until it is its turn."""
        return lane in self.standing

    def leave(self, lane: Standing) -> None:
        """Stand here no more: `lane` has ended."""
        self.standing.pop(lane, None)

    def look(self) -> None:
        """Give the turns that are free."""
        if self._turn is not None:
            return
        while self.standing:
            pause = self._pause()
            if pause > 0:
                self._alarm.set(pause)
                return
            lane, _ = self.standing.popitem(last=False)
            self._turn = lane
            lane.look()
            self._turn = None  # it had nothing to begin any more

    def _pause(self) -> float:
        pause = 0.0
        for limit in self.limits:
            longer = limit.pause()
            if longer > pause:
                pause = longer
        return pause
