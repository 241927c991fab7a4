"""What answers in OSCAR's place: an HTTP/1.1 server so thin that it is not what is measured.

It gives each service a token, takes every POST with 201 and no body, and notes when the first and the last
came. The bench asks it over HTTP too, under `/bench`. Its clock is CLOCK_MONOTONIC, which all processes of
a Linux machine share.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import cast
from urllib.parse import parse_qs, urlsplit

import uvloop

_ACCEPTED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb'"n": *(\d+)')
_START = 32
"""Bytes of a body that are kept: its number is at the beginning."""


class Figures:
    """What the sink has seen since it was told to begin anew."""

    def __init__(self, *, delay: float = 0.0, notes_arrivals: bool = False) -> None:
        self.delay = delay
        self._notes_arrivals = notes_arrivals
        self._posts = 0
        self._first = self._last = 0
        self._arrivals: list[tuple[bytes, int]] = []
        self._awaited: dict[int, asyncio.Event] = {}

    def note(self, body: bytes) -> None:
        """Note one POST that came just now."""
        self._last = time.monotonic_ns()
        self._posts += 1
        if self._posts == 1:
            self._first = self._last
        if self._notes_arrivals:
            self._arrivals.append((body, self._last))
        if self._awaited and (awaited := self._awaited.get(self._posts)) is not None:
            awaited.set()

    async def after(self, posts: int) -> dict[str, int]:
        """Wait until so many came; give their number, and when the first and the last came, in ns."""
        if self._posts < posts:
            await self._awaited.setdefault(posts, asyncio.Event()).wait()
        return {"posts": self._posts, "first": self._first, "last": self._last}

    def arrivals(self) -> dict[int, int]:
        """Give when each numbered body came first, in ns."""
        found: dict[int, int] = {}
        for body, at in self._arrivals:
            if (number := _NUMBER.search(body)) is not None:
                found.setdefault(int(number[1]), at)
        return found


class Sink(asyncio.Protocol):
    """One connection."""

    figures = Figures()

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while (end := received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(received, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(received) < whole:
                return
            if received.startswith(b"POST /job/"):
                figures = self.figures
                figures.note(bytes(received[end + 4 : end + 4 + _START]))
                if figures.delay:
                    asyncio.get_running_loop().call_later(figures.delay, self._write, _ACCEPTED)
                else:
                    self._write(_ACCEPTED)
            else:
                target = received[: received.index(b"\r\n")].split(b" ")[1].decode("ascii")
                self._answering = asyncio.create_task(self._answer(target))
            del received[:whole]

    async def _answer(self, target: str) -> None:
        url = urlsplit(target)
        query = parse_qs(url.query)
        answer: object = {}
        if url.path.startswith("/system/services/"):
            answer = {"name": url.path.rpartition("/")[2], "token": "f" * 64}
        elif url.path == "/system/info":
            answer = {"version": "v4.1.0"}
        elif url.path == "/bench/begin":
            Sink.figures = Figures(
                delay=float(query.get("delay", ["0"])[0]), notes_arrivals="arrivals" in query
            )
        elif url.path == "/bench/after":
            answer = await self.figures.after(int(query["posts"][0]))
        elif url.path == "/bench/arrivals":
            answer = self.figures.arrivals()
        body = json.dumps(answer).encode()
        self._write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    def _write(self, answer: bytes) -> None:
        if self._transport is not None:
            self._transport.write(answer)


async def main() -> None:
    """Print the URL, and answer until killed."""
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
