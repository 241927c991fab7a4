"""The channel of this replica: found again, or made, and kept alive as long as the site allows."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from bridge.core.errors import SourceLost
from bridge.core.ports import Spool
from bridge.sources import Rescan
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.rest.answers import Denied, Missing
from bridge.sources.dcache.rest.connection import METRONOME, ChannelGone, Connection
from bridge.sources.dcache.scope import is_at_or_below
from bridge.sources.dcache.state import OwnFile, Position

LOST_STORE_MARGIN = 3600.0
"""After the store was lost, files enter whose time is up to so many seconds before the last known one. A file
keeps the time at which its writing began, or one that its writer chose, so it may have come later."""


class StillThere(Exception):  # noqa: N818
    """The channel that was to be replaced still exists."""


class Channel:
    """Finds or makes the channel of this replica, and knows from where to go on."""

    def __init__(
        self, connection: Connection, config: DcacheConfig, own: OwnFile, spool: Spool, log: Any
    ) -> None:
        self._connection = connection
        self._config = config
        self._own = own
        self._spool = spool
        self._log = log
        self._longest = 0
        self.has_metronome = False
        self.left_over: Set[str] = frozenset()
        """Keys of the watches that the channel had when it was found, also of directories that the
        configuration no longer names."""

    @property
    def client_id(self) -> str:
        """The name of this replica's channel at dCache."""
        return f"{self._config.client_id}-{self._own.suffix}"

    async def open(self, rescan: Rescan | None) -> Position:
        """Find where this replica was, and a channel. Raise SourceLost when only a person can tell.

        Raise what `Connection` and the store raise.
        """
        was_there = self._own.load()
        kept = await self._spool.position()
        limits = await self._connection.limits()
        self._longest = limits.longest_timeout
        if kept is not None:
            position = Position.of(kept)
            if rescan is not None:
                position.since = self._connection.now() if rescan == "now" else None
                position.unlisted.clear()
            elif self._config.first_start == "now":
                position.unlisted |= self._new_paths(position.roots)
        else:
            position = Position("", since=self._since(was_there, rescan))
        position.roots = list(self._config.paths)
        if not position.channel or not await self._connection.has_channel(position.channel):
            await self._take(position, await self._connection.channels(self.client_id))
        else:
            await self._prepare(position.channel)
        await self._spool.append((), position.text())
        self._own.heard = self._own.heard or self._connection.now()
        self._own.save()
        return position

    def _since(self, was_there: bool, rescan: Rescan | None) -> float | None:
        """Return from what time files enter if the store knows nothing, as it is new or was lost."""
        wanted = rescan if was_there else rescan or self._config.first_start
        if wanted is not None:
            self._log.info("dcache: no position is known", first_start=wanted)
            return self._connection.now() if wanted == "now" else None
        if self._own.heard is not None:
            self._log.warning("dcache: the store was lost; what came since enters", heard=self._own.heard)
            return self._own.heard - LOST_STORE_MARGIN
        raise SourceLost(
            f"the store was lost, and {self._own.path} does not tell until when events were kept: run "
            "`oscar-bridge run --rescan=now` to skip the files that are there now, or `--rescan=everything` "
            "to let them all enter"
        )

    def _new_paths(self, known: Sequence[str] | None) -> dict[str, float | None]:
        """Return which of `paths` were not watched before, and which below them were, for `unlisted`."""
        if known is None:
            return {}
        whole = self._config.recursive
        new = [
            path
            for path in self._config.paths
            if path not in known and not (whole and any(is_at_or_below(path, above) for above in known))
        ]
        if not new:
            return {}
        self._log.info("dcache: paths are new; what is there by now is skipped", paths=new)
        old = [path for path in known if any(is_at_or_below(path, above) for above in new)]
        return dict.fromkeys(new, self._connection.now()) | dict.fromkeys(old)

    async def replace(self, position: Position) -> None:
        """Give `position` another channel. Raise StillThere when dCache still lists the old one."""
        mine = await self._connection.channels(self.client_id)
        if position.channel in mine:
            raise StillThere(position.channel)
        await self._take(position, mine)

    async def _take(self, position: Position, mine: Sequence[str]) -> None:
        """Give `position` a channel: one of ours that still exists, or a new one."""
        if position.channel in mine:
            mine = [position.channel]
        for other in mine[1:]:
            await self._connection.delete_channel(other)
        channel = mine[0] if mine else await self._connection.make_channel(self.client_id)
        self._log.info("dcache: channel", channel=channel, client_id=self.client_id, found=bool(mine))
        # The position names it only now: should preparing fail, the next attempt finds it as one of ours.
        await self._prepare(channel)
        position.channel, position.event = channel, None

    async def _prepare(self, channel: str) -> None:
        """Have the channel live long without a client, and have it tick."""
        try:
            if self._longest:
                await self._connection.set_timeout(channel, self._longest)
            subscriptions = await self._connection.subscriptions(channel)
            self.left_over = {key for key in subscriptions if not key.startswith(METRONOME)}
            ticks = len(self.left_over) < len(subscriptions)
            self.has_metronome = ticks or await self._connection.start_metronome(channel)
        except Missing as error:
            raise ChannelGone(str(error)) from None
        except Denied as error:
            self._log.warning("dcache: the channel's life-time can't be raised", reason=str(error))
