"""How aiormq gets its connection: one that is there already, and with all frames but those of deliveries.

A delivery is two frames or more, which are put together here and go where `Frames.hand_on` says;
acknowledgements are written here too. Only what else is said on a connection is aiormq's. For two reasons:
- pamqp decodes each frame, and aiormq ends the connection when that raises. One message whose header pamqp
  can't decode would so end every link it comes by, and take the deliveries of the others along;
- aiormq makes a task of each delivery, and pamqp looks up each field of each frame by its name: many times
  what is needed here.

To be read again at each release of aiormq, on which this relies:
- `connection.FrameReceiver.get_frame` asks `at_eof()`, and reads each frame by `readexactly`; an OSError of
  it loses the connection;
- `connection.Connection` gives a connection up where it hears of no frame for three times the heartbeat.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from aiormq.connection import TransportFactory
from yarl import URL

from bridge.sources.broker import properties
from bridge.sources.broker.link import MOST_BODY, MOST_PASSED_OVER, OVERSIZE_KEPT, Wire, oversize
from bridge.sources.broker.message import Tag
from bridge.sources.broker.properties import Foreign

_CHUNK = 2**15
"""Bytes looked at before others have a turn: some milliseconds, with what is made of their messages."""
_MOST_FRAME = 2**24
"""Bytes of one frame; RabbitMQ's are 128 KiB by default."""
_METHOD, _HEADER, _BODY = 1, 2, 3
_HEAD = struct.Struct(">BHI")
"""Of every frame: its kind, its channel and the length of its payload."""
_END = 0xCE
"""The byte after every payload."""
_DELIVER = struct.pack(">HH", 60, 60)
_CLOSINGS = (struct.pack(">HH", 20, 40), struct.pack(">HH", 20, 41))
"""Of a channel: `channel.close` and `channel.close-ok`."""
_ACKNOWLEDGE = struct.Struct(">BHIHHQBB")
"""A whole frame: its head, `basic.ack` (60, 80), the tag, that it means this one alone, its end."""
_ALIVE = _HEAD.pack(8, 0, 0) + bytes([_END])
_TELL_SECONDS = 1.0
"""How often aiormq is told that the connection is alive, where all that comes are deliveries."""

Deliver = Callable[[int, bytes, Foreign], None]
"""Takes a delivery, and must not raise: its tag, its body and what its publisher told beside it."""


def acknowledgements(channel: int, tags: Sequence[Tag]) -> bytes:
    """Return the frames that acknowledge `tags`.

    One each: they are settled in any order, and a frame for several would mean all that came before, too.
    """
    pack = _ACKNOWLEDGE.pack
    return b"".join([pack(_METHOD, channel, 13, 60, 80, tag, 0, _END) for tag in tags])


class Door(TransportFactory):
    """Gives aiormq the connection of `wire`."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.frames = Frames(wire.reader)

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return cast("asyncio.StreamReader", self.frames), self.wire.writer


class Frames:
    """What aiormq reads from: the frames of `reader` that are no delivery's."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()
        """Read, and no whole frame yet."""
        self._others = bytearray()
        """For aiormq."""
        self._told = time.monotonic()
        """When aiormq was last told that the connection is alive."""
        self._deliver: Deliver = lambda *_: None
        self._consuming = -1
        """The channel whose deliveries are handed on."""
        self._dropping: set[int] = set()
        """Other channels on which something was delivered: until they end, no content of theirs is wanted."""
        self._channel = -1
        """Of the delivery whose frames are coming; -1 between two."""
        self._tag = 0
        self._envelope = b""
        """Its exchange and its routing key."""
        self._properties: bytes | None = None
        self._size = 0
        """Bytes of its body, as its header has it."""
        self._left = 0
        """Of these, to come."""
        self._body: list[bytes] = []

    def hand_on(self, channel: int, deliver: Deliver) -> None:
        """Give `deliver` what is delivered on `channel`.

        What comes on others is dropped: nobody wants it who consumes there to see whether he may.
        """
        self._consuming, self._deliver = channel, deliver

    def at_eof(self) -> bool:
        return not self._others and not self._buffer and self._reader.at_eof()

    async def readexactly(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises IncompleteReadError at the end, and ConnectionError."""
        while len(self._others) < count:
            data = await self._reader.read(_CHUNK)
            if not data:
                raise asyncio.IncompleteReadError(bytes(self._others), count)
            self._buffer += data
            self._sort()
            if not self._others and time.monotonic() - self._told > _TELL_SECONDS:
                self._told = time.monotonic()
                self._others += _ALIVE
            if len(data) == _CHUNK:  # what was read ahead would be read without a pause
                await asyncio.sleep(0)
        taken = bytes(self._others[:count])
        del self._others[:count]
        return taken

    def _sort(self) -> None:
        """Take the frames that are whole."""
        buffer, at, end = self._buffer, 0, len(self._buffer)
        while end - at >= _HEAD.size:
            if buffer.startswith(b"AMQP", at):  # the answer of who speaks another version
                after = at + _HEAD.size
                self._others += buffer[at:after]
            else:
                kind, channel, length = _HEAD.unpack_from(buffer, at)
                if length > _MOST_FRAME:
                    raise ConnectionError(f"a frame of {length} bytes is no AMQP")
                after = at + _HEAD.size + length + 1
                if after > end:
                    break
                payload = bytes(buffer[at + _HEAD.size : after - 1])
                if not self._is_of_delivery(kind, channel, payload):
                    self._others += buffer[at:after]
                elif buffer[after - 1] != _END:
                    raise ConnectionError("a frame without its end")
            at = after
        del buffer[:at]

    def _is_of_delivery(self, kind: int, channel: int, payload: bytes) -> bool:
        if kind == _BODY and channel == self._channel:
            self._left -= len(payload)
            if self._properties is None or self._left < 0:
                raise ConnectionError("a body that is longer than its header says")
            if self._size <= MOST_BODY or self._size - self._left - len(payload) < OVERSIZE_KEPT:
                self._body.append(payload)
        elif kind == _HEADER and channel == self._channel:
            if self._properties is not None or len(payload) < 12:
                raise ConnectionError("a delivery whose header is no header, or its second")
            self._properties = payload[12:]
            self._size = self._left = int.from_bytes(payload[4:12])
            if self._size > MOST_PASSED_OVER:
                raise ConnectionError(f"a body of {self._size} bytes")
        elif kind == _METHOD and payload.startswith(_DELIVER):
            if channel != self._consuming:
                self._dropping.add(channel)
                return True
            if self._channel >= 0:
                raise ConnectionError("a delivery that breaks off")
            names = 14 + int.from_bytes(payload[4:5])  # after the consumer's tag, the delivery's, and a flag
            self._channel, self._tag = channel, int.from_bytes(payload[names - 9 : names - 1])
            self._envelope = payload[names:]
            return True
        elif kind == _METHOD and payload.startswith(_CLOSINGS):
            self._dropping.discard(channel)
            if channel == self._channel:  # the rest of what was begun does not come any more
                self._channel, self._properties, self._body = -1, None, []
            return False
        else:
            return kind in (_HEADER, _BODY) and channel in self._dropping
        if not self._left:
            self._complete()
        return True

    def _complete(self) -> None:
        """Hand on the delivery that is whole."""
        found = properties.read(self._envelope, self._properties or b"")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        if self._size > MOST_BODY:
            body, found.fault = body[:OVERSIZE_KEPT], oversize(self._size)
        self._channel, self._properties, self._body = -1, None, []
        self._deliver(self._tag, body, found)
