"""What happened, frozen, in the terms of CloudEvents 1.0."""

from __future__ import annotations

from base64 import b64encode
from codecs import getincrementaldecoder
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final


class Event:
    """One occurrence, as CloudEvents names its attributes.

    `id` is made of the occurrence alone, so the same occurrence has the same id after a restart,
    a redelivery or on a second replica. `source` is the configured source's *identity*, which
    outlives its key; `source` + `id` name the occurrence (CloudEvents 1.0, "id").

    It is frozen, which mypy holds: to have that held at run time costs a call for each attribute.
    """

    __slots__ = ("_time", "attributes", "data", "id", "seconds", "size", "source", "subject", "type", "value")

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - CloudEvents' names
        source: str,
        type: str,  # noqa: A002
        data: bytes,
        subject: str | None = None,
        time: datetime | float | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Say what happened, and when: as a time with a zone, or in seconds since 1970."""
        self.id: Final = id
        self.source: Final = source
        self.type: Final = type
        self.data: Final = data
        """Exactly as received; empty where the upstream sent none."""
        self.subject: Final = subject
        self._time = time
        self.seconds: Final = time.timestamp() if isinstance(time, datetime) else time
        """Its `time` in seconds since 1970."""
        self.attributes: Final = {} if attributes is None else attributes
        """What else the upstream told: headers, partition, key … for routing and for a reader."""
        self.size: Final = len(data) + len("".join(self.attributes.values()))
        """About how many bytes it takes: its data and the texts of its attributes."""
        self.value: Any = None
        """What `data` says as JSON, where whoever made it has read that; else None. Nobody changes it."""

    @property
    def time(self) -> datetime | None:
        """When it happened, by the upstream's clock, with a time zone; None where it does not tell."""
        if isinstance(self._time, int | float):  # made here since few ask for it
            self._time = datetime.fromtimestamp(self._time, UTC)
        return self._time

    def replace(self, **changes: Any) -> Event:
        """Return one that differs in `changes`, which are named as the parameters are."""
        return Event(**(self._given() | changes))

    def __eq__(self, other: object) -> bool:
        return self._given() == other._given() if isinstance(other, Event) else NotImplemented

    __hash__ = None  # type: ignore[assignment] # its attributes have none

    def __repr__(self) -> str:
        return f"Event({', '.join(f'{name}={value!r}' for name, value in self._given().items())})"

    def _given(self) -> dict[str, Any]:
        names = ("id", "source", "type", "data", "subject", "time", "attributes")
        return {name: getattr(self, name) for name in names}


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
