"""The limit that shuts: whether the service takes events at all."""

from __future__ import annotations

from time import monotonic

import structlog

from bridge.core.ports import Answer, Verdict
from bridge.core.steady import Steady
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt
from bridge.pipeline.retry import Backoff
from bridge.telemetry.metrics import LaneMetrics

_SEVERAL = 5
"""Different events that fail without one acceptance between them: then it is the service."""
_GROWN = 5
"""Probes after which the pauses of a service that is away, or has too much to do, grow no more (0 to 8 s): it
may be back at any moment, and one call is no load. What is refused waits for a person to mend it."""
_WIDE_OPEN = 1000
"""Attempts at once that need no opening step by step any more: no limit on concurrency is above it."""

_log = structlog.get_logger(__name__)


class Gate:
    """Shut while the service takes nothing: then one event at a time probes, with growing pauses.

    One event is no evidence about another. So it shuts when several different events have failed without
    an acceptance between them, or when the service refuses whoever asks; the first acceptance opens it, for
    one attempt more with each acceptance, so that what has gathered is no flood.
    """

    def __init__(self, service: str, backoff: Backoff, metrics: LaneMetrics) -> None:
        self._service = service
        self._backoff = backoff
        self._metrics = metrics
        self._failed: set[tuple[str, str]] = set()
        self._in_a_row = 0
        self._state = Steady()
        self._under_way = 0
        self._at_once = _WIDE_OPEN
        self.shut_since: float | None = None
        """Monotonic time at which it shut; None while it is open."""
        self._probe: Attempt | None = None
        self._probe_at = 0.0
        self._failed_probes = 0
        metrics.open.set(1)

    @property
    def in_doubt(self) -> bool:
        """Whether nothing was accepted since the last failure."""
        return self._in_a_row > 0

    @property
    def problem(self) -> str | None:
        """Why nothing is accepted, or was not just now, without the answer's text; None while all is well."""
        return self._state.problem

    def pause(self) -> float:
        """Give the seconds until the next probe; while it opens, hold what is more than that allows."""
        if self.shut_since is None:
            return 0.0 if self._under_way < self._at_once else NOT_BEFORE_TOLD
        return NOT_BEFORE_TOLD if self._probe is not None else max(0.0, self._probe_at - monotonic())

    def began(self, attempt: Attempt) -> None:
        """Count it; while shut it is the probe."""
        self._under_way += 1
        if self.shut_since is not None:
            self._probe = attempt

    def ended(self, attempt: Attempt, answer: Answer, _seconds: float) -> None:
        """Judge the service by it. What was under way when the gate shut says nothing new by failing."""
        self._under_way -= 1
        probe = self._probe is attempt
        if probe:
            self._probe = None
        if not answer.accepted:
            if probe or self.shut_since is None:
                self._not_accepted(attempt, answer, probe=probe)
            return
        if self._in_a_row:
            self._failed.clear()
            self._in_a_row = 0
            self._state.recovered()
        if self.shut_since is not None:
            self._open()
        elif self._at_once < _WIDE_OPEN:
            self._at_once += 1

    def _not_accepted(self, attempt: Attempt, answer: Answer, *, probe: bool) -> None:
        if answer.ours:  # it tells nothing of the service
            if probe:
                self._probe_at = monotonic() + self._backoff.seconds(1)
            return
        if answer.verdict is Verdict.REJECTED:
            if probe and answer.status is not None:  # it answered about the event: it takes events again
                self._open()
            return
        self._in_a_row += 1
        self._failed.add(attempt.event)
        refused = answer.verdict is Verdict.REFUSED
        # Who asks for readiness needs no credential, and the answer's text may repeat what the event holds.
        if self._in_a_row >= _SEVERAL:
            self._state.failed(f"failing: {_cause(answer)}")
        if not probe and len(self._failed) < _SEVERAL and (not refused or answer.perhaps_its_own):
            return
        self._failed_probes = self._failed_probes + 1 if probe else 0
        failures = self._failed_probes + 1
        pause = self._backoff.seconds(failures if refused else min(failures, _GROWN))
        self._probe_at = monotonic() + max(pause, answer.retry_after or 0.0)
        why = "refused" if refused else "unavailable"
        if self.shut_since is None:
            _log.warning(
                "gate shut", service=self._service, reason=why, cause=answer.cause, detail=answer.detail
            )
            self._metrics.open.set(0)
            self._metrics.shuts.inc()
            self.shut_since = monotonic()
        self._failed.clear()
        self._state.failed(f"{why}: {_cause(answer)}")

    def open_slowly(self) -> None:
        """Let two begin at once, and one more with each acceptance: much has gathered."""
        self._at_once = self._under_way + 2

    def _open(self) -> None:
        _log.info("gate open", service=self._service)
        self._state.recovered()
        self.shut_since = None
        self._probe = None
        self._failed.clear()
        self._in_a_row = 0
        self.open_slowly()
        self._metrics.open.set(1)


def _cause(answer: Answer) -> str:
    if answer.status is None or answer.cause == f"http_{answer.status}":
        return answer.cause
    return f"{answer.cause} (status {answer.status})"
