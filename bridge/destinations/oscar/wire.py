"""A client of HTTP/1.1 for OSCAR's two calls, which make most of what an event costs.

It makes POSTs whose body is at hand and whose answer is of use in its beginning alone, and nothing else: no
redirects, cookies, compression, proxies (`proxied`) or pipelining.
"""

from __future__ import annotations

import asyncio
import math
import re
import select
import socket
import termios
from fcntl import ioctl
from ssl import SSLContext
from typing import Any

from aiohappyeyeballs import start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

from bridge.destinations.oscar.addresses import Addresses
from bridge.destinations.oscar.exchange import (
    CONNECT_SECONDS,
    EXCERPT_BYTES,
    LONGEST_LINE,
    STATUS_BYTES,
    AnswerLost,
    Head,
    NotSent,
    Reply,
    success_in,
)
from bridge.net.loop import NEXT_ADDRESS_SECONDS

_KEPT_SECONDS = 15.0
"""An idle connection's: common servers hang up after 60 s and more, and perhaps on the request that comes."""
_ALWAYS_FITS = 4096
"""Bytes of a request that a connection takes up at once, when the one before has been answered."""
_SLICE_BYTES = 16 << 10
"""Of an answer, between two looks at whether it is too long."""
_MOST_CHUNKS = 12_000
"""Pieces of a body that may come at once: an answer in more of them would hold the loop above 5 ms."""
_BEHIND = re.compile(rb"(?:\A|\n)\r?\n")
"""The end of an interim answer, or of its end, and empty lines before an answer."""
_CREATED = Reply(201)
_USUAL = 1024
"""Bytes of an answer that is remembered, at most."""
_TOO_LONG = f"the answer has more than {LONGEST_LINE} bytes before its body, or behind it"


