"""What waits in a lane for its next attempt, in the order in which it is to go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import NamedTuple

from bridge.core.delivery import Delivery

PROBERS = 32
"""Events tried, of those that wait while the service takes nothing, before probes go round them alone: the
time of `give_up_after` runs for few, and as many that always fail are needed to hide a good one."""
_STALE = 64
"""Entries of a heap that may be out of date, beside as many as are true."""


class _Entry(NamedTuple):
    key: float
    place: int
    due: float
    delivery: Delivery


class Waiting:
    """Events not tried yet in the order they came; and those tried, each with the time when it is due.

    Those that are due go first, in the order they came, for they are older than what was not tried. While in
    doubt whether anything is accepted the two take turns, so that a few events that always fail, each after
    a long time, don't have all the places for ever. What leaves stays in the heaps until it comes to their
    top or they are half stale: nothing is searched for.
    """

    def __init__(self) -> None:
        self._fresh: OrderedDict[Delivery, int] = OrderedDict()
        """With the place of each in the order in which all came."""
        self._unready: OrderedDict[Delivery, int] = OrderedDict()
        """What is behind them, and may not go before it is `ready`; likewise."""
        self._behind: dict[Delivery, None] = {}
        """What may not go before another has come to its end, in the order it came."""
        self._tried: dict[Delivery, tuple[float, int]] = {}
        """When due, monotonic, and the place; in the order of the newest failures."""
        self._timetable: list[_Entry] = []
        self._due: list[_Entry] = []
        self._places = count()
        self._tried_anew = 0
        """Events tried for the first time since the last acceptance."""
        self._retried = False
        """Whether the last that went had been tried before."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._unready) + len(self._tried) + len(self._behind)

    @property
    def behind(self) -> int:
        """How many may not go before others have come to their end."""
        return len(self._behind)

    def is_behind(self, delivery: Delivery) -> bool:
        """Tell whether it may not go before another has come to its end."""
        return delivery in self._behind

    def __contains__(self, delivery: Delivery) -> bool:
        """Tell whether it waits here."""
        return any(delivery in those for those in (self._fresh, self._unready, self._tried, self._behind))

    def __iter__(self) -> Iterator[Delivery]:
        """Give all, the oldest first."""
        yield from sorted(self._tried, key=lambda delivery: self._tried[delivery][1])
        yield from list(self._fresh)
        yield from list(self._unready)
        yield from list(self._behind)

    def come(self, delivery: Delivery) -> None:
        """Take one in behind all others that were not tried."""
        self._fresh[delivery] = next(self._places)

    def come_unready(self, delivery: Delivery) -> None:
        """Take one in that may not go before `ready` is told of it."""
        self._unready[delivery] = next(self._places)

    def come_behind(self, delivery: Delivery) -> None:
        """Take one in that does not go before it has left, and come anew."""
        self._behind[delivery] = None

    def ready(self, delivery: Delivery) -> None:
        """Let one go that has come unready, if it is still here."""
        place = self._unready.pop(delivery, None)
        if place is not None:
            self._fresh[delivery] = place

    def missing(self, ahead: int) -> int:
        """Give how many of those not ready are missing until `ahead` are."""
        return max(0, min(ahead - len(self._fresh), len(self._unready)))

    def unready(self, most: int) -> list[Delivery]:
        """Give the first of those that are not ready, in the order they came."""
        return list(islice(self._unready, most))

    def again(self, delivery: Delivery, place: int, due: float) -> None:
        """Take one in that has failed, into its `place`: it may go when `due`, a monotonic time."""
        self._tried[delivery] = due, place
        heappush(self._timetable, _Entry(due, place, due, delivery))
        if len(self._timetable) + len(self._due) > 2 * len(self._tried) + _STALE:
            self._timetable = [entry for entry in self._timetable if self._holds(entry)]
            self._due = [entry for entry in self._due if self._holds(entry)]
            heapify(self._timetable)
            heapify(self._due)

    def leave(self, delivery: Delivery) -> bool:
        """Take one out; tell whether it waited here."""
        if delivery in self._tried:
            self._leave_tried(delivery)
            return True
        if delivery in self._behind:
            del self._behind[delivery]
            return True
        return any(those.pop(delivery, None) is not None for those in (self._fresh, self._unready))

    def pause(self, now: float, *, probe: bool = False) -> float:
        """Give the seconds until one may go: 0 now, infinite when none waits; to `probe`, due or not."""
        if self._fresh or (probe and self._tried):
            return 0.0
        if not self._tried:
            return float("inf")
        self._bring(now)
        if self._top(self._due) is not None:
            return 0.0
        entry = self._top(self._timetable)
        return float("inf") if entry is None else max(0.0, entry.due - now)

    def choice(self, now: float, *, probe: bool = False, in_doubt: bool = False) -> Delivery:
        """Give the one whose turn it is. Raise StopIteration when none may go now.

        To `probe` with it is one not tried yet, or the one longest not tried, due or not: so they go round,
        and no event that always fails hides the others. In an outage few are tried; what failed before the
        last acceptance is not of it, and doesn't count.
        """
        fresh, tried = self._fresh, self._tried
        if probe:
            anew = fresh and (len(tried) < PROBERS or self._tried_anew < PROBERS)
            return next(iter(fresh if anew or not tried else tried))
        if tried and not (in_doubt and self._retried and fresh):
            self._bring(now)
            entry = self._top(self._due)
            if entry is not None:
                longest = next(iter(tried))
                return longest if in_doubt and tried[longest][0] <= now else entry.delivery
        return next(iter(fresh))

    def take(self, delivery: Delivery) -> int:
        """Take out the one chosen; give its place."""
        place = self._fresh.pop(delivery, None)
        self._retried = place is None
        if place is not None:
            self._tried_anew += 1
            return place
        return self._leave_tried(delivery)

    def _leave_tried(self, delivery: Delivery) -> int:
        _, place = self._tried.pop(delivery)
        if not self._tried:  # or what has long left would be held in memory until something fails again
            self._timetable.clear()
            self._due.clear()
        return place

    def accepted(self) -> None:
        """An event was accepted: as many may be tried anew."""
        self._tried_anew = 0

    @property
    def probers_wanted(self) -> int:
        """How many more could be of use to probe with."""
        return max(PROBERS - len(self), PROBERS - self._tried_anew - len(self._fresh))

    def ahead(self, most: int) -> list[Delivery]:
        """Give those that come next of what was not tried yet."""
        return list(islice(self._fresh, most))

    def _bring(self, now: float) -> None:
        """Move what is due by now from the order of time to the order of age."""
        while self._timetable and self._timetable[0].due <= now:
            entry = heappop(self._timetable)
            if self._holds(entry):
                heappush(self._due, _Entry(entry.place, entry.place, entry.due, entry.delivery))

    def _top(self, heap: list[_Entry]) -> _Entry | None:
        while heap:
            if self._holds(heap[0]):
                return heap[0]
            heappop(heap)
        return None

    def _holds(self, entry: _Entry) -> bool:
        return self._tried.get(entry.delivery) == (entry.due, entry.place)
