"""Reads what Rucio's daemon hermes sends to one or several message brokers, over STOMP or AMQP."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.event import Event
from bridge.core.ports import Finding, Patience, Source
from bridge.sources import Keeping, NoEvent, SourceKind
from bridge.sources.rucio.config import RucioConfig
from bridge.telemetry.metrics import SourceMetrics


def _build(config: RucioConfig, key: str, metrics: SourceMetrics, _keeping: Keeping) -> Source:
    from bridge.sources.rucio.source import source

    if config.protocol == "amqp":
        from bridge.sources.rucio.over_amqp import opener
    else:
        from bridge.sources.rucio.over_stomp import opener
    return source(config, key, metrics, opener(config))


async def _check(config: RucioConfig, key: str, patience: Patience) -> Sequence[Finding]:
    from bridge.sources.rucio.check import check

    if config.protocol == "amqp":
        from bridge.sources.rucio.over_amqp import look
    else:
        from bridge.sources.rucio.over_stomp import look
    return await check(config, key, patience, look(config, key, patience))


def _events_of(config: RucioConfig, event: Event) -> Sequence[Event | NoEvent]:
    from bridge.sources.rucio.message import events_of

    return events_of(event, frozenset(config.event_types))


KIND = SourceKind(config=RucioConfig, build=_build, check=_check, events_of=_events_of)
