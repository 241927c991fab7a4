"""An event loop whose clock jumps to the next timer when nothing is to be done: hours in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bridge import testing

STARTS_AT = 1000.0
"""The loop's time at its beginning; not 0, as no machine's monotonic clock is."""
EPOCH = 1_800_000_000.0
"""What `time.time()` tells when the loop's clock shows 0."""

_TICK = 1e-9
"""What every turn of the loop takes: a clock that can stand still has loops that no real clock has."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps: the time that it was asked to wait for has passed when it returns."""

    now = STARTS_AT

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if timeout is None and not ready:
            raise RuntimeError("stuck: no timer is set and nothing is ready, so nothing can ever happen")
        self.now += max(_TICK, 0.0 if ready or timeout is None else timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def now() -> float:
    """Give the time of the loop that runs, as `time.monotonic` does."""
    return asyncio.get_running_loop().time()


def wall_clock() -> float:
    """Give the same time as seconds since 1970, as `time.time` does."""
    return EPOCH + now()


def patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pipeline read the loop's clock."""
    for module in (
        "core.delivery",
        "core.steady",
        "pipeline.dispatch",
        "pipeline.entrance",
        "pipeline.failures",
        "pipeline.intake",
        "pipeline.jobs",
        "pipeline.lane",
        "pipeline.limits.concurrency",
        "pipeline.limits.gate",
        "pipeline.limits.pace",
        "pipeline.limits.pause",
        "pipeline.order",
        "pipeline.parking",
        "pipeline.places",
        "store.clock",
    ):
        monkeypatch.setattr(f"bridge.{module}.monotonic", now)
    for module in (
        "control.control",
        "control.losses",
        "pipeline.endings",
        "pipeline.failures",
        "pipeline.jobs",
        "pipeline.lane",
        "store.clock",
    ):
        monkeypatch.setattr(f"bridge.{module}.time", SimpleNamespace(time=wall_clock))


async def until(condition: Callable[[], object], seconds: float = 100_000.0, *, step: float = 0.5) -> None:
    """Return once `condition()` holds, asked each `step` seconds of the loop's own time."""
    await testing.until(condition, seconds, step=step)
