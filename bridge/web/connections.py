"""Connections of the HTTP port: few, and none for long, whoever opens them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import structlog
from aiohttp import web

REQUEST_SECONDS = 10.0
"""From a connection to the end of its one answer. What takes longer is no probe and no Prometheus."""
MOST_CONNECTIONS = 64
"""Open at once; a new one takes the place of the oldest. Each takes a descriptor that the bridge may need.
Those that have not agreed on TLS yet are counted by themselves."""
_FAREWELL_SECONDS = 1.0
"""In which the other side may say that it has heard the end of TLS."""

_log = structlog.get_logger(__name__)


class Connections:
    """Makes the connections of a server, so that nobody can have many, or one for long."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """Make connections by TLS where it is given."""
        self._tls = tls
        self._handshakes: dict[asyncio.Transport, asyncio.Task[None]] = {}
        """Under way, the oldest first."""
        self._working: set[web.RequestHandler] = set()

    def admit(self, server: web.Server) -> asyncio.BaseProtocol:
        """Make one of `server`, for the loop that listens."""
        if self._tls is None:
            return self._make(server)
        return _Unsafe(partial(self._begin, server, self._tls))

    @contextmanager
    def working(self, connection: web.RequestHandler) -> Iterator[None]:
        """Leave `connection` alone while inside: whoever asked may ask, and has been heard out.

        Whoever calls bounds how many there are, and how long each may take.
        """
        self._working.add(connection)
        try:
            yield
        finally:
            self._working.discard(connection)
            asyncio.get_running_loop().call_later(REQUEST_SECONDS, abort, connection)

    async def close(self) -> None:
        """End those that have not agreed on TLS yet; the others are the server's."""
        handshakes = list(self._handshakes.values())
        for handshake in handshakes:
            handshake.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)

    def _make(self, server: web.Server) -> web.RequestHandler:
        there = [one for one in server.connections if one not in self._working]
        for oldest in there[: max(0, len(there) + 1 - MOST_CONNECTIONS)]:
            abort(oldest)
        connection = server()
        asyncio.get_running_loop().call_later(REQUEST_SECONDS, self._hang_up, connection)
        return connection

    def _hang_up(self, connection: web.RequestHandler) -> None:
        if connection not in self._working:
            abort(connection)

    def _begin(
        self, server: web.Server, tls: ssl.SSLContext, unsafe: _Unsafe, transport: asyncio.Transport
    ) -> None:
        """Agree on TLS. By `create_server(ssl=…)` nobody could count them meanwhile, or end them."""
        for oldest in list(self._handshakes)[: max(0, len(self._handshakes) + 1 - MOST_CONNECTIONS)]:
            oldest.abort()
        handshake = asyncio.get_running_loop().create_task(
            self._shake_hands(server, tls, unsafe, transport), name="TLS with a caller"
        )
        self._handshakes[transport] = handshake
        handshake.add_done_callback(lambda _: self._handshakes.pop(transport, None))

    async def _shake_hands(
        self, server: web.Server, tls: ssl.SSLContext, unsafe: _Unsafe, transport: asyncio.Transport
    ) -> None:
        try:
            safe = await asyncio.get_running_loop().start_tls(
                transport,
                unsafe,
                tls,
                server_side=True,
                ssl_handshake_timeout=REQUEST_SECONDS,
                ssl_shutdown_timeout=_FAREWELL_SECONDS,
            )
        except OSError:  # no TLS, another version, a certificate that is not believed: the caller's affair
            transport.abort()
            return
        except Exception:  # noqa: BLE001 - told in the log; one caller's must not end the others'
            transport.abort()
            _log.exception("a caller is lost by a defect")
            return
        if safe is None or unsafe.lost:
            transport.abort()
            return
        connection = self._make(server)
        safe.set_protocol(connection)
        connection.connection_made(safe)
        if unsafe.early:
            connection.data_received(bytes(unsafe.early))


class _Unsafe(asyncio.Protocol):
    """A connection until TLS is agreed on, and somebody takes it over."""

    def __init__(self, begin: Callable[[_Unsafe, asyncio.Transport], None]) -> None:
        self.early = bytearray()
        """What came in the same breath as the end of the handshake."""
        self.lost = False
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast("asyncio.Transport", transport)
        plain.pause_reading()  # what comes is for TLS to read
        self._begin(self, plain)

    def data_received(self, data: bytes) -> None:
        self.early += data

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost = True


def abort(connection: web.RequestHandler) -> None:
    """End a connection at once, whatever is under way on it."""
    transport = cast("asyncio.WriteTransport | None", connection.transport)  # uvloop's is none by its class
    if transport is not None:
        transport.abort()  # to close it would wait for who does not read
