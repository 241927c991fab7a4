"""The log of attempts that failed: the first of each cause, then one line a minute that tells how many."""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from structlog.typing import FilteringBoundLogger

from bridge.core.event import Event
from bridge.core.ports import Answer

TELL_SECONDS = 60.0
"""Between two lines of one cause."""


class _Failed(NamedTuple):
    """What a line tells of one attempt."""

    event: Event
    answer: Answer
    attempts: int
    again_in: float


class _Minute:
    """What followed one line that was written."""

    __slots__ = ("held", "last", "timer")

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.held = 0
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
        minute = self._minutes.get(answer.cause)
        if minute is None:
            self._begin(answer.cause)
            self._log.info("attempt failed", **_told(_Failed(event, answer, attempts, again_in)))
        elif self._tells_each:
            self._log.debug("attempt failed", **_told(_Failed(event, answer, attempts, again_in)))
        else:
            minute.held += 1
            minute.last = _Failed(event, answer, attempts, again_in)

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
            more = minute.held
            self._log.info("attempt failed", **_told(minute.last), and_more_in_the_last_minute=more)


def _told(failed: _Failed) -> dict[str, object]:
    return {
        "id": failed.event.id,
        "outcome": failed.answer.verdict.value,
        "cause": failed.answer.cause,
        "detail": failed.answer.detail,
        "attempts": failed.attempts,
        "again_in_seconds": round(failed.again_in, 3),
    }
