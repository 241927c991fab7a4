"""What `type: amqp` takes in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from bridge.core.ports import Finding, Patience, Source
from bridge.sources import Keeping
from bridge.sources.broker.config import BrokerConfig, DeclareConfig
from bridge.sources.opening import OpeningConfig
from bridge.sources.storage_events import Open
from bridge.telemetry.metrics import SourceMetrics


class AmqpConfig(BrokerConfig, OpeningConfig):
    """Reads a queue of RabbitMQ, or of another broker that speaks AMQP 0-9-1."""

    type: Literal["amqp"]
    queue: str = Field(min_length=1, max_length=255)
    """What to consume."""
    declare: DeclareConfig | None = None
    """Make the queue where it is missing."""
    open: Open = "auto"

    @property
    def what(self) -> str:
        return f"queue {self.queue}"

    @property
    def speaks(self) -> str:
        return "AMQP"

    @property
    def holds_unread(self) -> bool:
        return True

    def build(self, key: str, metrics: SourceMetrics, keeping: Keeping | None = None) -> Source:
        from bridge.sources.amqp.source import source  # only who reads RabbitMQ loads its client

        return source(self, key, metrics)

    async def check(self, key: str, patience: Patience) -> Sequence[Finding]:
        from bridge.sources.amqp.check import check  # likewise

        return await check(self, key, patience)
