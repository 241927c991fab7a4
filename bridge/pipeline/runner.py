"""Keeps one source open: reads its batches into the pipeline, and reopens it when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from bridge.core.errors import SourceLost
from bridge.core.ports import Source
from bridge.pipeline.intake import Intake
from bridge.pipeline.retry import Backoff
from bridge.pipeline.router import Router
from bridge.telemetry.metrics import SourceMetrics

_log = structlog.get_logger(__name__)


class Runner:
    """One source's way into the lanes."""

    def __init__(
        self, key: str, source: Source, intake: Intake, router: Router, metrics: SourceMetrics
    ) -> None:
        self.key = key
        self.intake = intake
        self._source = source
        self._router = router
        self._metrics = metrics
        self._backoff = Backoff(first=0.5, longest=30.0)
        self._down: str | None = "not connected yet"
        self._opened = False
        self._failures = 0

    def problems(self) -> Sequence[str]:
        """Why this source is not as it should be, for readiness."""
        down = [] if self._down is None else [self._down]
        return [*down, *self._source.problems()]

    async def run(self) -> None:
        """Read until cancelled; a cancelled runner leaves its source in order (commit, then close)."""
        this = asyncio.current_task()
        while True:
            self._opened = False
            # In a task of its own: a TaskGroup that a source uses in leaving can leave a cancellation behind
            # that nobody asked for (python/cpython#116720, before 3.13): it would end this one, unheard.
            reading = asyncio.create_task(self._read(), name=f"source {self.key} reading")
            try:
                reason = await reading
            except SourceLost as lost:
                reason = str(lost)
            except asyncio.CancelledError:
                reason = "reading broke off"
            finally:
                self._metrics.up.set(0)
            if this is not None and this.cancelling():  # perhaps lost while it was being left
                raise asyncio.CancelledError
            self._failures += 1
            pause = self._backoff.seconds(self._failures)
            self._down = f"lost: {reason}" if self._opened else f"can't be opened: {reason}"
            _log.warning("source lost", source=self.key, reason=reason, reopen_in_seconds=round(pause, 3))
            await asyncio.sleep(pause)

    async def _read(self) -> str:
        """Open the source once, and read it to its end. Raises SourceLost."""
        async with self._source.open(self.intake) as batches:
            self._opened = True
            self._down = None
            self._metrics.up.set(1)
            _log.info("source open", source=self.key)
            async for batch in batches:
                self._failures = 0
                self.intake.admit(batch)
                for delivery in batch:
                    await self._router.route(delivery)
                await self.intake.wait()
        return "the source ended"
