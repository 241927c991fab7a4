"""Keeps one source open: reads its batches into the pipeline, and reopens it when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from bridge.core import errors
from bridge.core.backoff import Backoff
from bridge.core.errors import SourceLost
from bridge.core.leftovers import free_leftovers
from bridge.core.ports import Source
from bridge.core.steady import HELD_SECONDS, Steady
from bridge.pipeline.intake import Intake
from bridge.pipeline.router import Router
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import SourceMetrics

_MOST_TRACED = 100
"""Reasons whose traceback was logged; at so many they are forgotten, so that memory stays bounded."""

_log = structlog.get_logger(__name__)


class Runner:
    """One source's way into the lanes."""

    def __init__(
        self,
        key: str,
        source: Source,
        intake: Intake,
        router: Router,
        metrics: SourceMetrics,
        *,
        holds_unread: bool = False,
        listens: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Read `source`, which is left while it is paused if it `holds_unread` what nobody else then gets.

        `listens` hears when it is open, and when it is no more.
        """
        self.key = key
        self.intake = intake
        self._source = source
        self._router = router
        self._metrics = metrics
        self._holds_unread = holds_unread
        self._listens = listens
        self._backoff = Backoff(first=0.5, longest=30.0)
        self._state = Steady("not connected yet")
        self._was_open = False
        """It has been open at least once since the start."""
        self._is_open = False
        self._is_left = False
        """For a pause, by ourselves."""
        self._opened_at = 0.0
        """By the loop's clock."""
        self._failures = 0
        self._traced: set[str] = set()

    def problems(self) -> Sequence[str]:
        """Return why this source is not as it should be, for readiness."""
        try:
            told = self._source.problems()
        except Exception as error:  # noqa: BLE001 - a source that fails to tell is a problem of its own
            told = [f"can't tell its problems: {excerpt(errors.reason(error))}"]
        state = self._state.problem
        return told if state is None else [state, *told]

    async def run(self) -> None:
        """Read until cancelled; a cancelled runner leaves its source in order (commit, then close).

        Whatever the source raises is a lost source: told, and opened again after a pause.
        """
        this = asyncio.current_task()
        while True:
            self._is_open = False
            if self._holds_unread:
                await self._rest()
            # In a task of its own: a TaskGroup that a source uses in leaving can leave a cancellation behind
            # that nobody asked for (python/cpython#116720, before 3.13): it would end this one, unheard.
            reading = asyncio.create_task(self._read(), name=f"source {self.key} reading")
            leaving = asyncio.create_task(self._leave(reading), name=f"source {self.key} pause")
            self._is_left = False
            defect: BaseException | None = None
            try:
                reason = await reading
            except asyncio.CancelledError:
                reason = "reading broke off"
            except (GeneratorExit, KeyboardInterrupt, SystemExit):
                raise
            # Not only Exception: a panic in an extension of Rust's, and a group that holds a cancellation,
            # are none.
            except BaseException as error:  # noqa: BLE001
                reason = excerpt(errors.reason(error))
                if not isinstance(errors.root_cause(error), SourceLost):
                    defect = error
            finally:
                leaving.cancel()
                self._metrics.up.set(0)
                self._listens(False)
                # The source has settled what it gave, but for one that failed.
                self.intake.release()
            if this is not None and this.cancelling():  # perhaps lost while it was being left
                if defect is not None:
                    self._tell(reason, defect)
                raise asyncio.CancelledError
            if self._is_left and defect is None:
                continue
            if self._is_open and asyncio.get_running_loop().time() - self._opened_at >= HELD_SECONDS:
                self._failures = 0  # it was well, though no event came
            self._failures += 1
            pause = self._backoff.seconds(self._failures)
            if self._is_open:
                self._metrics.losses.inc()
            self._state.failed(f"lost: {reason}" if self._is_open else f"can't be opened: {reason}")
            self._tell(reason, defect, reopen_in_seconds=round(pause, 3))
            del reading, defect
            await free_leftovers()
            await asyncio.sleep(pause)

    async def _leave(self, reading: asyncio.Task[str]) -> None:
        """End `reading` in order once its source is paused, and nothing of it is in hand."""
        if not self._holds_unread:
            return
        await self.intake.rested()
        self._is_left = True
        reading.cancel()

    async def _rest(self) -> None:
        """Wait for the end of a pause."""
        if self.intake.paused:
            self._state.clear()
            _log.info("source left for its pause", source=self.key)
            await self.intake.resumed()

    def _tell(self, reason: str, defect: BaseException | None, **more: float) -> None:
        if defect is None or reason in self._traced:
            _log.warning("source lost", source=self.key, reason=reason, **more)
            return
        if len(self._traced) >= _MOST_TRACED:
            self._traced.clear()
        self._traced.add(reason)
        _log.error("source lost", source=self.key, reason=reason, exc_info=defect, **more)

    async def _read(self) -> str:
        """Open the source once, and read it to its end. Raise SourceLost, and whatever a defect raises."""
        async with self._source.open(self.intake) as batches:
            self._is_open, self._opened_at = True, asyncio.get_running_loop().time()
            if self._was_open:
                self._state.recovered()
            else:
                self._state.clear()
                self._was_open = True
            self._metrics.up.set(1)
            self._listens(True)
            _log.info("source open", source=self.key)
            async for batch in batches:
                self._failures = 0
                self.intake.admit(batch)
                await self._router.route_all(batch)
                if self.intake.full:
                    self._router.make_way()
                await self.intake.wait()
        return "the source ended"
