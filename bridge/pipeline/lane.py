"""One service's bounded queue: what waits, what is under way, and the one dispatcher between them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.jobs import JobMaker
from bridge.core.journal import NO_JOURNAL, Journal, What
from bridge.core.ports import Answer, DeadLetter, Destination, Keeper, Verdict
from bridge.pipeline.config import LaneConfig
from bridge.pipeline.dead import Burials
from bridge.pipeline.entrance import Entrance
from bridge.pipeline.failure_log import FailureLog
from bridge.pipeline.failures import Failures
from bridge.pipeline.jobs import Jobs
from bridge.pipeline.limits.alarm import Alarm
from bridge.pipeline.limits.allowance import Allowance
from bridge.pipeline.limits.gate import Gate
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt, Limit
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.order import Order
from bridge.pipeline.parking import Parking
from bridge.pipeline.places import Places
from bridge.pipeline.retry import Backoff, Past
from bridge.pipeline.throughput import Throughput
from bridge.pipeline.waiting import PROBERS, Waiting
from bridge.telemetry.metrics import LaneMetrics

_ROUTER_RUN = 64
"""Places that gather in a full lane before those who wait for room go on, so that the router works in
runs."""
_ENOUGH = 64
"""Events with which a lane that starved starves no more: what it uses while its source is asked again."""
_BEGIN_AT_ONCE = 256
"""Attempts begun before the other tasks of the process have their turn: some 5 µs each."""
_log = structlog.get_logger(__name__)


class Lane:
    """Takes events for one service and makes attempts until each is settled.

    `look` is the dispatcher: whenever something came, ended or fell due, it begins what all limits allow.
    Nothing else begins an attempt, and no attempt waits for the store. `ring` has the limits that the lane
    shares with others of its cluster, `pauses` are those that a person may want of it; `maker` names its jobs
    where they are followed.
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
        self.key = key
        self._log = _log.bind(service=key)
        self._tells_each = self._log.is_enabled_for(logging.DEBUG)
        """Whether there is a line in the log for each event that is accepted."""
        self._journal = journal
        self._config = config
        self._metrics = metrics
        self._gate = Gate(key, Backoff(first=0.5, longest=config.retry.max_backoff), metrics)
        self._limits: list[Limit] = [self._gate]
        self.allowance = Allowance(self._limits, config.limits.concurrency, config.limits.rate)
        """After a change of it the lane has to look."""
        self._pauses = pauses
        self._paused_since = self._pause_began()
        for pause in pauses:
            pause.when_changed(self._paused_or_resumed)
        self._ring = ring
        self._waiting = Waiting()
        self.jobs: Jobs | None = None
        """What is known of its jobs, where they are followed."""
        if maker is not None:
            self.jobs = Jobs(
                key, config, maker, keeper, metrics, self._waiting, look=self.look, journal=journal
            )
        self._places = Places(destination, self._waiting, self._ended)
        self._failures = Failures(key, config.retry)
        self._failure_log = FailureLog(self._log)
        self._throughput = Throughput()
        self._alarm = Alarm(self.look)
        self._run = max(1, min(_ROUTER_RUN, config.queue // 4))
        self._held = False
        """Whether the last look found a limit in the way, not a lack of events: one more changes nothing."""
        self._enough = _ENOUGH
        self.starving = False
        """Whether it could soon begin more than waits in it: its sources should not be held for others. It is
        looked after where somebody wants to hear of it (`when_starving`)."""
        self._when_starving: list[Callable[[bool], None]] = []
        self._burials = Burials(keeper, journal)
        self._parking = Parking(
            key,
            keeper,
            journal,
            room=self._room_for_parked,
            put_back=self._put_back,
            key_has_room=lambda key: self._order.has_room(key),
            left=self._settled,
            changed=self._parking_changed,
        )
        if self._parking.backlog:
            self._gate.open_slowly()
        self._order = Order(
            key,
            self._waiting,
            self._parking,
            queue=config.queue,
            parks=lambda: self._entrance.parks,
            let_go=self._let_next_go,
            park=self._write,
        )
        self._entrance = Entrance(
            config,
            self._waiting,
            self._parking,
            self._order,
            shut_since=lambda: self._shut_since,
            enter=self._enter,
            park=self._park,
        )
        metrics.queued.set_function(lambda: len(self._waiting))
        metrics.in_flight.set_function(lambda: self._places.busy)
        metrics.limit.set_function(lambda: self.allowance.at_once)
        metrics.drain.set_function(self._drain_seconds)
        metrics.paused.set_function(lambda: self._paused_since is not None)
        metrics.give_up_after.set(config.retry.give_up_after)
        metrics.last_accepted(self._last_accepted)
        metrics.keys_held.set_function(lambda: self._order.held)

    @property
    def _shut_since(self) -> float | None:
        """Monotonic time since which nothing begins, but for probes: the gate is shut, or it is paused."""
        gate, paused = self._gate.shut_since, self._paused_since
        if gate is None or paused is None:
            return paused if gate is None else gate
        return min(gate, paused)

    def when_starving(self, call: Callable[[bool], None], enough: int) -> None:
        """Have `call` made, with True or False, each time that the lane begins or ceases to starve.

        It ceases with `enough` events, if they are fewer than it would have by itself.
        """
        self._enough = max(1, min(self._enough, enough))
        self._when_starving.append(call)
        self._weigh()
        call(self.starving)

    def problems(self) -> Sequence[str]:
        """Return why nothing is accepted, for readiness, without an answer's text; empty if all is well."""
        problem = self._gate.problem
        return [] if problem is None else [problem]

    def in_hand(self) -> Iterator[tuple[Delivery, str]]:
        """Give all that is here as it is now, each with what becomes of it, for a person."""
        for delivery in self._places.under_way:
            yield delivery, "an attempt is under way"
        for before, delivery in enumerate(list(self._waiting)):
            turn = f"it waits for its turn, with {before} before it" if before else "it comes next"
            yield delivery, self._order.waits_for(delivery) or turn
        for delivery in self._entrance.held:
            yield delivery, "the lane is full, and it waits for room"
        for delivery in self._parking.leaving:
            yield delivery, "it is on its way into the store"

    @property
    def shut_by(self) -> str | None:
        """Why nothing begins now, for a person; None while it may."""
        return "it is paused" if self._paused_since is not None else self._gate.problem

    def attempts(self, delivery: Delivery) -> int:
        """Return how many attempts at `delivery` have failed."""
        past = self._failures.past(delivery)
        return 0 if past is None else past.attempts

    @property
    def held_by(self) -> str | None:
        """Name the limit that an event waits for which could begin else; None where there is none such.

        It is `concurrency`, `rate` or `active_jobs`, or `cluster` for those that its services share.
        """
        if self._waiting.pause(monotonic()) > 0:
            return None
        if self.jobs is not None and not self.jobs.has_room:
            return "active_jobs"
        in_turn = self._ring is not None and self._ring.keeps(self)
        return self.allowance.held_by or ("cluster" if in_turn else None)

    @property
    def queue(self) -> int:
        """Events that it lets in."""
        return self._config.queue

    def take(self, delivery: Delivery) -> bool:
        """Queue `delivery`, which goes in no order, if it need not wait; tell whether it is here."""
        if self._shut_since is not None or not self._entrance.admits(delivery):
            return False
        delivery.watch(self._settled)
        self._let_go(delivery)
        self._came()
        return True

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
        if order_key is not None:
            self._order.keys[delivery] = order_key
        delivery.watch(self._settled)
        await self._entrance.put(delivery, crowded, at_once=at_once)

    def make_way(self, *, for_all: bool) -> None:
        """Another lane starves: look again at what waits for room; if `for_all`, park what waits here too."""
        if for_all:
            self._entrance.park_all()
        self._entrance.look_again()

    async def run(self) -> None:
        """Make attempts until cancelled. What is then unsettled stays unsettled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._places.open(tasks)
                tasks.create_task(self._parking.run(), name=f"lane {self.key} parking")
                tasks.create_task(self._entrance.run(), name=f"lane {self.key} patience")
                if self.jobs is not None:
                    tasks.create_task(self.jobs.run(), name=f"lane {self.key} jobs")
                self.look()
                try:
                    await self._burials.run()
                finally:
                    self._places.close()  # before they end, since nothing may be given to them then
        finally:
            self._alarm.set(NOT_BEFORE_TOLD)
            self._failure_log.close()
            if self._ring is not None:
                self._ring.leave(self)

    def close(self) -> None:
        """Stop taking events out of the store, and let go of those not under way: the bridge stops."""
        back = self._parking.close()
        for delivery in list(self._order.overtaking()):
            delivery.settle(Outcome.RELEASED)
        for delivery in back:
            if self._waiting.leave(delivery):
                self._places.forget(delivery)
                delivery.settle(Outcome.RELEASED)

    async def finished(self) -> None:
        """Return when no attempt is under way, and nothing of theirs has still to be written."""
        await self._places.finished()
        await self._burials.finished()

    # What begins

    def look(self) -> None:
        """Begin what may begin now, and set the one alarm for what may later."""
        self._look(monotonic())

    def _look(self, now: float) -> None:
        if not self._places.are_open:
            return
        for _ in range(_BEGIN_AT_ONCE):
            pause = self._pause(now)
            if pause > 0:
                self._alarm.set(pause)
                break
            self._begin(now)
        else:
            self._alarm.set(0.0)
        self._weigh()

    def _weigh(self) -> None:
        """Tell if it begins to starve, or ceases; not at each event that comes or goes in between."""
        if not self._when_starving:
            return
        least = self._enough if self.starving else max(1, self._enough // 4)
        waiting = len(self._waiting)
        if 2 * waiting <= self._config.queue:  # else keys that are busy, or fail, have their share of it
            waiting -= self._waiting.behind
        starving = waiting < least and self._shut_since is None and not self._parking.backlog
        if self.jobs is not None and not self.jobs.has_room:
            starving = False
        if starving != self.starving:
            self.starving = starving
            for call in self._when_starving:
                call(starving)

    def _pause(self, now: float) -> float:
        """Give the seconds until one may begin: 0 now."""
        shut = self._gate.shut_since is not None
        pause = self._waiting.pause(now, probe=shut)
        self._held = False
        if pause > 0:
            return pause
        if self.jobs is not None:
            head = self._waiting.choice(now, probe=shut, in_doubt=self._gate.in_doubt)
            if self.jobs.pause(head) > 0:
                self._held = True
                return NOT_BEFORE_TOLD
        if self._paused_since is not None:
            pause = NOT_BEFORE_TOLD
        else:
            for limit in self._limits:
                longer = limit.pause()
                if longer > pause:
                    pause = longer
                    if longer == NOT_BEFORE_TOLD:
                        break
        if pause <= 0 and self._ring is not None and not self._ring.grant(self):
            pause = NOT_BEFORE_TOLD
        self._held = pause > 0
        return pause

    def _begin(self, now: float) -> None:
        shut = self._gate.shut_since is not None
        delivery, place = self._waiting.take(now, probe=shut, in_doubt=self._gate.in_doubt)
        attempt = Attempt(delivery, now, place, probe=shut)
        for limit in self._limits:
            limit.began(attempt)
        if self._ring is not None:
            self._ring.began(attempt)
        if self.jobs is not None:
            self.jobs.began(attempt)
        if self._order.keys:
            self._order.began(delivery)
        self._places.begin(attempt)
        self._has_room()

    def _pause_began(self) -> float | None:
        return min((pause.since for pause in self._pauses if pause.since is not None), default=None)

    def _paused_or_resumed(self) -> None:
        self._paused_since = self._pause_began()
        if self._paused_since is None:
            self._failures.not_before = monotonic()
        self._entrance.look_again()  # there is another patience now
        self._parking.look()
        self.look()

    def _has_room(self) -> None:
        if not (self._entrance.holds_any or self._parking.backlog):
            return
        waiting, queue = len(self._waiting), self._config.queue
        if queue - waiting >= self._run:
            self._entrance.look_again()
        if self._parking.backlog and 2 * waiting <= queue:
            self._parking.look()

    # What ends

    def _ended(self, attempt: Attempt, answer: Answer, now: float) -> None:
        seconds = now - attempt.began
        self._metrics.seconds.observe(seconds)
        self._metrics.invocations[answer.verdict].inc()
        delivery = attempt.delivery
        was_shut = self._gate.shut_since
        if self.jobs is not None:
            self.jobs.ended(attempt, answer)
        if answer.accepted:
            self._accepted(attempt, answer, now)
        elif delivery.outcome is None:
            self._not_accepted(attempt, answer, now)
        if self._order.keys:
            self._order.ended(delivery)
        for limit in self._limits:
            limit.ended(attempt, answer, seconds)
        if self._gate.shut_since != was_shut:
            self._entrance.look_again()  # there is another patience now
            self._parking.look()
        if self._ring is not None:
            self._ring.ended(attempt, answer, seconds)
            if self._ring.keeps(self):
                # No alarm is needed: the ring calls `look` when this lane's turn comes, and that sets it.
                self._weigh()
                return
        self._look(now)

    def _accepted(self, attempt: Attempt, answer: Answer, now: float) -> None:
        delivery, event, job = attempt.delivery, attempt.delivery.event, attempt.job
        past = self._failures.accepted(delivery, now)
        what: What = "accepted" if answer.verdict is Verdict.ACCEPTED else "duplicate"
        attempts = 0 if past is None else past.attempts + 1
        # By position: named, they would cost each event a tenth of its line.
        self._journal.note(what, event, self.key, now, delivery.since, job, attempts)
        if self._tells_each:
            self._log.debug("accepted", source=event.source, id=event.id, subject=event.subject, job=job)
        self._throughput.count(now)
        self._waiting.accepted()
        happened = event.seconds
        if happened is not None:
            self._metrics.age.observe(max(0.0, time.time() - happened))
        delivery.settle(Outcome.ACCEPTED)

    def _not_accepted(self, attempt: Attempt, answer: Answer, now: float) -> None:
        delivery = attempt.delivery
        past, then = self._failures.judge(attempt, answer, now)
        if isinstance(then, DeadLetter):
            self._burials.add(delivery, self._order.telling(delivery, then))
            return
        self._metrics.retried(answer.cause)
        self._journal.note(
            "failed",
            delivery.event,
            self.key,
            at=now,
            since=delivery.since,
            job=attempt.job,
            attempts=past.attempts,
            cause=answer.cause,
            detail=answer.detail,
        )
        self._failure_log.failed(delivery.event, answer, past.attempts, then)
        self._parking.remember(delivery, past)
        self._waiting.again(delivery, attempt.place, now + then)
        if not self._parking.owns(delivery):
            self._entrance.may_hold_unstored()

    def _drain_seconds(self) -> float:
        backlog = len(self._waiting) + self._parking.elsewhere
        if backlog <= 0:
            return 0.0
        rate = self._throughput.a_second(monotonic())
        return backlog / rate if rate else float("inf")

    def _last_accepted(self) -> float | None:
        last = self._throughput.last
        return None if last is None else time.time() - (monotonic() - last)

    # What comes and leaves

    def _enter(self, delivery: Delivery) -> None:
        self._come(delivery)
        self._came()

    def _came(self) -> None:
        if not self._held:
            self.look()
        elif self.starving:
            self._weigh()

    def _come(self, delivery: Delivery) -> None:
        if delivery not in self._order.keys or self._order.come(delivery):
            self._let_go(delivery)

    def _let_next_go(self, delivery: Delivery) -> None:
        """Let one go that has waited for another to come to its end: soon, since it may be let go of too."""
        self._waiting.leave(delivery)
        self._let_go(delivery)
        self._alarm.set(0.0)

    def _let_go(self, delivery: Delivery) -> None:
        if self.jobs is not None:
            self.jobs.come(delivery)
        else:
            self._waiting.come(delivery)

    def _put_back(self, delivery: Delivery, past: Past | None, order_key: int | None) -> None:
        if order_key is not None:
            self._order.keys[delivery] = order_key
        if past is not None:
            self._failures.remember(delivery, past)
        if not self._parking.owns(delivery):
            self._entrance.may_hold_unstored()
        self._enter(delivery)

    def _park(self, delivery: Delivery) -> None:
        if delivery in self._order.keys:
            self._order.park(delivery)
        else:
            self._write(delivery, None)

    def _write(self, delivery: Delivery, order_key: int | None) -> None:
        self._waiting.leave(delivery)
        self._places.forget(delivery)
        self._parking.take(delivery, self._failures.past(delivery), order_key)

    def _parking_changed(self) -> None:
        self._entrance.look_again()
        self._weigh()

    def _room_for_parked(self) -> int:
        if self._paused_since is not None:
            return 0
        room = self._config.queue - len(self._waiting)
        if self._gate.shut_since is None:
            return room
        return max(PROBERS - len(self._waiting), min(room, self._waiting.probers_wanted))

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        if self._failures.forget(delivery):
            self._burials.left(delivery)
        elif outcome is Outcome.ACCEPTED and self.jobs is None and not self._order.keys:
            # It was accepted at its first attempt, so it is nowhere else any more. This holds because without
            # jobs and keys `_accepted` alone may settle ACCEPTED.
            return
        self._places.forget(delivery)
        self._parking.left(delivery)
        if self._order.keys:
            self._order.left(delivery)
        if self.jobs is not None:
            self.jobs.left(delivery)
        if self._waiting.leave(delivery):
            self._has_room()
            self._weigh()
        else:
            self._entrance.left(delivery)
