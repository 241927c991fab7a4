"""The limit that shuts: whether the service takes events at all."""

from __future__ import annotations

from time import monotonic

import structlog

from bridge.core.backoff import Backoff
from bridge.core.ports import Answer, Verdict
from bridge.core.steady import Steady
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD, Attempt
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

    It is asked and told as a limit is, but for what is no news to it: while it is `at_ease` it lets any
    number begin, and an acceptance changes nothing.
    """

    def __init__(self, service: str, backoff: Backoff, metrics: LaneMetrics) -> None:
        self._service = service
        self._backoff = backoff
        self._metrics = metrics
        self._failed: set[tuple[str, str]] = set()
        self._in_a_row = 0
        self._state = Steady()
        self._at_once = _WIDE_OPEN
        self.shut_since: float | None = None
        """Monotonic time at which it shut; None while it is open."""
        self._probe: Attempt | None = None
        self._probe_at = 0.0
        self._failed_probes = 0
        self.in_doubt = False
        """Whether nothing was accepted since the last failure."""
        self.at_ease = True
        """Whether it is wide open, and not in doubt."""
        metrics.open.set(1)

    @property
    def problem(self) -> str | None:
        """Why nothing is accepted, or was not just now, without the answer's text; None while all is well."""
        return self._state.problem

    def pause(self, under_way: int) -> float:
        """Give the seconds until the next probe; while it opens, hold what is more than that allows.

        So many attempts are `under_way`.
        """
        if self.shut_since is None:
            return 0.0 if under_way < self._at_once else NOT_BEFORE_TOLD
        return NOT_BEFORE_TOLD if self._probe is not None else max(0.0, self._probe_at - monotonic())

    def began(self, attempt: Attempt) -> None:
        """Hear that an attempt begins while it is shut: that is the probe."""
        self._probe = attempt

    def ended(self, attempt: Attempt, answer: Answer, under_way: int) -> None:
        """Judge the service by it. What was under way when the gate shut says nothing new by failing.

        So many others are `under_way` still.
        """
        probe = self._probe is attempt
        if probe:
            self._probe = None
        if answer.accepted:
            self._accepted(under_way)
        elif probe or self.shut_since is None:
            self._not_accepted(attempt, answer, under_way, probe=probe)
        self.in_doubt = self._in_a_row > 0
        self.at_ease = not self.in_doubt and self.shut_since is None and self._at_once >= _WIDE_OPEN

    def _accepted(self, under_way: int) -> None:
        if self._in_a_row:
            self._failed.clear()
            self._in_a_row = 0
            self._state.recovered()
        if self.shut_since is not None:
            self._open(under_way)
        elif self._at_once < _WIDE_OPEN:
            self._at_once += 1

    def _not_accepted(self, attempt: Attempt, answer: Answer, under_way: int, *, probe: bool) -> None:
        if answer.ours:  # it tells nothing of the service
            if probe:
                self._probe_at = monotonic() + self._backoff.seconds(1)
            return
        if answer.verdict is Verdict.REJECTED:
            if probe and answer.status is not None:  # it answered about the event: it takes events again
                self._open(under_way)
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

    def open_slowly(self, under_way: int) -> None:
        """Let two begin beside those `under_way`, and one more with each acceptance: much has gathered."""
        self._at_once = under_way + 2
        self.at_ease = False

    def _open(self, under_way: int) -> None:
        _log.info("gate open", service=self._service)
        self._state.recovered()
        self.shut_since = None
        self._probe = None
        self._failed.clear()
        self._in_a_row = 0
        self.open_slowly(under_way)
        self._metrics.open.set(1)


def _cause(answer: Answer) -> str:
    if answer.status is None or answer.cause == f"http_{answer.status}":
        return answer.cause
    return f"{answer.cause} (status {answer.status})"
