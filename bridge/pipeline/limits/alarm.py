"""One timer that is set anew each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD


class Alarm:
    """Has a call made after a pause; a new pause replaces the old one."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def set(self, pause: float) -> None:
        """Have it made after `pause` seconds, or not at all if no time ends that."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if pause < NOT_BEFORE_TOLD:
            self._timer = asyncio.get_running_loop().call_later(pause, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._call()
