"""The sources: each connects to one upstream, reads, and answers it once the bridge has settled.

Each is a plug: a package that gives a `SourceKind` under the entry points `oscar_bridge.sources`, ours like
anybody's (`registry` finds them). This module is all that a plug needs to know of the bridge beside
`bridge.core`, `bridge.values` and the metrics it is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field

from bridge.core.errors import BridgeError
from bridge.core.event import Event
from bridge.core.ports import Finding, Patience, Source, Spool, Spooled
from bridge.net.certificates import OwnCertificate
from bridge.telemetry.metrics import SourceMetrics
from bridge.values import Bytes, Model

Rescan = Literal["now", "everything"]


@dataclass(frozen=True, slots=True)
class NoEvent:
    """A message, or a part of one, of which a source makes no event."""

    reason: str
    dead: bool = False
    """Whether it becomes a dead letter, since it can't be read."""


class GoneError(BridgeError):
    """An event can't be read from its upstream once more; says why."""


class Whereabouts(StrEnum):
    """Where an event is that the bridge knows nothing of."""

    THERE = "there"
    """Upstream: the bridge has still to get it."""
    PAST = "past"
    """The bridge had it once, and what became of it is forgotten."""
    ABSENT = "absent"
    """Not upstream."""
    UNKNOWN = "unknown"
    """The upstream can't tell."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What an upstream tells of an event that is asked for."""

    whereabouts: Whereabouts
    detail: str
    """For a person. Never a secret in it."""


Fits = Callable[[str], bool]
"""Tells whether a name is one that is meant."""
Entered = Callable[[Sequence[bytes]], set[bytes]]
"""Returns which of some versions have entered (`core.ports.Spool`); reads the disk. Raises StoreError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """What this machine keeps for a source."""

    spool: Callable[[], Spool]
    """Gives its part of the store, for one whose upstream keeps nothing; called once."""
    state_dir: Path
    """Where it may keep a small file of its own."""
    lost: Callable[[str, int], None]
    """Takes that the upstream no longer has what was to be read: where, and how many events at least. It is
    told, over a restart too, until a person acknowledges it. The source itself logs and counts it."""
    rescan: Rescan | None = None
    """What the operator answers to a source that can't tell what has entered: nothing of what is there by
    now is to enter, or everything."""


class SourceConfig(Model):
    """What every source in the configuration has. A subclass adds `type: Literal[…]` and its own keys.

    It is data and its validation: what is done with it stands in the functions of its `SourceKind`.
    """

    if TYPE_CHECKING:
        type: str
    identity: str | None = Field(default=None, min_length=1)
    """What invocation identities are made of; the source's key when not given. Keep it when the key is
    renamed: a new identity makes new jobs of old events."""
    max_in_flight: int = Field(default=2000, ge=1, le=100_000)
    """Deliveries in the bridge's hands at once."""
    max_in_flight_bytes: Bytes = 64 * 2**20
    """Bytes of events in the bridge's hands at once, data and attributes; one event is always let in."""
    trusted: bool = False
    """Leave in an event what can choose credentials at OSCAR (`principalId`, `storage_provider`)."""

    @property
    def holds_unread(self) -> bool:
        """Whether it may hold what it has no slots for, and its upstream gives that to nobody else meanwhile.

        Such a source is left while it is paused: what there is for it then waits upstream.
        """
        return False

    def own_certificate(self) -> OwnCertificate | None:
        """Return the certificate that this source shows to its upstream, if it has one."""
        return None


Config = TypeVar("Config", bound=SourceConfig)


async def _is_not_searched(_config: SourceConfig, _name: str, _fits: Fits, _entered: Entered) -> Upstream:
    return Upstream(
        Whereabouts.UNKNOWN, "a queue can't be searched: whether a message waits in it is not known"
    )


async def _has_left(_config: SourceConfig, _event_id: str, _subject: str | None) -> Event:
    raise GoneError("its message has left the queue: put it there once more")


def _not_known_yet(_config: SourceConfig, _spooled: Spooled) -> str | None:
    return None


def _as_it_is(_config: SourceConfig, event: Event) -> Sequence[Event | NoEvent]:
    return [event]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKind(Generic[Config]):
    """What the bridge knows of one kind of source: its configuration, and what can be done with it.

    A package gives one under the entry points `oscar_bridge.sources`, named as its `type`. Its functions
    import what they need when they are called, so that a client library is loaded only if it is configured.
    """

    config: type[Config]
    """With a field `type`, a `Literal` of the one word that the configuration has for this kind."""
    build: Callable[[Config, str, SourceMetrics, Keeping], Source]
    """Makes the source of a configuration, which is `sources.{key}`. Nothing connects yet."""
    check: Callable[[Config, str, Patience], Awaitable[Sequence[Finding]]]
    """Reaches the upstream of `sources.{key}`, takes nothing from it, and tells what there is to mend.

    Every await has a timeout, all of them together less than 20 s. Never raises for what the network or the
    upstream does.
    """
    look_for: Callable[[Config, str, Fits, Entered], Awaitable[Upstream]] = _is_not_searched
    """Tells whether the upstream has an event that goes by a name; takes nothing from it.

    `Fits` tells whether an id, a subject or a key is one that is meant. Never raises for what the network or
    the upstream does.
    """
    read_again: Callable[[Config, str, str | None], Awaitable[Event]] = _has_left
    """Reads the event of an id, which has left the bridge, from the upstream; takes nothing from it.

    Given what it was about too, as far as that is known. Raises GoneError with the reason where it can't be
    read, whatever the network or the upstream does.
    """
    subject_of: Callable[[Config, Spooled], str | None] = _not_known_yet
    """Returns the subject that a spooled event will have, as far as it is known by now."""
    events_of: Callable[[Config, Event], Sequence[Event | NoEvent]] = _as_it_is
    """Returns what the source makes of one message, taken as an Event: events, or why one is not made."""
