"""Whether the stream is connected, as readiness, the metrics and the log show it."""

from __future__ import annotations

import time

from bridge.core.steady import Steady
from bridge.sources.dcache.site import Site

_GOOD_SECONDS = 30.0
"""A connection that lasted so long was a good one: the next failure counts as the first in a row."""
_HELD_BACK = (
    "connected, but nothing has come through the last time, not even a tick: does a proxy between hold the "
    "stream back?"
)


class Health:
    """Hears how the stream's connections begin and end, and until when everything is kept."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._metrics = site.metrics
        self._trouble = Steady("not connected yet")
        self.was_held_back = False
        """The last connection delivered nothing, not even a tick."""
        self._was_connected = False
        """There has been a connection."""
        self._is_connected = False
        self._connected_at: float | None = None
        """When the last connection began (monotonic); None once `was_good` has been asked about it."""

    @property
    def problem(self) -> str | None:
        """What is wrong with the stream, or was a moment ago."""
        return self._trouble.problem

    def connected(self) -> None:
        """Note that the stream is connected."""
        self._metrics.up.set(1)
        if self.was_held_back:
            self._trouble.failed(_HELD_BACK)
        elif self._was_connected:
            self._trouble.recovered()
        else:
            self._trouble.clear()
        self._was_connected = self._is_connected = True
        self._connected_at = time.monotonic()
        self._site.log.info(
            "dcache: connected", channel=self._site.position.channel, after=self._site.position.event
        )

    def heard(self) -> None:
        """Note that something came, and that all that came until now is kept."""
        self._site.own.heard = self._site.connection.now()
        if self.was_held_back:
            self.was_held_back = False
            self._trouble.recovered()

    def closed(self) -> None:
        """Note that the connection is over, for whatever reason."""
        self._metrics.up.set(0)

    def ended(self, reason: str, *, expected: bool = False) -> None:
        """Note why there is no connection. One that was to be expected is no trouble."""
        log = self._site.log.info if expected else self._site.log.warning
        log("dcache: the stream ended", reason=reason)
        self._metrics.up.set(0)  # also when there was no connection to be lost
        was_connected, self._is_connected = self._is_connected, False
        if not expected:
            self._metrics.losses.inc(was_connected)
            self._trouble.failed(f"not connected: {reason}")

    def failed(self, problem: str) -> None:
        """Note another reason why the stream is not read: readiness shows `problem` as it is."""
        self._trouble.failed(problem)

    def was_good(self) -> bool:
        """Return whether the last connection lasted long; asked again, the answer is no."""
        since, self._connected_at = self._connected_at, None
        return since is not None and time.monotonic() - since > _GOOD_SECONDS
