"""What each answer, and each lack of one, comes to: one table for both clients of OSCAR's calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from bridge.credentials import NoCredentialError
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.destinations.oscar.exchange import NoReply
from bridge.destinations.oscar.wire import Wire
from tests.destinations.fake_oscar import cluster_config
from tests.destinations.wires import CLIENTS, LOST, Caller, Loop, Outcome, calling, contexts, until
from tests.pipeline.clock import STARTS_AT, now
from tests.servers.nasty import (
    NAME,
    Connection,
    Script,
    Server,
    body,
    close,
    cut,
    drip,
    flood,
    half_close,
    head,
    request,
    reset,
    served,
    told,
    turns,
    until_gone,
    wait,
)

KEPT, CLOSED = True, False
FIRST, SECOND = b"j-01", b"j-02"
S = b"HTTP/1.1 STATUS\r\n"
L = b"Content-Length: 4\r\n"
C = b"Transfer-Encoding: chunked\r\n"
E = b"\r\n"
X = b"X-Header: something\r\n"
ANSWER = S + L + E + b"NAME"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n"
LARGE_BODY = b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000
START = b"x" * 4096
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
"""An answer that nobody asked for."""


class Headless:
    """No answer, unless it is a success: that counts from its status line on."""


Beginning = bytes | type[NoReply] | type[Headless]
"""What comes back of a failure's body; of a success's too, but of none with 201."""
Row = tuple[str, Script, Beginning, bool]
"""Its name; what the server does; what comes back of the body, with the chosen status; whether the next
call goes by the same connection."""
ANSWERS: list[Row] = [
    ("a length", [ANSWER], NAME, KEPT),
    ("no body", [S + b"Content-Length: 0\r\n\r\n"], b"", KEPT),
    ("in two segments", [ANSWER[:30], ANSWER[30:]], NAME, KEPT),
    ("byte by byte", [drip(ANSWER)], NAME, KEPT),
    ("names in other letters", [S + b"cOnTeNt-LeNgTh:4\r\n\r\nNAME"], NAME, KEPT),
    ("lines that end in LF", [ANSWER.replace(b"\r", b"")], NAME, KEPT),
    ("an upgrade on offer", [S + b"Upgrade: h2c\r\n" + L + E + b"NAME"], NAME, KEPT),
    # Interim answers
    ("100", [CONTINUE, ANSWER], NAME, KEPT),
    ("100 in one segment with it", [CONTINUE + ANSWER], NAME, KEPT),
    ("100 in parts", [CONTINUE[:12], CONTINUE[12:] + ANSWER[:20], ANSWER[20:]], NAME, KEPT),
    ("100 and 103 byte by byte", [drip(CONTINUE + HINTS + E + ANSWER)], NAME, KEPT),
    ("several", [CONTINUE * 2, HINTS + E, b"HTTP/1.1 102 So\r\n\r\n", CONTINUE + ANSWER], NAME, KEPT),
    ("103 with a length", [HINTS + L + E + ANSWER], NAME, KEPT),
    ("100, then closed", [CONTINUE, close], LOST, CLOSED),
    ("100, then reset", [CONTINUE, reset], LOST, CLOSED),
    ("100, then garbage", [CONTINUE + b"garbage\r\n\r\n"], LOST, CLOSED),
    # Chunks
    ("chunks", [S + C + E + b"2\r\nhe\r\n0003\r\nllo\r\n0\r\n\r\n"], b"hello", KEPT),
    ("the last chunk alone", [S + C + E, b"0\r\n\r\n"], b"", KEPT),
    ("sizes in parts", [S + C + E + b"0", b"4\r", b"\nNAME", b"\r", b"\n0", b"\r\n\r", b"\n"], NAME, KEPT),
    ("chunks byte by byte", [drip(S + C + E + b"a;n=v\r\n0123456789\r\n0\r\n" + X + E)], b"0123456789", KEPT),
    ("extensions and a trailer", [S + C + E + b'4;a="b"\r\nNAME\r\n0;c\r\n' + X + E], NAME, KEPT),
    # Bodies that end with the connection
    ("no length, closed", [S + E, b"he", b"llo", close], b"hello", CLOSED),
    ("no length, half closed", [S + E + b"NAME", half_close, until_gone], NAME, CLOSED),
    ("no length, reset", [S + E + b"NAME", reset], NAME, CLOSED),
    ("no length and no body", [S + E, close], b"", CLOSED),
    # Who closes
    ("close", [S + b"Connection: close\r\n" + L + E + b"NAME"], NAME, CLOSED),
    ("Close, among others", [S + b"Connection: x, Close\r\n" + L + E + b"NAME"], NAME, CLOSED),
    ("close behind chunks", [S + b"Connection: close\r\n" + C + E + b"4\r\nNAME\r\n0\r\n\r\n"], NAME, CLOSED),
    ("HTTP/1.0", [ANSWER.replace(b"1.1", b"1.0")], NAME, CLOSED),
    ("HTTP/1.0 kept", [b"HTTP/1.0 STATUS\r\nConnection: keep-alive\r\n" + L + E + b"NAME"], NAME, KEPT),
    ("HTTP/1.0 without a length", [b"HTTP/1.0 STATUS\r\n\r\nNAME", close], NAME, CLOSED),
    ("closed behind it", [ANSWER, close], NAME, CLOSED),
    ("cut behind it", [ANSWER, cut], NAME, CLOSED),
    ("half closed behind it", [ANSWER, half_close, until_gone], NAME, CLOSED),
    ("reset behind it", [ANSWER, reset], NAME, CLOSED),
    # Cuts
    *[(f"no answer: {end.__name__}", [end], LOST, CLOSED) for end in (close, cut, reset)],
    ("no answer, half closed", [half_close, until_gone], LOST, CLOSED),
    ("closed in the status", [S[:11], close], LOST, CLOSED),
    ("reset in the status", [S[:11], reset], LOST, CLOSED),
    ("closed in the reason", [b"HTTP/1.1 STATUS", close], Headless, CLOSED),
    ("reset in the reason", [b"HTTP/1.1 STATUS", reset], Headless, CLOSED),
    ("closed in the head", [S + X + b"Conte", close], Headless, CLOSED),
    ("reset in the head", [S + b"Content-Length:", reset], Headless, CLOSED),
    *[(f"in the body: {end.__name__}", [ANSWER[:-2], end], b"NA", CLOSED) for end in (close, cut, reset)],
    ("closed in a chunk", [S + C + E + b"9\r\nNAME", close], NAME, CLOSED),
    ("reset in a chunk", [S + C + E + b"9\r\nNAME", reset], NAME, CLOSED),
    ("closed between chunks", [S + C + E + b"4\r\nNAME\r\n", close], NAME, CLOSED),
    ("closed in a size", [S + C + E + b"4\r\nNAME\r\n1", close], NAME, CLOSED),
    ("closed in the trailer", [S + C + E + b"4\r\nNAME\r\n0\r\nX-Tra", close], NAME, CLOSED),
    # What is no HTTP
    ("another protocol", [b"+OK ready\r\n\r\n"], LOST, CLOSED),
    ("an alert of TLS", [b"\x15\x03\x01\x00\x02\x02\x50"], LOST, CLOSED),
    ("HTTP/3", [b"HTTP/3.0 STATUS\r\n" + L + E + b"NAME"], LOST, CLOSED),
    ("a status of four digits", [b"HTTP/1.1 2010 STATUS\r\n\r\n"], LOST, CLOSED),
    ("a status of two digits", [b"HTTP/1.1 20 STATUS\r\n\r\n"], LOST, CLOSED),
    ("a status of letters", [b"HTTP/1.1 OK STATUS\r\n\r\n"], LOST, CLOSED),
    ("a page", [b"<html>STATUS</html>\r\n\r\n", close], LOST, CLOSED),
    ("noughts", [b"\0" * 64], LOST, CLOSED),
    ("a request", [b"POST / HTTP/1.1\r\n" + L + E], LOST, CLOSED),
    ("no header", [S + b"no header\r\n\r\n"], Headless, CLOSED),
    # Lengths that are none
    *[
        (f"length {length.decode()}", [S + b"Content-Length:" + length + E + E, close], Headless, CLOSED)
        for length in (b"-4", b"many", b"4, 5", b"0x4", b"9" * 40)
    ],
    ("a huge length", [S + b"Content-Length: 9000000000000000000\r\n\r\nNAME", close], NAME, CLOSED),
    ("two lengths", [S + L + b"Content-Length: 5\r\n\r\nNAME"], Headless, CLOSED),
    ("a length and chunks", [S + L + C + E + b"4\r\nNAME\r\n0\r\n\r\n"], Headless, CLOSED),
    # A second answer
    ("another one with it", [ANSWER + OTHER], NAME, CLOSED),
    ("a byte too many", [S + L + E + b"hel", turns(9), b"lo"], b"hell", CLOSED),
    ("another one while idle", [ANSWER, wait, OTHER], NAME, CLOSED),
    ("half of another one while idle", [ANSWER, wait, OTHER[:20]], NAME, CLOSED),
    ("a time-out while idle", [ANSWER, wait, b"HTTP/1.1 408 T\r\n\r\n", close], NAME, CLOSED),
    ("100 while idle", [ANSWER, wait, CONTINUE], NAME, CLOSED),
    # Sizes
    ("a header of 60 KB", [S + b"X: " + b"x" * 60_000 + E + L + E + b"NAME"], NAME, KEPT),
    ("a header of 100 KB", [S + b"X: " + b"x" * 100_000 + E + L + E + b"NAME"], Headless, CLOSED),
    ("10,000 headers", [S + X * 10_000 + L + E + b"NAME"], Headless, CLOSED),
]  # fmt: skip
IN_ONE_SEGMENT: list[Row] = [
    ("half of another one with it", [ANSWER + OTHER[:20]], NAME, CLOSED),
    ("a bad size", [S + C + E + b"4\r\nNAME\r\nxyz\r\n"], NAME, CLOSED),
    ("a byte too many", [ANSWER + b"x"], NAME, CLOSED),
]
"""What comes with what can't be read, or with half an answer: the lean client alone is strict with it."""
CUT_BEHIND_INTERIMS: list[Row] = [
    ("100, and half a status", [CONTINUE + b"HTTP/1.1 20", close], LOST, CLOSED),
    ("100, and a status", [CONTINUE + S[:-2], close], Headless, CLOSED),
    ("100, then a status", [CONTINUE, turns(9), b"HTTP/1.1 STATUS", close], Headless, CLOSED),
    ("100 in parts, and a status", [CONTINUE[:10], turns(9), CONTINUE[10:], S[:-2], close], Headless, CLOSED),
    ("100 cut in its end", [CONTINUE[:-1], turns(9), CONTINUE[-1:] + S[:-2], close], Headless, CLOSED),
    ("100, then a status in parts", [CONTINUE, drip(S[:-2]), close], Headless, CLOSED),
    ("100 and 103, and a status", [CONTINUE + HINTS + E + S[:-2], close], Headless, CLOSED),
]
"""Status lines that break off behind interim answers: aiohttp loses them."""
KINDS: list[tuple[str, Script, Outcome, bool]] = [
    # Those of one status each.
    ("no reason", [b"HTTP/1.1 409\r\n" + L + E + b"NAME"], (409, NAME), KEPT),
    ("a status of no class", [b"HTTP/1.1 999 Odd\r\n" + L + E + b"NAME"], (999, NAME), KEPT),
    ("204", [b"HTTP/1.1 204 No Content\r\n\r\n"], (204, b""), KEPT),
    ("204 and a body", [b"HTTP/1.1 204 No Content\r\n" + L + E + b"NAME"], (204, b""), CLOSED),
    ("204, cut in the head", [b"HTTP/1.1 204 No Content\r\nX", close], (204, b""), CLOSED),
    ("304 with a length", [b"HTTP/1.1 304 Not Modified\r\n" + L + E], (304, b""), KEPT),
    ("101", [b"HTTP/1.1 101 So\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nNAME"], (101, b""), CLOSED),
    ("a large body", [b"HTTP/1.1 200 OK\r\n" + LARGE_BODY], (200, START), KEPT),
    ("a large body of a job", [b"HTTP/1.1 201 Created\r\n" + LARGE_BODY], (201, b""), KEPT),
    ("a large body of a failure", [b"HTTP/1.1 500 Oh\r\n" + LARGE_BODY], (500, START), CLOSED),
    ("a body without an end", [b"HTTP/1.1 500 Oh\r\n\r\n", flood(b"x" * 65536)], (500, START), CLOSED),
    ("endless chunks", [b"HTTP/1.1 500 Oh\r\n" + C + E, flood(b"4\r\nxxxx\r\n" * 500)], (500, START), CLOSED),
    ("a header without an end", [b"HTTP/1.1 500 Oh\r\nX: ", flood(b"x" * 65536)], LOST, CLOSED),
    ("a job's header without an end", [b"HTTP/1.1 201 So\r\nX: ", flood(b"x" * 65536)], (201, b""), CLOSED),
    ("a reason without an end", [b"HTTP/1.1 500 ", flood(b"x" * 65536)], LOST, CLOSED),
    ("headers without an end", [b"HTTP/1.1 500 Oh\r\n", flood(X * 1000)], LOST, CLOSED),
]  # fmt: skip
EARLY: list[Row] = [
    ("100, and then all is read", [head, CONTINUE, told, wait, body, ANSWER], NAME, KEPT),
    ("read late", [head, told, wait, body, ANSWER], NAME, KEPT),
    ("answered, and closed", [head, ANSWER, half_close, until_gone], NAME, CLOSED),
    ("answered, and neither read nor closed", [head, ANSWER, told, wait, until_gone], NAME, CLOSED),
    ("answered, and then read", [head, ANSWER, told, wait, body], NAME, CLOSED),
    ("cut", [head, cut], LOST, CLOSED),
]  # fmt: skip
"""What a server does that has read at most the head, while the body is larger than what can be on its way."""
LARGE = b"x" * (5 << 20)
UNENDING: list[Row] = [
    ("no answer", [request, until_gone], LOST, CLOSED),
    ("nothing is read", [told, wait, until_gone], LOST, CLOSED),
    ("half closed unread", [head, half_close, wait, until_gone], LOST, CLOSED),
    ("interim answers alone", [request, CONTINUE, HINTS + E, until_gone], LOST, CLOSED),
    ("half a status", [request, S[:11], until_gone], LOST, CLOSED),
    ("half a head", [request, S + b"X: y", until_gone], Headless, CLOSED),
    ("half a body", [request, ANSWER[:-2], until_gone], b"NA", CLOSED),
    # aiohttp waits on behind a size that it can't read.
    ("letters for a size", [request, S + C + E + b"4\r\nNAME\r\n", turns(9), b"xyz\r\n"], NAME, CLOSED),
    ("a negative size", [request, S + C + E + b"4\r\nNAME\r\n", turns(9), b"-4\r\nNAME\r\n"], NAME, CLOSED),
    ("a huge size", [request, S + C + E + b"4\r\nNAME\r\n", turns(9), b"f" * 40 + b"\r\nNAME"], NAME, CLOSED),
    ("interim answers that drip", [request, drip(CONTINUE * 99, seconds=1)], LOST, CLOSED),
    ("a head that drips", [request, drip(S + b"X: " + b"y" * 999, seconds=1)], Headless, CLOSED),
    ("a body that drips", [request, S + E, drip(b"y" * 999, seconds=8)], b"y" * 4, CLOSED),
    ("interim answers without an end", [request, flood(CONTINUE * 10, seconds=1)], LOST, CLOSED),
    ("a trailer without an end", [request, S + C + E + b"0\r\n", flood(X * 10, seconds=1)], b"", CLOSED),
]  # fmt: skip
"""What takes longer than a call may take."""
UNENDING_SUCCESSES: list[Row] = [
    ("headers without an end", [request, S, flood(X * 10, seconds=1)], b"", CLOSED),
    ("a body without an end", [request, S + E, flood(b"x" * 4096, seconds=1)], b"x" * 4096, CLOSED),
]


