"""Server-sent events (WHATWG HTML 9.2) off a socket: bounded, and UTF-8 whatever a header says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp

MOST_BYTES = 64 * 2**10
"""Longest line, and longest data of one event. dCache's longest event takes less than 5 KiB: a name of 255
characters and a URL."""


_SLICE_BYTES = 8192
"""Bytes that are parsed at once, before others have the loop: about 40 events, or a millisecond."""


class Silence(Exception):  # noqa: N818 - it is for its reader to say what it means
    """No event has come for long."""


class ServerSentEvent(NamedTuple):
    """One event."""

    id: str
    """The event's own id; empty where it has none."""
    kind: str
    data: str
    fault: str | None = None
    """Why `data` is not what was sent."""


class Parser:
    """Makes events of the bytes of one connection, in whatever pieces they come.

    It keeps `MOST_BYTES` of a line and of an event; what is longer becomes an event with a fault.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._is_cut = False
        """The line that is being read is longer than what is kept of it."""
        self._after_return = False
        """The last piece ended with a carriage return: a line feed that follows belongs to it."""
        self._begins = True
        self._id = self._kind = ""
        self._data: list[str] = []
        self._size = 0
        self._fault: str | None = None

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """Take the next bytes, and return the events that are complete by now."""
        if self._after_return and piece:
            piece, self._after_return = piece.removeprefix(b"\n"), False
        if not piece:
            return []
        self._after_return = piece.endswith(b"\r")
        lines = piece.splitlines()
        rest = b"" if piece.endswith((b"\r", b"\n")) else lines.pop()
        found: list[ServerSentEvent] = []
        for line in lines:
            self._add(line)
            if event := self._end_line():
                found.append(event)
        self._add(rest)
        return found

    def _add(self, part: bytes) -> None:
        room = MOST_BYTES - len(self._line)
        self._line += part[:room]
        self._is_cut = self._is_cut or len(part) > room

    def _end_line(self) -> ServerSentEvent | None:
        line, is_cut = bytes(self._line), self._is_cut
        self._line.clear()
        self._is_cut = False
        if self._begins:
            line, self._begins = line.removeprefix(b"\xef\xbb\xbf"), False
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        if name in (b"data", b"id", b"event"):
            self._take_field(name, value.removeprefix(b" "), is_cut=is_cut)
        return None

    def _take_field(self, name: bytes, value: bytes, *, is_cut: bool) -> None:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode(errors="replace")
            if not is_cut:  # a cut may part a character
                self._fault = "it is not UTF-8"
        if is_cut:
            self._fault = f"it is longer than {MOST_BYTES} bytes"
        if name == b"event":
            self._kind = text
        elif name == b"id":
            self._id = "" if "\0" in text else text
        elif self._size + len(value) > MOST_BYTES:
            self._fault = f"it is longer than {MOST_BYTES} bytes"
        else:
            self._size += len(value) + 1
            self._data.append(text)

    def _end_event(self) -> ServerSentEvent | None:
        event = None
        if self._data or self._fault is not None:
            event = ServerSentEvent(self._id, self._kind or "message", "\n".join(self._data), self._fault)
        self._id = self._kind = ""
        self._data.clear()
        self._size, self._fault = 0, None
        return event


async def events_of(content: aiohttp.StreamReader, silence: float) -> AsyncIterator[ServerSentEvent]:
    """Read to the end. Raise Silence after `silence` seconds without an event, and what reading raises.

    What is no event, such as a proxy's comment, is no sign that dCache lives.
    """
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
