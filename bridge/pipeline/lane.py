"""One service's bounded queue, its workers, limits and gate."""

from __future__ import annotations

import asyncio
import heapq
import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from time import monotonic

import structlog
from pydantic import Field

from bridge.core.delivery import Delivery, Outcome
from bridge.core.ports import Answer, DeadLetter, DeadLetters, Destination, Verdict
from bridge.pipeline.dead import bury
from bridge.pipeline.limits import LimitsConfig, Pace
from bridge.pipeline.retry import Backoff, RetryConfig
from bridge.telemetry.metrics import LaneMetrics
from bridge.values import Model

_SLOW_AFTER = 5
"""Failures in a row, of any events, without one acceptance between them: then the service itself is down."""
_LONGEST_RETRY_AFTER = 3600.0
"""A `Retry-After` beyond this many seconds is taken as this."""

_log = structlog.get_logger(__name__)


class LaneConfig(Model):
    """The pipeline's part of a service."""

    queue: int = Field(default=1000, ge=1, le=1_000_000)
    """Events waiting in the lane, those between two attempts included."""
    limits: LimitsConfig = LimitsConfig()
    retry: RetryConfig = RetryConfig()


@dataclass(slots=True)
class _Past:
    """What is remembered of an event once an attempt has failed."""

    first_attempt: float
    """Seconds since 1970, for the dead letter and for `give_up_after`."""
    failed_at: float
    """Monotonic time of the newest failure, or the beginning of the first attempt."""
    attempts: int = 0
    own_failures: int = 0


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
        dead_letters: DeadLetters,
        metrics: LaneMetrics,
    ) -> None:
        self.key = key
        self._config = config
        self._destination = destination
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._pace = Pace(config.limits.rate)
        self._past: dict[Delivery, _Past] = {}
        self._queue: OrderedDict[Delivery, None] = OrderedDict()  # not tried yet
        self._again: list[Delivery] = []  # tried, and due: by first attempt
        self._later: dict[Delivery, float] = {}  # tried, with the monotonic time when due
        self._timetable: list[tuple[float, int, Delivery]] = []
        self._tie = count()
        self._in_flight = 0
        self._idle_workers: deque[asyncio.Future[None]] = deque()
        self._waiting_for_room: deque[asyncio.Future[None]] = deque()
        self._backoff = Backoff(first=0.5, longest=config.retry.max_backoff)
        self._last_acceptance = 0.0
        self._failures = 0
        self._failed_probes = 0
        self._shut: str | None = None
        self._probe_at = 0.0
        self._probe: Delivery | None = None
        self._probe_untried = False
        metrics.queued.set_function(self._waiting)
        metrics.in_flight.set_function(lambda: self._in_flight)
        metrics.limit.set(config.limits.concurrency)
        metrics.open.set(1)

    def problems(self) -> Sequence[str]:
        """Why the gate is shut, for readiness; empty while it is open."""
        return [] if self._shut is None else [self._shut]

    async def put(self, delivery: Delivery) -> None:
        """Queue `delivery`, waiting while the lane is full. A Delivery that settles leaves the lane."""
        while delivery.outcome is None and self._waiting() >= self._config.queue:
            await self._sleep_in(self._waiting_for_room, unless=delivery)
        if delivery.outcome is not None:
            _wake_one(self._waiting_for_room)  # it was woken for room that it does not need any more
            return
        self._queue[delivery] = None
        delivery.watch(self._settled)
        _wake_one(self._idle_workers)

    async def run(self) -> None:
        """Make attempts until cancelled. What is then unsettled stays unsettled."""
        async with asyncio.TaskGroup() as workers:
            for number in range(self._config.limits.concurrency):
                workers.create_task(self._work(), name=f"lane {self.key} worker {number}")

    async def _work(self) -> None:
        while True:
            delivery = await self._take()
            self._in_flight += 1
            try:
                await self._attempt(delivery)
            finally:
                self._in_flight -= 1
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
                    turn = self._pace.take()
                    if turn <= 0:
                        return self._pop()
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
        _wake_one(self._waiting_for_room)
        return delivery

    def _waiting(self) -> int:
        return len(self._queue) + len(self._again) + len(self._later)

    def _next_due(self) -> float:
        """Bring back what has paused long enough; give the seconds until the next is due."""
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
            unless.watch(lambda _delivery, _outcome: _set(woken))
        alarm = loop.call_later(seconds, _set, woken) if seconds < float("inf") else None
        try:
            await woken
        except asyncio.CancelledError:
            if woken.done() and not woken.cancelled():
                _wake_one(waiters)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
                if woken in waiters:
                    waiters.remove(woken)

    def _settled(self, delivery: Delivery, _outcome: Outcome) -> None:
        waited = self._queue.pop(delivery, _MISSING) is None
        if self._past.pop(delivery, None) is not None:
            if self._later.pop(delivery, None) is not None:
                waited = True
                if not self._later:
                    self._timetable.clear()
            elif delivery in self._again:
                waited = True
                self._again.remove(delivery)
        if waited:
            _wake_one(self._waiting_for_room)

    async def _attempt(self, delivery: Delivery) -> None:
        began = monotonic()
        answer = await self._destination.invoke(delivery.event)
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

    async def _not_accepted(self, delivery: Delivery, answer: Answer, began: float) -> None:
        now, clock = monotonic(), time.time()
        past = self._past.get(delivery)
        if past is None:
            past = self._past[delivery] = _Past(first_attempt=clock - (now - began), failed_at=began)
        others_accepted = self._last_acceptance > past.failed_at
        past.attempts += 1
        past.failed_at = now

        cause: str | None = None
        if answer.verdict in (Verdict.REJECTED, Verdict.UNKNOWN):
            cause = answer.cause
        elif clock - past.first_attempt >= self._config.retry.give_up_after:
            cause = "gave_up"
        elif answer.verdict is Verdict.FAILED and others_accepted:
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
            await bury(self._dead_letters, delivery, letter)
            return

        # A refusal is not about the event: it is the first to go when the gate lets one pass.
        pause = 0.0 if answer.verdict is Verdict.REFUSED else self._pause(past.attempts, answer)
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
        due = now + pause
        self._later[delivery] = due
        heapq.heappush(self._timetable, (due, next(self._tie), delivery))

    def _pause(self, failures: int, answer: Answer) -> float:
        """Draw the seconds to wait, not less than the service asked for."""
        asked = min(answer.retry_after or 0.0, _LONGEST_RETRY_AFTER)
        return max(self._backoff.seconds(failures), asked)

    def _judge(self, delivery: Delivery, answer: Answer, *, others_accepted: bool) -> None:
        """Decide from one failed attempt whether the service as a whole takes events.

        What was under way when the gate shut says nothing new; a failed probe shuts it for longer.
        """
        probe = self._probe is delivery
        if self._shut is not None and not probe:
            return
        if answer.verdict is Verdict.REFUSED:
            why = "refused"
        elif answer.verdict is not Verdict.REJECTED and (probe or not others_accepted):
            self._failures += 1
            if not probe and self._failures < _SLOW_AFTER:
                return
            why = "unavailable"
        else:
            if probe and answer.status is not None:  # it answered about the event: it takes events again
                self._open()
            return
        self._failed_probes = self._failed_probes + 1 if probe else 0
        self._probe_untried = probe and answer.verdict is Verdict.FAILED and not self._probe_untried
        self._probe_at = monotonic() + self._pause(self._failed_probes + 1, answer)
        if self._shut is None:
            _log.warning("gate shut", service=self.key, reason=why, cause=answer.cause, detail=answer.detail)
            self._metrics.open.set(0)
        self._shut = f"{why}: {answer.cause}: {answer.detail}"

    def _open(self) -> None:
        _log.info("gate open", service=self.key)
        self._shut = None
        self._probe = None
        self._failures = 0
        self._metrics.open.set(1)
        _wake_all(self._idle_workers)


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
