"""As little HTTP/1.1 as the stand-ins of the bench need: whole requests in, answers out, nothing checked."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Mapping
from typing import cast
from urllib.parse import parse_qs, urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One connection of a client that waits for each answer."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._answering: asyncio.Task[None] | None = None

    def requested(self, received: bytearray, head: int, end: int) -> None:
        """Answer the request in `received`, whose head goes to `head` and whose body ends at `end`."""
        raise NotImplementedError

    async def told(self, path: str, query: Mapping[str, str]) -> object:
        """Give what is answered to a request that is not on the measured path."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while (head := received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(received, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(received) < end:
                return
            self.requested(received, head, end)
            del received[:end]

    def tell(self, received: bytearray) -> None:
        """Answer with what `told` gives for the request, when it does."""
        url = urlsplit(received[: received.index(b"\r\n")].split(b" ")[1].decode("ascii"))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self._answering = asyncio.create_task(self._tell(url.path, query))

    async def _tell(self, path: str, query: Mapping[str, str]) -> None:
        self.write(as_json(200, await self.told(path, query)))

    def write(self, answer: bytes) -> None:
        """Send a whole answer, if anybody is there."""
        if self._transport is not None:
            self._transport.write(answer)


def as_json(status: int, answer: object) -> bytes:
    """Give the whole answer that holds `answer`."""
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return b"HTTP/1.1 %d -\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


async def serve(connection: type[Connection], secure: ssl.SSLContext | None = None) -> None:
    """Print the URL, and with `secure` that of a door by TLS, each on its line; answer until killed."""
    loop = asyncio.get_running_loop()
    for scheme, context in {"http": None, **({"https": secure} if secure else {})}.items():
        server = await loop.create_server(connection, "127.0.0.1", 0, ssl=context)
        print(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.create_future()
