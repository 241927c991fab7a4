"""One service's bounded queue, its workers, limits and gate."""

from __future__ import annotations

import asyncio
import heapq
import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import count, islice
from time import monotonic

import structlog
from pydantic import Field

from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import Answer, DeadLetter, Destination, Invocation, Keeper, Verdict
from bridge.pipeline.dead import bury
from bridge.pipeline.limits.config import LimitsConfig
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.limits.pace import Pace
from bridge.pipeline.parking import Parking
from bridge.pipeline.retry import Backoff, Past, RetryConfig
from bridge.telemetry.metrics import LaneMetrics
from bridge.values import Model, Seconds

_SLOW_AFTER = 5
"""Failures in a row, of any events, without one acceptance between them: then the service itself is down."""
OPEN_PATIENCE = 10
"""Times `park_after` that an event waits in a lane which takes events, but slowly: upstream deadlines
(RabbitMQ's `consumer_timeout` of 30 minutes is the nearest) do not ask why."""
_ROOM = 64
"""Places that gather in a full lane before the router goes on, for the same reason as `_TOGETHER`."""
_TOGETHER = 32
"""Events that are made ready for their attempts one after the other: between two attempts each would find the
processor's caches full of other things, which doubles its cost."""
_TOGETHER_BYTES = 2**16
"""More of their data are not made ready in one go: nothing else in the process goes on meanwhile."""

_log = structlog.get_logger(__name__)


class LaneConfig(Model):
    """The pipeline's part of a service."""

    queue: int = Field(default=1000, ge=1, le=1_000_000)
    """Events waiting in the lane, those between two attempts included."""
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()
    park: bool = True
    """Write events that can't be attempted to the store; if not, they are held upstream."""
    park_after: Seconds = 60.0
    """How long an event waits for a shut gate before it is parked."""


