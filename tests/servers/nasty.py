"""An HTTP server over bare sockets that does to its connections what scripts say: it cuts, drips and lies.

A script is what happens on one connection, step by step. A step is bytes to send, at once and in one segment
where they fit, or one of the functions below. Where its steps are done, a connection gets good answers.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

NAME, STATUS = b"NAME", b"STATUS"
"""In the bytes of a script: the job that the last request named, which has as many letters; what the test has
chosen."""
_NAMED = re.compile(rb"\r\nX-Delegated-Job-ID: *([^\r\n]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\nContent-Length: *([0-9]+)", re.IGNORECASE)


class Connection:
    """One connection, in the hands of its script."""

    def __init__(self, number: int, plug: socket.socket, server: Server) -> None:
        self.number = number
        self.plug = plug
        self.server = server
        self.name = b""
        """Of the job in the last request."""
        self.body = b""
        """Of the last request, once it has been read."""
        self._length = 0
        self._come = b""
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLObject | None = None
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()

    async def begin_tls(self, context: ssl.SSLContext) -> None:
        self._tls = context.wrap_bio(self._coming, self._going, server_side=True)
        await self._by_tls(self._tls.do_handshake)

    async def receive(self) -> bytes:
        """Return what comes next. Raises EOFError when nothing does, and OSError."""
        if self._tls is None:
            data = await self._loop.sock_recv(self.plug, 65536)
        else:
            data = await self._by_tls(self._tls.read, 65536)
        if not data:
            raise EOFError
        return data

    def filled(self, data: bytes) -> bytes:
        """Return `data` with what stands for the name and the status."""
        return data.replace(NAME, self.name).replace(STATUS, self.server.status)

    async def send(self, data: bytes) -> None:
        data = self.filled(data)
        if self._tls is None:
            await self._loop.sock_sendall(self.plug, data)
        else:
            await self._by_tls(self._tls.write, data)

    async def say_no_more(self) -> None:
        """End this side of the connection, and its TLS in good order."""
        if self._tls is not None:
            with suppress(ssl.SSLError):  # it wants to read the other side's end
                self._tls.unwrap()
            await self._loop.sock_sendall(self.plug, self._going.read())
        self.plug.shutdown(socket.SHUT_WR)

    async def read_head(self) -> None:
        while b"\r\n\r\n" not in self._come:
            self._come += await self.receive()
        head, _, self._come = self._come.partition(b"\r\n\r\n")
        named, length = _NAMED.search(head), _LENGTH.search(head)
        self.name = named[1] if named else b""
        self._length = int(length[1]) if length else 0
        self.server.heard.append((self.number, self.name))

    async def read_body(self) -> None:
        while len(self._come) < self._length:
            self._come += await self.receive()
        self.body, self._come = self._come[: self._length], self._come[self._length :]

    async def _by_tls(self, call: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b""
            finally:
                if self._going.pending:  # an alert too
                    await self._loop.sock_sendall(self.plug, self._going.read())
            if not (data := await self._loop.sock_recv(self.plug, 65536)):
                raise EOFError
            self._coming.write(data)


Step = bytes | Callable[[Connection], Awaitable[None]]
Script = Sequence[Step]


async def play(connection: Connection, script: Script) -> None:
    """Take the steps of `script`, one after the other."""
    for step in script:
        await (connection.send(step) if isinstance(step, bytes) else step(connection))


async def head(connection: Connection) -> None:
    """Read the head of a request, and nothing of its body that does not come with it."""
    await connection.read_head()


async def body(connection: Connection) -> None:
    """Read the body of the request whose head has been read."""
    await connection.read_body()


async def request(connection: Connection) -> None:
    """Read a whole request."""
    await connection.read_head()
    await connection.read_body()


async def serve(connection: Connection) -> None:
    """Read a request and answer it with the name of its job."""
    await request(connection)
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nNAME" % len(connection.name))


async def reset(connection: Connection) -> None:
    """Reset the connection: the client's own bytes may be lost with it."""
    connection.plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise EOFError


async def close(connection: Connection) -> None:
    """Hang up in good order."""
    await connection.say_no_more()
    raise EOFError


async def cut(_connection: Connection) -> None:
    """Hang up without a word of TLS, as one does who dies."""
    raise EOFError


async def half_close(connection: Connection) -> None:
    """Say that nothing more comes from here, and listen on."""
    await connection.say_no_more()


async def until_gone(connection: Connection) -> None:
    """Say nothing until the client hangs up."""
    while True:
        await connection.receive()


async def read_nothing(_connection: Connection) -> None:
    """Neither read nor answer."""
    await asyncio.Event().wait()


async def told(connection: Connection) -> None:
    """Tell the test that the steps before are done."""
    connection.server.told.set()


async def wait(connection: Connection) -> None:
    """Wait for the test's word."""
    await connection.server.go.wait()


def turns(number: int) -> Step:
    """Let so many turns of the loop go by."""

    async def step(_connection: Connection) -> None:
        for _ in range(number):
            await asyncio.sleep(0)

    return step


def drip(data: bytes, *, seconds: float = 0.0) -> Step:
    """Send byte by byte, each in a segment of its own, which the client has time to read."""

    async def step(connection: Connection) -> None:
        for byte in connection.filled(data):
            await connection.send(bytes([byte]))
            for _ in range(2):
                await asyncio.sleep(seconds)

    return step


def flood(data: bytes, *, seconds: float = 0.0) -> Step:
    """Send it again and again, with so many seconds between, until the client hangs up."""

    async def step(connection: Connection) -> None:
        while True:
            await connection.send(data)
            connection.server.flooded += len(data)
            await asyncio.sleep(seconds)

    return step


class Server:
    """What a test sees of it."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.status = b"200 OK"
        self.connections = 0
        """How many it has accepted."""
        self.open = 0
        """How many of those it has not left yet."""
        self.heard: list[tuple[int, bytes]] = []
        """Each request of which a head was read: the number of its connection, from 1 on, and its job."""
        self.told, self.go = asyncio.Event(), asyncio.Event()
        self.flooded = 0
        """Bytes that a flood could send."""


@asynccontextmanager
async def served(
    *scripts: Script,
    then: Step = serve,
    tls: ssl.SSLContext | None = None,
    receive_buffer: int | None = None,
    at: tuple[str, int] = ("127.0.0.1", 0),
) -> AsyncIterator[Server]:
    """Serve a connection by each of `scripts`, in the order in which they come, and the later ones by `then`.

    With `receive_buffer` no more than about so many bytes come before they are read. A script that can't be
    played fails its test.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def hold(number: int, plug: socket.socket) -> None:
        connection = Connection(number, plug, server)
        with plug, suppress(OSError, EOFError):  # either side has hung up
            if tls is not None:
                await connection.begin_tls(tls)
            await play(connection, scripts[number - 1] if number <= len(scripts) else ())
            while True:
                await play(connection, [then])

    def left(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        server.open -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            failures.append(error)

    async def accept() -> None:
        for number in count(1):
            plug, _ = await loop.sock_accept(listener)
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.connections = number
            server.open += 1
            task = loop.create_task(hold(number, plug))
            tasks.add(task)
            task.add_done_callback(left)

    with socket.create_server(at) as listener:
        listener.setblocking(False)
        if receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        server = Server(listener.getsockname()[1], "http" if tls is None else "https")
        accepting = loop.create_task(accept())
        try:
            yield server
        finally:
            rest = {accepting, *tasks}
            for task in rest:
                task.cancel()
            await asyncio.wait(rest)
    if failures:
        raise failures[0]
