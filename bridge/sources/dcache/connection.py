"""dCache's REST API as this source uses it: channels and watches, look-ups and listings, and the stream."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from yarl import URL

from bridge.net.bodies import body_of
from bridge.sources.dcache.http import (
    CONNECT_SECONDS,
    MOST_BYTES,
    Denied,
    Http,
    Missing,
    Unanswered,
    mapping,
    message,
    reason_of,
)
from bridge.sources.dcache.sse import Parser, ServerSentEvent
from bridge.sources.dcache.watches import key_of
from bridge.telemetry.logging import excerpt

STREAM_ANSWER_SECONDS = 30.0
TICK_SECONDS = 20.0
"""Between two ticks of the metronome. dCache itself sends nothing on a quiet channel."""
METRONOME = "metronome/"
"""How the key of a metronome's subscription begins."""
QUIET_SECONDS = 600.0
"""See `silence_seconds`, where there is no metronome."""
MOST_ENTRY_BYTES = 4096
"""Of an answer, for each entry of a listing: a name of 255 characters, each of them escaped, takes 1,530."""
MOST_SUBSCRIPTION_BYTES = 32 * 2**20
"""Of the list of a channel's subscriptions: 100,000 URLs, twice what a node of ZooKeeper has room for."""
_MOST_CHARACTERS = 1024
"""Of a name. dCache takes 255 (Chimera's `t_dirs`)."""
_SLICE_BYTES = 8192
"""Of the stream that are taken before others have the loop: some 40 events, or a millisecond."""


class ChannelGone(Exception):  # noqa: N818
    """The channel is no more: its time was over, or the frontend was restarted."""


class Silence(Exception):  # noqa: N818
    """The stream has told nothing for long."""


class Unreadable(Exception):  # noqa: N818
    """What is told of one file or directory is not what every entry has."""

    def __init__(self, reason: str, received: bytes) -> None:
        super().__init__(reason)
        self.received = received
        """What was told."""


class Limits(NamedTuple):
    """What the site allows of channels."""

    per_user: int | None
    """None where it is told by no number."""
    longest_timeout: int
    """Seconds a channel may live with nobody connected; 0 where it is told by no number."""


class Entry(NamedTuple):
    """What the namespace tells of one file or directory."""

    name: str
    kind: str
    """`REGULAR`, `DIR`, `LINK` or `SPECIAL`."""
    pnfsid: str
    size: int | None
    """None while it is being written."""
    mtime: int
    """Milliseconds since 1970 UTC."""


class Page(NamedTuple):
    """A part of what is in a directory."""

    pnfsid: str
    """Of the directory."""
    entries: Sequence[Entry]
    unreadable: Sequence[Unreadable]

    @property
    def size(self) -> int:
        """How many there are, whether they can be read or not."""
        return len(self.entries) + len(self.unreadable)


