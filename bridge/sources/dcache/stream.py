"""Takes events off the socket at once, and keeps them with the stream's position before anything else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import aiohttp

from bridge.core.errors import StoreFullError, root_cause
from bridge.core.ports import Spooled
from bridge.net.unanswered import why_unanswered
from bridge.sources.dcache.arrivals import MOVED_SELF, InotifyEvent, Occurrence, read, unreadable
from bridge.sources.dcache.channel import Channel
from bridge.sources.dcache.connection import Connection, Silence, silence_seconds
from bridge.sources.dcache.sse import ServerSentEvent
from bridge.sources.dcache.state import Position
from bridge.sources.dcache.watches import Watches
from bridge.sources.spool import portions_of

MOST_PENDING_BYTES = 16 * 2**20
"""Of memory for what is read and not kept yet; at more the connection is left, and resumed from what is
kept."""
_EVENT_BYTES = 400
"""What an event takes of it beside its data."""


_ID = re.compile(r"-?[0-9]{1,19}")
"""dCache counts the events of a channel (Channel.java)."""


class StreamEnded(Exception):  # noqa: N818 - the usual end of a stream
    """The connection is over; the channel may live on. The text tells why."""

    def __init__(self, reason: str, *, expected: bool = False, held_back: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected
        """The server announced the end, or had nothing to send: that is no trouble."""
        self.held_back = held_back
        """Not even a tick came, though there are some."""


class Competing(Exception):  # noqa: N818
    """Another client reads this channel."""


class Overrun(Exception):  # noqa: N818
    """Events come faster than the store takes them, or it takes none."""


class Listener(Protocol):
    """What is made of events besides keeping them. Synchronous: the socket is waiting."""

    def connected(self, *, resumed: bool) -> None:
        """Hear that the stream is connected; not `resumed`: what came before this moment is not told."""

    def disconnected(self) -> None:
        """Hear that it is no longer."""

    def directory_event(self, told: InotifyEvent, directory: str | None) -> None:
        """Take an event about a directory in a watched one."""

    def moved(self, told: InotifyEvent, directory: str | None) -> None:
        """Take one half of a rename, of a file or a directory."""

    def watch_ended(self, subscription: str) -> None:
        """Hear that a subscription is over."""

    def directory_moved(self, directory: str | None) -> None:
        """Hear that a watched directory is no longer where it was, or is back."""

    def overflow(self, directory: str | None) -> None:
        """Hear that dCache lost events of a directory (None: of one that is not known)."""

    def gap(self, reason: str) -> None:
        """Hear that events of the channel were lost, or may have been; `reason` is a bounded word."""

    def heard(self) -> None:
        """Hear that all until now is kept."""


class Stream:
    """One channel's stream. `follow` reads one connection to its end."""

    def __init__(
        self,
        connection: Connection,
        position: Position,
        watches: Watches,
        listener: Listener,
        *,
        append: Callable[[Sequence[Spooled], str], Any],
        wanted: Callable[[InotifyEvent], bool],
        channel: Channel,
    ) -> None:
        self._connection = connection
        self._position = position
        self._watches = watches
        self._listener = listener
        self._append = append
        self._wanted = wanted
        self._channel = channel
        self._pending: list[tuple[Spooled, str]] = []
        """Each with its SSE id."""
        self._pending_bytes = 0
        self._newest: str | None = None
        """Id of the newest event read and not kept."""
        self._some = asyncio.Event()
        self._end: StreamEnded | Competing | Overrun | None = None
        """Why there is no more to read."""

    async def follow(self) -> None:
        """Read until the connection ends, and raise why.

        Raise StreamEnded, Competing, Overrun (the store is full, or too slow), and what
        `Connection.stream` and the store raise. What was read and not kept comes again with the next
        connection.
        """
        self._pending.clear()
        self._pending_bytes = 0
        self._newest = self._end = None
        self._some.clear()
        after = self._position.event
        silence = silence_seconds(ticks=self._channel.has_metronome)
        async with self._connection.stream(self._position.channel, after, silence=silence) as source:
            self._listener.connected(resumed=after is not None)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._keep(), name="dcache keeps events")
                    tasks.create_task(self._read(source), name="dcache reads events")
            except BaseExceptionGroup as group:
                raise root_cause(group) from None
            finally:
                self._listener.disconnected()
        assert self._end is not None  # noqa: S101 - nothing else ends both tasks
        raise self._end

    async def _read(self, source: AsyncIterator[ServerSentEvent]) -> None:
        """Read to the end, and leave to `_keep` what was read by then: it may not be told again."""
        try:
            async for event in source:
                self._take(event)
            self._end = StreamEnded("ended by dCache")
        except (StreamEnded, Competing, Overrun) as end:
            self._end = end
        except Silence as silence:
            self._end = StreamEnded(str(silence), expected=True, held_back=self._channel.has_metronome)
        except (aiohttp.ClientError, OSError) as error:
            self._end = StreamEnded(f"broken: {why_unanswered(error)}")
        self._some.set()

    def _take(self, event: ServerSentEvent) -> None:
        if event.id and not _ID.fullmatch(event.id):  # it could not be asked from
            self._keep_unreadable(event._replace(id=""), "its id is no number")
            return
        if event.id:
            self._newest = event.id
            self._some.set()
        if event.kind == "SYSTEM":
            self._take_system(event)
        elif event.kind == "inotify":
            told = read(event)
            if isinstance(told, str):
                self._keep_unreadable(event, told)
            else:
                self._take_inotify(told, event.id)

    def _take_inotify(self, told: InotifyEvent, event_id: str) -> None:
        directory = self._watches.path_of(told.subscription)
        if told.action == "IN_Q_OVERFLOW":
            self._listener.overflow(directory)
        elif told.action == "IN_IGNORED":
            self._listener.watch_ended(told.subscription)
        elif told.name is None:
            # About the watched directory itself: its parent's event tells the same, where that is watched.
            if told.action == MOVED_SELF:
                self._listener.directory_moved(directory)
        else:
            if told.cookie is not None:
                self._listener.moved(told, directory)
            if told.is_directory:
                self._listener.directory_event(told, directory)
            elif self._wanted(told):
                self._keep_soon(told, told.name, directory, event_id)

    def _take_system(self, event: ServerSentEvent) -> None:
        try:
            told = json.loads(event.data)
            kind = told.get("type")
        except (ValueError, AttributeError, RecursionError):
            self._keep_unreadable(event, "it is no JSON object")
            return
        if kind == "EVENT_LOSS":
            # The ring is empty now: until there is a new event, asking for what came after the old one would
            # be answered so each time.
            self._position.event = None
            self._listener.gap("event_loss")
        elif kind == "COMPETING_CLIENT":
            raise Competing("another client has connected to this bridge's channel")
        elif kind == "SHUTDOWN":
            raise StreamEnded("the frontend is shutting down", expected=True)
        elif kind == "SUBSCRIPTION_CLOSED":
            self._listener.watch_ended(str(told.get("subscription")))

    def _keep_soon(self, told: InotifyEvent, name: str, directory: str | None, event_id: str) -> None:
        occurrence = Occurrence(
            directory=directory,
            name=name,
            mask=told.mask,
            cookie=told.cookie,
            subscription=told.subscription,
            channel=self._position.channel,
            event=event_id,
            is_new=self._position.since_in(directory) is not None,
        )
        self._append_soon(occurrence.spooled(f"{self._position.channel}/{event_id}"), event_id)

    def _keep_unreadable(self, event: ServerSentEvent, reason: str) -> None:
        """Have it become a dead letter, and find by listing what it may have told."""
        received = event.data.encode()
        key = event.id or blake2b(received, digest_size=16).hexdigest()
        spooled = unreadable(f"{self._position.channel}/{key}", f"an event can't be read: {reason}", received)
        self._append_soon(spooled, event.id)
        self._listener.gap("unreadable")

    def _append_soon(self, spooled: Spooled, event_id: str) -> None:
        self._pending.append((spooled, event_id))
        self._pending_bytes += len(spooled.data) + _EVENT_BYTES
        self._some.set()
        if self._pending_bytes > MOST_PENDING_BYTES:
            raise Overrun("events come faster than the store can write them")

    async def _keep(self) -> None:
        """Write what has come, and how far that is, in one transaction; what comes meanwhile is the next."""
        while True:
            await self._some.wait()
            self._some.clear()
            is_over = self._end is not None
            if self._newest is not None or self._pending:
                await self._write(self._newest)
            if is_over:
                return

    async def _write(self, newest: str | None) -> None:
        batch, self._pending = self._pending, []
        self._pending_bytes, self._newest = 0, None
        try:
            await self._append_up_to(newest, [spooled for spooled, _ in batch])
        except StoreFullError:  # a part of it may fit
            kept = 0
            for portion in portions_of([spooled for spooled, _ in batch]):
                kept += len(portion)
                try:
                    await self._append_up_to(newest if kept == len(batch) else batch[kept - 1][1], portion)
                except StoreFullError as error:
                    raise Overrun(str(error)) from None
        self._listener.heard()

    async def _append_up_to(self, event: str | None, occurrences: Sequence[Spooled]) -> None:
        """Keep `occurrences`, and that the stream is kept up to `event`; empty or None where it has no id."""
        before = self._position.event
        self._position.event = event or before
        try:
            await self._append(occurrences, self._position.text())
        except BaseException:
            self._position.event = before
            raise
