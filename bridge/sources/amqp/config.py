"""What `type: amqp` takes in the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bridge.sources.broker.config import BrokerConfig, DeclareConfig
from bridge.sources.opening import OpeningConfig
from bridge.sources.storage_events import Open


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