class Connection(Http):
    """What this source asks of dCache. Every call may raise Refused or Unanswered, beside its own."""

    # Channels

    async def limits(self) -> Limits:
        """Ask what the site allows."""
        return limits_of(await self.get("/events"))

    async def channels(self, client_id: str | None = None) -> Sequence[str]:
        """Return the ids of this user's channels, of one `client_id` or of all."""
        found = await self.get("/events/channels", {} if client_id is None else {"client-id": client_id})
        return [channel for url in _texts(found) if (channel := _channel_of(url)) is not None]

    async def make_channel(self, client_id: str) -> str:
        """Make a channel and return its id. Raise Denied where the user has too many.

        dCache answers so with 429 and no reason (Registrar.java, ErrorResponseProvider.java). Its limit of
        requests is a 429 too, in dCache 11.2 without a `Retry-After`: so the channels are counted.
        """
        answer = await self.ask("POST", "/events/channels", send={"client-id": client_id}, known={201, 429})
        if answer.status == 429:
            self.hold(None)
            allowed = (await self.limits()).per_user
            if allowed and len(await self.channels()) >= allowed:
                raise Denied(
                    "dCache lets this user have no more channels (429): remove some, or use another user"
                )
            raise Unanswered("dCache makes no channel (429): too many requests, or this user's channels")
        made = _channel_of(answer.location)
        if made is None:
            raise Unanswered("POST /events/channels was answered without the channel's Location")
        return made

    async def has_channel(self, channel: str) -> bool:
        """Return whether it is still there, and ours."""
        try:
            await self.get(self._channel(channel))
        except (Missing, Denied):
            return False
        return True

    async def set_timeout(self, channel: str, seconds: int) -> None:
        """Let the channel live for `seconds` with nobody connected. Raise Missing, Denied."""
        answer = await self.ask("PATCH", self._channel(channel), send={"timeout": seconds}, known={400})
        if answer.status == 400:
            raise Denied(self.describe("the channel's life-time", answer.status, answer.text))

    async def delete_channel(self, channel: str) -> None:
        """End a channel; one that is gone is well too."""
        try:
            await self.ask("DELETE", self._channel(channel))
        except Missing:
            pass

    # Subscriptions

    async def watch(self, channel: str, path: str, flags: Sequence[str]) -> str:
        """Watch a directory and return its subscription; one that was watched already is so again.

        Raise Missing when the path is gone, Denied when it may not be read, ChannelGone.
        """
        selector = {"path": path, "flags": [*flags, "IN_ONLYDIR"]}
        answer = await self.ask(
            "POST",
            f"{self._channel(channel)}/subscriptions/inotify",
            send=selector,
            known={201, 303, 400, 404},
        )
        if answer.status == 404:
            raise ChannelGone(f"channel {channel} is gone")
        if answer.status != 400:
            if not _SUBSCRIPTION.search(answer.location):
                raise Unanswered(f"the watch of {path} was answered without the subscription's Location")
            return answer.location
        reason = message(answer.text) or self.describe(f"the watch of {path}", 400, answer.text)
        if "permission" in reason.lower() or "not allowed" in reason.lower():
            raise Denied(reason)
        raise Missing(reason)

    async def unwatch(self, channel: str, key: str) -> None:
        """End the subscription named `key` (see `watches.key_of`); one that is gone is well too."""
        try:
            await self.ask("DELETE", f"{self._channel(channel)}/subscriptions/{key}")
        except Missing:
            pass

    async def subscriptions(self, channel: str) -> Sequence[str]:
        """Return the keys of all subscriptions there are (see `watches.key_of`). Raise Missing."""
        told = await self.get(f"{self._channel(channel)}/subscriptions", most=MOST_SUBSCRIPTION_BYTES)
        return [key_of(url) for url in _texts(told) if _SUBSCRIPTION.search(url)]

    async def start_metronome(self, channel: str) -> bool:
        """Have the channel tick; False where this dCache has no metronome.

        A tick has an id as any event, so it shows that the stream is alive, and from where to resume.
        """
        answer = await self.ask(
            "POST",
            f"{self._channel(channel)}/subscriptions/metronome",
            send={"delay": TICK_SECONDS, "message": "tick"},
            known={201, 303, 400, 404},
        )
        return answer.status < 400

    # Namespace

    async def look_up(self, path: str) -> Entry:
        """Ask what is at `path` now. Raise Missing, Denied, Unanswered, Unreadable."""
        told = mapping(await self.get(_namespace(path)))
        if not told:
            raise Unanswered(f"{path}: not what a look-up answers")
        return entry_of({**told, "fileName": path.rpartition("/")[2]})

    async def list_page(self, path: str, *, offset: int, limit: int) -> Page:
        """Return a part of what is in a directory.

        Raise Missing (no directory any more), Denied, Unanswered.
        """
        query = {"children": "true", "offset": str(offset), "limit": str(limit)}
        most = MOST_BYTES + limit * MOST_ENTRY_BYTES
        told = mapping(await self.get(_namespace(path), query, most=most))
        if told.get("fileType") != "DIR":
            raise Missing(f"{path} is no directory")
        return page_of(told)

    # The stream

    @asynccontextmanager
    async def stream(
        self, channel: str, last_id: str | None, *, silence: float
    ) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
        """Connect to the channel's events, those after `last_id` first.

        Reading raises Silence after `silence` seconds without an event, aiohttp.ClientError or OSError when
        the connection breaks. Raise Missing, Denied, Unanswered, Refused.
        """
        headers = {hdrs.ACCEPT: "text/event-stream", hdrs.CACHE_CONTROL: "no-store", **await self.turn()}
        if last_id is not None:
            headers[hdrs.LAST_EVENT_ID] = last_id
        url = URL(f"{self._config.endpoint}{self._channel(channel)}", encoded=True)
        timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS)
        try:
            async with asyncio.timeout(STREAM_ANSWER_SECONDS):
                response = await self.session.get(
                    url, headers=headers, timeout=timeout, allow_redirects=False, proxy=self.proxy
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unanswered(f"the stream: {reason_of(error)}") from None
        try:
            if response.status != 200:
                what = self.describe("the stream", response.status, await _text(response))
                await self.judge(response.status, what, headers, response.headers.get(hdrs.RETRY_AFTER))
                raise Unanswered("the stream: the credential was refused, and is renewed")
            if response.content_type != "text/event-stream":
                raise Unanswered(f"the stream: answered {response.content_type}, no stream of events")
            self._accepted()
            yield _events(response.content, silence)
        finally:
            response.close()

    @staticmethod
    def _channel(channel: str) -> str:
        return f"/events/channels/{quote(channel, safe='')}"


async def _text(response: aiohttp.ClientResponse) -> str:
    try:
        async with asyncio.timeout(STREAM_ANSWER_SECONDS):
            return (await body_of(response, MOST_BYTES)).decode(errors="replace")
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""


async def _events(content: aiohttp.StreamReader, silence: float) -> AsyncIterator[ServerSentEvent]:
    """Read to the end. What is no event, such as a proxy's comment, is no sign that dCache lives."""
    parser, loop = Parser(), asyncio.get_running_loop()
    until = loop.time() + silence
    while True:
        if loop.time() >= until:
            raise Silence(f"silent for {silence:g} s")
        try:
            async with asyncio.timeout_at(until):
                piece = await content.readany()
        except TimeoutError:
            raise Silence(f"silent for {silence:g} s") from None
        if not piece:
            return
        for at in range(0, len(piece), _SLICE_BYTES):
            if at:
                await asyncio.sleep(0)
            for event in parser.feed(piece[at : at + _SLICE_BYTES]):
                until = loop.time() + silence
                yield event


def silence_seconds(*, ticks: bool) -> float:
    """Return for how long a stream may tell nothing until it is taken for dead."""
    return 3 * TICK_SECONDS if ticks else QUIET_SECONDS


def _namespace(path: str) -> str:
    return f"/namespace{quote(path)}"


_SUBSCRIPTION = re.compile(r"/subscriptions/[!-~]+$")
_CHANNEL = re.compile(r"[!-.0-~]+")
"""The last part of a channel's URL: printable, without a slash."""


def _channel_of(url: str) -> str | None:
    """Return the id of a channel, the end of its URL; None where that is none."""
    found = url.rstrip("/").rpartition("/")[2]
    return found if _CHANNEL.fullmatch(found) else None


def _texts(told: Any) -> Iterator[str]:
    """Return the strings of a JSON list."""
    return (each for each in told if isinstance(each, str)) if isinstance(told, list) else iter(())


def limits_of(told: Any) -> Limits:
    """Read what `GET events` tells."""
    channels = mapping(mapping(told).get("channels"))
    lifetime = mapping(channels.get("lifetimeWhenDisconnected"))
    return Limits(_count(channels.get("maximumPerUser")), _count(lifetime.get("maximum")) or 0)


def _count(told: Any) -> int | None:
    is_one = isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**63
    return int(told) if is_one else None


def page_of(told: Mapping[str, Any]) -> Page:
    """Read what the namespace tells of a directory with its children."""
    entries: list[Entry] = []
    unreadable: list[Unreadable] = []
    children = told.get("children")
    for child in children if isinstance(children, list) else ():
        try:
            entries.append(entry_of(child))
        except Unreadable as error:
            unreadable.append(error)
    return Page(str(told.get("pnfsId")), entries, unreadable)


def entry_of(told: Any) -> Entry:
    """Read what the namespace tells of one entry. Raise Unreadable when that is not what every entry has."""
    known = mapping(told)
    name, kind, pnfsid = (known.get(key) for key in ("fileName", "fileType", "pnfsId"))
    if not (isinstance(name, str) and is_name(name) and isinstance(kind, str)):
        raise _unreadable("an entry has no name or no type", told)
    if not (isinstance(pnfsid, str) and pnfsid):
        raise _unreadable(f"an entry has no PNFS-ID: {name}", told)
    try:
        f"{name}{kind}{pnfsid}".encode()
    except UnicodeEncodeError:  # half of a surrogate pair can be neither kept nor sent
        raise _unreadable("the name of an entry is no text", told) from None
    size, mtime = known.get("size"), known.get("mtime", 0)
    if kind == "REGULAR" and not (_is_whole(mtime) and (size is None or (_is_whole(size) and size >= 0))):
        raise _unreadable(f"an entry has a size or a time that is no number: {name}", told)
    return Entry(name, kind, pnfsid, size if _is_whole(size) else None, mtime if _is_whole(mtime) else 0)


def is_name(text: str) -> bool:
    """Return whether it can be the name of something in a directory."""
    return text not in ("", ".", "..") and "/" not in text and len(text) <= _MOST_CHARACTERS


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _unreadable(reason: str, told: Any) -> Unreadable:
    try:
        received = json.dumps(told)
    except RecursionError:
        received = ""
    # A name may be what is wrong with it.
    reason = excerpt(reason.encode(errors="backslashreplace").decode())
    return Unreadable(reason, received.encode()[:MOST_ENTRY_BYTES])
