"""The log of attempts that failed: the first of each cause, then one line a minute that tells how many."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from bridge.core.event import Event
from bridge.core.ports import Answer, Verdict

TELL_SECONDS = 60.0
"""Between two lines of one cause."""


class _Failed(NamedTuple):
    """What a line tells of one attempt, and no more: an event may settle long before its line is written."""

    id: str
    verdict: Verdict
    cause: str
    detail: str
    attempts: int


class _Minute:
    """What followed one line that was written."""

    __slots__ = ("held", "last", "timer")

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.held = 0
        """Attempts that are told of in the next line: the last, which that describes, is among them, as it is
        where the damper counts lines."""
        self.last: _Failed | None = None


class FailureLog:
    """Tells of the attempts of one service that failed and will be made again.

    A line for each would cost as much as all the rest of the attempt, and an outage would write thousands;
    the journal has each of them, and so has the log at level `debug`.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._tells_each = log.is_enabled_for(logging.DEBUG)
        self._minutes: dict[str, _Minute] = {}
        """By cause, of which there are few."""

    def failed(self, event: Event, answer: Answer, attempts: int, again_in: float) -> None:
        """Tell of an attempt at `event`, made again in so many seconds; or count it, and tell it then."""
        failed = _Failed(event.id, answer.verdict, answer.cause, answer.detail, attempts)
        minute = self._minutes.get(answer.cause)
        if minute is not None and not self._tells_each:
            minute.held += 1
            minute.last = failed
            return
        if minute is None:
            self._begin(answer.cause)
        tell = self._log.info if minute is None else self._log.debug
        tell("attempt failed", **_told(failed), again_in_seconds=round(again_in, 3))

    def close(self) -> None:
        """Tell at once what was counted: the lane has ended."""
        minutes, self._minutes = self._minutes, {}
        for minute in minutes.values():
            minute.timer.cancel()
            self._tell(minute)

    def _begin(self, cause: str) -> None:
        timer = asyncio.get_running_loop().call_later(TELL_SECONDS, self._end, cause)
        self._minutes[cause] = _Minute(timer)

    def _end(self, cause: str) -> None:
        minute = self._minutes.pop(cause)
        if minute.held:
            self._tell(minute)
            self._begin(cause)

    def _tell(self, minute: _Minute) -> None:
        if minute.last is not None:
            # Without `again_in_seconds`: by now that attempt has been made, or is due at another time.
            more = minute.held
            self._log.info("attempt failed", **_told(minute.last), and_more_in_the_last_minute=more)


def _told(failed: _Failed) -> dict[str, object]:
    return {
        "id": failed.id,
        "outcome": failed.verdict.value,
        "cause": failed.cause,
        "detail": failed.detail,
        "attempts": failed.attempts,
    }
