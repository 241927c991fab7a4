"""One POST over aiohttp: what came back, as far as it came, and whether anything had been sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from ssl import SSLContext
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from bridge.destinations.oscar.answers import Exchange, retry_after
from bridge.destinations.oscar.deadline import Deadline

CONNECT_SECONDS = 10.0
NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)
EXCERPT_BYTES = 4096
_LONGEST_HEADER = 64 << 10
"""Bytes of a header line that are read; aiohttp's own 8,190 are too few for some a proxy adds."""
_ATTEMPT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
"""The rest of an attempt's time is the deadline's."""
_SUCCESS = re.compile(rb"HTTP/1\.[01] (2[0-9][0-9])[ \r\n]")
_STATUS_LINE_BYTES = 13


def session(*, tls: SSLContext | bool, fresh: bool, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """Make a session; with `fresh`, each of its connections carries one request.

    It has as many connections as requests under way, so that none waits for one in the time of its timeout.
    Those that are kept are let go after 15 idle seconds, before common servers hang up on them (60 s and
    more), since a request on a connection that is just being closed has an unknown outcome.

    The session reads neither cookies, nor proxies or ~/.netrc of the environment.
    """
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, ssl=tls, force_close=True)
        if fresh
        else _Connector(limit=0, ssl=tls, keepalive_timeout=15),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
        trust_env=False,
    )


async def post(
    session: aiohttp.ClientSession,
    url: URL,
    body: bytes,
    *,
    headers: Mapping[str, str],
    proxy: URL | None,
    deadline: Deadline,
) -> Exchange:
    """Make one POST. Never raises for what the network or the other side does.

    A success counts from its status line on, whatever is wrong with the rest of the answer: by then the other
    side has done its work. Of a failure the beginning of the body is read.
    """
    payload = _Body(body)
    status, reason, pause, beginning = 0, "", None, bytearray()
    try:
        async with (
            deadline,
            session.post(
                url,
                data=payload,
                headers=headers,
                allow_redirects=False,
                timeout=_ATTEMPT_TIMEOUT,
                proxy=proxy,
            ) as response,
        ):
            status = response.status
            if status == 201:
                await _read_away(response)
            else:
                reason, pause = response.reason or "", retry_after(response.headers.get(hdrs.RETRY_AFTER))
                # The rest of a success is read away: an application may be writing it still.
                await _read_start(response, beginning, EXCERPT_BYTES, close=not 200 <= status < 300)
    except NETWORK_ERRORS as error:
        # A body that does not end in time: the status has come, and counts.
        status = status or payload.success
        if not status:
            return Exchange(error=error, sent=payload.started)
    return Exchange(status, reason, beginning.decode("utf-8", "replace"), pause, sent=payload.started)


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
    """Remembers how an answer begins, where aiohttp gives nothing of one that it can't read whole."""

    begins = b""

    def data_received(self, data: bytes) -> None:
        if len(self.begins) < _STATUS_LINE_BYTES:
            self.begins += data[:_STATUS_LINE_BYTES]
        super().data_received(data)


class _Connector(aiohttp.TCPConnector):
    """Makes such connections. `_factory` is aiohttp's own: to be read again at each of its releases."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # `partial` is invariant
        self._factory = partial(_Connection, loop=asyncio.get_running_loop())  # type: ignore[assignment]


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
        found = None if self._connection is None else _SUCCESS.match(self._connection.begins)
        return int(found[1]) if found else 0

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        connection = getattr(writer, "protocol", None)
        assert isinstance(connection, _Connection)  # noqa: S101 - the connector makes no other
        connection.begins = b""
        self._connection = connection
        await super().write_with_length(writer, content_length)
