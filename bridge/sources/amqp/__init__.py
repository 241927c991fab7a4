"""Reads a queue of RabbitMQ, or of another broker that speaks AMQP 0-9-1, whatever is published to it."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Finding, Patience, Source
from bridge.sources import Keeping, SourceKind
from bridge.sources.amqp.config import AmqpConfig
from bridge.sources.opening import events_of
from bridge.telemetry.metrics import SourceMetrics


def _build(config: AmqpConfig, key: str, metrics: SourceMetrics, _keeping: Keeping) -> Source:
    from bridge.sources.amqp.source import source

    return source(config, key, metrics)


async def _check(config: AmqpConfig, key: str, patience: Patience) -> Sequence[Finding]:
    from bridge.sources.amqp.check import check

    return await check(config, key, patience)


KIND = SourceKind(config=AmqpConfig, build=_build, check=_check, events_of=events_of)
