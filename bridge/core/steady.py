"""A problem that is over is told until that has held: one that comes and goes is seen by whoever looks."""

from __future__ import annotations

from time import monotonic

HELD_SECONDS = 30.0
"""How long a problem must have been over before it is told no more."""


class Steady:
    """Whether one thing is well, told without flickering.

    Without it a source that is lost and opened again every few seconds looks well in half of all looks, and
    no alert that waits a minute ever fires.
    """

    __slots__ = ("_over_since", "_reason")

    def __init__(self, reason: str | None = None) -> None:
        """Begin well, or with a problem."""
        self._reason = reason
        self._over_since: float | None = None

    def failed(self, reason: str) -> None:
        """Note that it is not well now, for `reason`."""
        self._reason = reason
        self._over_since = None

    def recovered(self) -> None:
        """Note that it is well from now on."""
        if self._reason is not None and self._over_since is None:
            self._over_since = monotonic()

    def clear(self) -> None:
        """Forget the problem at once, such as a start that has gone well."""
        self._reason = None
        self._over_since = None

    @property
    def problem(self) -> str | None:
        """Return what is not well, or was so less than `HELD_SECONDS` ago; None while it is well."""
        if self._over_since is None:
            return self._reason
        held = monotonic() - self._over_since
        if held >= HELD_SECONDS:
            self.clear()
            return None
        return f"{self._reason} (over for {held:.0f} s, told until it has been for {HELD_SECONDS:g})"
