"""How far the complete listings have come on the channel that is read now."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """What is known of the whole watched tree. `TRANSITIONS` says how one phase follows another."""

    UNASKED = "unasked"
    """The channel is new, and no complete listing has been asked for."""
    WANTED = "wanted"
    """A complete listing is to begin."""
    LISTING = "listing"
    """A complete listing is under way, and no event was missed since it began."""
    OUTDATED = "outdated"
    """A complete listing is under way, but events were missed since it began: another has to follow."""
    KNOWN = "known"
    """A complete listing has ended, and no event was missed since it began."""


TRANSITIONS: dict[str, dict[Phase, Phase]] = {
    "want": {
        Phase.UNASKED: Phase.WANTED,
        Phase.WANTED: Phase.WANTED,
        Phase.LISTING: Phase.OUTDATED,
        Phase.OUTDATED: Phase.OUTDATED,
        Phase.KNOWN: Phase.WANTED,
    },
    "begin": {Phase.WANTED: Phase.LISTING},
    "end": {Phase.LISTING: Phase.KNOWN, Phase.OUTDATED: Phase.WANTED},
    "replace_channel": dict.fromkeys(Phase, Phase.UNASKED),
}
"""The phase that each call leads to, from each phase in which it may be made."""


class Progress:
    """The phase, and what of the channel's past the other rooms ask for."""

    def __init__(self, newest: int) -> None:
        self.phase = Phase.UNASKED
        self.newest = newest
        """The number of the newest listing."""
        self.has_watched_all = False
        """Every directory that could be watched on this channel is: a complete listing has been to all."""

    def want(self) -> None:
        """Ask for a complete listing: events were missed, or may have been."""
        self._go("want")

    def begin(self) -> None:
        """Begin the complete listing that is wanted."""
        self._go("begin")

    def end(self) -> None:
        """End the complete listing that is under way."""
        self._go("end")

    def replace_channel(self) -> None:
        """Start again: no watch is left, and a listing that is under way no longer counts."""
        self.has_watched_all = False
        self._go("replace_channel")

    @property
    def is_outdated(self) -> bool:
        """Whether events were missed since the complete listing under way began."""
        return self.phase is Phase.OUTDATED

    def _go(self, call: str) -> None:
        self.phase = TRANSITIONS[call][self.phase]
