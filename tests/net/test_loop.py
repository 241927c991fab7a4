"""Names and addresses: one that is dead keeps nobody from another, whichever client asks."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bridge.net import loop as net_loop
from bridge.net.loop import Loop
from tests.servers.black_hole import black_hole
from tests.servers.descriptors import no_descriptor_left

LONG = 60.0
"""Seconds that a dead thing may take away from nobody."""
_real = socket.getaddrinfo


class Names:
    """What `socket.getaddrinfo` is told: `dead-…` never answers, `good` and the others have addresses."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {"good": ["127.0.0.1"]}
        self.asked: Counter[str] = Counter()
        self.over = threading.Event()

    def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as it is named there
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        host = host.decode() if isinstance(host, bytes) else host
        if flags & socket.AI_NUMERICHOST or (host not in self.addresses and not host.startswith("dead-")):
            return _real(host, port, family, type, proto, flags)
        self.asked[host] += 1
        if host.startswith("dead-"):
            self.over.wait(2 * LONG)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in self.addresses[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.over.set()


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(main, LONG))


@asynccontextmanager
async def serving(host: str = "127.0.0.1") -> Any:
    """An HTTP server that answers 201; gives its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, host, 0) as server:
        yield server.sockets[0].getsockname()[1]


async def by_aiohttp(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.post(url) as response:
        return response.status


async def by_streams(url: str) -> int:
    """As aiokafka, and the STOMP and AMQP clients, connect."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    status = int((await reader.read()).split()[1])
    writer.close()
    return status


clients = pytest.mark.parametrize("post", [by_aiohttp, by_streams])
Post = Callable[[str], Awaitable[int]]


@clients
def test_dead_names_keep_nobody_from_a_good_one(names: Names, post: Post) -> None:
    async def main() -> None:
        async with serving() as port:
            dead = [asyncio.create_task(post(f"http://dead-{number}:80")) for number in range(8)]
            while len(names.asked) < 8:
                await asyncio.sleep(0.01)
            assert await post(f"http://good:{port}") == 201
            assert not any(task.done() for task in dead), "those are still being looked up"
            for task in dead:
                task.cancel()
            await asyncio.gather(*dead, return_exceptions=True)

    run(main())


@clients
def test_an_address_that_never_answers_keeps_nobody_from_the_next_one(names: Names, post: Post) -> None:
    async def main() -> None:
        async with serving() as port:
            with black_hole("127.0.0.2", port), black_hole("127.0.0.3", port):
                names.addresses["half"] = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]
                assert await post(f"http://half:{port}") == 201

    run(main())


def test_a_name_is_looked_up_once_for_all_who_ask_at_the_same_time(names: Names) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        asking = [asyncio.create_task(loop.getaddrinfo("dead-0", 80)) for _ in range(20)]
        while not names.asked:
            await asyncio.sleep(0.01)
        asking[0].cancel()  # who gives up takes the answer from nobody
        names.over.set()
        for task in asking[1:]:
            with pytest.raises(socket.gaierror, match="no answer"):
                await task
        assert names.asked == {"dead-0": 1}
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("dead-0", 80)
        assert names.asked == {"dead-0": 2}, "what was told is not remembered"

    run(main())


def test_threads_for_names_are_bounded(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_loop, "_MOST_THREADS", 4)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        asking = [asyncio.create_task(loop.getaddrinfo(f"dead-{number}", 80)) for number in range(6)]
        asking.append(asyncio.create_task(loop.getaddrinfo("good", 80)))
        while len(names.asked) < 4:
            await asyncio.sleep(0.01)
        assert len(names.asked) == 4
        names.over.set()
        assert await asking.pop()
        await asyncio.gather(*asking, return_exceptions=True)
        assert names.asked == {**{f"dead-{number}": 1 for number in range(6)}, "good": 1}

    run(main())


def test_no_thread_to_be_had_is_no_end_of_a_name(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoThread(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(net_loop, "Thread", NoThread)
            with pytest.raises(OSError, match="can't start new thread"):
                await asyncio.get_running_loop().getaddrinfo("good", 80)
        assert await asyncio.get_running_loop().getaddrinfo("good", 80)

    run(main())


def test_a_loop_is_left_though_a_name_is_still_being_looked_up(names: Names) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.get_running_loop().getaddrinfo("dead-0", 80)

    run(main())
    assert not names.over.is_set()


def test_addresses_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net_loop, "Thread", None)

    async def main() -> None:
        for address in ("127.0.0.1", "::1"):
            found = await asyncio.get_running_loop().getaddrinfo(address, 80)
            assert found[0][4][:2] == (address, 80)

    run(main())


def test_no_descriptor_for_a_look_up_is_not_an_unknown_name() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
            await loop.getaddrinfo("nobody.invalid", 80)

    run(main())
