"""Reads topics of a Kafka cluster as a member of a consumer group, and commits what is settled."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.event import Event
from bridge.core.ports import Finding, Patience, Source
from bridge.sources import Entered, Fits, Keeping, SourceKind, Upstream
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.opening import events_of
from bridge.telemetry.metrics import SourceMetrics


def _build(config: KafkaConfig, key: str, metrics: SourceMetrics, keeping: Keeping) -> Source:
    from bridge.sources.kafka.source import KafkaSource

    return KafkaSource(config, key, metrics, keeping.lost)


async def _check(config: KafkaConfig, key: str, patience: Patience) -> Sequence[Finding]:
    from bridge.sources.kafka.check import check

    return await check(config, key, patience)


async def _look_for(config: KafkaConfig, name: str, fits: Fits, _entered: Entered) -> Upstream:
    from bridge.sources.kafka.looking import look_for

    return await look_for(config, name, fits)


async def _read_again(config: KafkaConfig, event_id: str, _subject: str | None) -> Event:
    from bridge.sources.kafka.looking import read_again

    return await read_again(config, event_id)


KIND = SourceKind(
    config=KafkaConfig,
    build=_build,
    check=_check,
    look_for=_look_for,
    read_again=_read_again,
    events_of=events_of,
)
