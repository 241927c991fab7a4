"""What an attempt comes to: its event settles, waits for the next one, or is given up."""

from __future__ import annotations

import logging
import time
from typing import Any

from bridge.core.delivery import Outcome
from bridge.core.journal import Journal
from bridge.core.ports import Answer, DeadLetter, Verdict
from bridge.pipeline.dead import Burials
from bridge.pipeline.dispatch import Dispatcher
from bridge.pipeline.failure_log import FailureLog
from bridge.pipeline.failures import Failures
from bridge.pipeline.jobs import Jobs
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.throughput import Throughput
from bridge.pipeline.waiting_room import WaitingRoom
from bridge.telemetry.metrics import LaneMetrics


class Endings:
    """Judges the attempts of one lane as they end, and has the dispatcher begin others in their place."""

    def __init__(
        self,
        key: str,
        metrics: LaneMetrics,
        journal: Journal,
        log: Any,
        *,
        room: WaitingRoom,
        dispatcher: Dispatcher,
        jobs: Jobs | None,
        failures: Failures,
        throughput: Throughput,
        burials: Burials,
    ) -> None:
        """Serve the lane `key`: an event that is to be tried again goes back into its waiting `room`."""
        self._key = key
        self._metrics = metrics
        self._journal = journal
        self._log = log
        self._tells_each = log.is_enabled_for(logging.DEBUG)
        """Whether there is a line in the log for each event that is accepted."""
        self._room = room
        self._waiting = room.waiting
        self._order = room.order
        self._dispatcher = dispatcher
        self._jobs = jobs
        self._failures = failures
        self._failure_log = FailureLog(log)
        self._throughput = throughput
        self._burials = burials

    def ended(self, attempt: Attempt, answer: Answer, now: float) -> None:
        """Hear that `attempt` came to `answer` at the monotonic time `now`."""
        seconds = now - attempt.began
        self._metrics.seconds.observe(seconds)
        self._metrics.invocations[answer.verdict].value += 1
        if self._jobs is not None:
            self._jobs.ended(attempt, answer)
        if answer.accepted:
            self._accepted(attempt, answer, now)
        elif attempt.delivery.outcome is None:
            self._not_accepted(attempt, answer, now)
        if self._order.keys:
            self._order.ended(attempt.delivery)
        self._dispatcher.ended(attempt, answer, seconds, now)

    def close(self) -> None:
        """Write what the log has still to tell."""
        self._failure_log.close()

    def _accepted(self, attempt: Attempt, answer: Answer, now: float) -> None:
        delivery, job = attempt.delivery, attempt.job
        event = delivery.event
        past = None if self._failures.none else self._failures.accepted(delivery, now)
        # By position: named, they would cost each event a tenth of its line.
        self._journal.note(
            "accepted" if answer.verdict is Verdict.ACCEPTED else "duplicate",
            event,
            self._key,
            now,
            delivery.since,
            job,
            0 if past is None else past.attempts + 1,
        )
        if self._tells_each:
            self._log.debug("accepted", source=event.source, id=event.id, subject=event.subject, job=job)
        self._throughput.count(now)
        self._waiting.tried_anew = 0
        happened = event.seconds
        if happened is not None:
            self._metrics.age.observe(max(0.0, time.time() - happened))
        # Then nothing of the waiting room has it any more (`WaitingRoom._settled`).
        is_gone = past is None and self._jobs is None and not self._order.keys
        delivery.settle(Outcome.ACCEPTED, self._room.hears if is_gone else None)

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
            self._key,
            at=now,
            since=delivery.since,
            job=attempt.job,
            attempts=past.attempts,
            cause=answer.cause,
            detail=answer.detail,
        )
        self._failure_log.failed(delivery.event, answer, past.attempts, then)
        self._room.parking.remember(delivery, past)
        self._waiting.again(delivery, attempt.place, now + then)
        if not self._room.parking.owns(delivery):
            self._room.entrance.may_hold_unstored()