class Lane:
    """Takes events for one service and makes attempts until each is settled.

    The gate is open while the service takes events. After a refusal, or when nothing succeeds any
    more, it is shut: the workers hold, and one event at a time probes, with growing pauses. After a
    probe that may have failed by its event's own fault, one not tried before goes next: events that
    always fail can't keep the gate shut for the others.
    """

    def __init__(
        self,
        key: str,
        config: LaneConfig,
        destination: Destination,
        keeper: Keeper,
        metrics: LaneMetrics,
    ) -> None:
        self.key = key
        self._config = config
        self._destination = destination
        self._keeper = keeper
        self._metrics = metrics
        self._pace = None if config.limits.rate is None else Pace(config.limits.rate)
        self._past: dict[Delivery, Past] = {}
        self._queue: OrderedDict[Delivery, None] = OrderedDict()  # not tried yet
        self._again: list[Delivery] = []  # tried, and due: by first attempt
        self._later: dict[Delivery, float] = {}  # tried, with the monotonic time when due
        self._timetable: list[tuple[float, int, Delivery]] = []
        self._tie = count()
        self._ready: dict[Delivery, Invocation] = {}  # of the next in the queue
        self._enough_room = max(1, min(_ROOM, config.queue // 4))
        self._in_flight = 0
        self._idle_workers: deque[asyncio.Future[None]] = deque()
        self._waiting_for_room: deque[asyncio.Future[None]] = deque()
        self._waiting_for_the_end: deque[asyncio.Future[None]] = deque()
        self._backoff = Backoff(first=0.5, longest=config.retry.max_backoff)
        self._last_acceptance = 0.0
        self._failures = 0
        self._failed_probes = 0
        self._shut: str | None = None
        self._shut_since = 0.0
        self._probe_at = 0.0
        self._probe: Delivery | None = None
        self._probe_untried = False
        self._putting: dict[Delivery, asyncio.Future[None]] = {}
        self._parkable = False  # something may wait here that is not in the store
        self._parking = Parking(
            key,
            keeper,
            room=self._room_for_parked,
            put_back=self._put_back,
            left=self._settled,
            caught_up=lambda: _wake_all(self._waiting_for_room),
        )
        metrics.queued.set_function(self._waiting)
        metrics.in_flight.set_function(lambda: self._in_flight)
        metrics.limit.set(config.limits.ceiling)
        metrics.open.set(1)

    def problems(self) -> Sequence[str]:
        """Return why the gate is shut, without the answer's text, for readiness; empty while it is open."""
        return [] if self._shut is None else [self._shut]

    async def put(self, delivery: Delivery, *, alone: bool, crowded: bool = False) -> None:
        """Queue or park `delivery`, waiting while the lane is full. One that settles leaves the lane.

        `alone` says that its source feeds no other lane: then it waits, and holds its source. Otherwise
        it is parked as soon as the lane is full, or `crowded`: with its share of the source's slots, so that
        the other lanes go on. One that is nearly dead is parked as it comes: its upstream would drop it after
        a few more ends of this process. What is older goes to the store before it, for it may not be
        overtaken.
        """
        delivery.watch(self._settled)
        while delivery.outcome is None:
            patience = self._patience(delivery)
            full = self._waiting() >= self._config.queue or (crowded and self._config.park)
            at_once = delivery.nearly_dead and self._config.park
            if patience > 0 and not self._parking.backlog and not full and not at_once:
                self._queue[delivery] = None
                self._parkable = True
                _wake_one(self._idle_workers)
                return
            if self._config.park and (at_once or patience <= 0 or not alone):
                self._park(everything=True)
                self._parking.take(delivery, None)
                return
            await self._sleep_in(self._waiting_for_room, patience, unless=delivery)
        _wake_one(self._waiting_for_room)  # it was woken for room that it does not need any more

    async def run(self) -> None:
        """Make attempts until cancelled. What is then unsettled stays unsettled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._config.limits.ceiling):
                tasks.create_task(self._work(), name=f"lane {self.key} worker {number}")
            tasks.create_task(self._parking.run(), name=f"lane {self.key} parking")
            tasks.create_task(self._park_what_waits_too_long(), name=f"lane {self.key} patience")

    def close(self) -> None:
        """Stop taking events out of the store, and let go of those not under way: the bridge stops."""
        for delivery in self._parking.close():
            if self._leave(delivery):
                delivery.settle(Outcome.RELEASED)

    async def finished(self) -> None:
        """Return when no attempt is under way."""
        while self._in_flight:
            await self._sleep_in(self._waiting_for_the_end)

    def _patience(self, delivery: Delivery) -> float:
        """Give the seconds that `delivery` may still wait in memory."""
        if not self._config.park:
            return float("inf")
        now, longest = monotonic(), self._config.park_after
        if self._shut is None:
            return delivery.since + OPEN_PATIENCE * longest - now
        return min(delivery.since, self._shut_since) + longest - now

    async def _park_what_waits_too_long(self) -> None:
        while self._config.park:
            await asyncio.sleep(self._config.park_after / 4)
            self._park(everything=False)

    def _park(self, *, everything: bool) -> None:
        """Write what waits in memory to the store: what has waited too long, or everything."""
        if everything:
            # Asked for every event that comes while a full lane works off what is back.
            if not self._parkable:
                return
            self._parkable = False
        tried = sorted([*self._again, *self._later], key=self._first_attempt)
        for delivery in [*tried, *self._queue]:
            if (everything or self._patience(delivery) <= 0) and not self._parking.owns(delivery):
                self._leave(delivery)
                self._parking.take(delivery, self._past.get(delivery))

    def _room_for_parked(self) -> int:
        """A shut gate takes one at a time, to probe with."""
        if self._shut is not None:
            return 0 if self._waiting() else 1
        return self._config.queue - self._waiting()

    def _put_back(self, delivery: Delivery, past: Past | None) -> None:
        if past is not None:
            self._past[delivery] = past
        self._queue[delivery] = None
        self._parkable = self._parkable or not self._parking.owns(delivery)
        _wake_one(self._idle_workers)

    async def _work(self) -> None:
        while True:
            delivery = await self._take()
            self._in_flight += 1
            try:
                await self._attempt(delivery)
            finally:
                self._in_flight -= 1
                if not self._in_flight:
                    _wake_all(self._waiting_for_the_end)
                if self._probe is delivery:
                    self._probe = None
                    _wake_all(self._idle_workers)

    async def _take(self) -> Delivery:
        """Give the oldest event that may be attempted now."""
        while True:
            pause = self._next_due()
            if self._queue or self._again:
                turn = self._pause_of_gate()
                if turn <= 0:
                    turn = 0.0 if self._pace is None else self._pace.pause()
                    if turn <= 0:
                        delivery = self._pop()
                        if self._pace is not None:
                            self._pace.began(Attempt(delivery, monotonic()))
                        return delivery
                pause = min(pause, turn)
            await self._sleep_in(self._idle_workers, pause)

    def _pop(self) -> Delivery:
        probe = self._shut is not None
        if self._again and not (probe and self._probe_untried and self._queue):
            delivery = self._again.pop(0)
        else:
            delivery, _ = self._queue.popitem(last=False)
        if probe:
            self._probe = delivery
        self._has_room()
        return delivery

    def _has_room(self) -> None:
        if self._config.queue - self._waiting() >= self._enough_room:
            _wake_one(self._waiting_for_room)
        if self._parking.backlog and 2 * self._waiting() <= self._config.queue:
            self._parking.look()

    def _waiting(self) -> int:
        return len(self._queue) + len(self._again) + len(self._later)

    def _next_due(self) -> float:
        """Bring back what has paused long enough; give the seconds until the next is due."""
        if not self._timetable:
            return float("inf")
        now = monotonic()
        while self._timetable:
            due, _, delivery = self._timetable[0]
            if self._later.get(delivery) != due:
                heapq.heappop(self._timetable)
            elif due <= now:
                heapq.heappop(self._timetable)
                del self._later[delivery]
                insort(self._again, delivery, key=self._first_attempt)
                _wake_one(self._idle_workers)
            else:
                return due - now
        return float("inf")

    def _first_attempt(self, delivery: Delivery) -> float:
        return self._past[delivery].first_attempt

    def _pause_of_gate(self) -> float:
        """Give the seconds until an attempt is allowed: 0 now, infinite until another's probe ends."""
        if self._shut is None:
            return 0.0
        return self._probe_at - monotonic() if self._probe is None else float("inf")

    async def _sleep_in(
        self,
        waiters: deque[asyncio.Future[None]],
        seconds: float = float("inf"),
        *,
        unless: Delivery | None = None,
    ) -> None:
        """Wait to be woken from `waiters`, at most `seconds`, and not once `unless` is settled."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        waiters.append(woken)
        if unless is not None:
            self._putting[unless] = woken
        alarm = loop.call_later(seconds, _set, woken) if seconds < float("inf") else None
        try:
            await woken
        except asyncio.CancelledError:
            if woken.done() and not woken.cancelled():
                _wake_one(waiters)
            raise
        finally:
            if unless is not None:
                del self._putting[unless]
            if alarm is not None:
                alarm.cancel()
                if woken in waiters:
                    waiters.remove(woken)

    def _settled(self, delivery: Delivery, _outcome: Outcome) -> None:
        if self._leave(delivery):
            self._has_room()
        elif (putting := self._putting.get(delivery)) is not None:
            _set(putting)
        self._past.pop(delivery, None)

    def _leave(self, delivery: Delivery) -> bool:
        """Take `delivery` out of where it waits; tell whether it waited."""
        if self._queue.pop(delivery, _MISSING) is None:
            self._ready.pop(delivery, None)
            return True
        if delivery not in self._past:
            return False
        if self._later.pop(delivery, None) is not None:
            if not self._later:
                self._timetable.clear()
            return True
        if delivery in self._again:
            self._again.remove(delivery)
            return True
        return False

    async def _attempt(self, delivery: Delivery) -> None:
        invocation = self._invocation(delivery)
        began = monotonic()
        answer = await invocation.attempt()
        ended = monotonic()
        self._metrics.seconds.observe(ended - began)
        self._metrics.invocations[answer.verdict].inc()
        if answer.verdict is Verdict.ACCEPTED or answer.verdict is Verdict.DUPLICATE:
            self._last_acceptance = ended
            self._failures = 0
            if self._shut is not None:
                self._open()
            happened = delivery.event.time
            if happened is not None:
                self._metrics.age.observe(max(0.0, time.time() - happened.timestamp()))
            delivery.settle(Outcome.ACCEPTED)
        elif delivery.outcome is None:
            await self._not_accepted(delivery, answer, began)
        elif self._probe is delivery:
            self._judge(delivery, answer, others_accepted=False)

    def _invocation(self, delivery: Delivery) -> Invocation:
        ready, prepare = self._ready, self._destination.prepare
        invocation = ready.pop(delivery, None)
        if invocation is None:
            invocation = prepare(delivery.event)
            if not ready:
                size = delivery.event.size
                for other in islice(self._queue, _TOGETHER):
                    size += other.event.size
                    if size > _TOGETHER_BYTES:
                        break
                    ready[other] = prepare(other.event)
        return invocation

    async def _not_accepted(self, delivery: Delivery, answer: Answer, began: float) -> None:
        now, clock = monotonic(), time.time()
        past = self._past.get(delivery)
        if past is None:
            past = self._past[delivery] = Past(
                first_attempt=clock - (now - began), began=began, failed_at=began
            )
        others_accepted = self._last_acceptance > past.failed_at
        past.attempts += 1
        past.failed_at = now

        cause: str | None = None
        if answer.verdict in (Verdict.REJECTED, Verdict.UNKNOWN):
            cause = answer.cause
        elif now - past.began >= self._config.retry.give_up_after:
            cause = "gave_up"
        elif _perhaps_its_own(answer) and others_accepted:
            past.own_failures += 1
            if past.own_failures >= self._config.retry.max_attempts:
                cause = answer.cause
        self._judge(delivery, answer, others_accepted=others_accepted)
        if cause is not None:
            letter = DeadLetter(
                event=delivery.event,
                service=self.key,
                cause=cause,
                detail=answer.detail if cause == answer.cause else f"{answer.cause}: {answer.detail}",
                status=answer.status,
                attempts=past.attempts,
                first_attempt=past.first_attempt,
                last_attempt=clock,
            )
            await bury(self._keeper, delivery, letter)
            return

        # A refusal is not about the event: it is the first to go when the gate lets one pass.
        at_once = answer.verdict is Verdict.REFUSED and not (answer.perhaps_its_own and others_accepted)
        pause = 0.0 if at_once else self._pause(past.attempts, answer)
        self._metrics.retried(answer.cause)
        _log.info(
            "attempt failed",
            service=self.key,
            id=delivery.event.id,
            outcome=answer.verdict.value,
            cause=answer.cause,
            detail=answer.detail,
            attempts=past.attempts,
            again_in_seconds=round(pause, 3),
        )
        await self._parking.remember(delivery, past)
        if delivery.outcome is not None:
            return
        due = now + pause
        self._later[delivery] = due
        self._parkable = self._parkable or not self._parking.owns(delivery)
        heapq.heappush(self._timetable, (due, next(self._tie), delivery))

    def _pause(self, failures: int, answer: Answer) -> float:
        """Draw the seconds to wait, not less than the service asked for."""
        return max(self._backoff.seconds(failures), answer.retry_after or 0.0)

    def _judge(self, delivery: Delivery, answer: Answer, *, others_accepted: bool) -> None:
        """Decide from one failed attempt whether the service as a whole takes events.

        What was under way when the gate shut says nothing new; a failed probe shuts it for longer.
        """
        probe = self._probe is delivery
        if self._shut is not None and not probe:
            return
        if answer.ours:
            if probe:
                self._probe_at = monotonic() + self._pause(1, answer)
            return
        refused = answer.verdict is Verdict.REFUSED
        if refused and not (answer.perhaps_its_own and others_accepted):
            why = "refused"
        elif answer.verdict is not Verdict.REJECTED and (probe or not others_accepted):
            self._failures += 1
            if not probe and self._failures < _SLOW_AFTER:
                return
            why = "refused" if refused else "unavailable"
        else:
            if probe and answer.status is not None:  # it answered about the event: it takes events again
                self._open()
            return
        self._failed_probes = self._failed_probes + 1 if probe else 0
        self._probe_untried = probe and _perhaps_its_own(answer) and not self._probe_untried
        self._probe_at = monotonic() + self._pause(self._failed_probes + 1, answer)
        if self._shut is None:
            _log.warning("gate shut", service=self.key, reason=why, cause=answer.cause, detail=answer.detail)
            self._metrics.open.set(0)
            self._shut_since = monotonic()
            _wake_all(self._waiting_for_room)  # they have less time now
        # Who asks for readiness needs no credential, and the answer's text may repeat what the event holds.
        self._shut = f"{why}: {answer.cause}"
        if answer.status is not None and answer.cause != f"http_{answer.status}":
            self._shut += f" (status {answer.status})"

    def _open(self) -> None:
        _log.info("gate open", service=self.key)
        self._shut = None
        self._probe = None
        self._failures = 0
        self._metrics.open.set(1)
        _wake_all(self._idle_workers)
        self._parking.look()


def _perhaps_its_own(answer: Answer) -> bool:
    return answer.verdict is Verdict.FAILED or answer.perhaps_its_own


_MISSING = object()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        future = waiters.popleft()
        if not future.done():
            future.set_result(None)
            return


def _wake_all(waiters: deque[asyncio.Future[None]]) -> None:
    while waiters:
        _set(waiters.popleft())
