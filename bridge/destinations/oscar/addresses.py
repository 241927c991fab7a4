"""The addresses of a server, looked up once for all who connect, who take them in turns."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

_KNOWN_SECONDS = 10.0
"""How long the addresses of a name are believed."""


class Addresses:
    """The addresses of one name."""

    def __init__(self, host: str, port: int | None) -> None:
        """Look up `host` as it is written: one that ends in a dot is looked for in no search domain."""
        self._host = host
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._known: list[Any] = []
        self._until = -math.inf
        self._turn = 0
        """How often they were taken."""
        self._look_up: asyncio.Task[Exception | None] | None = None

    async def take(self) -> list[Any]:
        """Return them as getaddrinfo does, each time beginning with the next one.

        Who gives up leaves the look-up to the others, and what it finds late to who comes then. Raises
        OSError, RuntimeError and ValueError.
        """
        if self._loop.time() >= self._until:
            if self._look_up is None:
                self._look_up = self._loop.create_task(self._ask())
            look_up = self._look_up
            await asyncio.wait([look_up])
            if look_up.cancelled():
                raise ConnectionError("the bridge is stopping")
            if (error := look_up.result()) is not None:
                raise error
        first = self._turn % len(self._known)
        self._turn += 1
        return self._known[first:] + self._known[:first]

    async def close(self) -> None:
        """End a look-up under way."""
        if self._look_up is not None:
            self._look_up.cancel()
            await asyncio.wait([self._look_up])

    async def _ask(self) -> Exception | None:
        """Return why it failed: perhaps nobody is left to whom it could be raised."""
        try:
            self._known = await self._loop.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
            self._until = self._loop.time() + _KNOWN_SECONDS
        except (OSError, RuntimeError, ValueError) as error:
            return error
        finally:
            self._look_up = None
        return None
