"""dCache's REST API as this source uses it: channels and watches, look-ups and listings, and the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from httpx_sse import EventSource

from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.http import (
    CONNECT_SECONDS,
    USER_AGENT,
    Denied,
    Http,
    Missing,
    Refusal,
    Unanswered,
    mapping,
    message,
    reason_of,
)
from bridge.sources.dcache.watches import key_of

STREAM_ANSWER_SECONDS = 30.0
TICK_SECONDS = 20.0
"""Between two ticks of the metronome. dCache itself sends nothing on a quiet channel."""
METRONOME = "metronome/"
"""How the key of a metronome's subscription begins."""
QUIET_SECONDS = 600.0
"""See `silence_seconds`, where there is no metronome."""


class ChannelGone(Exception):  # noqa: N818
    """The channel is no more: its time was over, or the frontend was restarted."""


class Limits(NamedTuple):
    """What the site allows of channels."""

    per_user: int
    longest_timeout: int
    """Seconds a channel may live with nobody connected."""


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


class Connection(Http):
    """What this source asks of dCache. Every call may raise Refused or Unanswered, beside its own."""

    def __init__(self, config: DcacheConfig, refusal: Refusal | None = None) -> None:
        super().__init__(config, refusal)
        self._endpoint = config.endpoint
        self._streaming: httpx.AsyncClient | None = None

    async def __aexit__(self, *details: object) -> None:
        if self._streaming is not None:
            await self._streaming.aclose()
        await super().__aexit__(*details)

    # Channels

    async def limits(self) -> Limits:
        """Ask what the site allows."""
        channels = mapping(await self.get("/events")).get("channels")
        lifetime = mapping(mapping(channels).get("lifetimeWhenDisconnected"))
        return Limits(int(mapping(channels).get("maximumPerUser") or 0), int(lifetime.get("maximum") or 0))

    async def channels(self, client_id: str | None = None) -> Sequence[str]:
        """Give the ids of this user's channels, of one `client_id` or of all."""
        found = await self.get("/events/channels", {} if client_id is None else {"client-id": client_id})
        return [str(url).rstrip("/").rpartition("/")[2] for url in found] if isinstance(found, list) else []

    async def make_channel(self, client_id: str) -> str:
        """Make a channel and give its id. Raises Denied where the user has too many.

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
        return answer.location.rstrip("/").rpartition("/")[2]

    async def has_channel(self, channel: str) -> bool:
        """Tell whether it is still there, and ours."""
        try:
            await self.get(self._channel(channel))
        except (Missing, Denied):
            return False
        return True

    async def set_timeout(self, channel: str, seconds: int) -> None:
        """Let the channel live for `seconds` with nobody connected. Raises Missing."""
        await self.ask("PATCH", self._channel(channel), send={"timeout": seconds})

    async def delete_channel(self, channel: str) -> None:
        """End a channel; one that is gone is well too."""
        try:
            await self.ask("DELETE", self._channel(channel))
        except Missing:
            pass

    # Subscriptions

    async def watch(self, channel: str, path: str, flags: Sequence[str]) -> str:
        """Watch a directory and give its subscription; one that was watched already is so again.

        Raises Missing when the path is gone, Denied when it may not be read, ChannelGone.
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
            return answer.location
        reason = message(answer.text)
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
        """Give the keys of all subscriptions there are (see `watches.key_of`). Raises Missing."""
        told = await self.get(f"{self._channel(channel)}/subscriptions")
        return [key_of(str(url)) for url in told] if isinstance(told, list) else []

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
        """Ask what is at `path` now. Raises Missing, Denied, Unanswered."""
        found = _entry(path.rpartition("/")[2], mapping(await self.get(_namespace(path))))
        if found is None:
            raise Unanswered(f"{path}: not what a look-up answers")
        return found

    async def list_page(self, path: str, *, offset: int, limit: int) -> tuple[str, Sequence[Entry]]:
        """Give the PNFS-ID of a directory, and a part of what is in it.

        Raises Missing (no directory any more), Denied, Unanswered.
        """
        query = {"children": "true", "offset": str(offset), "limit": str(limit)}
        told = mapping(await self.get(_namespace(path), query))
        if told.get("fileType") != "DIR":
            raise Missing(f"{path} is no directory")
        children = told.get("children")
        entries = [_entry(None, mapping(child)) for child in children] if isinstance(children, list) else []
        return str(told.get("pnfsId")), [entry for entry in entries if entry is not None]

    # The stream

    @asynccontextmanager
    async def stream(
        self, channel: str, last_id: str | None, *, silence: float
    ) -> AsyncIterator[EventSource]:
        """Connect to the channel's events, those after `last_id` first.

        Session raises httpx.ReadTimeout after `silence` seconds without a byte, httpx.HTTPError when the
        connection breaks. Raises ChannelGone, Unanswered, Refused.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", **await self.authorization()}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        if self._streaming is None:
            self._streaming = httpx.AsyncClient(
                verify=self.tls,
                headers={"User-Agent": USER_AGENT},
                proxy=None if self.proxy is None else str(self.proxy),
                trust_env=False,
            )
        timeout = httpx.Timeout(CONNECT_SECONDS, read=silence)
        url = f"{self._endpoint}{self._channel(channel)}"
        try:
            request = self._streaming.build_request("GET", url, headers=headers, timeout=timeout)
            async with asyncio.timeout(STREAM_ANSWER_SECONDS):
                response = await self._streaming.send(request, stream=True)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise Unanswered(f"the stream: {reason_of(error)}") from None
        try:
            if response.status_code in (403, 404):
                raise ChannelGone(f"channel {channel} is gone, or another user's ({response.status_code})")
            if response.status_code != 200:
                await self.judge(response.status_code, f"the stream: {response.status_code}", headers, None)
                raise Unanswered("the stream: the credential was refused, and is renewed")
            yield EventSource(response)
        finally:
            await response.aclose()

    @staticmethod
    def _channel(channel: str) -> str:
        return f"/events/channels/{quote(channel, safe='')}"


def silence_seconds(*, ticks: bool) -> float:
    """Give for how long a stream may be without a byte until it is taken for dead."""
    return 3 * TICK_SECONDS if ticks else QUIET_SECONDS


def _namespace(path: str) -> str:
    return f"/namespace{quote(path)}"


def _entry(name: str | None, told: Mapping[str, Any]) -> Entry | None:
    """Read what the namespace tells; None when it lacks what every entry has."""
    found = name if name is not None else told.get("fileName")
    kind, pnfsid, size, mtime = (told.get(key) for key in ("fileType", "pnfsId", "size", "mtime"))
    if not isinstance(found, str) or not isinstance(kind, str) or not isinstance(pnfsid, str):
        return None
    try:
        f"{found}{kind}{pnfsid}".encode()  # half of a surrogate pair can be neither kept nor sent
    except UnicodeEncodeError:
        return None
    return Entry(
        found,
        kind,
        pnfsid,
        size if isinstance(size, int) else None,
        mtime if isinstance(mtime, int) else 0,
    )
