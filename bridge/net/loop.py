"""The event loop that all commands run in: how every client looks up names and connects.

All clients (aiohttp, aiobotocore, aiokafka, aiormq, our STOMP) come here, so what is said here holds
for each of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any, NamedTuple

import uvloop
from aiohappyeyeballs import start_connection

_MOST_THREADS = 64
"""Look-ups under way at once. Each is of another name, and a configuration has few of them."""
NEXT_ADDRESS_SECONDS = 0.25
"""How long one address is tried alone before the next one is tried beside it (RFC 8305, section 8)."""


class _Question(NamedTuple):
    host: Any
    port: Any
    family: int
    type: int
    proto: int
    flags: int


class Loop(uvloop.Loop):
    """An event loop in which one dead name or address keeps nobody from another one.

    uvloop looks names up in four threads, of which two may be slow, and waits for them at its end: two names
    whose server does not answer would stop all look-ups. It tries a name's addresses in turn, each until the
    kernel gives it up after two minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[_Question, asyncio.Future[Any]] = {}
        """Of the look-ups that wait or are under way."""
        self._waiting: deque[_Question] = deque()
        self._threads = 0

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the loop's interface names it so
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Look a name up, as `socket.getaddrinfo`, in a thread that nobody waits for at the end.

        Whoever asks the same at once waits for the same look-up. Raises OSError and UnicodeError.
        """
        question = _Question(host, port, family, type, proto, flags)
        try:
            return socket.getaddrinfo(*question._replace(flags=flags | socket.AI_NUMERICHOST))
        except socket.gaierror:
            pass  # a name
        if (answer := self._answers.get(question)) is None:
            answer = self._answers[question] = self.create_future()
            self._waiting.append(question)
            self._look_up_waiting()
        # Shielded, so that one who gives up does not take the answer from the others.
        addresses, error = await asyncio.shield(answer)
        if error is not None:
            raise error
        return addresses

    def _look_up_waiting(self) -> None:
        while self._waiting and self._threads < _MOST_THREADS:
            question = self._waiting.popleft()
            self._threads += 1
            try:
                # Not an executor's thread: those are waited for when the process ends.
                Thread(
                    target=self._look_up, args=(question,), name=f"look up {question.host}", daemon=True
                ).start()
            except RuntimeError as error:  # the system has no more threads
                self._threads -= 1
                self._answers.pop(question).set_result((None, OSError(str(error))))

    def _look_up(self, question: _Question) -> None:
        addresses: Any = None
        error: Exception | None = None
        try:
            addresses = socket.getaddrinfo(*question)
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is raised where the answer is awaited
            error = _no_descriptors() or failure
        with suppress(RuntimeError):  # the loop has been left
            self.call_soon_threadsafe(self._looked_up, question, addresses, error)

    def _looked_up(self, question: _Question, addresses: Any, error: Exception | None) -> None:
        self._threads -= 1
        answer = self._answers.pop(question)
        if not answer.done():
            answer.set_result((addresses, error))
        self._look_up_waiting()

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        **options: Any,
    ) -> Any:
        """Connect to the first address of `host` that answers, where the others are tried beside a slow one.

        Raises OSError when none does.
        """
        if host is None or options.get("local_addr") is not None:
            plug = options.get("sock")
            try:
                return await super().create_connection(
                    protocol_factory, host, port, family=family, proto=proto, flags=flags, **options
                )
            except BaseException:
                # uvloop closes what it has taken over, which it counts here. Of a connection that is reset at
                # once it forgets the socket, which the collector would close again: by then it is another's.
                if plug is not None and plug._io_refs:  # noqa: SLF001 - nobody else says it
                    plug.detach()
                raise
        addresses = await self.getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, proto=proto, flags=flags
        )
        plug = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, loop=self)
        try:
            if options.get("ssl") and options.get("server_hostname") is None:
                options["server_hostname"] = host
            return await self.create_connection(protocol_factory, sock=plug, **options)
        except BaseException:
            plug.close()
            raise


def _no_descriptors() -> OSError | None:
    """Return why nothing can be opened here: the C library then says that the name is unknown."""
    try:
        socket.socket().close()
    except OSError as error:
        return error
    return None
