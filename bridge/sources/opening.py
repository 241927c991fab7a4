"""What a source makes of one message that may hold storage events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.core.delivery import Delivery
from bridge.core.errors import reason
from bridge.core.event import Event
from bridge.sources import NoEvent, SourceConfig
from bridge.sources.storage_events import Open, Part, Poisoned, Unreadable, open_message
from bridge.telemetry.logging import excerpt
from bridge.telemetry.metrics import SourceMetrics


class OpeningConfig(SourceConfig):
    """What a source has whose messages may hold storage events."""

    open: Open
    """Which messages are opened; each source has its own default."""

    def events_of(self, event: Event) -> Sequence[Event | NoEvent]:
        try:
            parts = open_message(event, self.open)
        except Unreadable as error:
            return [NoEvent(str(error), dead=True)]
        return [event] if parts is None else [_told(part) for part in parts]


def _told(part: Part) -> Event | NoEvent:
    if isinstance(part, Poisoned):
        return NoEvent(part.reason, dead=True)
    return NoEvent(part) if isinstance(part, str) else part


def opened(delivery: Delivery, how: Open, metrics: SourceMetrics, log: Any) -> Sequence[Delivery]:
    """Return what to hand over in place of `delivery`: itself, or one for each record in it.

    What is to be dropped is counted; where nothing else is in it, `delivery` is settled. What can't be read
    has a fault. Never raises.
    """
    if how == "none" or delivery.fault is not None:
        return (delivery,)
    try:
        parts = open_message(delivery.event, how)
    except Unreadable as error:
        delivery.fault, parts = str(error), None
    except Exception as error:
        log.exception("a message can't be taken apart")
        delivery.fault, parts = f"can't be taken apart: {excerpt(reason(error))}", None
    if parts is None:
        return (delivery,)
    kept = [part for part in parts if not isinstance(part, str)]
    for part in parts:
        if isinstance(part, str):
            metrics.filtered(part)
            log.debug("event filtered", source=metrics.key, id=delivery.event.id, reason=part)
    children = delivery.split([part.event if isinstance(part, Poisoned) else part for part in kept])
    for child, part in zip(children, kept, strict=True):
        if isinstance(part, Poisoned):
            child.fault = part.reason
    return children
