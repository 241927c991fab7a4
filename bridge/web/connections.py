"""Connections of the HTTP port: few, and none for long, whoever opens them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from aiohttp import web

REQUEST_SECONDS = 10.0
"""From a connection to the end of its one answer. What takes longer is no probe and no Prometheus."""
MOST_CONNECTIONS = 64
"""Open at once; a new one takes the place of the oldest. Each takes a descriptor that the bridge may need."""


class Connections:
    """Makes the connections of a server, so that nobody can have many, or one for long."""

    def __init__(self) -> None:
        self._working: set[web.RequestHandler] = set()

    def admit(self, server: web.Server) -> web.RequestHandler:
        """Make one of `server`, for the loop that listens."""
        there = [one for one in server.connections if one not in self._working]
        for oldest in there[: max(0, len(there) + 1 - MOST_CONNECTIONS)]:
            abort(oldest)
        connection = server()
        asyncio.get_running_loop().call_later(REQUEST_SECONDS, self._hang_up, connection)
        return connection

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

    def _hang_up(self, connection: web.RequestHandler) -> None:
        if connection not in self._working:
            abort(connection)


def abort(connection: web.RequestHandler) -> None:
    """End a connection at once, whatever is under way on it."""
    transport = cast("asyncio.WriteTransport | None", connection.transport)  # uvloop's is none by its class
    if transport is not None:
        transport.abort()  # to close it would wait for who does not read
