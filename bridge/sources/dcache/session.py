"""One opening of a dCache: follow the stream, heal its gaps, look up, hand out."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from contextlib import suppress
from typing import Any

from bridge.core.errors import SourceLost, StoreError, root_cause
from bridge.core.ports import Slots, Spool
from bridge.core.steady import Steady
from bridge.sources.dcache.arrivals import ARRIVALS, MOVED_IN, MOVED_OUT, InotifyEvent
from bridge.sources.dcache.channel import Channel, StillThere
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.connection import ChannelGone, Connection
from bridge.sources.dcache.http import Denied, Missing, Refused, Unanswered
from bridge.sources.dcache.listing import Lister
from bridge.sources.dcache.lookups import Lookups
from bridge.sources.dcache.scope import Scope, joined
from bridge.sources.dcache.state import OwnFile, Position
from bridge.sources.dcache.stream import Competing, Overrun, Stream, StreamEnded
from bridge.sources.dcache.watches import Half, Moves, Watches, key_of
from bridge.sources.spool import SpoolReader
from bridge.telemetry.metrics import SourceMetrics

LOOKUPS = 16
"""Files looked up at once."""
COMPETING_SECONDS = (60.0, 900.0)
"""Before the channel is taken back from another client: the first pause, the longest. Each pause makes it
likelier that a person has seen what is wrong."""
_PAUSES = (0.25, 30.0)
"""Before the stream is opened again: after the first failure in a row, the longest."""
_REFUSED_SECONDS = 30.0
"""dCache blocks an address that is refused three times, each soon after the other."""
_FULL_SECONDS = (0.5, 30.0)
"""How often to look whether the store has room again, and after which time to try."""
_GOOD_SECONDS = 30.0
"""A connection that lasted this long was a good one."""
_NOTE_SECONDS = 10.0
"""Between two notes of until when events are kept."""
_TELL_SECONDS = 60.0
"""Between two lines of the log about events that were missed for one reason; the metric counts them all."""
_MOST_PARTED = 1000
"""Watches ended by this bridge that are remembered."""
_HELD_BACK = (
    "connected, but nothing has come through the last time, not even a tick: does a proxy between hold the "
    "stream back?"
)


class Session:
    """Owns what was opened from `run` to its end; the runner iterates `reader.batches`."""

    def __init__(
        self,
        config: DcacheConfig,
        connection: Connection,
        channel: Channel,
        position: Position,
        spool: Spool,
        slots: Slots,
        *,
        own: OwnFile,
        identity: str,
        metrics: SourceMetrics,
        log: Any,
    ) -> None:
        metrics.may_miss("channel_lost", "event_loss", "no_event_to_resume_from", "overflow", "unreadable")
        self._metrics = metrics
        self._log = log
        self._own = own
        self._connection = connection
        self._channel = channel
        self._position = position
        self._spool = spool
        self._scope = Scope(config)
        self._watches = Watches()
        self._moves = Moves()
        self._some_moved = asyncio.Event()
        self._leaving: list[str] = []
        """Keys of watches to be ended: of directories that have left."""
        self._parted: deque[str] = deque(maxlen=_MOST_PARTED)
        """Watches that we ended because the directory moved out. If dCache tells the end of one that we watch
        again, it has come back, and is listed."""
        self._missed_at: dict[str, float] = {}
        """When events were last told to be missed, by why."""
        self._was_held_back = False
        """The last connection delivered nothing, not even a tick."""
        self._was_connected = self._is_connected = False
        self._trouble = Steady("not connected yet")
        self._connected_at: float | None = None
        self._list_all_once_connected = True
        """All is to be listed once the stream is connected, however it is: this process or its channel is
        new."""
        self.lookups = Lookups(
            config,
            identity,
            connection,
            spool,
            scope=self._scope,
            watches=self._watches,
            moves=self._moves,
            has_walked=lambda: self.lister.walked,
            listing=lambda: self.lister.number,
            log=self._log,
        )
        self.reader = SpoolReader(
            spool, slots, self.lookups.resolve, self._metrics, self._log, concurrency=LOOKUPS
        )
        self.lister = Lister(
            config,
            connection,
            spool,
            position,
            scope=self._scope,
            watches=self._watches,
            append=self.reader.append,
            on_walked=self._end_left_over,
            metrics=self._metrics,
            log=self._log,
        )
        flags = frozenset(config.flags)
        kept = flags | {MOVED_IN} if flags & ARRIVALS else flags
        self._stream = Stream(
            connection,
            position,
            self._watches,
            self,
            append=self.reader.append,
            wanted=lambda told: told.action in kept,
            channel=channel,
        )

    async def run(self) -> None:
        """Read until cancelled, or until it can't go on: then tell the runner."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.reader.run(), name="dcache hands out")
                tasks.create_task(self.lister.run(), name="dcache heals")
                tasks.create_task(self._follow(), name="dcache follows its stream")
                tasks.create_task(self._part(), name="dcache parts with directories")
                tasks.create_task(self._note(), name="dcache notes until when it heard")
        except* Exception as group:  # noqa: BLE001 - whatever it was, the runner must hear of it
            error = root_cause(group)
            if not isinstance(error, SourceLost):
                if not isinstance(error, StoreError):
                    self._log.error("dcache source failed", exc_info=error)
                error = SourceLost(str(error) or type(error).__name__)
            self.reader.batches.fail(error)

    def problems(self) -> list[str]:
        """Return what is wrong now."""
        trouble = [] if self._trouble.problem is None else [self._trouble.problem]
        return [*trouble, *self.lister.problems(), *self.reader.problems()]

    # The stream

    async def _follow(self) -> None:
        failures = competing = 0
        while True:
            pause = 0.0
            try:
                await self._stream.follow()
            except StreamEnded as ended:
                failures = self._failed(failures)
                pause = _pause(max(failures, 1), *_PAUSES)
                self._was_held_back = ended.held_back
                self._disconnected(str(ended), expected=ended.expected)
            except Competing as error:
                competing = 1 if self._was_good() else competing + 1
                pause = _pause(competing, *COMPETING_SECONDS)
                self._log.error(
                    "dcache: another client reads this bridge's channel", channel=self._channel.client_id
                )
                self._trouble.failed(
                    f"{error}: is `state_dir` a copy of another bridge's, or does that one still run? "
                    f"Each needs its own (client-id {self._channel.client_id}); taken back in {pause:.0f} s"
                )
            except Overrun as error:
                self._log.warning("dcache: disconnected, the store takes no more", reason=str(error))
                self._trouble.failed(f"disconnected from the stream until the store has room: {error}")
                await self._room()
            except Refused as error:
                pause = _REFUSED_SECONDS
                self._disconnected(str(error))
            except (Missing, Denied) as error:
                failures = self._failed(failures)
                pause = await self._replace_channel(error, failures)
            except Unanswered as error:
                failures = self._failed(failures)
                pause = _pause(failures, *_PAUSES)
                self._disconnected(str(error))
                if self._list_all_once_connected and failures == 1:
                    # Perhaps it is held back until there is something to tell: watches are made meanwhile,
                    # and what can be found is. Once connected, all is listed again.
                    self.lister.list_all_soon()
            await asyncio.sleep(pause)

    def _failed(self, failures: int) -> int:
        """Return how many connections in a row have ended soon."""
        return 0 if self._was_good() else failures + 1

    async def _replace_channel(self, ended: Exception, failures: int) -> float:
        """Make a channel in place of one that is gone; return how long to wait before it is read.

        404 and 403 may be the answer of something before dCache: then it still lists the channel.
        """
        pause = _pause(max(failures, 1), *_PAUSES)
        try:
            await self._channel.replace(self._position)
        except StillThere:
            self._disconnected(f"{ended}, though dCache lists the channel: does a proxy between answer so?")
            return pause
        except (Unanswered, Denied, Missing, ChannelGone) as error:
            self._disconnected(f"the channel is gone, and no other can be made: {error}")
            return _REFUSED_SECONDS if isinstance(error, Refused) else pause
        self._disconnected(str(ended))
        await self.reader.append((), self._position.text())
        self._watches.clear()
        self._missed("channel_lost", "dcache: events were missed; all is listed")
        self._list_all_once_connected = True
        self.lister.new_channel()
        return 0.0 if failures <= 1 else pause

    async def _room(self) -> None:
        """Wait until the store has room: nobody tells, so what is waiting there is looked at."""
        often, longest = _FULL_SECONDS
        enough, until = self._spool.waiting * 0.9, time.monotonic() + longest
        while self._spool.waiting > enough and time.monotonic() < until:  # noqa: ASYNC110 - see above
            await asyncio.sleep(often)

    def _disconnected(self, reason: str, *, expected: bool = False) -> None:
        tell = self._log.info if expected else self._log.warning
        tell("dcache: the stream ended", reason=reason)
        self._metrics.up.set(0)  # also when there was no connection to be lost
        was_connected, self._is_connected = self._is_connected, False
        if not expected:
            self._metrics.losses.inc(was_connected)
            self._trouble.failed(f"not connected: {reason}")

    def _was_good(self) -> bool:
        since, self._connected_at = self._connected_at, None
        return since is not None and time.monotonic() - since > _GOOD_SECONDS

    # What the stream tells (stream.Listener)

    def connected(self, *, resumed: bool) -> None:
        self._metrics.up.set(1)
        if self._was_held_back:
            self._trouble.failed(_HELD_BACK)
        elif self._was_connected:
            self._trouble.recovered()
        else:
            self._trouble.clear()
        self._was_connected = self._is_connected = True
        self._connected_at = time.monotonic()
        self._log.info("dcache: connected", channel=self._position.channel, after=self._position.event)
        # Not sooner: what is closed after its directory was listed and before this is told by nobody.
        if self._list_all_once_connected:
            self._list_all_once_connected = False
            self.lister.list_all_soon()
        elif not resumed:
            self.gap("no_event_to_resume_from")

    def disconnected(self) -> None:
        self._metrics.up.set(0)

    def heard(self) -> None:
        self._own.heard = self._connection.now()
        if self._was_held_back:
            self._was_held_back = False
            self._trouble.recovered()

    def gap(self, reason: str) -> None:
        self._missed(reason, "dcache: events were missed; all is listed")
        self.lister.list_all_soon()

    def overflow(self, directory: str | None) -> None:
        if directory is None:
            self.gap("overflow")
            return
        self._missed("overflow", "dcache: events of a directory were lost; it is listed", path=directory)
        self.lister.list_soon(directory)

    def _missed(self, reason: str, line: str, **told: str) -> None:
        """Count it, and tell it once a minute: one overflow in dCache is told by each watch there is."""
        self._metrics.gap(reason)
        now = time.monotonic()
        if now - self._missed_at.get(reason, -math.inf) >= _TELL_SECONDS:
            self._missed_at[reason] = now
            self._log.warning(line, reason=reason, **told)

    def watch_ended(self, subscription: str) -> None:
        path = self._watches.end(subscription)
        if path is None:
            return
        if path in self._scope.roots:
            self._log.warning("dcache: a watch has ended", path=path)
            self.lister.list_soon(path)
        elif key_of(subscription) in self._parted:
            self.lister.list_soon(path)

    def directory_moved(self, directory: str | None) -> None:
        if directory is not None and directory in self._scope.roots:
            self._log.warning("dcache: a watched path was moved, away or back", path=directory)
            self.lister.list_soon(directory)

    def directory_event(self, told: InotifyEvent, directory: str | None) -> None:
        # Of a directory that is not known yet: the listing after its watch was made shows what is in it.
        if directory is not None and told.name is not None and told.action in ("IN_CREATE", MOVED_IN):
            self.lister.list_soon(joined(directory, told.name))

    def moved(self, told: InotifyEvent, directory: str | None) -> None:
        if told.cookie is None or told.name is None or told.action not in (MOVED_IN, MOVED_OUT):
            return
        path = None if directory is None else joined(directory, told.name)
        now = time.monotonic()
        if told.action == MOVED_OUT:
            below = self._watches.below(path) if told.is_directory and path is not None else ()
            left: Half | None = Half(path, now, frozenset(key for key, _ in below))
            assert left is not None  # noqa: S101 - made one line above
            came = self._moves.left(told.cookie, left)
        else:
            came = Half(path, now)
            left = self._moves.came(told.cookie, came)
        if left is not None and came is not None and left.path is not None and came.path is not None:
            self._watches.move(left.keys, left.path, came.path)
            out = [
                (key, at) for key, at in self._watches.below(came.path) if not self._scope.has_directory(at)
            ]
            self._leaving += [key for key, _ in out if key in left.keys]
        self._some_moved.set()

    # Directories that left

    async def _part(self) -> None:
        """End the watches of directories that were moved out of what is watched."""
        while True:
            due = self._moves.due()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(due - time.monotonic(), 0.05)):
                    await self._some_moved.wait()
            self._some_moved.clear()
            for half in self._moves.gone(time.monotonic()):
                self._leaving += [key for key in half.keys if self._has_left(key, half.path)]
            while self._leaving:
                key = self._leaving.pop()
                self._watches.end(key)
                self._parted.append(key)
                try:
                    await self._connection.unwatch(self._position.channel, key)
                except (Unanswered, Denied) as error:  # its events are told, and dropped: no harm
                    self._log.info("dcache: a watch could not be ended", reason=str(error))

    def _end_left_over(self) -> None:
        """End the watches that the channel had when it was found, but for what is watched by now."""
        left_over, self._channel.left_over = self._channel.left_over, frozenset()
        no_more = left_over - self._watches.keys()
        if no_more:
            self._log.info("dcache: watches of an earlier configuration are ended", watches=len(no_more))
            self._leaving += no_more
            self._some_moved.set()

    async def _note(self) -> None:
        """Keep until when all is kept. Not on the loop: the disk may be slow."""
        noted = self._own.heard
        while True:
            await asyncio.sleep(_NOTE_SECONDS)
            if self._own.heard != noted:
                noted = self._own.heard
                await asyncio.to_thread(self._own.save)

    def _has_left(self, key: str, old: str | None) -> bool:
        """Return whether the watch is of what was moved away, and of nothing that has come back."""
        now_at = self._watches.path_of(key)
        return now_at is None or (old is not None and (now_at == old or now_at.startswith(old + "/")))


def _pause(failures: int, first: float, longest: float) -> float:
    return float(min(longest, first * 2 ** min(failures - 1, 20))) * random.uniform(0.5, 1)
