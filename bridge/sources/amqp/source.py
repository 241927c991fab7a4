"""The source of what any publisher sends to RabbitMQ."""

from __future__ import annotations

from functools import partial

from bridge.sources.amqp.config import AmqpConfig
from bridge.sources.amqp.message import to_event
from bridge.sources.broker.amqp import open_link
from bridge.sources.broker.source import BrokerSource
from bridge.telemetry.metrics import SourceMetrics


def source(config: AmqpConfig, key: str, metrics: SourceMetrics) -> BrokerSource:
    """Make the source configured as `sources.{key}`."""
    return BrokerSource(
        config,
        key,
        metrics,
        open_link=partial(open_link, config, config.queue, config.declare),
        read=partial(to_event, source=config.identity or key),
        how=config.open,
    )
