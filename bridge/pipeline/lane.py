"""One service's lane: what waits for it, what is under way, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

import structlog

from bridge.core.backoff import Backoff
from bridge.core.delivery import Delivery
from bridge.core.jobs import JobMaker
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.core.ports import Destination, Keeper
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.dead import Burials
from bridge.pipeline.dispatch import Dispatcher
from bridge.pipeline.endings import Endings
from bridge.pipeline.failures import Failures
from bridge.pipeline.jobs import Jobs
from bridge.pipeline.limits.gate import Gate
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.places import Places
from bridge.pipeline.throughput import Throughput
from bridge.pipeline.waiting import Waiting
from bridge.pipeline.waiting_room import WaitingRoom
from bridge.telemetry.metrics import LaneMetrics

_log = structlog.get_logger(__name__)


class Lane:
    """Takes events for one service, bounded in number, and has attempts made until each is settled.

    An event is in the `WaitingRoom` until the `Dispatcher` begins an attempt, which is made in `Places`;
    `Endings` judges what came of it, and the event settles or waits for the next. No attempt waits for the
    store.
    """

    def __init__(
        self,
        key: str,
        config: LaneConfig,
        destination: Destination,
        keeper: Keeper,
        metrics: LaneMetrics,
        ring: Ring | None = None,
        pauses: Sequence[Pause] = (),
        maker: JobMaker | None = None,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        """Put events to `destination`.

        `ring` has the limits that the lane shares with others of its cluster, `pauses` are those that a
        person may want of it; `maker` names its jobs where they are followed.
        """
        self.key = key
        self.queue = config.queue
        """Events that it lets in."""
        self._waiting = waiting = Waiting()
        self._places = Places(destination, waiting)
        self._throughput = Throughput()
        self._failures = Failures(key, config.retry, self._throughput)
        self._burials = Burials(keeper, journal)
        self._gate = Gate(key, Backoff(first=0.5, longest=config.retry.max_backoff), metrics)
        self._dispatcher = Dispatcher(
            config.limits, self._gate, ring, pauses, waiting, self._places, resumed=self._failures.forgive
        )
        self.allowance = self._dispatcher.allowance
        """After a change of it the lane has to `look`."""
        self.look = self._dispatcher.look
        self.jobs: Jobs | None = None
        """What is known of its jobs, where they are followed."""
        if maker is not None:
            self.jobs = Jobs(key, config, maker, keeper, metrics, waiting, look=self.look, journal=journal)
        self._room = WaitingRoom(
            key,
            config,
            keeper,
            journal,
            waiting=waiting,
            dispatcher=self._dispatcher,
            places=self._places,
            failures=self._failures,
            burials=self._burials,
            jobs=self.jobs,
        )
        if self._room.parking.backlog:
            self._gate.open_slowly(0)
        self.take_all = self._room.take_all
        self._dispatcher.connect(self._room.entrance, self._room.order, self._room.starving, self.jobs)
        self._endings = Endings(
            key,
            metrics,
            journal,
            _log.bind(service=key),
            room=self._room,
            dispatcher=self._dispatcher,
            jobs=self.jobs,
            failures=self._failures,
            throughput=self._throughput,
            burials=self._burials,
        )
        metrics.queued.set_function(lambda: len(waiting))
        metrics.in_flight.set_function(lambda: self._places.busy)
        metrics.limit.set_function(lambda: self.allowance.at_once)
        metrics.drain.set_function(self._drain_seconds)
        metrics.paused.set_function(lambda: self._dispatcher.paused_since is not None)
        metrics.give_up_after.set(config.retry.give_up_after)
        metrics.last_accepted(self._last_accepted)
        metrics.keys_held.set_function(lambda: self._room.order.held)

    # What comes

    async def put(
        self,
        delivery: Delivery,
        crowded: Callable[[], bool] = lambda: False,
        *,
        at_once: bool = False,
        order_key: int | None = None,
    ) -> None:
        """Queue or park `delivery`, waiting while the lane is full. One that settles leaves the lane.

        While `crowded()`, which is looked at whenever something changes, it is parked in place of waiting:
        another lane of its source starves. If it is to be parked `at_once`, it is not queued at all.
        It goes behind those that came before with the same `order_key`, once they have come to their end.
        """
        await self._room.put(delivery, crowded, at_once=at_once, order_key=order_key)

    def make_way(self, *, for_all: bool) -> None:
        """Another lane starves: look again at what waits for room; if `for_all`, park what waits here too."""
        if for_all:
            self._room.entrance.park_all()
        self._room.entrance.look_again()

    @property
    def starving(self) -> bool:
        """Whether it could soon begin more than waits in it: its sources should not be held for others.

        It is looked after where somebody wants to hear of it (`when_starving`).
        """
        return self._room.starving.now

    def when_starving(self, call: Callable[[bool], None], enough: int) -> None:
        """Have `call` made, with True or False, each time that the lane begins or ceases to starve.

        It ceases with `enough` events, if they are fewer than it would have by itself.
        """
        self._room.starving.tell(call, enough)

    # How it runs

    async def run(self) -> None:
        """Make attempts until cancelled. What is then unsettled stays unsettled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._places.open(tasks, self._endings.ended)
                tasks.create_task(self._room.parking.run(), name=f"lane {self.key} parking")
                tasks.create_task(self._room.entrance.run(), name=f"lane {self.key} patience")
                if self.jobs is not None:
                    tasks.create_task(self.jobs.run(), name=f"lane {self.key} jobs")
                self.look()
                try:
                    await self._burials.run()
                finally:
                    self._places.close()  # before they end, since nothing may be given to them then
        finally:
            self._dispatcher.close()
            self._endings.close()

    def close(self) -> None:
        """Stop taking events out of the store, and let go of those not under way: the bridge stops."""
        self._room.close()

    async def finished(self) -> None:
        """Return when no attempt is under way, and nothing of theirs has still to be written."""
        await self._places.finished()
        await self._burials.finished()

    # What a person is told

    def problems(self) -> Sequence[str]:
        """Return why nothing is accepted, for readiness, without an answer's text; empty if all is well."""
        problem = self._gate.problem
        return [] if problem is None else [problem]

    @property
    def shut_by(self) -> str | None:
        """Why nothing begins now, for a person; None while it may."""
        return "it is paused" if self._dispatcher.paused_since is not None else self._gate.problem

    @property
    def held_by(self) -> str | None:
        """Name the limit that an event waits for which could begin else; None where there is none such.

        It is `concurrency`, `rate` or `active_jobs`, or `cluster` for those that its services share.
        """
        return self._dispatcher.held_by

    def in_hand(self) -> Iterator[tuple[Delivery, str]]:
        """Give all that is here as it is now, each with what becomes of it, for a person."""
        for attempt in self._places.under_way:
            yield attempt.delivery, "an attempt is under way"
        yield from self._room.in_hand()

    def attempts(self, delivery: Delivery) -> int:
        """Return how many attempts at `delivery` have failed."""
        past = self._failures.past(delivery)
        return 0 if past is None else past.attempts

    def _drain_seconds(self) -> float:
        backlog = len(self._waiting) + self._room.parking.elsewhere
        if backlog <= 0:
            return 0.0
        rate = self._throughput.a_second(monotonic())
        return backlog / rate if rate else float("inf")

    def _last_accepted(self) -> float | None:
        last = self._throughput.last
        return None if last is None else time.time() - (monotonic() - last)