@asynccontextmanager
async def world(
    client: str, transport: str, script: Script, status: str = "200 OK", receive_buffer: int | None = None
) -> AsyncIterator[tuple[Server, Caller]]:
    """A server whose first connection follows `script`, and who calls it."""
    server_tls, client_tls = contexts() if transport == "TLS" else (None, None)
    async with (
        served(script, tls=server_tls, receive_buffer=receive_buffer) as server,
        calling(client, server.url, client_tls) as caller,
    ):
        server.status = status.encode()
        yield server, caller


def comes_to(status: str, beginning: Beginning) -> Outcome:
    """What a row comes to, with the status that was chosen."""
    code = int(status[:3])
    if isinstance(beginning, bytes):
        return code, b"" if code == 201 else beginning.replace(NAME, FIRST)
    if beginning is Headless:
        return (code, b"") if 200 <= code < 300 else LOST
    return LOST


async def see_next(server: Server, caller: Caller, *, kept: bool) -> None:
    """See by which connection the next call goes, and that it gets its own answer."""
    if not kept and isinstance(caller.client, Wire):
        await until(lambda: not server.open)  # the client has hung up too
    for _ in range(20):  # and has read what there is
        await asyncio.sleep(0)
    assert await caller.ask(SECOND.decode()) == (200, SECOND)
    assert server.heard[-1] == (1 if kept else 2, SECOND)
    assert server.flooded < 8 << 20, "what nobody wants is read without an end"


