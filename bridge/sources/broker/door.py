"""How aiormq gets its connection: one that is there already, and with frames that it can read.

aiormq's reader has pamqp decode each frame, and ends the connection when that raises. One message whose
header pamqp can't decode would so end every link it comes by, and take the deliveries of the others along. So
what is foreign in a delivery goes through both as bytes: here the properties, the exchange and the routing
key are put into a header table of one's own, and `foreign` reads them from it.

To be read again at each release of aiormq and pamqp, on which this relies:
- aiormq `connection.FrameReceiver.get_frame` asks `at_eof()`, and reads each frame by `readexactly`; an
  OSError of it loses the connection;
- aiormq `channel.Channel._read_content` reads bodies until they are as long as their header has said;
- aiormq `channel.Channel.consumers` are the callbacks of consumers, by their tags;
- pamqp `decode.TABLE_MAPPING`: a value of type `x` is bytes.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, cast

from aiormq.abc import DeliveredMessage
from aiormq.connection import TransportFactory
from yarl import URL

from bridge.sources.broker import properties
from bridge.sources.broker.link import MOST_BODY, OVERSIZE_KEPT, Wire, oversize
from bridge.sources.broker.properties import Foreign

CONSUMER = "bridge"
"""Who gets every delivery, by whichever consumer it comes. aiormq forgets a consumer that is cancelled, and
what RabbitMQ's channel was given for it before can still be on its way."""
_MOST_FRAME = 2**24
"""Bytes of one frame; RabbitMQ's are 128 KiB by default."""
_METHOD, _HEADER, _BODY = 1, 2, 3
_DELIVER = struct.pack(">HH", 60, 60)
_TO_CONSUMER = bytes([len(CONSUMER)]) + CONSUMER.encode()
_HEADERS_ALONE = b"\x20\x00"
"""The flags of a content header that has a header table, and nothing else."""
_NO_NAMES = b"\x00\x00"
"""An empty exchange and an empty routing key."""


class Door(TransportFactory):
    """Gives aiormq the connection of `wire`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return cast("asyncio.StreamReader", Frames(self._wire.reader)), self._wire.writer


def foreign(message: DeliveredMessage) -> Foreign:
    """Return what its publisher told of `message` beside its body; it came through `Frames`."""
    told = cast("dict[str, bytearray]", message.header.properties.headers or {})
    found = properties.read(bytes(told.get("envelope", b"")), bytes(told.get("properties", b"")))
    if "size" in told:
        found.fault = oversize(int.from_bytes(told["size"]))
    return found


class Frames:
    """What aiormq reads from: the frames of `reader`, made safe."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._safe = bytearray()
        """Of the frame that is being read."""
        self._envelopes: dict[int, bytes] = {}
        """By channel: exchange and routing key of the delivery whose header comes next."""
        self._oversize: dict[int, tuple[int, int]] = {}
        """By channel: how many bytes of a body are still to be handed on, and then to be dropped."""

    def at_eof(self) -> bool:
        return not self._safe and self._reader.at_eof()

    async def readexactly(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises IncompleteReadError at the end, and ConnectionError."""
        while len(self._safe) < count:
            head = await self._reader.readexactly(7)
            if head.startswith(b"AMQP"):  # the answer of who speaks another version
                self._safe += head
                continue
            kind, channel, length = struct.unpack(">BHI", head)
            if length > _MOST_FRAME:
                raise ConnectionError(f"a frame of {length} bytes is no AMQP")
            payload = await self._reader.readexactly(length + 1)
            safe = self._made_safe(kind, channel, payload[:-1])
            if safe is not None:
                self._safe += struct.pack(">BHI", kind, channel, len(safe)) + safe + payload[-1:]
        taken = bytes(self._safe[:count])
        del self._safe[:count]
        return taken

    def _made_safe(self, kind: int, channel: int, payload: bytes) -> bytes | None:
        """Return `payload` as aiormq may see it; None when it may not."""
        if kind == _METHOD and payload.startswith(_DELIVER):
            names = 14 + int.from_bytes(payload[4:5])  # after the consumer's tag, the delivery's, and a flag
            self._envelopes[channel] = payload[names:]
            return _DELIVER + _TO_CONSUMER + payload[names - 9 : names] + _NO_NAMES
        if kind == _HEADER and len(payload) >= 12:
            return self._header(channel, payload)
        if kind == _BODY and channel in self._oversize:
            return self._part_of_oversize(channel, payload)
        return payload

    def _header(self, channel: int, payload: bytes) -> bytes:
        size = int.from_bytes(payload[4:12])
        table = _entry(b"envelope", self._envelopes.pop(channel, b"")) + _entry(b"properties", payload[12:])
        if size > MOST_BODY:
            self._oversize[channel] = (OVERSIZE_KEPT, size - OVERSIZE_KEPT)
            table += _entry(b"size", payload[4:12])
            size = OVERSIZE_KEPT
        return payload[:4] + struct.pack(">Q", size) + _HEADERS_ALONE + struct.pack(">I", len(table)) + table

    def _part_of_oversize(self, channel: int, payload: bytes) -> bytes | None:
        keep, drop = self._oversize[channel]
        kept = payload[:keep]
        keep, drop = keep - len(kept), drop - (len(payload) - len(kept))
        if keep + drop > 0:
            self._oversize[channel] = (keep, drop)
        else:
            del self._oversize[channel]
        return kept or None


def _entry(name: bytes, value: bytes) -> bytes:
    """Return a field of a table: bytes."""
    return struct.pack(">B", len(name)) + name + b"x" + struct.pack(">I", len(value)) + value
