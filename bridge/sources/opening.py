"""What a source makes of one message that may hold storage events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from bridge.core.delivery import Delivery
from bridge.core.errors import reason
from bridge.core.event import Event
from bridge.sources import NoEvent, SourceConfig
from bridge.sources.storage_events import Open, Part, Poisoned, Unreadable, open_message
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import SourceMetrics

_LARGE = 4 * 2**10
"""Bytes of a message. One of so many, of the smallest records there are, takes three milliseconds."""


class OpeningConfig(SourceConfig):
    """What a source has whose messages may hold storage events."""

    open: Open
    """Which messages are opened; each source has its own default."""


def events_of(config: OpeningConfig, event: Event) -> Sequence[Event | NoEvent]:
    """Return what a source makes of one message, taken as `event`, as `SourceKind` says."""
    try:
        parts = open_message(event, config.open)
    except Unreadable as error:
        return [NoEvent(str(error), dead=True)]
    return [event] if parts is None else [_told(part) for part in parts]


def _told(part: Part) -> Event | NoEvent:
    if isinstance(part, Poisoned):
        return NoEvent(part.reason, dead=True)
    return NoEvent(part) if isinstance(part, str) else part


class Opening:
    """What one source hands over of its messages, in their order: each itself, or one for each record in it.

    What is to be dropped is counted; where nothing else is in a message, it is settled. What can't be read
    has a fault. A large message is opened in a thread, and what comes after it waits for that.
    """

    def __init__(
        self, how: Open, offer: Callable[[Delivery], object], metrics: SourceMetrics, log: Any
    ) -> None:
        """Call `offer` with each Delivery to be handed over. It may be settled by then."""
        self._how = how
        self._offer = offer
        self._metrics = metrics
        self._log = log
        self._waiting: deque[Delivery] = deque()
        self._some = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many messages wait to be opened."""
        return len(self._waiting)

    def take(self, delivery: Delivery) -> None:
        """Offer what is in `delivery`: at once, or when `run` or `finish` has come to it. Never raises."""
        if self._waiting or (self._how != "none" and len(delivery.event.data) > _LARGE):
            self._waiting.append(delivery)
            self._some.set()
        else:
            self._hand_over(delivery, *self._parts(delivery))

    async def run(self) -> NoReturn:
        """Offer what waits, until cancelled."""
        while True:
            await self._some.wait()
            await self.finish()
            self._some.clear()

    async def finish(self) -> None:
        """Return once what waited has been offered."""
        while self._waiting:
            delivery = self._waiting[0]
            if delivery.outcome is None:
                self._hand_over(delivery, *await asyncio.to_thread(self._parts, delivery))
            self._waiting.popleft()

    def _parts(self, delivery: Delivery) -> tuple[Sequence[Part] | None, str | None]:
        """Return what is in a message, None when it stays as it is, and its fault."""
        if self._how == "none" or delivery.fault is not None:
            return None, delivery.fault
        try:
            return open_message(delivery.event, self._how), None
        except Unreadable as error:
            return None, str(error)
        except Exception as error:  # noqa: BLE001 - it is this message's alone
            self._log.exception("a message can't be taken apart")
            return None, f"can't be taken apart: {excerpt(reason(error))}"

    def _hand_over(self, delivery: Delivery, parts: Sequence[Part] | None, fault: str | None) -> None:
        if parts is None:
            delivery.fault = fault
            self._offer(delivery)
            return
        if len(parts) == 1 and not isinstance(alone := parts[0], str):  # it stands for its message
            if isinstance(alone, Poisoned):
                delivery.event, delivery.fault = alone.event, alone.reason
            else:
                delivery.event = alone
            self._offer(delivery)
            return
        kept = [part for part in parts if not isinstance(part, str)]
        for part in parts:
            if isinstance(part, str):
                self._metrics.filtered(part)
                self._log.debug("event filtered", source=self._metrics.key, id=delivery.event.id, reason=part)
        children = delivery.split([part.event if isinstance(part, Poisoned) else part for part in kept])
        for child, part in zip(children, kept, strict=True):
            if isinstance(part, Poisoned):
                child.fault = part.reason
            self._offer(child)
