"""Keeps the stream connected: what each end of a connection leads to, and how long to wait after it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import NoReturn

from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.channel import StillThere
from bridge.sources.dcache.gaps import Gaps
from bridge.sources.dcache.health import Health
from bridge.sources.dcache.keeping import Overrun
from bridge.sources.dcache.rest.answers import Denied, Missing, Refused, Unanswered
from bridge.sources.dcache.rest.connection import ChannelGone
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.stream import Competing, Stream, StreamEnded
from bridge.sources.dcache.watches import Watches

COMPETING_SECONDS = (60.0, 900.0)
"""The first and the longest pause before the channel is taken back from another client. Each pause makes it
likelier that a person has seen what is wrong."""
_PAUSES = (0.25, 30.0)
"""Seconds before the stream is opened again: after the first failure in a row, and at most."""
_REFUSED_SECONDS = 30.0
"""dCache blocks an address that is refused three times, each soon after the other."""
_FULL_SECONDS = (0.5, 30.0)
"""Seconds between two looks whether the store has room again, and after which the stream is opened anyway."""


class Follower:
    """Reads one connection of the stream after the other, and replaces the channel when it is gone."""

    def __init__(
        self,
        site: Site,
        stream: Stream,
        watches: Watches,
        gaps: Gaps,
        health: Health,
        reader: SpoolReader,
    ) -> None:
        self._site = site
        self._channel = site.channel
        self._log = site.log
        self._stream = stream
        self._watches = watches
        self._gaps = gaps
        self._health = health
        self._reader = reader
        self._failures = 0
        """How many connections in a row have failed, or have ended soon."""
        self._competitions = 0
        """How many connections in a row another client has ended."""

    async def run(self) -> NoReturn:
        """Follow the stream until cancelled. Raise StoreError."""
        while True:
            try:
                await self._stream.follow()
            except StreamEnded as end:
                self._health.was_held_back = end.held_back
                pause = self._pause()
                self._health.ended(str(end), expected=end.expected)
            except Competing as error:
                pause = self._compete(error)
            except Overrun as error:
                pause = 0.0
                self._log.warning("dcache: disconnected, the store takes no more", reason=str(error))
                self._health.failed(f"disconnected from the stream until the store has room: {error}")
                await self._wait_for_room()
            except Refused as error:
                pause = _REFUSED_SECONDS
                self._health.ended(str(error))
            except (Missing, Denied) as error:
                pause = await self._replace_channel(error)
            except Unanswered as error:
                pause = self._pause()
                self._health.ended(str(error))
                if self._failures == 1:
                    self._gaps.cannot_connect()
            await asyncio.sleep(pause)

    def _pause(self) -> float:
        """Count a failure, and return for how long to wait."""
        self._failures = 0 if self._health.was_good() else self._failures + 1
        return _jittered(max(self._failures, 1), *_PAUSES)

    def _compete(self, error: Competing) -> float:
        """Leave the channel to the other client for a while; return for how long."""
        self._competitions = 1 if self._health.was_good() else self._competitions + 1
        pause = _jittered(self._competitions, *COMPETING_SECONDS)
        client_id = self._channel.client_id
        self._log.error("dcache: another client reads this bridge's channel", channel=client_id)
        self._health.failed(
            f"{error}: is `state_dir` a copy of another bridge's, or does that one still run? "
            f"Each needs its own (client-id {client_id}); taken back in {pause:.0f} s"
        )
        return pause

    async def _wait_for_room(self) -> None:
        """Return when the store has room, or may have: the store does not say when it has."""
        interval, longest = _FULL_SECONDS
        enough, until = self._site.spool.waiting * 0.9, time.monotonic() + longest
        while self._site.spool.waiting > enough and time.monotonic() < until:  # noqa: ASYNC110 - see above
            await asyncio.sleep(interval)

    async def _replace_channel(self, reason: Exception) -> float:
        """Make a channel in place of one that is gone; return how long to wait before it is read.

        404 and 403 may be the answer of something before dCache: then it still lists the channel.
        """
        pause = self._pause()
        try:
            await self._channel.replace(self._site.position)
        except StillThere:
            self._health.ended(f"{reason}, though dCache lists the channel: does a proxy between answer so?")
            return pause
        except (Unanswered, Denied, Missing, ChannelGone) as error:
            self._health.ended(f"the channel is gone, and no other can be made: {error}")
            return _REFUSED_SECONDS if isinstance(error, Refused) else pause
        self._health.ended(str(reason))
        await self._reader.append((), self._site.position.text())
        self._watches.clear()
        self._gaps.lost_channel()
        return 0.0 if self._failures <= 1 else pause


def _jittered(failures: int, first: float, longest: float) -> float:
    """Return a pause that doubles with each failure, from half of it to the whole."""
    return float(min(longest, first * 2 ** min(failures - 1, 20))) * random.uniform(0.5, 1)
