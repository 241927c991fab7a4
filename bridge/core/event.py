"""What happened, frozen, in the terms of CloudEvents 1.0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One occurrence, as CloudEvents names its attributes.

    `id` is made of the occurrence alone, so the same occurrence has the same id after a restart,
    a redelivery or on a second replica. `source` is the configured source's *identity*, which
    outlives its key; `source` + `id` name the occurrence (CloudEvents 1.0, "id").
    """

    id: str
    source: str
    type: str
    data: bytes
    """Exactly as received; empty where the upstream sent none."""
    subject: str | None = None
    time: datetime | None = None
    """When it happened, by the upstream's clock, with a time zone; None where it does not tell."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What else the upstream told: headers, partition, key … for routing and for a reader."""

    @property
    def size(self) -> int:
        """About how many bytes it takes: its data and the texts of its attributes."""
        return len(self.data) + sum(map(len, self.attributes.values()))
