"""Carries out orders on what runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Any, cast, get_args

import structlog

from bridge.control.orders import LIMITS, PAUSED, Order, Overrides, Part, Row, written
from bridge.core.errors import StoreError
from bridge.pipeline.jobs import Jobs
from bridge.pipeline.limits.allowance import Allowance
from bridge.pipeline.limits.config import Concurrency
from bridge.store.overrides import Override, Value
from bridge.telemetry.metrics import Metrics

_LOOK_SECONDS = 60.0
"""How long a clock that was set may go unseen."""

_ALL = Order(do="limits")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Live:
    """How a change reaches a part that runs."""

    pause: Callable[[bool], None]
    allowance: Allowance | None = None
    look: Callable[[], None] = lambda: None
    """To be called after a change of a limit."""
    jobs: Jobs | None = None

    def take_up(self, values: Mapping[str, Value]) -> None:
        """Put `values` in force; what is as before goes on as it is."""
        if self.allowance is not None:
            self.allowance.change(
                cast("Concurrency", values["concurrency"]), cast("float | None", values["rate"])
            )
            if self.jobs is not None and "active_jobs" in values:
                self.jobs.limit(cast("int | None", values["active_jobs"]))
            self.look()
        self.pause(bool(values[PAUSED]))

    def found(self) -> int | None:
        """Tell how many attempts may be under way at once."""
        return None if self.allowance is None else self.allowance.at_once


class Control:
    """Carries out orders on what runs, one at a time, and ends overrides whose time is over.

    A change is kept first and put in force then, all of it in one step: an order that can't be carried out
    changes nothing.
    """

    def __init__(
        self,
        values: Overrides,
        live: Mapping[Part, Live],
        save: Callable[[Collection[Override]], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._values = values
        self._live = MappingProxyType(dict(live))
        self._save = save
        self._one_at_a_time = asyncio.Lock()
        self._changed = asyncio.Event()
        for part in live:
            if part.kind != "service":  # of which its lane tells, as its cluster may be paused too
                metrics.paused[part.kind].labels(part.key).set_function(partial(self.is_paused, part))
            if part.kind != "source":
                limits = metrics.limits_overridden[part.kind].labels(part.key)
                limits.set_function(partial(self._limits_overridden, part))

    @staticmethod
    def is_meant(command: object) -> bool:
        """Tell whether a command that came is an order."""
        return isinstance(command, dict) and command.get("do") in get_args(
            Order.model_fields["do"].annotation
        )

    async def begin(self) -> None:
        """Put in force what is kept, and tell of it. Raises StoreError when it can't be kept any more."""
        if self._values.ended:
            await self._save(self._values.there)
        for each, why in self._values.ended:
            _tell_end(each, why)
        for each in sorted(self._values.there, key=lambda each: each.since):
            self._live[Part(each.kind, each.key)].take_up(self._values.in_force(Part(each.kind, each.key)))
            _tell(each, at_start=True)

    async def run(self) -> None:
        """End what is over, until cancelled."""
        while True:
            ends = [each.until for each in self._values.there if each.until is not None]
            with suppress(TimeoutError):
                async with asyncio.timeout(
                    max(0.0, min(min(ends) - time.time(), _LOOK_SECONDS)) if ends else None
                ):
                    await self._changed.wait()
            self._changed.clear()
            async with self._one_at_a_time:
                await self._end_what_is_over()

    async def carry_out(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Do what `order` says, and show what is in force then.

        Raises ValueError for one that can't be understood, and StoreError when it can't be kept.
        """
        wanted = Order.read(order)
        async with self._one_at_a_time:
            if wanted.changes:
                there = self._values.after(wanted, time.time())
                if there != self._values.there:
                    await self._save(there)
                    self._put_in_force(there, "a person ended it")
        return {"rows": [asdict(row) for row in self._values.rows(wanted, self._found)]}

    def rows(self) -> list[Row]:
        """Show all limits, and what is paused."""
        return self._values.rows(_ALL, self._found)

    async def _end_what_is_over(self) -> None:
        now = time.time()
        there = frozenset(each for each in self._values.there if each.until is None or each.until > now)
        if there != self._values.there:
            self._put_in_force(there, "its time is over")
            try:
                await self._save(there)
            except StoreError as error:  # a start will find that its time is over
                _log.error("the end of an override can't be kept", error=str(error))

    def _put_in_force(self, there: frozenset[Override], why: str) -> None:
        before, self._values.there = self._values.there, there
        ended, begun = before - there, there - before
        for part in dict.fromkeys(Part(each.kind, each.key) for each in (*ended, *begun)):
            self._live[part].take_up(self._values.in_force(part))
        replaced = {(each.kind, each.key, each.name) for each in begun}
        for each in ended:
            if (each.kind, each.key, each.name) not in replaced:
                _tell_end(each, why)
        for each in begun:
            _tell(each)
        self._changed.set()

    def is_paused(self, part: Part) -> bool:
        """Tell whether a person has that part itself paused."""
        return PAUSED in self._values.of(part)

    def _found(self, part: Part) -> int | None:
        return self._live[part].found()

    def _limits_overridden(self, part: Part) -> float:
        return float(len(self._values.of(part).keys() & set(LIMITS)))


def _tell(override: Override, *, at_start: bool = False) -> None:
    if override.name == PAUSED:
        _log.warning("still paused" if at_start else "paused", **_about(override))
    else:
        value = written(override.name, override.value)
        what = "limit still overridden" if at_start else "limit overridden"
        _log.warning(what, value=value, **_about(override))


def _tell_end(override: Override, why: str) -> None:
    what = "resumed" if override.name == PAUSED else "limit as configured again"
    _log.warning(what, reason=why, **_about(override))


def _about(override: Override) -> dict[str, str]:
    about: dict[str, str] = {override.kind: override.key}
    if override.name != PAUSED:
        about |= {"limit": override.name, "configured": written(override.name, override.replaced)}
    if override.until is not None:
        about["until"] = datetime.fromtimestamp(override.until, UTC).isoformat(timespec="seconds")
    return about
