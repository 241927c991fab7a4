"""What was lost upstream: told until a person says that it was seen, for nothing else can end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import structlog

from bridge.core.errors import StoreError
from bridge.settings import Settings
from bridge.settings.names import did_you_mean
from bridge.store.losses import Loss, remedy, sentences
from bridge.telemetry.metrics import Metrics
from bridge.values import Document
from bridge.web import Problem

_AGAIN_SECONDS = 60.0
"""Between two tries to keep losses on a disk that takes nothing."""

_log = structlog.get_logger(__name__)


class Acknowledgement(Document):
    """Says that a person has seen what was lost."""

    do: Literal["acknowledge"] = "acknowledge"
    part: str | None = None
    """Of what, as /readyz names it: `source uploads`; without it of all."""

    def is_of(self, loss: Loss) -> bool:
        """Tell whether it is about `loss`."""
        return self.part in (None, f"source {loss.source}")

    def refuse_unknown(self, settings: Settings, there: Iterable[Loss]) -> None:
        """Raise ValueError for a part that there is not; `there` may be of a source that was removed."""
        known = [
            *(
                f"source {key}"
                for key in dict.fromkeys([*settings.sources, *(loss.source for loss in there)])
            ),
            *(f"service {key}" for key in settings.services),
            "http",
            "store",
            "journal",
            "bridge",
        ]
        if self.part is not None and self.part not in known:
            raise ValueError(f"there is no `{self.part}`{did_you_mean(self.part, known)}")


def acknowledged(losses: Iterable[Loss]) -> list[Problem]:
    """Tell of losses without what is to be done about them."""
    return [Problem(f"source {key}", sentence) for key, sentence in sentences(losses).items()]


class Losses:
    """Knows what was lost and is not acknowledged; keeps it in the state directory over a restart.

    A restart is no acknowledgement: it may be that of a crash, and nobody has looked. What is lost after an
    acknowledgement is told anew.
    """

    def __init__(
        self,
        settings: Settings,
        there: Iterable[Loss],
        save: Callable[[Collection[Loss]], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        """Begin with those that are `there`; `save` keeps all that it is given, or raises StoreError."""
        self._settings = settings
        self._there = {(loss.source, loss.place): loss for loss in there}
        self._save = save
        self._one_at_a_time = asyncio.Lock()
        self._changed = asyncio.Event()
        for key in settings.sources:
            metrics.lost_unacknowledged.labels(key).set_function(partial(self._events, key))

    def begin(self) -> None:
        """Tell the log what was there before the start."""
        for key, sentence in sentences(self._there.values()).items():
            _log.warning("loss not acknowledged", source=key, loss=sentence, remedy=remedy(key))

    def add(self, source: str, place: str, events: int) -> None:
        """Hear from a source that so many events or more of a place are lost."""
        now = time.time()
        before = self._there.get((source, place), Loss(source, place, 0, now, now))
        self._there[source, place] = replace(before, events=before.events + events, last=now)
        self._changed.set()

    def problems(self) -> list[Problem]:
        """Return what is to be acknowledged, and how, for readiness."""
        told = sentences(self._there.values())
        return [Problem(f"source {key}", f"{sentence}; {remedy(key)}") for key, sentence in told.items()]

    @staticmethod
    def is_meant(command: Mapping[str, Any]) -> bool:
        """Tell whether a command that came is an Acknowledgement."""
        return command.get("do") == "acknowledge"

    async def acknowledge(
        self, command: Mapping[str, Any], problems: Callable[[], Sequence[Problem]]
    ) -> dict[str, Any]:
        """Do what an Acknowledgement says. Returns what was lost, and which of `problems` go on.

        Raises ValueError for one that can't be understood, and StoreError when it can't be kept: then
        nothing is acknowledged.
        """
        wanted = Acknowledgement.read(command)
        wanted.refuse_unknown(self._settings, self._there.values())
        async with self._one_at_a_time:
            seen = {where: loss for where, loss in self._there.items() if wanted.is_of(loss)}
            if seen:
                await self._save([loss for where, loss in self._there.items() if where not in seen])
            for where, loss in seen.items():
                late = self._there.pop(where)
                if late.events > loss.events:  # more was lost while that was written
                    self.add(*where, late.events - loss.events)
        told = acknowledged(seen.values())
        for problem in told:
            _log.warning("loss acknowledged", part=problem.part, loss=problem.reason)
        going_on = [each for each in problems() if wanted.part in (None, each.part)]
        return {"acknowledged": list(map(asdict, told)), "going_on": list(map(asdict, going_on))}

    async def run(self) -> None:
        """Keep what is added, until cancelled; then keep the last of it."""
        try:
            while True:
                await self._changed.wait()
                await self._keep()
                if self._changed.is_set():
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            if self._changed.is_set():
                await self._keep()

    async def _keep(self) -> None:
        async with self._one_at_a_time:
            self._changed.clear()
            try:
                await self._save(list(self._there.values()))
            except asyncio.CancelledError:  # it may not be kept
                self._changed.set()
                raise
            except StoreError as error:
                self._changed.set()
                _log.error("losses can't be kept over a restart", error=str(error))

    def _events(self, source: str) -> float:
        return float(sum(loss.events for loss in self._there.values() if loss.source == source))
