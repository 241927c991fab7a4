"""dCache's REST API as this source uses it: channels and watches, look-ups and listings, and the stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs

from bridge.net.bodies import body_of
from bridge.sources.dcache.rest.answers import Denied, Missing, Unanswered, mapping, message, reason_of
from bridge.sources.dcache.rest.http import CONNECT_SECONDS, MOST_BYTES, Http
from bridge.sources.dcache.rest.namespace import MOST_ENTRY_BYTES, Entry, Page, entry_of, page_of
from bridge.sources.dcache.rest.sse import ServerSentEvent, events_of

STREAM_ANSWER_SECONDS = 30.0
"""Time for the stream's answer to begin."""
TICK_SECONDS = 20.0
"""Between two ticks of the metronome. dCache itself sends nothing on a quiet channel."""
METRONOME = "metronome/"
"""How the key of a metronome's subscription begins."""
QUIET_SECONDS = 600.0
"""For how long no event may come, where there is no metronome, before the stream is taken for dead."""
MOST_SUBSCRIPTION_BYTES = 32 * 2**20
"""Longest list of a channel's subscriptions: 100,000 URLs, twice what a node of ZooKeeper has room for."""


class ChannelGone(Exception):  # noqa: N818
    """The channel is no more: its time was over, or the frontend was restarted."""


class Limits(NamedTuple):
    """What the site allows of channels."""

    per_user: int | None
    """None where dCache gives no number."""
    longest_timeout: int
    """Seconds a channel may live with nobody connected; 0 where dCache gives no number."""


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
            self._hold(None)
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
            raise Denied(self._describe("the channel's life-time", answer.status, answer.text))

    async def delete_channel(self, channel: str) -> None:
        """End a channel; one that is gone is well too."""
        with suppress(Missing):
            await self.ask("DELETE", self._channel(channel))

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
        reason = message(answer.text) or self._describe(f"the watch of {path}", 400, answer.text)
        if "permission" in reason.lower() or "not allowed" in reason.lower():
            raise Denied(reason)
        raise Missing(reason)

    async def unwatch(self, channel: str, key: str) -> None:
        """End the subscription named `key` (`key_of`); one that is gone is well too."""
        with suppress(Missing):
            await self.ask("DELETE", f"{self._channel(channel)}/subscriptions/{key}")

    async def subscriptions(self, channel: str) -> Sequence[str]:
        """Return the keys of all subscriptions there are (`key_of`). Raise Missing."""
        urls = await self.get(f"{self._channel(channel)}/subscriptions", most=MOST_SUBSCRIPTION_BYTES)
        return [key_of(url) for url in _texts(urls) if _SUBSCRIPTION.search(url)]

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
        content = mapping(await self.get(_namespace(path)))
        if not content:
            raise Unanswered(f"{path}: not what a look-up answers")
        return entry_of({**content, "fileName": path.rpartition("/")[2]})

    async def list_page(self, path: str, *, offset: int, limit: int) -> Page:
        """Return a part of what is in a directory.

        Raise Missing (no directory any more), Denied, Unanswered.
        """
        query = {"children": "true", "offset": str(offset), "limit": str(limit)}
        most = MOST_BYTES + limit * MOST_ENTRY_BYTES
        content = mapping(await self.get(_namespace(path), query, most=most))
        if content.get("fileType") != "DIR":
            raise Missing(f"{path} is no directory")
        return page_of(content)

    # The stream

    @asynccontextmanager
    async def stream(
        self, channel: str, last_id: str | None, *, silence: float
    ) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
        """Connect to the channel's events, those after `last_id` first.

        Reading raises Silence after `silence` seconds without an event, aiohttp.ClientError or OSError when
        the connection breaks. Raise Missing, Denied, Unanswered, Refused.
        """
        headers = {hdrs.ACCEPT: "text/event-stream", hdrs.CACHE_CONTROL: "no-store", **await self._turn()}
        if last_id is not None:
            headers[hdrs.LAST_EVENT_ID] = last_id
        url, timeout = self._url(self._channel(channel)), aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS)
        try:
            async with asyncio.timeout(STREAM_ANSWER_SECONDS):
                response = await self._session.get(
                    url, headers=headers, timeout=timeout, allow_redirects=False, proxy=self._proxy
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unanswered(f"the stream: {reason_of(error)}") from None
        try:
            if response.status != 200:
                reason = self._describe("the stream", response.status, await _text(response))
                await self._judge(response.status, reason, headers, response.headers.get(hdrs.RETRY_AFTER))
                raise Unanswered("the stream: the credential was refused, and is renewed")
            if response.content_type != "text/event-stream":
                raise Unanswered(f"the stream: answered {response.content_type}, no stream of events")
            self._login.accepted()
            yield events_of(response.content, silence)
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


def key_of(subscription: str) -> str:
    """Return what names a subscription within its channel: the end of its URL.

    The front of it may be another for each client, where the frontend is behind a proxy.
    """
    return subscription.rpartition("/subscriptions/")[2]


def silence_seconds(*, ticks: bool) -> float:
    """Return for how long no event may come before the stream is taken for dead."""
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


def _texts(content: Any) -> Iterator[str]:
    """Return the strings of a JSON list."""
    return (each for each in content if isinstance(each, str)) if isinstance(content, list) else iter(())


def limits_of(content: Any) -> Limits:
    """Read the answer to `GET events`."""
    channels = mapping(mapping(content).get("channels"))
    lifetime = mapping(channels.get("lifetimeWhenDisconnected"))
    return Limits(_count(channels.get("maximumPerUser")), _count(lifetime.get("maximum")) or 0)


def _count(content: Any) -> int | None:
    is_one = isinstance(content, int) and not isinstance(content, bool) and 0 <= content < 2**63
    return int(content) if is_one else None
