"""What is remembered of the events whose attempts failed, and what becomes of each."""

from __future__ import annotations

import time
from time import monotonic

from bridge.core.backoff import Backoff
from bridge.core.delivery import Delivery
from bridge.core.ports import Answer, DeadLetter, Verdict
from bridge.pipeline.limits.limit import Attempt
from bridge.pipeline.retry import Past, RetryConfig
from bridge.pipeline.throughput import Throughput


class Failures:
    """Judges the events of one lane by their failed attempts, each beside what others came to meanwhile."""

    def __init__(self, service: str, config: RetryConfig, throughput: Throughput) -> None:
        """Judge those of the lane `service`, whose acceptances `throughput` counts."""
        self._throughput = throughput
        self.none = True
        """Whether nothing is remembered, so that an acceptance changes nothing here."""
        self._service = service
        self._config = config
        self._backoff = Backoff(first=0.5, longest=config.max_backoff)
        self._past: dict[Delivery, Past] = {}
        self._last_recovery = 0.0
        """Monotonic time at which an event was accepted that had been put off before."""
        self._put_off: set[tuple[str, str]] = set()
        """Two events put off since the last acceptance, by an answer that says "not now" or by none."""
        self._not_before = float("-inf")
        """Monotonic time before which the time of `give_up_after` does not begin."""

    def __len__(self) -> int:
        return len(self._past)

    def past(self, delivery: Delivery) -> Past | None:
        """Give what is remembered of `delivery`; None if no attempt at it has failed."""
        return self._past.get(delivery)

    def remember(self, delivery: Delivery, past: Past) -> None:
        """Take over what the store remembered of `delivery`."""
        self._past[delivery] = past
        self.none = False

    def forget(self, delivery: Delivery) -> bool:
        """Hear that `delivery` has settled; tell whether an attempt at it had failed."""
        if self._past.pop(delivery, None) is None:
            return False
        self.none = not (self._past or self._put_off)
        return True

    def forgive(self) -> None:
        """Begin now with the time of `give_up_after`: until now a person wanted no attempts."""
        self._not_before = monotonic()

    def accepted(self, delivery: Delivery, now: float) -> Past | None:
        """Hear that `delivery` was accepted at the monotonic time `now`; give what is remembered of it."""
        if self._put_off:
            self._put_off.clear()
            self.none = not self._past
        past = self._past.get(delivery)
        if past is not None and past.put_off:
            self._last_recovery = now
        return past

    def judge(self, attempt: Attempt, answer: Answer, now: float) -> tuple[Past, DeadLetter | float]:
        """Give the letter of an event that is given up, or the seconds until it may be tried again.

        Either comes with what is now remembered of it. The attempt ended at the monotonic time `now`.
        """
        clock = time.time()
        past = self._past.get(attempt.delivery)
        if past is None:
            began = attempt.began
            past = Past(first_attempt=clock - (now - began), began=began, tried_at=began)
            self._past[attempt.delivery] = past
            self.none = False
        past.attempts += 1
        own = self._is_its_own(attempt, answer, past)
        past.own_failures += own
        past.tried_at = attempt.began
        cause = ""
        if answer.verdict in (Verdict.REJECTED, Verdict.UNKNOWN) or (
            own and past.own_failures >= self._config.max_attempts
        ):
            cause = answer.cause
        elif now - max(past.began, self._not_before) >= self._config.give_up_after:
            cause = "gave_up"
        if cause:
            return past, DeadLetter(
                event=attempt.delivery.event,
                service=self._service,
                cause=cause,
                detail=answer.detail if cause == answer.cause else f"{answer.cause}: {answer.detail}",
                status=answer.status,
                attempts=past.attempts,
                first_attempt=past.first_attempt,
                last_attempt=clock,
            )
        if answer.verdict is Verdict.REFUSED and not answer.perhaps_its_own:
            return past, 0.0  # the gate alone holds what is refused whoever asks
        return past, max(self._backoff.seconds(past.attempts), answer.retry_after or 0.0)

    def _is_its_own(self, attempt: Attempt, answer: Answer, past: Past) -> bool:
        """Tell whether the attempt failed for its event's own sake: others were accepted meanwhile.

        To be put off is the event's own doing only if it alone is, and none that was put off before has been
        accepted since: trouble that comes and goes is the service's.
        """
        if answer.verdict in (Verdict.CAPACITY, Verdict.UNAVAILABLE):
            past.put_off = True
            if len(self._put_off) < 2:
                self._put_off.add(attempt.event)
            if len(self._put_off) > 1 or self._last_recovery > past.tried_at:
                return False
        return answer.perhaps_its_own and (self._throughput.last or 0.0) > past.tried_at
