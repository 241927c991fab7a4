"""Connections of the two clients of OSCAR's calls: when there is none, and when one is used again."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import pytest
import trustme
from aiohappyeyeballs import start_connection

from bridge.destinations.oscar.wire import Wire, _Connection
from tests.destinations.wires import CLIENTS, LOST, NOT_SENT, Caller, Loop, Outcome, calling, until
from tests.servers.black_hole import black_hole
from tests.servers.nasty import (
    Connection,
    Script,
    Server,
    Step,
    close,
    cut,
    drip,
    play,
    request,
    reset,
    serve,
    served,
    told,
    until_gone,
    wait,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nNAME"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKS = b"HTTP/1.1 409\r\nTransfer-Encoding:chunked\r\n\r\n4\r\nNAME\r\n0\r\n\r\n"

NAMED = "oscar.test"
"""A server's name."""

both = pytest.mark.parametrize("client", CLIENTS)
transports = pytest.mark.parametrize("transport", ["plain", "TLS"])


class Party(NamedTuple):
    """Contexts of servers, and of clients that believe their authority."""

    good: ssl.SSLContext
    expired: ssl.SSLContext
    misnamed: ssl.SSLContext
    demanding: ssl.SSLContext
    """Of a server that wants certificates of its clients."""
    demanding_early: ssl.SSLContext
    """The same by TLS 1.2, where the client hears of it in the handshake."""
    trusting: ssl.SSLContext
    certified: ssl.SSLContext
    """Of a client with a certificate."""
    strange: ssl.SSLContext
    """Of a client whose certificate is of another authority."""
    doubting: ssl.SSLContext
    """Of a client that believes in another authority."""


async def hello(connection: Connection) -> None:
    """Read what begins a handshake."""
    await connection.receive()


