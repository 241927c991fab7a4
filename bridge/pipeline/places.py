"""Where attempts are made, and what is made ready for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from bridge.core.delivery import Delivery
from bridge.core.ports import Answer, Destination, Invocation
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.waiting import Waiting

_PREPARE_AHEAD = 32
"""Events that are encoded in one run: between two attempts each would find the processor's caches full of
other things, which doubles its cost."""
_PREPARE_BYTES = 2**16
"""More of them, their attributes included, are not encoded in one run: nothing else in the process goes on
meanwhile, and a service may be given the attributes too."""
_KEPT = 512
_KEPT_BYTES = 2**19
"""So many events that failed, of so many bytes together, need no encoding for the next attempt: in an outage
many wait, and the memory is for them. The event's size is counted, though its encoding is what is kept, which
is longer by a third as base64, and by more where much of it has to be escaped."""
_NEVER_LEFT = 0.0001
"""Seconds in which no answer comes over a network."""


class _Place:
    """Where one attempt is made after the other; it sleeps while it has none."""

    __slots__ = ("attempt", "given", "told")

    def __init__(self, given: Attempt) -> None:
        self.given: Attempt | None = given
        """What is to be attempted next."""
        self.attempt: Attempt | None = None
        """What is under way."""
        self.told: asyncio.Future[None] | None = None


class Places:
    """As many as there were ever attempts at once: one that ends leaves its place to the next."""

    def __init__(self, destination: Destination, waiting: Waiting) -> None:
        """Make attempts at `destination`; what comes next is at the front of those `waiting`."""
        self._destination = destination
        self._waiting = waiting
        self._tasks: asyncio.TaskGroup | None = None
        self.are_open = False
        """Whether attempts may be given to them."""
        self._all: list[_Place] = []
        self._idle: list[_Place] = []
        self._ready: dict[Delivery, Invocation] = {}
        """Of those that come next."""
        self._failed: dict[Delivery, Invocation] = {}
        """Of those that are to be attempted again, as many as may be kept."""
        self._failed_bytes = 0
        self.busy = 0
        """Attempts under way."""
        self._none_busy = asyncio.Event()
        self._none_busy.set()

    @property
    def under_way(self) -> list[Attempt]:
        """The attempts that have begun, or are about to."""
        begun = (place.attempt or place.given for place in self._all)
        return [attempt for attempt in begun if attempt is not None]

    def open(self, tasks: asyncio.TaskGroup, ended: Callable[[Attempt, Answer, float], None]) -> None:
        """Make attempts in `tasks` from now on.

        `ended` hears how each ended, and when by the monotonic clock.
        """
        self._tasks = tasks
        self._ended = ended
        self.are_open = True

    def close(self) -> None:
        """Take none any more: `tasks` ends. What it cancels is not heard of."""
        self._tasks = None
        self.are_open = False
        self._all.clear()
        self._idle.clear()
        self.busy = 0

    def begin(self, attempt: Attempt) -> None:
        """Make `attempt`."""
        assert self._tasks is not None  # noqa: S101 - who begins one has looked
        if not self.busy:
            self._none_busy.clear()
        self.busy += 1
        if not self._idle:
            place = _Place(attempt)
            self._all.append(place)
            self._tasks.create_task(self._work(place), name="attempts")
            return
        place = self._idle.pop()
        place.given = attempt
        if place.told is not None:
            place.told.set_result(None)
            place.told = None

    def forget(self, delivery: Delivery) -> None:
        """Hear that `delivery` comes next no more."""
        self._ready.pop(delivery, None)
        if self._failed:
            self._take_failed(delivery)

    async def finished(self) -> None:
        """Return when no attempt is under way."""
        await self._none_busy.wait()

    async def _work(self, place: _Place) -> None:
        """Make the attempts that `place` is given."""
        loop = asyncio.get_running_loop()
        ready = self._ready
        while True:
            if place.given is None:
                place.told = loop.create_future()
                await place.told
                continue
            place.attempt = attempt = place.given
            place.given = None
            delivery = attempt.delivery
            invocation = ready.pop(delivery, None) or self._prepared(delivery)
            attempt.job = invocation.job
            attempt.began = monotonic()
            answer = await invocation.attempt()
            now = monotonic()
            if now - attempt.began < _NEVER_LEFT:
                await asyncio.sleep(0)  # or thousands of such would keep all others from their turn
            place.attempt = None
            self.busy -= 1
            if not self.busy:
                self._none_busy.set()
            self._idle.append(place)  # before anything can begin in its place
            if not answer.accepted:
                self._keep(delivery, invocation)
            self._ended(attempt, answer, now)

    def _keep(self, delivery: Delivery, invocation: Invocation) -> None:
        size = self._failed_bytes + delivery.event.size
        if delivery.outcome is None and size <= _KEPT_BYTES and len(self._failed) < _KEPT:
            self._failed[delivery] = invocation
            self._failed_bytes = size

    def _take_failed(self, delivery: Delivery) -> Invocation | None:
        invocation = self._failed.pop(delivery, None)
        if invocation is not None:
            self._failed_bytes -= delivery.event.size
        return invocation

    def _prepared(self, delivery: Delivery) -> Invocation:
        """Give what was kept of an attempt before, or make it ready; with it those that come next."""
        ready, prepare = self._ready, self._destination.prepare
        invocation = self._take_failed(delivery)
        if invocation is None:
            invocation = prepare(delivery.event)
            if not ready:
                size = delivery.event.size
                for other in self._waiting.ahead(_PREPARE_AHEAD):
                    size += other.event.size
                    if size > _PREPARE_BYTES:
                        break
                    ready[other] = prepare(other.event)
        return invocation
