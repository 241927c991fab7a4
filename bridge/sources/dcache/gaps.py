"""Events that were missed: they are counted and logged, and their files are found by listing."""

from __future__ import annotations

import math
import time

from bridge.sources.dcache.agenda import Agenda
from bridge.sources.dcache.site import Site

_LOG_SECONDS = 60.0
"""Between two log lines about events that were missed for one reason; the metric counts them all. For a
single overflow in dCache every watch sends an event."""


class Gaps:
    """Takes why events were missed, and has the agenda list where they were."""

    def __init__(self, site: Site, agenda: Agenda) -> None:
        site.metrics.may_miss(
            "channel_lost", "event_loss", "no_event_to_resume_from", "overflow", "unreadable"
        )
        self._agenda = agenda
        self._metrics = site.metrics
        self._log = site.log
        self._logged_at: dict[str, float] = {}
        """When the last log line about missed events was written (monotonic), by reason."""
        self._is_channel_new = True
        """The stream of this channel has not been connected yet by this process."""

    def connected(self, *, resumed: bool) -> None:
        """Have listed what happened before the stream was connected, unless it is `resumed`.

        Of a channel that is new to this process everything is listed, and not sooner: a file that is closed
        after its directory was listed and before the stream is connected would be missed.
        """
        if self._is_channel_new:
            self._is_channel_new = False
            self._agenda.list_all_soon()
        elif not resumed:
            self.missed("no_event_to_resume_from")

    def cannot_connect(self) -> None:
        """Have everything on a new channel listed already, though it is listed again once it is connected.

        Perhaps something holds the stream back until there is an event, and there are none without watches.
        """
        if self._is_channel_new:
            self._agenda.list_all_soon()

    def lost_channel(self) -> None:
        """Note that the channel was replaced; everything is listed once the new one is connected."""
        self._count("channel_lost", None)
        self._is_channel_new = True
        self._agenda.replace_channel()

    def missed(self, reason: str, directory: str | None = None) -> None:
        """Note that events were missed, and have `directory` listed; None: any, so that all are listed.

        `reason` is one of the words that the metrics were given at the beginning.
        """
        self._count(reason, directory)
        if directory is None:
            self._agenda.list_all_soon()
        else:
            self._agenda.list_soon(directory)

    def _count(self, reason: str, directory: str | None) -> None:
        self._metrics.gap(reason)
        now = time.monotonic()
        if now - self._logged_at.get(reason, -math.inf) < _LOG_SECONDS:
            return
        self._logged_at[reason] = now
        if directory is None:
            self._log.warning("dcache: events were missed; all is listed", reason=reason)
        else:
            self._log.warning(
                "dcache: events of a directory were lost; it is listed", reason=reason, path=directory
            )
