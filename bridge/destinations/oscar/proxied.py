"""What `wire` does, over aiohttp, which can talk to proxies; and the sessions of all other calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from ssl import SSLContext
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from yarl import URL

from bridge.destinations.oscar.exchange import (
    CONNECT_SECONDS,
    EXCERPT_BYTES,
    JOB_HEADER,
    LONGEST_LINE,
    STATUS_BYTES,
    AnswerLost,
    Head,
    NotSent,
    Reply,
    success_in,
)
from bridge.net.unanswered import why_unanswered

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
_ATTEMPT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
"""The rest of an attempt's time is its caller's."""


def session(
    *, tls: SSLContext | None, fresh: bool = False, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientSession:
    """Make a session; with `fresh`, each of its connections carries one request.

    It has as many connections as requests under way, so that none waits for one in the time of its timeout.
    Those that are kept are let go after 15 idle seconds, before common servers hang up on them (60 s and
    more), since a request on a connection that is just being closed has an unknown outcome.

    The session reads neither cookies, nor proxies or ~/.netrc of the environment.
    """
    ssl = True if tls is None else tls
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, ssl=ssl, force_close=True)
        if fresh
        else _Connector(limit=0, ssl=ssl, keepalive_timeout=15),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
        trust_env=False,
    )


class Proxied:
    """Does what `wire.Wire` does, through a proxy."""

    def __init__(self, proxy: URL | None, tls: SSLContext | None) -> None:
        """Without a `proxy` it asks directly. `tls` is for servers whose URL has https."""
        self._proxy = proxy
        self._tls = tls
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        """By whether each of their connections carries one request."""

    async def exchange(
        self, head: Head, body: bytes, seconds: float, *, job: str = "", fresh: bool = False
    ) -> Reply:
        """Make one POST, as `wire.Wire.exchange`. Raises NotSent and AnswerLost."""
        if fresh not in self._sessions:
            self._sessions[fresh] = session(tls=self._tls, fresh=fresh)
        payload = _Body(body)
        status, reason, headers, beginning = 0, "", {}, bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._sessions[fresh].post(
                    head.url,
                    data=payload,
                    headers={**head.headers, JOB_HEADER: job} if job else head.headers,
                    allow_redirects=False,
                    timeout=_ATTEMPT_TIMEOUT,
                    proxy=self._proxy,
                ) as response,
            ):
                status, reason = response.status, response.reason or ""
                success = 200 <= status < 300
                if not success:
                    headers = {name.lower(): value for name, value in response.headers.items()}
                if status == 201:
                    await _read_away(response)
                else:
                    # The rest of a success is read away: an application may be writing it still.
                    await _read_start(response, beginning, EXCERPT_BYTES, close=not success)
        except NETWORK_ERRORS as error:
            # A body that does not end in time: the status has come, and counts.
            status = status or payload.success
            if not payload.started:
                raise NotSent(error, why_unanswered(error)) from error
            if not status:
                raise AnswerLost(error, why_unanswered(error)) from error
        if not payload.started:
            raise NotSent(ConnectionError("the other side spoke before it was asked"))
        return Reply(status, reason, headers, bytes(beginning))

    async def close(self) -> None:
        """Close all connections."""
        while self._sessions:
            await self._sessions.popitem()[1].close()


async def start_of(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the first `limit` bytes of the body, and read no more of it."""
    beginning = bytearray()
    await _read_start(response, beginning, limit, close=True)
    return bytes(beginning)


async def _read_start(response: aiohttp.ClientResponse, into: bytearray, limit: int, *, close: bool) -> None:
    """Read up to `limit` bytes `into`; a body that breaks off has what came of it.

    What is longer is not read on, and its connection closed; unless `close`, the rest is read away.
    """
    try:
        async for chunk in response.content.iter_any():
            into += chunk[: limit - len(into)]
            if len(into) >= limit:
                if close:
                    response.close()
                else:
                    await _read_away(response)
                break
    except NETWORK_ERRORS:
        response.close()


async def _read_away(response: aiohttp.ClientResponse) -> None:
    """Read the rest of the body, so that the connection can be kept."""
    if response.content.at_eof():
        return
    try:
        async for _ in response.content.iter_any():
            pass
    except NETWORK_ERRORS:
        response.close()


class _Connection(ResponseHandler):
    """Remembers how an answer begins, where aiohttp gives nothing of one that it can't read whole.

    What comes while nobody asks ends it, as aiohttp would take that, or half of it, for the next answer.
    """

    begins = b""
    kept = False
    """Whether nobody uses it."""

    def set_response_params(self, **how: Any) -> None:
        self.kept = False
        super().set_response_params(**how)

    def data_received(self, data: bytes) -> None:
        if self.kept and data:  # aiohttp calls this with nothing too, to read on
            self.close()
            return
        if len(self.begins) < STATUS_BYTES:
            self.begins += data[:STATUS_BYTES]
        super().data_received(data)


class _Connector(aiohttp.TCPConnector):
    """Makes such connections. What it reaches into is aiohttp's own: to be read again at each release."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # `partial` is invariant
        self._factory = partial(_Connection, loop=asyncio.get_running_loop())  # type: ignore[assignment]

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        assert isinstance(protocol, _Connection)  # noqa: S101 - it makes no other
        protocol.kept = True
        super()._release(key, protocol, should_close=should_close)


class _Body(aiohttp.BytesPayload):
    """A body that knows whether it went on its way: aiohttp sends the headers with its first bytes."""

    _connection: _Connection | None = None

    @property
    def started(self) -> bool:
        """Whether any of it may have been sent."""
        return self._connection is not None

    @property
    def success(self) -> int:
        """The status of the answer that began to come, if that was a success; else 0."""
        return 0 if self._connection is None else success_in(self._connection.begins)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        connection = getattr(writer, "protocol", None)
        assert isinstance(connection, _Connection)  # noqa: S101 - the connector makes no other
        connection.begins = b""
        self._connection = connection
        await super().write_with_length(writer, content_length)
