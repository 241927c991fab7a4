"""Reads the stream of a channel: events of files are kept, those of directories are passed on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from hashlib import blake2b

import aiohttp

from bridge.core.errors import root_cause
from bridge.net.unanswered import why_unanswered
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.departures import Departures
from bridge.sources.dcache.gaps import Gaps
from bridge.sources.dcache.health import Health
from bridge.sources.dcache.inotify import ARRIVALS, MOVED_IN, MOVED_SELF, InotifyEvent, read
from bridge.sources.dcache.keeping import Keeper, Overrun
from bridge.sources.dcache.occurrence import Occurrence, unreadable
from bridge.sources.dcache.rest.connection import silence_seconds
from bridge.sources.dcache.rest.sse import ServerSentEvent, Silence
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.watches import Watches

_ID = re.compile(r"-?[0-9]{1,19}")
"""dCache counts the events of a channel (Channel.java)."""


class StreamEnded(Exception):  # noqa: N818 - the usual end of a stream
    """The connection is over; the channel may live on. The text says why."""

    def __init__(self, reason: str, *, expected: bool = False, held_back: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected
        """The server announced the end, or had nothing to send: that is no trouble."""
        self.held_back = held_back
        """Not even a tick came, though the channel has a metronome."""


class Competing(Exception):  # noqa: N818 - a person has to see to it
    """Another client reads this channel."""


class Stream:
    """One channel's stream. `follow` reads one connection to its end."""

    def __init__(
        self,
        site: Site,
        watches: Watches,
        departures: Departures,
        gaps: Gaps,
        health: Health,
        reader: SpoolReader,
    ) -> None:
        flags = frozenset(site.config.flags)
        self._kept_actions = flags | {MOVED_IN} if flags & ARRIVALS else flags
        self._site = site
        self._channel = site.channel
        self._position = site.position
        self._watches = watches
        self._departures = departures
        self._gaps = gaps
        self._health = health
        self._reader = reader
        self._keeper = Keeper(site, reader, health)

    async def follow(self) -> None:
        """Read until the connection ends, and raise why.

        Raise StreamEnded, Competing, Overrun (the store is full, or too slow), and what
        `Connection.stream` and the store raise. What was read and not kept comes again with the next
        connection.
        """
        self._keeper = Keeper(self._site, self._reader, self._health)
        after = self._position.event
        silence = silence_seconds(ticks=self._channel.has_metronome)
        async with self._site.connection.stream(self._position.channel, after, silence=silence) as events:
            self._health.connected()
            self._gaps.connected(resumed=after is not None)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._keeper.run(), name="dcache keeps events")
                    reading = tasks.create_task(self._read(events), name="dcache reads events")
            except BaseExceptionGroup as group:
                raise root_cause(group) from None
            finally:
                self._health.closed()
        raise reading.result()

    async def _read(self, events: AsyncIterator[ServerSentEvent]) -> Exception:
        """Read to the end, and return why it ended: what was read by then is to be kept first."""
        try:
            async for event in events:
                self._take(event)
            return StreamEnded("ended by dCache")
        except (StreamEnded, Competing, Overrun) as end:
            return end
        except Silence as silence:
            return StreamEnded(str(silence), expected=True, held_back=self._channel.has_metronome)
        except (aiohttp.ClientError, OSError) as error:
            return StreamEnded(f"broken: {why_unanswered(error)}")
        finally:
            self._keeper.end()

    def _take(self, event: ServerSentEvent) -> None:
        if event.id and not _ID.fullmatch(event.id):  # the stream could not be resumed from it
            self._keep_unreadable(event._replace(id=""), "its id is no number")
            return
        if event.id:
            self._keeper.read_up_to(event.id)
        if event.kind == "SYSTEM":
            self._take_system(event)
        elif event.kind == "inotify":
            found = read(event)
            if isinstance(found, str):
                self._keep_unreadable(event, found)
            else:
                self._take_inotify(found, event.id)

    def _take_system(self, event: ServerSentEvent) -> None:
        try:
            content = json.loads(event.data)
            kind = content.get("type")
        except (ValueError, AttributeError, RecursionError):
            self._keep_unreadable(event, "it is no JSON object")
            return
        if kind == "EVENT_LOSS":
            # dCache has thrown away all events that it kept. Until there is a new one, it would answer so
            # each time that it is asked for what came after the old one.
            self._position.event = None
            self._gaps.missed("event_loss")
        elif kind == "COMPETING_CLIENT":
            raise Competing("another client has connected to this bridge's channel")
        elif kind == "SHUTDOWN":
            raise StreamEnded("the frontend is shutting down", expected=True)
        elif kind == "SUBSCRIPTION_CLOSED":
            self._departures.take_watch_ended(str(content.get("subscription")))

    def _take_inotify(self, event: InotifyEvent, event_id: str) -> None:
        directory = self._watches.path_of(event.subscription)
        if event.action == "IN_Q_OVERFLOW":
            self._gaps.missed("overflow", directory)
        elif event.action == "IN_IGNORED":
            self._departures.take_watch_ended(event.subscription)
        elif event.name is None:
            # It is about the watched directory itself. Where the directory above it is watched too, that one
            # has an event that says the same.
            if event.action == MOVED_SELF:
                self._departures.take_self_moved(directory)
        else:
            self._departures.take(event, directory)
            if not event.is_directory and event.action in self._kept_actions:
                self._keep(event, event.name, directory, event_id)

    def _keep(self, event: InotifyEvent, name: str, directory: str | None, event_id: str) -> None:
        occurrence = Occurrence(
            directory=directory,
            name=name,
            mask=event.mask,
            cookie=event.cookie,
            subscription=event.subscription,
            channel=self._position.channel,
            event=event_id,
            is_new=self._position.since_in(directory) is not None,
        )
        self._keeper.keep(occurrence.spooled(f"{self._position.channel}/{event_id}"), event_id)

    def _keep_unreadable(self, event: ServerSentEvent, reason: str) -> None:
        """Have it become a dead letter, and find by listing the file that it may have been about."""
        received = event.data.encode()
        key = event.id or blake2b(received, digest_size=16).hexdigest()
        occurrence = unreadable(
            f"{self._position.channel}/{key}", f"an event can't be read: {reason}", received
        )
        self._keeper.keep(occurrence, event.id)
        self._gaps.missed("unreadable")
