"""Which events of a route are sent together, and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from posixpath import dirname
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from bridge.core.event import Event
from bridge.core.windows import Policy, Rules
from bridge.pipeline.codings import Coding
from bridge.pipeline.context import View
from bridge.pipeline.expression import Expression, NoMatch, Unroutable
from bridge.values import Bytes, Model, Seconds

_LONGEST_KEY = 2_000
"""Characters of a key: it is kept with each of its windows."""


class MergeConfig(Model):
    """Events of a route become one event for its service."""

    max_events: int | None = Field(default=None, ge=1, le=100_000)
    """Events in one, at most."""
    max_bytes: Bytes | None = None
    """Bytes of their data in one, at most; what fits into an event of the service when not given."""
    window: Seconds | None = None
    """How long the first of them waits for others."""
    key: str | None = None
    """CEL; only events of which it gives the same go together."""
    as_: Literal["json", "text"] = Field(default="json", alias="as")
    """How they are put together."""
    demarcator: str | None = None
    """What stands between two in `as: text`; a line end when not given."""
    remember: Seconds = 7 * 86400.0
    """For how long an event that comes again is known to have been sent."""

    @model_validator(mode="after")
    def _demarcates(self) -> Self:
        if self.demarcator is not None and self.as_ != "text":
            raise ValueError("`demarcator` is for `as: text`; add it, or remove the demarcator")
        return self


class CompleteConfig(Model):
    """Events are sent together once all are there."""

    count: int | None = Field(default=None, ge=1, le=1_000_000)
    """How many all are."""
    marker: str | None = None
    """CEL; true of the event that tells that all are there."""
    within: Seconds = 24 * 3600.0
    """How long the first of them waits for the last."""
    then: Literal["send", "dead-letter"] = "send"
    """What becomes of them if some are missing by then."""

    @model_validator(mode="after")
    def _count_or_marker(self) -> Self:
        if (self.count is None) == (self.marker is None):
            raise ValueError("expected one of `count` and `marker`")
        return self


class MergesConfig(Model):
    """What a route says of events that are sent together."""

    merge: MergeConfig | None = None
    """Send events together."""
    quiet: Seconds | None = None
    """Send them when nothing more of the same key has come for so long; behind a marker, so long after it."""
    complete: CompleteConfig | None = None
    """Send them when all are there."""

    @model_validator(mode="after")
    def _is_sent(self) -> Self:
        merge, complete = self.merge, self.complete
        if merge is not None and merge.window is None and self.quiet is None and complete is None:
            raise ValueError("expected `merge.window`, `quiet` or `complete`: else events wait for ever")
        if merge is not None and merge.window is not None and complete is not None:
            raise ValueError("`merge.window` and `complete` exclude each other: write `complete.within`")
        if self.quiet is not None and complete is not None and complete.count is not None:
            raise ValueError("`quiet` means nothing beside `complete.count`; remove it")
        return self

    @property
    def merges(self) -> bool:
        """Whether events are sent together at all."""
        return any(each is not None for each in (self.merge, self.quiet, self.complete))


@dataclass(frozen=True, slots=True)
class Manner:
    """How the events of a window are sent. It is kept with the window."""

    as_: str = "json"
    demarcator: str = "\n"
    most: int | None = None
    most_bytes: int | None = None
    remember: float = 7 * 86400.0
    incomplete: str = "send"
    encode: Sequence[Coding] = ()

    def write(self) -> str:
        """Write it for the store."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Manner:
        """Read what `write` wrote."""
        return cls(**json.loads(text))


class Place(NamedTuple):
    """The window of one event, as its route tells it."""

    route: str
    """`Merging.name`."""
    key: str
    is_marker: bool


class Merging:
    """What a route does with an event that is sent together with others."""

    def __init__(self, config: MergesConfig, encode: Sequence[Coding] = ()) -> None:
        """Do what `config` says; `encode` is done to what events have become together."""
        self._merge = merge = config.merge or MergeConfig()
        self._quiet = config.quiet
        self._complete = config.complete
        self._encode = encode
        self._key = None if merge.key is None else Expression(merge.key)
        marker = None if config.complete is None else config.complete.marker
        self._marker = None if marker is None else Expression(marker)
        self._by_folder = merge.key is None and (config.quiet is not None or config.complete is not None)
        self.name = f"key {merge.key}" if merge.key is not None else "folder" if self._by_folder else "all"
        """Tells it from others of one source and service: whatever else of the route is changed, its windows
        stay its own."""
        self.expressions = [one for one in (self._key, self._marker) if one is not None]

    def is_marker(self, view: View) -> bool:
        """Return whether the event in `view` completes its window. Raise Unroutable."""
        if self._marker is None:
            return False
        try:
            marks = self._marker.evaluate(view)
        except NoMatch:
            return False
        if not isinstance(marks, bool):
            raise Unroutable(f"`complete.marker` gave {type(marks).__name__}, expected true or false")
        return marks

    def place(self, event: Event, view: View) -> Place:
        """Find the window of `event`, which is in `view`. Raise NoMatch or Unroutable."""
        return Place(self.name, self._key_of(event, view), self.is_marker(view))

    def _key_of(self, event: Event, view: View) -> str:
        if self._key is None:
            text = folder(event) if self._by_folder else ""
            if len(text) > _LONGEST_KEY:
                raise Unroutable(f"its key has {len(text)} characters: {_LONGEST_KEY} at most")
            return text
        key = self._key.evaluate(view)
        if isinstance(key, bool):
            return "true" if key else "false"
        if not isinstance(key, (str, int, float)):
            raise Unroutable(f"`merge.key` gave {type(key).__name__}, expected text, a number or a boolean")
        if len(text := str(key)) > _LONGEST_KEY:
            raise Unroutable(f"`merge.key` gave a text of {len(text)} characters: {_LONGEST_KEY} at most")
        return text

    def policy(self, event_bytes: int) -> Policy:
        """Return what holds for windows of a service that takes events of so many encoded bytes."""
        merge, complete = self._merge, self._complete
        # Base64 of so many fits; what is JSON takes less, as a rule, and what takes more is parted.
        most_bytes = merge.max_bytes or event_bytes * 3 // 4
        rules = Rules(
            longest=merge.window if complete is None else complete.within,
            quiet=self._quiet,
            most=merge.max_events,
            most_bytes=most_bytes,
            count=None if complete is None else complete.count,
            by_marker=complete is not None and complete.marker is not None,
        )
        manner = Manner(
            merge.as_,
            "\n" if merge.demarcator is None else merge.demarcator,
            merge.max_events,
            merge.max_bytes,
            merge.remember,
            "send" if complete is None else complete.then,
            self._encode,
        )
        return Policy(rules, manner.write())


def folder(event: Event) -> str:
    """Return what an event goes together with where its route names no key.

    The directory of a file of dCache, bucket and prefix of an object, else the key of a record of Kafka.
    """
    attributes = event.attributes
    if "bucket" in attributes:
        return f"{attributes['bucket']}/{dirname(event.subject or '')}"
    if "topic" in attributes:
        return attributes.get("key", "")
    return dirname(event.subject or "")[-_LONGEST_KEY:]