@cache
def party() -> Party:
    authority, other = trustme.CA(), trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)

    def server(*names: str, demands: bool = False, ends: datetime | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(
            *(names or ("127.0.0.1", NAMED)), not_before=yesterday - timedelta(days=1), not_after=ends
        ).configure_cert(context)
        if demands:
            context.verify_mode = ssl.CERT_REQUIRED
            authority.configure_trust(context)
        return context

    def client(trusts: trustme.CA, certified_by: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        trusts.configure_trust(context)
        if certified_by is not None:
            certified_by.issue_cert("bridge.example.org").configure_cert(context)
        return context

    early = server(demands=True)
    early.maximum_version = ssl.TLSVersion.TLSv1_2
    return Party(
        good=server(),
        expired=server(ends=yesterday),
        misnamed=server("other.example.org"),
        demanding=server(demands=True),
        demanding_early=early,
        trusting=client(authority),
        certified=client(authority, authority),
        strange=client(authority, other),
        doubting=client(other),
    )


@asynccontextmanager
async def world(
    client: str, transport: str, *scripts: Script, then: Step = serve
) -> AsyncIterator[tuple[Server, Caller]]:
    server_tls, client_tls = (party().good, party().trusting) if transport == "TLS" else (None, None)
    async with (
        served(*scripts, tls=server_tls, then=then) as server,
        calling(client, server.url, client_tls) as caller,
    ):
        yield server, caller


# --- No connection ----------------------------------------------------------------------------------------


@both
async def test_where_nobody_listens_nothing_is_sent(client: str) -> None:
    with socket.socket() as bound:  # bound, but it listens to nobody
        bound.bind(("127.0.0.1", 0))
        async with calling(client, f"http://127.0.0.1:{bound.getsockname()[1]}") as caller:
            assert await caller.ask("j-01") is NOT_SENT
            assert isinstance(caller.cause, OSError)


@both
async def test_to_a_name_that_is_none_nothing_is_sent(client: str) -> None:
    async with calling(client, "http://nobody.invalid:80") as caller:
        assert await caller.ask("j-01") is NOT_SENT
        assert isinstance(caller.cause, OSError)


@both
async def test_on_a_connection_that_never_comes_about_nothing_is_sent(client: str) -> None:
    with black_hole("127.0.0.1") as port:
        async with calling(client, f"http://127.0.0.1:{port}") as caller:
            assert await caller.ask("j-01", seconds=0.1) is NOT_SENT
            assert isinstance(caller.cause, TimeoutError)


@both
@pytest.mark.parametrize("end", [None, close, reset], ids=["", "close", "reset"])
async def test_who_speaks_before_it_is_asked_gives_no_answer_to_what_comes_next(
    client: str, end: Callable[[Connection], object] | None
) -> None:
    """It may refuse all who come, as a gateway that has too many connections does."""
    full = b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n"
    async with world(client, "plain", [full] if end is None else [full, end]) as (server, caller):
        assert await caller.ask("j-01") in (NOT_SENT, LOST, (503, b""))
        await until(lambda: not server.open)
        assert await caller.ask("j-02") == (200, b"j-02")


@pytest.mark.parametrize("end", [None, close, reset], ids=["", "close", "reset"])
async def test_what_came_before_the_question_is_no_answer(
    end: Callable[[Connection], object] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    script = [created, told, *([] if end is None else [end])]

    async def connect_late(*arguments: Any, **options: Any) -> socket.socket:
        plug = await start_connection(*arguments, **options)
        await server.told.wait()
        return plug

    monkeypatch.setattr("bridge.destinations.oscar.wire.start_connection", connect_late)
    async with world("wire", "plain", script) as (server, caller):
        assert await caller.ask("j-01") is NOT_SENT
        assert caller.told.endswith("the other side hung up, or spoke before it was asked")
        assert server.heard == []
        assert await caller.ask("j-02") == (200, b"j-02")


# --- Names ------------------------------------------------------------------------------------------------


class Names:
    """Tells the addresses of `NAMED` in the loop's place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str, seconds: float = 0.0) -> None:
        self.asked: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self._addresses = addresses
        self._seconds = seconds
        loop = asyncio.get_running_loop()
        self._loop_s = loop.getaddrinfo
        monkeypatch.setattr(loop, "getaddrinfo", self._tell)

    async def _tell(self, host: Any, port: Any, **more: Any) -> Any:
        if host not in (NAMED, f"{NAMED}."):
            return await self._loop_s(host, port, **more)
        self.asked.append(host)
        await asyncio.sleep(self._seconds)
        await self.go.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in self._addresses]


BAD: list[tuple[str, str, Script]] = [
    ("another's name", "misnamed", []),
    ("expired", "expired", []),
    ("closed before it", "", [close]),
    ("reset before it", "", [reset]),
    ("closed in it", "", [hello, close]),
]


@both
@pytest.mark.parametrize(("shown", "script"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_an_address_whose_handshake_fails_leaves_the_call_to_the_others(
    client: str, shown: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3")
    tls = getattr(party(), shown) if shown else None
    async with (
        served(tls=party().good) as good,
        served(*[script] * 9, tls=tls, at=("127.0.0.2", good.port)) as bad,
        served(*[script] * 9, tls=tls, at=("127.0.0.3", good.port)) as worse,
        calling(client, f"https://{NAMED}:{good.port}", party().trusting) as caller,
    ):
        for job in ("j-01", "j-02", "j-03", "j-04"):
            assert await caller.ask(job, fresh=True) == (200, job.encode())
            gc.collect()  # which may close no socket, as that may be another's by now
        assert bad.connections > 0
        assert worse.connections > 0
        assert (bad.heard, worse.heard) == ([], [])


async def test_who_connects_at_once_shares_a_look_up_and_the_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3")
    names.go.clear()
    async with (
        served() as one,
        served(at=("127.0.0.2", one.port)) as two,
        served(at=("127.0.0.3", one.port)) as three,
        calling("wire", f"http://{NAMED}:{one.port}") as caller,
    ):
        calls = [asyncio.create_task(caller.ask(f"j-{number:02}")) for number in range(7)]
        await until(lambda: names.asked)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        names.go.set()
        assert await asyncio.gather(*calls[1:]) == [(200, b"j-%02d" % number) for number in range(1, 7)]
        assert [server.connections for server in (one, two, three)] == [2, 2, 2]
        assert names.asked == [NAMED]


async def test_a_look_up_under_way_ends_when_all_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.go.clear()
    async with calling("wire", f"http://{NAMED}:80") as caller:
        call = asyncio.create_task(caller.ask("j-01"))
        await until(lambda: names.asked)
        await caller.client.close()
        assert await call is NOT_SENT
        assert caller.told.endswith("the bridge is stopping")


@both
async def test_a_name_is_looked_up_with_its_last_dot_and_certified_without(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.1")
    async with (
        served(tls=party().good) as server,
        calling(client, f"https://{NAMED}.:{server.port}", party().trusting) as caller,
    ):
        assert await caller.ask("j-01") == (200, b"j-01")
        assert names.asked == [f"{NAMED}."]


@both
def test_a_slow_name_server_takes_none_of_the_time_to_connect(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        names = Names(monkeypatch, "127.0.0.1", seconds=11)
        async with served() as server, calling(client, f"http://{NAMED}:{server.port}") as caller:
            assert await caller.ask("j-01") == (200, b"j-01")
        async with served() as server, calling(client, f"http://{NAMED}:{server.port}") as caller:
            assert await caller.ask("j-02", seconds=10) is NOT_SENT
            assert isinstance(caller.cause, TimeoutError)
            if client == "wire":
                assert caller.told == f"the name server did not answer in time where {NAMED}:{server.port} is"
            await asyncio.sleep(2)
            assert await caller.ask("j-03", seconds=5) == (200, b"j-03")  # by what was found late
            assert len(names.asked) == 2

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


# --- TLS --------------------------------------------------------------------------------------------------


TLS: list[tuple[str, str, str, Outcome]] = [
    ("all is well", "good", "trusting", (200, b"j-01")),
    ("an unknown authority", "good", "doubting", NOT_SENT),
    ("expired", "expired", "trusting", NOT_SENT),
    ("another's name", "misnamed", "trusting", NOT_SENT),
    ("a client's certificate", "demanding", "certified", (200, b"j-01")),
    ("a client's certificate by TLS 1.2", "demanding_early", "certified", (200, b"j-01")),
    ("no certificate of the client", "demanding", "trusting", LOST),  # it hears so after it has asked
    ("no certificate of the client by TLS 1.2", "demanding_early", "trusting", NOT_SENT),
    ("a stranger's certificate", "demanding", "strange", LOST),
    ("a stranger's certificate by TLS 1.2", "demanding_early", "strange", NOT_SENT),
]


@both
@pytest.mark.parametrize(("shown", "used", "outcome"), [row[1:] for row in TLS], ids=[row[0] for row in TLS])
async def test_only_who_is_believed_gets_the_request(
    client: str, shown: str, used: str, outcome: Outcome
) -> None:
    async with (
        served(tls=getattr(party(), shown)) as server,
        calling(client, server.url, getattr(party(), used)) as caller,
    ):
        assert await caller.ask("j-01") == outcome
        assert server.heard == ([] if isinstance(outcome, type) else [(1, b"j-01")])
        if outcome is NOT_SENT:
            assert isinstance(caller.cause, ssl.SSLError)
        await until(lambda: server.open == (0 if isinstance(outcome, type) else 1))


HUNG_UP = "hung up during the TLS handshake"
HANDSHAKES: list[tuple[str, Script, str]] = [
    ("closed before it", [close], HUNG_UP),
    ("reset before it", [reset], "reset by peer"),
    ("closed in it", [hello, close], HUNG_UP),
    ("reset in it", [hello, reset], "reset by peer"),
    ("plain HTTP", [hello, b"HTTP/1.1 400 Plain\r\n\r\n", close], "SSL"),
    ("half a record", [hello, b"\x16\x03\x03", close], HUNG_UP),
]
"""And of what the lean client tells in each case."""


@both
@pytest.mark.parametrize(
    ("script", "said"), [row[1:] for row in HANDSHAKES], ids=[row[0] for row in HANDSHAKES]
)
async def test_a_handshake_that_fails_sends_nothing(client: str, script: Script, said: str) -> None:
    async with served(script) as server:
        url = server.url.replace("http:", "https:")
        async with calling(client, url, party().trusting) as caller:
            assert await caller.ask("j-01") is NOT_SENT
            assert isinstance(caller.cause, OSError)
            if client == "wire":
                assert caller.told.startswith(f"no connection to 127.0.0.1:{server.port}: ")
                assert said in caller.told
            await until(lambda: not server.open)


@both
async def test_a_handshake_that_never_ends_sends_nothing(client: str) -> None:
    async with served([until_gone]) as server:
        url = server.url.replace("http:", "https:")
        async with calling(client, url, party().trusting) as caller:
            assert await caller.ask("j-01", seconds=0.1) is NOT_SENT
            assert isinstance(caller.cause, TimeoutError)
            await until(lambda: not server.open)


@both
async def test_a_port_of_tls_gives_no_answer_to_plain_http(client: str) -> None:
    async with (
        served(tls=party().good) as server,
        calling(client, server.url.replace("https:", "http:")) as caller,
    ):
        assert await caller.ask("j-01") is LOST
        assert server.heard == []


# --- Use, and use again -----------------------------------------------------------------------------------


@both
@transports
async def test_connections_are_as_many_as_calls_under_way_and_are_used_again(
    client: str, transport: str
) -> None:
    async with world(client, transport) as (server, caller):
        came = await asyncio.gather(*(caller.ask(f"a-{number:02}") for number in range(8)))
        assert came == [(200, b"a-%02d" % number) for number in range(8)]
        assert server.connections == 8
        for number in range(8):
            assert await caller.ask(f"b-{number:02}") == (200, b"b-%02d" % number)
        assert server.connections == 8
        if client == "wire":  # aiohttp takes the one that has waited longest
            assert len({number for number, job in server.heard if job.startswith(b"b")}) == 1


@both
async def test_a_fresh_call_has_a_connection_of_its_own_and_leaves_none(client: str) -> None:
    async with world(client, "plain") as (server, caller):
        assert await caller.ask("j-01") == (200, b"j-01")
        for _ in range(2):
            assert await caller.ask("j-02", fresh=True) == (200, b"j-02")
        assert await caller.ask("j-03") == (200, b"j-03")
        assert server.heard == [(1, b"j-01"), (2, b"j-02"), (3, b"j-02"), (1, b"j-03")]
        await until(lambda: server.open == 1)


def test_a_connection_that_nobody_uses_is_let_go() -> None:
    async def main() -> None:
        async with world("wire", "plain") as (server, caller):
            assert await caller.ask("j-01") == (200, b"j-01")
            await asyncio.sleep(10)
            assert server.open == 1
            await asyncio.sleep(30)
            assert server.open == 0

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"


@transports
@pytest.mark.parametrize(
    "last", [OTHER, OTHER[:9], close, cut, reset], ids=["answer", "half", "close", "cut", "reset"]
)
async def test_what_has_come_by_the_time_of_the_next_call_keeps_it_from_the_connection(
    transport: str, last: bytes | Callable[[Connection], object]
) -> None:
    """The loop has not seen it yet: it came while other work was done."""
    script = [request, OK, told, wait, last, until_gone]
    async with world("wire", transport, script) as (server, caller):
        assert await caller.ask("j-01") == (200, b"j-01")
        await server.told.wait()
        server.go.set()
        await asyncio.sleep(0)  # the server's step and the next call are in one turn of the loop
        assert await caller.ask("j-02") == (200, b"j-02")
        assert server.heard == [(1, b"j-01"), (2, b"j-02")]


# --- Whoever gives up -------------------------------------------------------------------------------------


@both
@transports
@pytest.mark.parametrize("first", ["connects", "keeps"])
@pytest.mark.parametrize(
    "script", [[CONTINUE, CHUNKS[:-7], drip(CHUNKS[-7:])], [told, until_gone]], ids=["answered", "never"]
)
async def test_a_call_that_is_cancelled_at_any_step_leaves_no_answer_to_another(
    client: str, transport: str, first: str, script: Script
) -> None:
    """It is given up after no turn of the loop, after one and so on, until it is done."""

    async def answer(connection: Connection) -> None:
        await request(connection)
        await play(connection, script if connection.name == b"j-01" else [OK])

    for given_up_after in range(100):
        async with world(client, transport, then=answer) as (server, caller):
            if first == "keeps":
                assert await caller.ask("j-00") == (200, b"j-00")
            call = asyncio.create_task(caller.ask("j-01"))
            for _ in range(given_up_after):
                await asyncio.sleep(0)
            over = call.done() or server.told.is_set()
            call.cancel()
            await asyncio.wait([call])
            assert await caller.ask("j-02") == (200, b"j-02")
            by = {job: number for number, job in server.heard}
            if client == "wire" and call.cancelled():  # aiohttp may have had the whole answer
                assert by[b"j-02"] != by.get(b"j-01")
            await until(lambda: server.open == 1)  # that of the last call is left
        if over:
            return
    raise AssertionError("it never was done")


@both
@transports
async def test_what_is_under_way_when_all_is_closed_has_no_answer(client: str, transport: str) -> None:
    async with world(client, transport, [request, told, until_gone], [request, OK]) as (server, caller):
        call = asyncio.create_task(caller.ask("j-01"))
        await server.told.wait()
        assert await caller.ask("j-02") == (200, b"j-02")
        await caller.client.close()
        assert await call is LOST
        await until(lambda: not server.open)


@transports
async def test_a_connection_that_is_over_leaves_nothing_to_the_collector(transport: str) -> None:
    """It is asked seldom, and knows nothing of the memory that TLS takes for each."""

    def left() -> int:
        return sum(isinstance(each, _Connection) for each in gc.get_objects())

    async with world("wire", transport) as (server, caller):
        gc.collect()
        before = left()
        gc.disable()
        try:
            for _ in range(3):
                assert await caller.ask("j-01", fresh=True) == (200, b"j-01")
                await until(lambda: not server.open)
            await until(lambda: left() == before)
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("came", "outcome", "most"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, LOST, 5_000),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000,
            (200, b"x" * 4096),
            12_100,
        ),
        (
            b"HTTP/1.1 201 So\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000,
            (201, b""),
            12_100,
        ),
        (
            b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000,
            (500, b"x" * 4096),
            6_000,
        ),
        (b"HTTP/1.1 500 Oh\r\n" + b"a:\r\n" * 60_000, LOST, 17_000),
    ],
    ids=["interim answers", "chunks", "a job's chunks", "a failure's chunks", "headers"],
)
async def test_what_comes_at_once_is_read_in_few_steps(
    came: bytes, outcome: Outcome, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pieces it has, they hold up the loop for a few milliseconds only."""
    steps = 0
    for name in ("on_message_begin", "on_header", "on_body"):

        def counted(
            self: _Connection,
            *given: bytes,
            step: Callable[..., None] = getattr(_Connection, name),  # noqa: B008
        ) -> None:
            nonlocal steps
            steps += 1
            step(self, *given)

        monkeypatch.setattr(_Connection, name, counted)
    async with world("wire", "plain", [request, told, until_gone]) as (server, caller):
        call = asyncio.create_task(caller.ask("j-01"))
        await server.told.wait()
        assert isinstance(caller.client, Wire)
        (connection,) = caller.client._open
        connection.data_received(came)
        assert await call == outcome
        assert 0 < steps <= most
        await until(lambda: not server.open)
