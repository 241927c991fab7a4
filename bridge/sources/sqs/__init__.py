"""Reads a queue of Amazon SQS, keeps what is in hand invisible to others, and deletes what is settled."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Finding, Patience, Source
from bridge.sources import Keeping, SourceKind
from bridge.sources.opening import events_of
from bridge.sources.sqs.config import SqsConfig
from bridge.telemetry.metrics import SourceMetrics


def _build(config: SqsConfig, key: str, metrics: SourceMetrics, _keeping: Keeping) -> Source:
    from bridge.sources.sqs.source import SqsSource

    return SqsSource(config, key, metrics)


async def _check(config: SqsConfig, key: str, patience: Patience) -> Sequence[Finding]:
    from bridge.sources.sqs.check import check

    return await check(config, key, patience)


KIND = SourceKind(config=SqsConfig, build=_build, check=_check, events_of=events_of)