STATUSES = ["409 Conflict", "201 Created", "200 OK"]


async def see_row(client: str, transport: str, script: Script, outcome: Beginning, *, kept: bool) -> None:
    """See what a row comes to, with each status, and by which connection the next call goes."""
    for status in STATUSES if transport == "plain" else STATUSES[:1]:
        async with world(client, transport, [request, *script], status) as (server, caller):
            assert await caller.ask(FIRST.decode()) == comes_to(status, outcome), status
            server.go.set()
            await see_next(server, caller, kept=kept)


both = pytest.mark.parametrize("client", CLIENTS)
large = pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp does not like it


def rows(table: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("script", "outcome", "kept"), [row[1:] for row in table], ids=[row[0] for row in table]
    )


@both
@pytest.mark.parametrize("transport", ["plain", "TLS"])
@rows(ANSWERS)
async def test_an_answer_comes_to_what_the_table_says(
    client: str, transport: str, script: Script, outcome: Beginning, kept: bool
) -> None:
    await see_row(client, transport, script, outcome, kept=kept)


@rows(IN_ONE_SEGMENT)
async def test_what_comes_with_what_can_t_be_read_is_lost_by_aiohttp_at_most(
    script: Script, outcome: Beginning, kept: bool
) -> None:
    await see_row("wire", "plain", script, outcome, kept=kept)
    for status in STATUSES:
        async with world("aiohttp", "plain", [request, *script], status) as (_server, caller):
            came = await caller.ask(FIRST.decode())
            assert came in (comes_to(status, outcome), comes_to(status, Headless)), status


