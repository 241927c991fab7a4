"""What answers in OSCAR's place: an HTTP/1.1 server so thin that it is not what is measured.

It gives each service a token, takes every POST with 201 and no body, and notes when the first and the last
came for `plants`, how many of their bodies differ, and what CPU time a process that it watches had used by
then. It can be told that one in so many of those fails, and how other services answer. The bench
asks it over HTTP too, under `/bench`. Its clock is CLOCK_MONOTONIC, which all processes of
a Linux machine share.

`python -m bench.sink [PEM]`: with a certificate and its key it listens by TLS too.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import uvloop

from bench.clock import cpu_clock
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
        notes_others: bool = False,
    ) -> None:
        """Answer POSTs after `delay` seconds, those for other services after `others`.

        If `others` is below 0, all of those fail. With `notes_others` they count as those for `plants` do.
        """
        self.delay = delay
        self.others = others
        self.notes_others = notes_others
        self.watched: int | None = None
        """The clock of the CPU time of who is watched."""
        self._one_fails_in = one_fails_in
        self._notes_arrivals = notes_arrivals
        self._posts = 0
        self._bodies: set[int] = set()
        """Hashes, with the service in them."""
        self._first = self._last = self._cpu = self._own = 0
        self._arrivals: list[tuple[bytes, int]] = []
        self._awaited: dict[int, asyncio.Future[dict[str, int]]] = {}

    def note(self, body: bytes, service: int = 0) -> bytes:
        """Note one POST that came just now; give the answer."""
        self._last = time.monotonic_ns()
        self._posts += 1
        self._bodies.add(hash(body) ^ service)
        if self._posts == 1:
            self._first = self._last
            self._cpu, self._own = self._watch(), time.process_time_ns()
        if self._notes_arrivals:
            self._arrivals.append((body[:_START], self._last))
        if self._awaited and (awaited := self._awaited.pop(self._posts, None)) is not None:
            awaited.set_result(self._told())
        if self._one_fails_in and not self._posts % self._one_fails_in:
            return _FAILED
        return _ACCEPTED

    async def after(self, posts: int) -> dict[str, int]:
        """Wait until so many came, and give what was true then.

        `posts` is their number and `bodies` that of those that differ; `first` and `last` are when the first
        and the last came, `cpu_first` and `cpu_last` what who is watched had used by then, and `own` is what
        the sink has used between them; in ns.
        """
        if self._posts >= posts:
            return self._told()
        return await self._awaited.setdefault(posts, asyncio.get_running_loop().create_future())

    def _told(self) -> dict[str, int]:
        return {
            "posts": self._posts,
            "bodies": len(self._bodies),
            "first": self._first,
            "last": self._last,
            "cpu_first": self._cpu,
            "cpu_last": self._watch(),
            "own": time.process_time_ns() - self._own,
        }

    def _watch(self) -> int:
        return 0 if self.watched is None else time.clock_gettime_ns(self.watched)

    def arrivals(self) -> dict[int, int]:
        """Give when each numbered body came first, in ns."""
        found: dict[int, int] = {}
        for body, at in self._arrivals:
            if (number := _NUMBER.search(body)) is not None:
                found.setdefault(int(number[1]), at)
        return found


class Held:
    """Answers that are kept back, so that whoever waits for them does nothing."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._answers: list[Callable[[], None]] = []
        self.enough = asyncio.Event()
        """Set once `wanted` are kept back."""

    def keep(self, answer: Callable[[], None]) -> None:
        """Keep back an answer, which `answer` sends."""
        self._answers.append(answer)
        if len(self._answers) == self._wanted:
            self.enough.set()

    def release(self) -> None:
        """Send all that were kept back."""
        for answer in self._answers:
            answer()


class Sink(Connection):
    """One connection."""

    figures = Figures()
    held: Held | None = None
    """None while answers are not kept back."""

    def requested(self, received: bytearray, head: int, end: int) -> None:
        if not received.startswith(b"POST /job/"):
            self.tell(received)
            return
        figures = self.figures
        if received.startswith(b"POST /job/plants "):
            delay = figures.delay
            answer = figures.note(bytes(memoryview(received)[head + 4 : end]))
        elif figures.notes_others:
            delay = figures.delay
            answer = figures.note(bytes(memoryview(received)[head + 4 : end]), 1)
        else:
            delay = figures.others
            answer = _FAILED if delay < 0 else _ACCEPTED
        if delay > 0:
            asyncio.get_running_loop().call_later(delay, self.write, answer)
        elif self.held is not None:
            self.held.keep(partial(self.write, answer))
        else:
            self.write(answer)

    async def told(self, path: str, query: Mapping[str, str]) -> object:
        if path.startswith("/system/services/"):
            return {"name": path.rpartition("/")[2], "token": "f" * 64}
        if path == "/system/info":
            return {"version": "v4.1.0"}
        if path == "/bench/begin":
            Sink.held = None
            Sink.figures = Figures(
                delay=float(query.get("delay", "0")),
                others=float(query.get("others", "0")),
                one_fails_in=int(query.get("one_fails_in", "0")),
                notes_arrivals="arrivals" in query,
                notes_others="all" in query,
            )
        elif path == "/bench/watch":
            self.figures.watched = cpu_clock(int(query["pid"]))
        elif path == "/bench/after":
            return await self.figures.after(int(query["posts"]))
        elif path == "/bench/arrivals":
            return self.figures.arrivals()
        elif path == "/bench/hold":
            Sink.held = Held(int(query["answers"]))
            await Sink.held.enough.wait()
            return await self.figures.after(0)
        elif path == "/bench/release" and Sink.held is not None:
            held, Sink.held = Sink.held, None
            held.release()
        return {}


def _secure(pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


if __name__ == "__main__":
    uvloop.run(serve(Sink, _secure(sys.argv[1]) if sys.argv[1:] else None))
