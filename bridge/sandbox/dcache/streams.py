"""The open event streams: what is written to a client, and what keeps it from being written."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

from aiohttp import web

from bridge.sandbox.dcache.channel import Channel
from bridge.sandbox.dcache.faults import Faults


class Stream:
    """One client's connection. There are no keep-alive comments: dCache writes events and nothing else."""

    def __init__(self, transport: asyncio.Transport, faults: Faults) -> None:
        self._transport = transport
        self._faults = faults
        self._queue: list[bytes] = []
        self._wake = asyncio.Event()
        self._stalled = False
        self._closing = False
        self._cut = False

    def send(self, message: bytes) -> None:
        """Queue a message, unless the stream is ending."""
        if self._closing or self._cut:
            return
        self._queue.append(message)
        self._wake.set()
        if self._faults.drop_after is not None and message.startswith(b"event: inotify"):
            self._faults.drop_after -= 1
            if self._faults.drop_after <= 0:
                self._faults.drop_after = None
                self.cut()

    def close(self) -> None:
        """End the response in good order after what is queued."""
        self._closing = True
        self._wake.set()

    def cut(self) -> None:
        """Close the connection in the midst of the response, after what is queued."""
        self._cut = True
        self._wake.set()
        if self._stalled:
            self._transport.abort()

    def abort(self) -> None:
        """Reset the connection; what is queued is lost."""
        self._cut = True
        self._queue.clear()
        self._transport.abort()

    def stall(self, *, stalled: bool) -> None:
        """Write nothing more, or go on."""
        self._stalled = stalled
        self._wake.set()

    async def run(self, response: web.StreamResponse) -> None:
        """Write until the stream ends. ConnectionError or CancelledError when the client went."""
        while True:
            if self._faults.comments_every_seconds:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._faults.comments_every_seconds):
                        await self._wake.wait()
                await response.write(b": a proxy is here\n\n")
            else:
                await self._wake.wait()
            self._wake.clear()
            if self._stalled:
                continue
            if self._queue:
                chunk = b"".join(self._queue)
                self._queue.clear()
                await response.write(chunk)
            if self._cut:
                self._transport.close()
                return
            if self._closing and not self._queue:
                return


class Streams:
    """All of them."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._open: set[Stream] = set()

    async def serve(self, request: web.Request, channel: Channel) -> web.StreamResponse:
        """Answer `GET channel` of a client that accepts `text/event-stream`."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if request.transport is None or channel.closed:
            return response
        stream = Stream(request.transport, self._faults)
        self._open.add(stream)
        channel.connect(stream, request.headers.get("Last-Event-ID", ""))
        try:
            await stream.run(response)
        except ConnectionError:
            pass
        finally:
            self._open.discard(stream)
            channel.disconnected(stream)
        return response

    def __iter__(self) -> Iterator[Stream]:
        return iter(tuple(self._open))

    def __len__(self) -> int:
        return len(self._open)