@rows(CUT_BEHIND_INTERIMS)
async def test_a_success_counts_from_its_status_on_behind_interim_answers_too(
    script: Script, outcome: Beginning, kept: bool
) -> None:
    await see_row("wire", "plain", script, outcome, kept=kept)


@both
@rows(KINDS)
async def test_an_answer_of_its_own_kind_comes_to_what_the_table_says(
    client: str, script: Script, outcome: Outcome, kept: bool
) -> None:
    async with world(client, "plain", [request, *script]) as (server, caller):
        if isinstance(outcome, tuple):
            outcome = outcome[0], outcome[1].replace(NAME, FIRST)
        assert await caller.ask(FIRST.decode()) == outcome
        await see_next(server, caller, kept=kept)


@large
@pytest.mark.parametrize(
    ("client", "transport"),
    # By TLS aiohttp keeps a connection whose request is half sent.
    [("wire", "plain"), ("aiohttp", "plain"), ("wire", "TLS")],
)
@rows(EARLY)
async def test_an_answer_to_a_body_that_is_not_read_comes_to_what_the_table_says(
    client: str, transport: str, script: Script, outcome: Beginning, kept: bool
) -> None:
    for status in ("413 Too Large", "201 Created"):
        async with world(client, transport, script, status, receive_buffer=4096) as (server, caller):
            call = asyncio.create_task(caller.ask(FIRST.decode(), LARGE[: 1 << 20] if kept else LARGE))
            if told in script:
                await server.told.wait()
                if not kept:  # it does not wait for its body to be read
                    await asyncio.wait([call])
                server.go.set()
            assert await call == comes_to(status, outcome), status
            await see_next(server, caller, kept=kept)


