"""What waits in a lane for its next attempt, in the order in which it is to go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import TypeAlias

from bridge.core.delivery import Delivery

PROBERS = 32
"""Events tried, of those that wait while the service takes nothing, before probes go round them alone: the
time of `give_up_after` runs for few, and as many that always fail are needed to hide a good one."""
_STALE = 64
"""Entries of a heap that may be out of date, beside as many as are true."""


_Tried: TypeAlias = tuple[float, int, Delivery]
"""When one that has failed is due, monotonic, and its place; no two have the same, so none are compared."""


class Waiting:
    """Events not tried yet in the order they came; and those tried, each with the time when it is due.

    Those that are due go first, in the order they came, for they are older than what was not tried. While in
    doubt whether anything is accepted the two take turns, so that a few events that always fail, each after
    a long time, don't have all the places for ever. What leaves stays in the heaps until it comes to their
    top or they are half stale: nothing is searched for.
    """

    def __init__(self) -> None:
        self.fresh: OrderedDict[Delivery, int] = OrderedDict()
        """Those not tried yet, with the place of each in the order in which all came."""
        self._unready: OrderedDict[Delivery, int] = OrderedDict()
        """What is behind them, and may not go before it is `ready`; likewise."""
        self._behind: dict[Delivery, None] = {}
        """What may not go before another has come to its end, in the order it came."""
        self._tried: dict[Delivery, _Tried] = {}
        """In the order of the newest failures."""
        self._timetable: list[_Tried] = []
        """In the order of time: a heap, as the next is."""
        self._due: list[tuple[int, _Tried]] = []
        """What was due when it was last looked for, in the order of age: by place."""
        self._places = count()
        self.tried_anew = 0
        """Events tried for the first time since the last acceptance, at which whoever takes them sets it to
        0."""
        self._retried = False
        """Whether the last that went had been tried before."""

    def __len__(self) -> int:
        return len(self.fresh) + len(self._unready) + len(self._tried) + len(self._behind)

    @property
    def behind(self) -> int:
        """How many may not go before others have come to their end."""
        return len(self._behind)

    def is_behind(self, delivery: Delivery) -> bool:
        """Tell whether it may not go before another has come to its end."""
        return delivery in self._behind

    def __contains__(self, delivery: Delivery) -> bool:
        """Tell whether it waits here."""
        return any(delivery in those for those in (self.fresh, self._unready, self._tried, self._behind))

    def __iter__(self) -> Iterator[Delivery]:
        """Give all, the oldest first."""
        yield from sorted(self._tried, key=lambda delivery: self._tried[delivery][1])
        yield from list(self.fresh)
        yield from list(self._unready)
        yield from list(self._behind)

    def come(self, delivery: Delivery) -> None:
        """Take one in behind all others that were not tried."""
        self.fresh[delivery] = next(self._places)

    def come_all(self, deliveries: Sequence[Delivery]) -> None:
        """Take several in likewise, in their order."""
        self.fresh.update(zip(deliveries, self._places, strict=False))

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
            self.fresh[delivery] = place

    def missing(self, ahead: int) -> int:
        """Give how many of those not ready are missing until `ahead` are."""
        return max(0, min(ahead - len(self.fresh), len(self._unready)))

    def unready(self, most: int) -> list[Delivery]:
        """Give the first of those that are not ready, in the order they came."""
        return list(islice(self._unready, most))

    def again(self, delivery: Delivery, place: int, due: float) -> None:
        """Take one in that has failed, into its `place`: it may go when `due`, a monotonic time."""
        self._tried[delivery] = one = due, place, delivery
        heappush(self._timetable, one)
        if len(self._timetable) + len(self._due) > 2 * len(self._tried) + _STALE:
            self._timetable = [one for one in self._timetable if self._holds(one)]
            self._due = [old for old in self._due if self._holds(old[1])]
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
        if self.fresh.pop(delivery, None) is not None:
            return True
        return self._unready.pop(delivery, None) is not None

    def pause(self, now: float, *, probe: bool = False) -> float:
        """Give the seconds until one may go: 0 now, infinite when none waits; to `probe`, due or not."""
        if self.fresh or (probe and self._tried):
            return 0.0
        if not self._tried:
            return float("inf")
        if self._oldest_due(now) is not None:
            return 0.0
        while not self._holds(self._timetable[0]):
            heappop(self._timetable)
        return max(0.0, self._timetable[0][0] - now)

    def choice(self, now: float, *, probe: bool = False, in_doubt: bool = False) -> Delivery:
        """Give the one whose turn it is. Raise StopIteration when none may go now.

        To `probe` with it is one not tried yet, or the one longest not tried, due or not: so they go round,
        and no event that always fails hides the others. In an outage few are tried; what failed before the
        last acceptance is not of it, and doesn't count.
        """
        fresh, tried = self.fresh, self._tried
        if probe:
            anew = fresh and (len(tried) < PROBERS or self.tried_anew < PROBERS)
            return next(iter(fresh if anew or not tried else tried))
        if tried and not (in_doubt and self._retried and fresh):
            oldest = self._oldest_due(now)
            if oldest is not None:
                longest = next(iter(tried))
                return longest if in_doubt and tried[longest][0] <= now else oldest
        return next(iter(fresh))

    def take(self, now: float, *, probe: bool = False, in_doubt: bool = False) -> tuple[Delivery, int]:
        """Take out the one that is the `choice`; give it, and its place. Raise StopIteration likewise."""
        fresh = self.fresh
        if not self._tried:
            if not fresh:
                raise StopIteration
            self._retried = False
            self.tried_anew += 1
            return fresh.popitem(last=False)
        delivery = self.choice(now, probe=probe, in_doubt=in_doubt)
        place = fresh.pop(delivery, None)
        self._retried = place is None
        if place is None:
            return delivery, self._leave_tried(delivery)
        self.tried_anew += 1
        return delivery, place

    def _leave_tried(self, delivery: Delivery) -> int:
        _, place, _ = self._tried.pop(delivery)
        if not self._tried:  # or what has long left would be held in memory until something fails again
            self._timetable.clear()
            self._due.clear()
        return place

    @property
    def probers_wanted(self) -> int:
        """How many more could be of use to probe with."""
        return max(PROBERS - len(self), PROBERS - self.tried_anew - len(self.fresh))

    def ahead(self, most: int) -> list[Delivery]:
        """Give those that come next of what was not tried yet."""
        return list(islice(self.fresh, most))

    def _oldest_due(self, now: float) -> Delivery | None:
        """Give the first that came of those that are due by now."""
        timetable, due = self._timetable, self._due
        while timetable and timetable[0][0] <= now:
            one = heappop(timetable)
            if self._holds(one):
                heappush(due, (one[1], one))
        while due:
            if self._holds(due[0][1]):
                return due[0][1][2]
            heappop(due)
        return None

    def _holds(self, one: _Tried) -> bool:
        return self._tried.get(one[2]) is one