class Wire:
    """A client of one server: a connection for each exchange under way, and those kept from former ones."""

    def __init__(self, url: URL, tls: SSLContext | None) -> None:
        """Connect to the host and port of `url`, encrypted if there is `tls`. Made while a loop runs."""
        host = url.raw_host or ""
        self._addresses = Addresses(host, url.port)
        self._name = host.rstrip(".") if tls else None
        """In the server's certificate, where no name ends in a dot."""
        self._place = f"{url.host_subcomponent}:{url.port}"
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()
        self._kept: dict[_Connection, None] = {}
        """Those that nobody uses, the one used last at the end."""
        self._timer: asyncio.TimerHandle | None = None
        """One for all, ends what takes too long, and what is idle too long."""
        self._wakes_at = math.inf
        self._closed = False

    async def exchange(
        self, head: Head, body: bytes, seconds: float, *, job: str = "", fresh: bool = False
    ) -> Reply:
        """Make one POST of `body`, for the Job `job` unless that is empty, in at most `seconds`.

        It goes on a connection of its own if `fresh`: on a kept one the server may be hanging up, and a
        request that it never read looks like one whose answer was lost.

        A success counts from its status line on; of another answer the head must be whole. The rest of a
        success is read away, since an application may be writing it still, that of a failure is not read.
        Raises NotSent and AnswerLost.
        """
        now = self._loop.time()
        connection = None if fresh else self._take(now)
        if connection is None:
            connection = await self._connect(now + seconds)
        try:
            answer = connection.ask(head.encode(job, len(body), fresh=fresh) + body, now + seconds)
            if connection.due < self._wakes_at:
                self._wake(connection.due)
            came = await answer
        except BaseException:
            connection.end()
            raise
        if fresh or not connection.is_reusable():
            connection.end()
        else:
            connection.due = self._loop.time() + _KEPT_SECONDS
            self._kept[connection] = None
            if connection.due < self._wakes_at:
                self._wake(connection.due)
        if isinstance(came, Reply):
            return came
        raise AnswerLost(came) from came

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        await self._addresses.close()
        for connection in tuple(self._open):
            connection.end(ConnectionError("the bridge is stopping"))
        while self._open:  # noqa: ASYNC110 - the loop does it in its next turns, and waits for nobody
            await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()

    def _take(self, now: float) -> _Connection | None:
        """Take the kept connection that was used last: so those that are not needed grow old."""
        while self._kept:
            connection, _ = self._kept.popitem()
            if connection.due > now and not connection.is_closing() and not connection.unseen(0):
                return connection
            connection.end()
        return None

    async def _connect(self, due: float) -> _Connection:
        """Raises NotSent."""
        addresses: list[Any] = []
        ends = due
        try:
            async with asyncio.timeout_at(due) as limit:
                addresses = await self._addresses.take()
                ends = min(due, self._loop.time() + CONNECT_SECONDS)
                limit.reschedule(ends)
                return await self._connect_to(addresses)
        except TimeoutError as error:
            if not addresses:
                told = f"the name server did not answer in time where {self._place} is"
                raise NotSent(error, told) from error
            if error.errno is not None or ends == due:
                raise NotSent(error, f"no connection to {self._place} in time") from error
            told = f"no connection to {self._place} within {CONNECT_SECONDS:g} s"
            raise NotSent(ConnectionError(told)) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise NotSent(error, f"no connection to {self._place}: {error}") from error

    async def _connect_to(self, addresses: list[Any]) -> _Connection:
        """Connect to the first that answers, where one that fails behind that leaves it to the others.

        Raises OSError, RuntimeError and ValueError.
        """
        tried: dict[socket.socket, Any] = {}

        def plug_for(address: Any) -> socket.socket:
            plug = socket.socket(*address[:3])
            tried[plug] = address
            return plug

        while True:
            plug = await start_connection(
                addresses,
                happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
                loop=self._loop,
                socket_factory=plug_for,
            )
            try:
                return await self._begin(plug)
            except OSError:
                addresses = [address for address in addresses if address is not tried[plug]]
                if not addresses:
                    raise

    async def _begin(self, plug: socket.socket) -> _Connection:
        """Make a connection of a socket. Raises OSError, RuntimeError and ValueError."""
        try:
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await self._loop.create_connection(
                lambda: _Connection(plug, self._open, self._kept),
                sock=plug,
                ssl=self._tls,
                server_hostname=self._name,
            )
        except BaseException as error:
            plug.close()
            if self._tls and isinstance(error, ConnectionError) and not error.errno:
                raise ConnectionError("the other side hung up during the TLS handshake") from error
            raise
        # By TLS tickets for later may have come.
        if self._closed or connection.is_closing() or (not self._tls and connection.unseen(0)):
            connection.end()
            raise ConnectionError("the other side hung up, or spoke before it was asked")
        # Not as it is made: uvloop tells no connection of its end that was made for one who gave up.
        self._open.add(connection)
        return connection

    def _wake(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = self._loop.call_at(when, self._sweep)

    def _sweep(self) -> None:
        """End what is due, and sleep until the next is."""
        self._timer, self._wakes_at = None, math.inf
        now = self._loop.time()
        for connection in [one for one in self._open if one.due <= now]:
            connection.end(TimeoutError("no answer in time"))
        if (when := min((one.due for one in self._open), default=math.inf)) < math.inf:
            self._wake(when)


class _Connection(asyncio.Protocol):
    """One connection, with one parser for all its answers: another would not know where the first ended.

    What begins while no answer is awaited ends it, as half of that would be taken for the next answer.
    """

    def __init__(self, plug: socket.socket, every: set[_Connection], kept: dict[_Connection, None]) -> None:
        look = select.poll()
        look.register(plug, select.POLLIN)
        self.unseen = look.poll
        """With 0: what came, if only that the other side hung up, and the loop has not seen yet."""
        self._new_future = asyncio.get_running_loop().create_future
        self._plug = plug
        self._every = every
        self._kept = kept
        self._answer: asyncio.Future[Reply | Exception] | None = None
        self.due = math.inf
        """The loop's time at which it ends, unless what is awaited has come."""
        self._fits = True
        """Whether the request is so short that all of it has gone."""
        self._bodiless = self._lines = self._chunks = 0
        """Bytes since the last of a body; bytes of header lines; pieces of a body that came at once."""
        self._usual = b""
        """The last 201 that came whole and at once. The same bytes say the same again (dates last a second),
        and would leave the parser at the beginning of an answer, where it is: it need not read them."""
        self._begin()

    def _begin(self) -> None:
        self._status = 0
        self._start = self._reason = self._beginning = b""
        self._headers: dict[str, str] = {}
        self._headed = self._whole = False
        """Whether the head came whole, of no interim answer; whether all did, and the connection is left."""

    def ask(self, request: bytes, due: float) -> asyncio.Future[Reply | Exception]:
        """Send a request, and return what becomes its answer, or the reason why none came by `due`."""
        if self._status or self._bodiless:  # else the last answer was the usual one, which leaves no trace
            self._begin()
            self._bodiless = self._lines = 0
        self._whole = False
        self.due = due
        self._fits = len(request) <= _ALWAYS_FITS
        self._answer = answer = self._new_future()
        self._transport.write(request)
        return answer

    def is_reusable(self) -> bool:
        """Tell whether it can be used once more: question and answer have gone their ways, wholly."""
        return (
            self._whole
            and not self.is_closing()
            and not self._transport.get_write_buffer_size()
            # By TLS uvloop does not say what it has encrypted and not sent; then the kernel has too much too.
            and (self._fits or not any(ioctl(self._plug, termios.TIOCOUTQ, bytes(4))))
        )

    def end(self, error: Exception | None = None) -> None:
        """Close at once; what came of an answer is its answer, if it is enough, and `error` otherwise."""
        self.due = math.inf
        self._kept.pop(self, None)
        if not self.is_closing():
            self._transport.abort()
        self._tell(error)

    def _tell(self, error: Exception | None = None) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():  # cancelled
            return
        if not self._status:  # which the parser tells when a reason or a header follows
            self._status = success_in(self._start)
        if self._status == 201:
            answer.set_result(_CREATED)
        elif self._headed or 200 <= self._status < 300:
            reason = self._reason.decode("utf-8", "replace")
            answer.set_result(Reply(self._status, reason, self._headers, self._beginning))
        else:
            answer.set_result(error or ConnectionError("the other side closed the connection"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # of a stream
        self.is_closing = transport.is_closing
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(  # as aiohttp's parser has them
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    def data_received(self, data: bytes) -> None:
        begins = not (self._status or self._bodiless) and self._answer is not None
        if begins and data == self._usual:
            self._whole = True
            answer, self._answer = self._answer, None
            if answer is not None and not answer.done():
                answer.set_result(_CREATED)
            return
        self._chunks = 0
        if len(data) <= _SLICE_BYTES:
            self._read(data)
            if begins and self._whole and self._status == 201 and len(data) <= _USUAL:
                self._usual = b"" if self.is_closing() else data
            return
        for start in range(0, len(data), _SLICE_BYTES):
            if self.is_closing():
                return
            self._read(data[start : start + _SLICE_BYTES])

    def _read(self, data: bytes) -> None:
        self._bodiless += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            ours = error.__context__  # what was raised below
            self._start += data[:STATUS_BYTES]
            self.end(ours if isinstance(ours, ValueError) else ValueError(f"the answer is no HTTP: {error}"))
        else:
            if not self._status:
                self._start = _BEHIND.split(self._start + data)[-1][:STATUS_BYTES]
            if self._bodiless > LONGEST_LINE:
                self.end(ValueError(_TOO_LONG))

    def eof_received(self) -> None:
        self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc)
        self._every.discard(self)
        self.is_closing = lambda: True
        del self._parser, self._transport  # which hold this connection

    def on_message_begin(self) -> None:
        if self._answer is None:
            raise ValueError("an answer to no question")

    def on_status(self, reason: bytes) -> None:
        self._status = self._parser.get_status_code()
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._status = status = self._status or self._parser.get_status_code()
        self._lines += len(name) + len(value) + 4
        if self._lines > LONGEST_LINE:
            raise ValueError(_TOO_LONG)
        if not self._headed and not 200 <= status < 300:
            self._headers.setdefault(name.decode("latin-1").lower(), value.decode("utf-8", "replace").strip())

    def on_headers_complete(self) -> None:
        self._status = status = self._status or self._parser.get_status_code()
        self._headed = status >= 200 or status == 101

    def on_body(self, data: bytes) -> None:
        self._bodiless = 0
        self._chunks += 1
        if self._chunks > _MOST_CHUNKS:
            raise ValueError("the answer comes in too many pieces")
        if self._status != 201 and len(self._beginning) < EXCERPT_BYTES:
            self._beginning += data[: EXCERPT_BYTES - len(self._beginning)]
            if len(self._beginning) == EXCERPT_BYTES and not 200 <= self._status < 300:
                self.end()

    def on_message_complete(self) -> None:
        if self._headed:
            self._whole = self._status != 101 and self._parser.should_keep_alive()
            self._tell()
        else:  # the answer itself follows (RFC 9110, 15.2)
            self._begin()
