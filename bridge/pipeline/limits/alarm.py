"""One timer that is set anew each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD


class Alarm:
    """Has a call made after a pause; a new pause replaces the old one.

    A timer that would ring before that is left as it is, and set anew only then: to set one costs more than
    all else of a look, and nearly every look finds the next thing due later than the one before did.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self.timer: asyncio.TimerHandle | None = None
        """None while no call is to be made."""
        self._rings_at = self._wanted_at = NOT_BEFORE_TOLD

    def set(self, pause: float) -> None:
        """Have it made after `pause` seconds, or not at all if no time ends that."""
        if pause == NOT_BEFORE_TOLD:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            return
        loop = asyncio.get_running_loop()
        self._wanted_at = at = loop.time() + pause
        if self.timer is not None:
            if self._rings_at <= at:
                return
            self.timer.cancel()
        self._rings_at = at
        self.timer = loop.call_at(at, self._ring)

    def _ring(self) -> None:
        if self._wanted_at > self._rings_at:
            self._rings_at = self._wanted_at
            self.timer = asyncio.get_running_loop().call_at(self._rings_at, self._ring)
            return
        self.timer = None
        self._call()
