"""Events of directories: those that are new are listed, and the watches of those that have left are ended."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

from bridge.sources.dcache.agenda import Agenda
from bridge.sources.dcache.inotify import MOVED_IN, MOVED_OUT, InotifyEvent
from bridge.sources.dcache.moves import Half, Moves
from bridge.sources.dcache.rest.answers import Denied, Unanswered
from bridge.sources.dcache.rest.connection import key_of
from bridge.sources.dcache.scope import is_at_or_below, joined
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.watches import Watches

_MOST_REMEMBERED = 1000
"""Watches ended by this bridge that are remembered."""


class Departures:
    """Follows the changes of the watched tree; `run` ends the watches of the directories that have left it.

    What `take` and its like do is synchronous: the socket is waiting.
    """

    def __init__(self, site: Site, watches: Watches, moves: Moves, agenda: Agenda) -> None:
        self._site = site
        self._watches = watches
        self._moves = moves
        self._agenda = agenda
        self._log = site.log
        self._has_work = asyncio.Event()
        self._to_end: list[str] = []
        """Keys of watches that are to be ended."""
        self._ended: deque[str] = deque(maxlen=_MOST_REMEMBERED)
        """Keys of the last watches that were ended."""

    def take(self, event: InotifyEvent, directory: str | None) -> None:
        """Take an event about something in `directory`; None is a directory that is not known yet.

        Of what happens in one that is not known, the listing after its watch was made shows the result.
        """
        if event.name is None:
            return
        path = None if directory is None else joined(directory, event.name)
        if event.cookie is not None and event.action in (MOVED_IN, MOVED_OUT):
            self._take_half(event, event.cookie, path)
        if event.is_directory and path is not None and event.action in ("IN_CREATE", MOVED_IN):
            self._agenda.list_soon(path)

    def take_self_moved(self, directory: str | None) -> None:
        """Note that `directory` was moved away, or back, which matters if it is one of the watched paths."""
        if directory is not None and directory in self._site.scope.roots:
            self._log.warning("dcache: a watched path was moved, away or back", path=directory)
            self._agenda.list_soon(directory)

    def take_watch_ended(self, subscription: str) -> None:
        """Note that dCache has ended `subscription`; have its directory listed if it should be watched."""
        path = self._watches.end(subscription)
        if path is None:
            return
        if path in self._site.scope.roots:
            self._log.warning("dcache: a watch has ended", path=path)
            self._agenda.list_soon(path)
        elif key_of(subscription) in self._ended:
            # We ended it because its directory had left. As it is known again, the directory has come back.
            self._agenda.list_soon(path)

    def end_left_over(self) -> None:
        """End the watches that the channel had when it was found, but for those of what is watched now."""
        left_over, self._site.channel.left_over = self._site.channel.left_over, frozenset()
        unknown = left_over - self._watches.keys()
        if unknown:
            self._log.info("dcache: watches of an earlier configuration are ended", watches=len(unknown))
            self._to_end += unknown
            self._has_work.set()

    async def run(self) -> None:
        """End the watches of directories that have left, until cancelled."""
        while True:
            due = self._moves.due()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(due - time.monotonic(), 0.05)):
                    await self._has_work.wait()
            self._has_work.clear()
            for half in self._moves.gone(time.monotonic()):
                self._to_end += [key for key in half.keys if self._has_left(key, half.path)]
            while self._to_end:
                await self._end(self._to_end.pop())

    async def _end(self, key: str) -> None:
        self._watches.end(key)
        self._ended.append(key)
        try:
            await self._site.connection.unwatch(self._site.position.channel, key)
        except (Unanswered, Denied) as error:  # No harm: events of a watch that is not known are dropped.
            self._log.info("dcache: a watch could not be ended", reason=str(error))

    def _take_half(self, event: InotifyEvent, cookie: str, path: str | None) -> None:
        now = time.monotonic()
        if event.action == MOVED_OUT:
            below = self._watches.below(path) if event.is_directory and path is not None else ()
            left = Half(path, now, frozenset(key for key, _ in below))
            self._move(left, self._moves.left(cookie, left))
        else:
            came = Half(path, now)
            self._move(self._moves.came(cookie, came), came)
        self._has_work.set()

    def _move(self, left: Half | None, came: Half | None) -> None:
        """Note the new paths of the watches that moved along; those that are not to be watched there end."""
        if left is None or came is None or left.path is None or came.path is None:
            return
        self._watches.move(left.keys, left.path, came.path)
        self._to_end += [
            key
            for key, at in self._watches.below(came.path)
            if key in left.keys and not self._site.scope.has_directory(at)
        ]

    def _has_left(self, key: str, old: str | None) -> bool:
        """Return whether the watch `key` is of what left `old`, and of nothing that has come back since."""
        now_at = self._watches.path_of(key)
        return now_at is None or (old is not None and is_at_or_below(now_at, old))
