"""The two clients of OSCAR's calls, as tests call them: what a call comes to is a value for a table."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from ssl import PROTOCOL_TLS_SERVER, SSLContext, create_default_context
from typing import Any

import trustme
from yarl import URL

from bridge.destinations.oscar.exchange import AnswerLost, Head, NoReply, NotSent
from bridge.destinations.oscar.proxied import Proxied
from bridge.destinations.oscar.wire import Wire
from tests.pipeline.clock import VirtualLoop


class Loop(VirtualLoop):
    """Virtual time, with no thread that it would have to wait for."""

    async def getaddrinfo(self, host: Any, port: Any, **more: Any) -> Any:
        return socket.getaddrinfo(host, port, **more)


Outcome = tuple[int, bytes] | type[NoReply]
"""The status and the beginning of the body, or that there is none."""
LOST, NOT_SENT = AnswerLost, NotSent
CLIENTS: dict[str, Callable[[str, SSLContext | None], Wire | Proxied]] = {
    "wire": lambda url, tls: Wire(URL(url), tls),
    "aiohttp": lambda _url, tls: Proxied(None, tls),
}
"""Either is made for one server."""


class Caller:
    """Calls one server with one client."""

    def __init__(self, client: Wire | Proxied, url: str) -> None:
        self.client = client
        self.headers: dict[str, str] = {}
        """Of the last answer."""
        self.cause: BaseException | None = None
        """Why the last call had no answer."""
        self.told = ""
        """The same, as a person is told."""
        self._head = Head(URL(url) / "job" / "plants", {"Authorization": "Bearer something"})

    async def ask(
        self, job: str, body: bytes = b"{}", *, seconds: float = 30.0, fresh: bool = False
    ) -> Outcome:
        try:
            reply = await self.client.exchange(self._head, body, seconds, job=job, fresh=fresh)
        except NoReply as error:
            self.cause, self.told = error.cause, str(error)
            return type(error)
        self.headers = dict(reply.headers)
        return reply.status, reply.beginning


@asynccontextmanager
async def calling(client: str, url: str, tls: SSLContext | None = None) -> AsyncIterator[Caller]:
    made = CLIENTS[client](url, tls)
    try:
        yield Caller(made, url)
    finally:
        await made.close()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until it holds; who waits for nothing but sockets of this process needs no clock."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be")


@cache
def contexts() -> tuple[SSLContext, SSLContext]:
    """Contexts of a server and of a client that believe in each other."""
    authority = trustme.CA()
    server, client = SSLContext(PROTOCOL_TLS_SERVER), create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client
