"""What `type: rucio` takes in the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bridge.sources.broker.config import BrokerConfig, DeclareConfig

_DESTINATION = re.compile(r"/(?:queue|topic|exchange|amq/queue|dsub|reply-queue|temp-queue)/\S+")


def _destination(value: str) -> str:
    if not _DESTINATION.fullmatch(value):
        raise ValueError(
            f"expected a destination such as /queue/rucio.oscar or /topic/rucio.events, found {value!r}"
        )
    return value


def _event_type(value: str) -> str:
    if not value or value.lower() == "email":
        raise ValueError("expected an event type of Rucio such as close; emails are never taken")
    return value.lower()


class RucioConfig(BrokerConfig):
    """Reads what Rucio's hermes sends, from one or several message brokers."""

    type: Literal["rucio"]
    protocol: Literal["stomp", "amqp"]
    """STOMP 1.2 (ActiveMQ, RabbitMQ with its plugin), or AMQP 0-9-1 (RabbitMQ)."""
    destination: Annotated[str, AfterValidator(_destination)] | None = None
    """STOMP: what to subscribe to."""
    queue: str | None = Field(default=None, min_length=1, max_length=255)
    """AMQP: what to consume."""
    client_id: str | None = Field(default=None, min_length=1)
    """STOMP: with `subscription`, what a durable subscription to a topic belongs to."""
    subscription: str | None = Field(default=None, min_length=1)
    """STOMP: the durable subscription's name."""
    selector: str | None = Field(default=None, min_length=1)
    """STOMP, topics of ActiveMQ: what of the topic, such as `event_type = 'close'`."""
    declare: DeclareConfig | None = None
    """AMQP: make the queue where it is missing."""
    event_types: tuple[Annotated[str, AfterValidator(_event_type)], ...] = ()
    """Only events of these types; all when none is given. `email` never."""

    @model_validator(mode="after")
    def _has_what_its_protocol_needs(self) -> Self:
        mine, others = (
            ("destination", ("queue", "declare"))
            if self.protocol == "stomp"
            else ("queue", ("destination", "client_id", "subscription", "selector"))
        )
        if getattr(self, mine) is None:
            raise ValueError(f"protocol {self.protocol} needs {mine}")
        for name in others:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} means nothing with protocol {self.protocol}; remove it")
        if (self.client_id is None) != (self.subscription is None):
            raise ValueError("expected client_id and subscription together, for a durable subscription")
        topic = (self.destination or "").startswith("/topic/")
        if self.subscription is not None and not topic:
            raise ValueError("a durable subscription is one to a topic; a queue keeps its messages anyway")
        if self.selector is not None and not topic:
            raise ValueError(
                "a selector on a queue stalls it, once what nobody selects fills the broker's page; "
                "use event_types or a route's `when`"
            )
        return self

    @property
    def what(self) -> str:
        return f"queue {self.queue}" if self.protocol == "amqp" else str(self.destination)

    @property
    def speaks(self) -> str:
        return self.protocol.upper()

    @property
    def holds_unread(self) -> bool:
        # What is sent to another destination while nobody reads it is lost.
        kept = (self.destination or "").startswith(("/queue/", "/amq/queue/"))
        return kept or self.queue is not None or self.subscription is not None