@large
@both
@pytest.mark.parametrize(
    ("status", "script", "outcome", "kept"),
    [
        pytest.param(status, *row[1:], id=f"{row[0]}-{status[:3]}")
        for status, table in (
            (STATUSES[0], UNENDING),
            (STATUSES[1], UNENDING + UNENDING_SUCCESSES),
            (STATUSES[2], UNENDING_SUCCESSES),
        )
        for row in table
    ],
)
def test_a_call_ends_when_its_time_is_over(
    client: str, status: str, script: Script, outcome: Beginning, kept: bool
) -> None:
    async def main() -> None:
        async with world(client, "plain", script, status, receive_buffer=4096) as (server, caller):
            sent = b"{}" if script[0] is request else LARGE
            assert await caller.ask(FIRST.decode(), sent, seconds=60) == comes_to(status, outcome)
            assert now() < STARTS_AT + 61
            server.go.set()
            await asyncio.sleep(60)  # for who sends at times to see that nobody listens
            await see_next(server, caller, kept=kept)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


@both
async def test_what_a_failure_says_of_itself_is_in_its_headers_alone(client: str) -> None:
    interim = HINTS + b"Retry-After: 9\r\n\r\n"
    rest = C + E + b"0\r\nRetry-After: 9\r\n\r\n"
    for header, told_so in ((b"RETRY-after:  7 \r\n", "7"), (b"", None)):
        script = [request, interim, b"HTTP/1.1 503 Full\r\n" + header + rest]
        async with world(client, "plain", script) as (_, caller):
            assert await caller.ask(FIRST.decode()) == (503, b"")
            assert caller.headers.get("retry-after") == told_so


