"""A message of a broker, and what a source makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from bridge.core.event import Event

Tag: TypeAlias = int | str
"""The link's name for a message: AMQP's delivery tag, STOMP's `ack` header."""


class Message(NamedTuple):
    """One message of a link, owed an answer on this very link."""

    tag: Tag
    """Empty where there is nothing to answer by."""
    body: bytes
    attributes: Mapping[str, str]
    """Its headers, and how it came: STOMP's `destination`, AMQP's `exchange` and `routing_key`."""
    properties: Mapping[str, str] = MappingProxyType({})
    """AMQP's own properties, by their names in the specification."""
    fault: str | None = None
    """What of it can't be read, beside its body; for a person."""


@dataclass(frozen=True, slots=True)
class Unwanted:
    """A message that is answered at once."""

    reason: str
    """A bounded word for the metrics: `email` or `event_type`."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that its source can't have been sent: a dead letter."""

    event: Event
    reason: str
    """For a person."""


Read: TypeAlias = Callable[[Message], Event | Unwanted | Unreadable]
"""Makes an Event of a message. Must not raise."""
