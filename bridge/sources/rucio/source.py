"""The source of what Rucio's hermes sends."""

from __future__ import annotations

from functools import partial

from bridge.sources.broker.link import Opener
from bridge.sources.broker.source import BrokerSource
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.message import read
from bridge.telemetry.metrics import SourceMetrics


def source(config: RucioConfig, key: str, metrics: SourceMetrics, opener: Opener) -> BrokerSource:
    """Make the source configured as `sources.{key}`, which reads by links of `opener`."""
    wanted = frozenset(config.event_types)
    return BrokerSource(
        config,
        key,
        metrics,
        open_link=opener,
        read=partial(read, source=config.identity or key, wanted=wanted),
    )
