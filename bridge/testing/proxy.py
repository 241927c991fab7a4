"""A TCP proxy on loopback that refuses, cuts and stalls connections, and can end TLS for a plain server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from types import TracebackType


class Proxy:
    """Passes bytes between its own port and `target_port`; faults on request.

    With `tls` it ends TLS on its own port and speaks plainly to the target.
    """

    def __init__(
        self,
        target_port: int,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.target_port = target_port
        self.host = host
        self.port = port
        self.accepted = 0
        """Connections taken since the start."""
        self.garbled: tuple[bytes, bytes] | None = None
        """What of the target's bytes is replaced by what, of the same length."""
        self.asked: Callable[[bytes], bool] = lambda _data: True
        """Shown what a client sends, before it goes on; False cuts the connection instead."""
        self._heard = time.monotonic()
        self._longest_silence = 0.0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection there is; new ones are taken."""
        for writer in list(self._connections):
            writer.transport.abort()

    def refuse(self, refusing: bool = True) -> None:
        """Cut what there is and drop every new connection, until told otherwise."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def stall(self, stalling: bool = True) -> None:
        """Keep connections open and let no byte through, until told otherwise."""
        if stalling:
            self._flowing.clear()
        else:
            self._flowing.set()

    def listen(self) -> None:
        """Begin to measure anew how long the target says nothing."""
        self._heard, self._longest_silence = time.monotonic(), 0.0

    @property
    def longest_silence(self) -> float:
        """Seconds that the target has said nothing at a time, since the last `listen`."""
        return max(self._longest_silence, time.monotonic() - self._heard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._refusing:
                return
            from_upstream, upstream = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._connections |= {writer, upstream}
            pumps = [
                asyncio.create_task(self._pump(reader, upstream, garbles=False)),
                asyncio.create_task(self._pump(from_upstream, writer, garbles=True)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server's task for a connection has nobody to tell
        finally:
            for side in (writer, upstream):
                if side is not None:
                    self._connections.discard(side)
                    side.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, garbles: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                if garbles:
                    self._longest_silence, self._heard = self.longest_silence, time.monotonic()
                if not garbles and not self.asked(data):
                    return
                writer.write(data.replace(*self.garbled) if garbles and self.garbled else data)
                await writer.drain()
