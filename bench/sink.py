"""What answers in OSCAR's place: an HTTP/1.1 server so thin that it is not what is measured.

It gives each service a token, takes every POST with 201 and no body, and notes when the first and the last
came for `plants`. It can be told that one in so many of those fails, and how other services answer. The bench
asks it over HTTP too, under `/bench`. Its clock is CLOCK_MONOTONIC, which all processes of
a Linux machine share.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

import uvloop

from bench.http import Connection, serve

_ACCEPTED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
_FAILED = (
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 48\r\n\r\n"
    b"the cluster is being upgraded, try again shortly"
)
_NUMBER = re.compile(rb'"n": *(\d+)')
_START = 32
"""Bytes of a body that are kept: its number is at the beginning."""


class Figures:
    """What the sink has seen since it was told to begin anew."""

    def __init__(
        self,
        *,
        delay: float = 0.0,
        others: float = 0.0,
        one_fails_in: int = 0,
        notes_arrivals: bool = False,
    ) -> None:
        """Answer POSTs after `delay` seconds, those for other services after `others`.

        If `others` is below 0, all of those fail.
        """
        self.delay = delay
        self.others = others
        self._one_fails_in = one_fails_in
        self._notes_arrivals = notes_arrivals
        self._posts = 0
        self._first = self._last = 0
        self._arrivals: list[tuple[bytes, int]] = []
        self._awaited: dict[int, asyncio.Event] = {}

    def note(self, body: bytes) -> bytes:
        """Note one POST that came just now; give the answer."""
        self._last = time.monotonic_ns()
        self._posts += 1
        if self._posts == 1:
            self._first = self._last
        if self._notes_arrivals:
            self._arrivals.append((body, self._last))
        if self._awaited and (awaited := self._awaited.get(self._posts)) is not None:
            awaited.set()
        if self._one_fails_in and not self._posts % self._one_fails_in:
            return _FAILED
        return _ACCEPTED

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


class Sink(Connection):
    """One connection."""

    figures = Figures()

    def requested(self, received: bytearray, head: int, end: int) -> None:
        if not received.startswith(b"POST /job/"):
            self.tell(received)
            return
        figures = self.figures
        if received.startswith(b"POST /job/plants "):
            delay = figures.delay
            answer = figures.note(bytes(received[head + 4 : min(end, head + 4 + _START)]))
        else:
            delay = figures.others
            answer = _FAILED if delay < 0 else _ACCEPTED
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, self.write, answer)
        else:
            self.write(answer)

    async def told(self, path: str, query: Mapping[str, str]) -> object:
        if path.startswith("/system/services/"):
            return {"name": path.rpartition("/")[2], "token": "f" * 64}
        if path == "/system/info":
            return {"version": "v4.1.0"}
        if path == "/bench/begin":
            Sink.figures = Figures(
                delay=float(query.get("delay", "0")),
                others=float(query.get("others", "0")),
                one_fails_in=int(query.get("one_fails_in", "0")),
                notes_arrivals="arrivals" in query,
            )
        elif path == "/bench/after":
            return await self.figures.after(int(query["posts"]))
        elif path == "/bench/arrivals":
            return self.figures.arrivals()
        return {}


if __name__ == "__main__":
    uvloop.run(serve(Sink))
