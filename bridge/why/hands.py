"""What a running bridge has of events that are not settled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic, perf_counter

from bridge.core.delivery import Delivery
from bridge.pipeline.intake import Intake
from bridge.pipeline.lane import Lane
from bridge.why.name import Name

_TURN = 0.002
"""Seconds of looking after which the other tasks have their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InHand:
    """An event that is not settled, at one service."""

    source: str
    """The identity of its source."""
    event_id: str
    subject: str | None
    key: str | None
    service: str
    """Key of the lane that it is in; empty when it is in none."""
    doing: str
    """What becomes of it, for a person."""
    attempts: int
    """That have failed."""
    since: float
    """When it came into the bridge's hands, in seconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What is in the bridge's hands of the events asked for."""

    events: Collection[InHand] = ()
    shut: Mapping[str, str] = field(default_factory=dict)
    """Services that nothing is begun at now, with the reason."""


async def in_hand(lanes: Collection[Lane], intakes: Collection[Intake], name: Name) -> Hands:
    """Look for events that go by `name` in all that is not settled, with turns for the other tasks."""
    found: dict[tuple[str, str, str], InHand] = {}
    in_lanes: set[tuple[str, str]] = set()
    # What it is compared with is made ready at the first time, and that may take long.
    await asyncio.to_thread(name.fits, "")
    began = perf_counter()
    for service, delivery, doing, attempts in _all(lanes, intakes):
        if perf_counter() - began > _TURN:
            await asyncio.sleep(0)
            began = perf_counter()
        event = delivery.event
        key = event.attributes.get("key")
        if delivery.outcome is not None or not any(
            each is not None and name.fits(each) for each in (event.id, event.subject, key)
        ):
            continue
        if service:
            in_lanes.add((event.source, event.id))
        elif (event.source, event.id) in in_lanes:
            continue
        found[event.source, event.id, service] = InHand(
            source=event.source,
            event_id=event.id,
            subject=event.subject,
            key=key,
            service=service,
            doing=doing,
            attempts=attempts,
            since=time.time() - (monotonic() - delivery.since),
        )
    shut = {lane.key: reason for lane in lanes if (reason := lane.shut_by) is not None}
    return Hands(list(found.values()), shut)


def _all(lanes: Collection[Lane], intakes: Collection[Intake]) -> Iterator[tuple[str, Delivery, str, int]]:
    for lane in lanes:
        for delivery, doing in lane.in_hand():
            yield lane.key, delivery, doing, lane.attempts(delivery)
    for intake in intakes:
        for delivery in intake.unsettled:
            yield "", delivery, "it is on its way to a service, or into the store", 0
