"""What happened, frozen, in the terms of CloudEvents 1.0."""

from __future__ import annotations

from base64 import b64encode
from codecs import getincrementaldecoder
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


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
    value: Any = field(default=None, init=False, repr=False, compare=False)
    """What `data` says as JSON, where whoever made the event has read it; else None. Nobody changes it."""

    def was_read(self, value: Any) -> None:
        """Note what `data` says, for who would read it again. A copy with other data knows nothing of it."""
        object.__setattr__(self, "value", value)

    @property
    def size(self) -> int:
        """About how many bytes it takes: its data and the texts of its attributes."""
        return len(self.data) + sum(map(len, self.attributes.values()))


def readable(data: bytes, most: int | None = None) -> tuple[str, str]:
    """Return `data`, or its first `most` bytes, as text where it is printable UTF-8, as base64 elsewhere; and
    which of the two, `text` or `base64`.
    """
    first = data[:most]
    try:  # a character that is cut in two at the end is left out
        text = getincrementaldecoder("utf-8")().decode(first, len(first) == len(data))
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter in "\n\t\r" for letter in text):
        return text, "text"
    return b64encode(first).decode("ascii"), "base64"