@large
@both
@pytest.mark.parametrize("sent", [b"", b"x", b"{}" * 65_000, LARGE], ids=len)
async def test_a_request_comes_as_it_was_meant(client: str, sent: bytes) -> None:
    come: list[bytes] = []

    async def take(connection: Connection) -> None:
        await request(connection)
        come.append(connection.body)

    async with world(client, "plain", [take, ANSWER, take, ANSWER]) as (server, caller):
        for job in (FIRST, SECOND):
            assert await caller.ask(job.decode(), sent) == (200, job)
    assert come == [sent] * 2
    assert server.connections == 1


async def test_the_nasty_server_is_one_of_http_where_it_behaves() -> None:
    server_tls, client_tls = contexts()
    headers = {"X-Delegated-Job-ID": FIRST.decode()}
    good = [CONTINUE + ANSWER], [drip(ANSWER)], [S + C + E + b"4\r\nNAME\r\n0\r\n\r\n"]
    for tls in (None, server_tls):
        for script in good:
            async with (
                served([request, *script], tls=tls) as server,
                httpx.AsyncClient(verify=client_tls) as third_party,
            ):
                for _ in range(2):
                    reply = await third_party.post(server.url, headers=headers, content=b"x" * 70_000)
                    assert (reply.status_code, reply.content) == (200, FIRST)
                assert server.heard == [(1, FIRST)] * 2
        for end in (close, cut, reset, half_close):
            async with (
                served([request, S + b"Content-Le", end], tls=tls) as server,
                httpx.AsyncClient(verify=client_tls) as third_party,
            ):
                with pytest.raises(httpx.TransportError):
                    await third_party.post(server.url, headers=headers)


SECRET = b"Set-Cookie: session=something-secret\r\n"
UNREADABLE: list[tuple[str, Script]] = [
    ("cut in the head", [b"HTTP/1.1 500 Oh\r\n" + SECRET, close]),
    ("reset in the head", [b"HTTP/1.1 500 Oh\r\n" + SECRET, reset]),
    ("a header that is none", [b"HTTP/1.1 500 Oh\r\n" + SECRET.replace(b":", b"") + E]),
    ("a length that is none", [b"HTTP/1.1 500 Oh\r\n" + SECRET + b"Content-Length: secret\r\n\r\n"]),
    ("a status line that is none", [SECRET + E]),
    ("a header too long", [b"HTTP/1.1 500 Oh\r\nX: something-secret" + b"x" * 100_000 + E]),
    ("a bad chunk", [b"HTTP/1.1 200 OK\r\n" + C + E + b"4\r\nNAME\r\nsomething-secret\r\n"]),
]


@both
@rows([(name, script, None, None) for name, script in UNREADABLE])
async def test_why_there_is_no_answer_is_told_without_what_came_of_it(
    client: str, script: Script, outcome: None, kept: None
) -> None:
    """aiohttp's errors hold it, cookies too, and what is told goes to the log and into dead letters."""
    async with world(client, "plain", [request, *script]) as (_, caller):
        await caller.ask(FIRST.decode(), seconds=5)
        assert "secret" not in caller.told
        assert "<" not in caller.told, "a type of Python"
    async with served([head, *script]) as server, OscarCluster("main", cluster_config(server.url)) as cluster:
        with pytest.raises(NoCredentialError) as caught:
            await cluster.info()
        assert "secret" not in caught.value.answer.detail
        assert "<" not in caught.value.answer.detail
