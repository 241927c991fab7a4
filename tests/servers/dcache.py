"""What the sandbox dCache's tests know of its protocol, told with httpx and httpx-sse alone."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
from httpx_sse import ServerSentEvent, aconnect_sse

PLAIN = ssl.create_default_context()
"""For `verify=`: without it every client of plain HTTP reads all certificates there are, too."""
_SECONDS = 60.0


class Listener:
    """One open stream."""

    def __init__(self, events: AsyncIterator[ServerSentEvent]) -> None:
        self._events = events

    async def next(self) -> ServerSentEvent:
        """The next event. StopAsyncIteration when the server ended the stream in good order."""
        async with asyncio.timeout(_SECONDS):
            return await anext(self._events)

    async def take(self, count: int) -> list[str]:
        """So many events, each in one line: see `line`."""
        return [line(await self.next()) for _ in range(count)]

    async def rest(self) -> list[str]:
        """All there is to the end of the stream, however it ends."""
        lines = []
        try:
            while True:
                lines.append(line(await self.next()))
        except StopAsyncIteration:
            return [*lines, "end"]
        except httpx.TransportError:
            return [*lines, "cut"]


def line(event: ServerSentEvent) -> str:
    """`0 IN_CREATE|IN_ISDIR name` or `SYSTEM TYPE`; cookies and subscriptions are left out."""
    data = json.loads(event.data)
    if event.event == "SYSTEM":
        # Its id is that of the event before: a client keeps the last one there was (HTML, 9.2.6).
        return f"SYSTEM {data['type']}"
    told = data["event"]
    return " ".join([event.id, "|".join(told["mask"]), *([told["name"]] if "name" in told else [])])


def created(first: int, *names: str) -> list[str]:
    """The lines of directories that are made in a watched one, from the event of that number on."""
    return [f"{number} IN_CREATE|IN_ISDIR {name}" for number, name in enumerate(names, first)]


@asynccontextmanager
async def listening(
    http: httpx.AsyncClient, channel: str, last_event_id: str | None = None
) -> AsyncIterator[Listener]:
    """Open the stream, once the server has answered."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with aconnect_sse(http, "GET", channel, headers=headers) as source:
        assert source.response.status_code == 200
        async with aclosing(source.aiter_sse()) as events:
            yield Listener(events)


async def new_channel(http: httpx.AsyncClient, **document: Any) -> str:
    answer = await http.post("events/channels", json=document)
    assert answer.status_code == 201
    return answer.headers["Location"]


async def watch(http: httpx.AsyncClient, channel: str, path: str, *flags: str) -> str:
    """Subscribe anew; without flags, to all events."""
    answer = await subscribe(http, channel, {"path": path, "flags": list(flags)} if flags else {"path": path})
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


async def subscribe(http: httpx.AsyncClient, channel: str, selector: object) -> httpx.Response:
    return await http.post(f"{channel}/subscriptions/inotify", json=selector)
