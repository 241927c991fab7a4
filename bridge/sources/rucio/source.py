"""The source of what Rucio's hermes sends."""

from __future__ import annotations

from functools import partial

from bridge.sources.broker.link import Opener
from bridge.sources.broker.source import BrokerSource
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.message import read
from bridge.telemetry.metrics import SourceMetrics


def source(config: RucioConfig, key: str, metrics: SourceMetrics) -> BrokerSource:
    """Make the source configured as `sources.{key}`."""
    wanted = frozenset(config.event_types)
    return BrokerSource(
        config,
        key,
        metrics,
        open_link=opener(config),
        read=partial(read, source=config.identity or key, wanted=wanted),
    )


def opener(config: RucioConfig) -> Opener:
    """Return what opens a link by the configured protocol; only its client library is loaded."""
    if config.protocol == "amqp":
        from bridge.sources.broker.amqp import open_link as open_amqp

        return partial(open_amqp, config, str(config.queue), config.declare)
    from bridge.sources.rucio.stomp import open_link as open_stomp

    return partial(open_stomp, config)
