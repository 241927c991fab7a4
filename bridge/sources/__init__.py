"""The sources: each connects to one upstream, reads, and answers it once the bridge has settled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

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


class SourceConfig(Model, ABC):
    """What every source in the configuration has. A subclass adds `type: Literal[…]` and its own keys."""

    identity: str | None = Field(default=None, min_length=1)
    """What invocation identities are made of; the source's key when not given. Keep it when the key is
    renamed: a new identity makes new jobs of old events."""
    max_in_flight: int = Field(default=2000, ge=1, le=100_000)
    """Deliveries in the bridge's hands at once."""
    max_in_flight_bytes: Bytes = 64 * 2**20
    """Bytes of events in the bridge's hands at once, data and attributes; one event is always let in."""
    trusted: bool = False
    """Leave in an event what can choose credentials at OSCAR (`principalId`, `storage_provider`)."""

    @abstractmethod
    def build(self, key: str, metrics: SourceMetrics, keeping: Keeping) -> Source:
        """Make the source configured as `sources.{key}`. Nothing connects yet."""

    @abstractmethod
    async def check(self, key: str, patience: Patience) -> Sequence[Finding]:
        """Reach the upstream of `sources.{key}`, take nothing from it, and tell what there is to mend.

        Every await has a timeout, all of them together less than 20 s. Never raises for what the network or
        the upstream does.
        """

    @property
    def holds_unread(self) -> bool:
        """Whether it may hold what it has no slots for, and its upstream gives that to nobody else meanwhile.

        Such a source is left while it is paused: what there is for it then waits upstream.
        """
        return False

    def own_certificate(self) -> OwnCertificate | None:
        """Return the certificate that this source shows to its upstream, if it has one."""
        return None

    async def look_for(self, name: str, fits: Callable[[str], bool], entered: Entered) -> Upstream:
        """Tell whether the upstream has an event that goes by `name`; take nothing from it.

        `fits` tells whether an id, a subject or a key is one that is meant. Never raises
        for what the network or the upstream does.
        """
        return Upstream(
            Whereabouts.UNKNOWN, "a queue can't be searched: whether a message waits in it is not known"
        )

    async def read_again(self, event_id: str, subject: str | None) -> Event:
        """Read the event of that id, which has left the bridge, from the upstream; take nothing from it.

        `subject` is what it was about, as far as that is known. Raises GoneError with the reason where it
        can't be read, whatever the network or the upstream does.
        """
        raise GoneError("its message has left the queue: put it there once more")

    def subject_of(self, spooled: Spooled) -> str | None:
        """Return the subject that the event of `spooled` will have, as far as it is known by now."""
        return None

    def events_of(self, event: Event) -> Sequence[Event | NoEvent]:
        """Return what this source makes of one message, taken as `event`: events, or why one is not made."""
        return [event]
