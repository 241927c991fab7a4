"""Where an event that comes to a lane goes: in, into the store, or nowhere yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from bridge.core.delivery import Delivery, Outcome
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.order import Order
from bridge.pipeline.parking import Parking
from bridge.pipeline.waiting import Waiting

_RUN = 64
"""Places that gather in a full lane before those who wait for room go on, so that the router works in
runs."""
OPEN_PATIENCE = 10
"""Times `park_after` that an event waits in a lane which takes events, but slowly: upstream deadlines
(RabbitMQ's `consumer_timeout` of 30 minutes is the nearest) do not ask why."""


class Entrance:
    """Lets events into a lane in the order they came, and holds those it has no room for.

    Each source has at most a few here at once, in one line: who has entered goes to its end, so that no
    source holds up another. What must not wait any longer is parked, and what is older before it, for it may
    not be overtaken.
    """

    def __init__(
        self,
        config: LaneConfig,
        waiting: Waiting,
        parking: Parking,
        order: Order,
        *,
        shut_since: Callable[[], float | None],
        enter: Callable[[Delivery], None],
        park: Callable[[Delivery], None],
    ) -> None:
        """Serve one lane: `enter` queues an event there, `park` has one written, which may wait there.

        `shut_since` gives the monotonic time since which it begins nothing; None while it does.
        """
        self._config = config
        self._shut_since = shut_since
        self._waiting = waiting
        self._parking = parking
        self._order = order
        self._enter = enter
        self._park = park
        self._held: dict[Delivery, asyncio.Future[None]] = {}
        """The line, the longest held first."""
        self._all_stored = True
        self.roomy = config.queue - max(1, min(_RUN, config.queue // 4))
        """With so few waiting there is room for some of those who wait for it."""

    def admit(self, deliveries: Sequence[Delivery]) -> int:
        """Return how many of `deliveries`, which go in no order, may enter an open lane: none is before them.

        It stops before one that has settled, and one that can't be read. Unlike `put`, it does not ask how
        old they are: `run` parks what has waited too long.
        """
        if self._held or self._parking.backlog:
            return 0
        room = min(len(deliveries), self._config.queue - len(self._waiting))
        admitted = 0
        while admitted < room:
            delivery = deliveries[admitted]
            if delivery.outcome is not None or delivery.nearly_dead or delivery.fault is not None:
                break
            admitted += 1
        if admitted:
            self._all_stored = False
        return admitted

    async def put(self, delivery: Delivery, crowded: Callable[[], bool], *, at_once: bool = False) -> None:
        """Bring `delivery` in, or to the store; wait while it is neither. It may settle meanwhile.

        `crowded` tells whether another lane of its source has nothing to do: then it is not waited for room.
        What is to be parked `at_once` is not let in at all, nor is one that is nearly dead: its upstream
        would drop it after a few more ends of this process. What goes behind others of its key in the store
        is parked too, or given back while the bridge stops.
        """
        at_once = (at_once or delivery.nearly_dead) and self._config.park
        try:
            while delivery.outcome is None:
                behind = self._is_behind(delivery)
                if behind and self._parking.closed:
                    delivery.settle(Outcome.RELEASED)
                    return
                patience = self._patience(delivery)
                if patience > 0 and not (at_once or behind) and self._has_room_for(delivery):
                    self._all_stored = False
                    self._enter(delivery)
                    return
                if self.parks and (behind or at_once or patience <= 0 or crowded()):
                    if not behind:
                        self.park_all()
                    self._park(delivery)
                    return
                await self._hold(delivery, patience)
        finally:
            if self._held.pop(delivery, None) is not None:
                self._next()

    @property
    def held(self) -> list[Delivery]:
        """What waits for room, the longest held first."""
        return list(self._held)

    def left(self, delivery: Delivery) -> None:
        """Hear that `delivery` has settled: it needs no room any more."""
        held = self._held.get(delivery)
        if held is not None:
            _set(held)

    def has_room(self) -> None:
        """Hear that an event has left the lane: there may be room for those who wait, here and parked."""
        if not (self._held or self._parking.backlog):
            return
        waiting = len(self._waiting)
        if waiting <= self.roomy:
            self.look_again()
        if self._parking.backlog and 2 * waiting <= self._config.queue:
            self._parking.look()

    def patience_changed(self) -> None:
        """Hear that the lane has shut, or opened: those who wait here have another patience now."""
        self.look_again()
        self._parking.look()

    def look_again(self) -> None:
        """There may be room, or less time; all who wait see for themselves, in their order."""
        for held in self._held.values():
            _set(held)

    def may_hold_unstored(self) -> None:
        """Something waits in the lane that is not in the store as well."""
        self._all_stored = False

    def park_all(self) -> None:
        """Write all that waits to the store. Asked for with every event that comes behind a full lane."""
        if self.parks and not self._all_stored:
            self._all_stored = True
            self._park_those(lambda _: True)

    @property
    def parks(self) -> bool:
        """Whether events may be written to the store now."""
        return self._config.park and not self._parking.failing

    async def run(self) -> None:
        """Park what has waited too long, until cancelled."""
        while self._config.park:
            await asyncio.sleep(self._config.park_after / 4)
            if self.parks:
                self._park_those(lambda delivery: self._patience(delivery) <= 0)

    def _park_those(self, wanted: Callable[[Delivery], bool]) -> None:
        for delivery in self._waiting:
            if wanted(delivery) and not self._parking.has(delivery):  # all of a key go at once
                self._park(delivery)

    def _patience(self, delivery: Delivery) -> float:
        """Give the seconds that `delivery` may still wait in memory."""
        if not self._config.park:
            return float("inf")
        now, longest, shut_since = monotonic(), self._config.park_after, self._shut_since()
        if shut_since is None:
            return delivery.since + OPEN_PATIENCE * longest - now
        return min(delivery.since, shut_since) + longest - now

    def _is_behind(self, delivery: Delivery) -> bool:
        """Tell whether it may go nowhere but into the store, behind others of its key."""
        key = self._order.keys.get(delivery)
        return key is not None and self._parking.is_before(key)

    def _has_room_for(self, delivery: Delivery) -> bool:
        if len(self._waiting) >= self._config.queue or self._parking.backlog:
            return False
        # Those behind others of their key wait for the store, not for room.
        return next((held for held in self._held if not self._is_behind(held)), delivery) is delivery

    async def _hold(self, delivery: Delivery, seconds: float) -> None:
        """Keep the place in the line until something changes, or `seconds` are over."""
        loop = asyncio.get_running_loop()
        self._held[delivery] = told = loop.create_future()
        if self._parking.failing:  # who has no patience left waits until the store is tried again
            seconds = float("inf")
        alarm = loop.call_later(seconds, _set, told) if seconds < float("inf") else None
        try:
            await told
        finally:
            if alarm is not None:
                alarm.cancel()

    def _next(self) -> None:
        """Have the first of the line see for itself, and any before it that wait for the store alone."""
        for delivery, held in self._held.items():
            _set(held)
            if not self._is_behind(delivery):
                return


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
