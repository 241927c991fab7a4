"""One attempt at a service, over real sockets: what is sent, and what each answer or silence comes to."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from structlog.testing import capture_logs

from bridge import __version__
from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.core.ports import Verdict
from bridge.destinations.oscar import client
from bridge.destinations.oscar.client import OscarService, announce
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.destinations.oscar.config import ServiceConfig
from bridge.destinations.oscar.wire import Wire
from bridge.testing import until
from tests.destinations.fake_oscar import (
    FakeOscar,
    always,
    cluster_config,
    event,
    serve,
    service,
    token,
)
from tests.servers.descriptors import no_descriptor_left

TOKEN_AUTH = {"type": "service-token", "token": token(1)}
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    """A server that does to its connections what `handler` does, and hangs up."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    return head + await reader.readexactly(length)


def kept_connections(plants: OscarService) -> int:
    calls = plants._cluster.calls
    assert isinstance(calls, Wire)
    return len(calls._kept)


# --- What is sent -----------------------------------------------------------------------------------------


async def test_a_job_is_named_after_its_event() -> None:
    async with FakeOscar().serve(prefix="/oscar") as oscar, service(oscar.url + "/", TOKEN_AUTH) as plants:
        answer = await plants.prepare(event(7, b'{"n": 7}')).attempt()
    assert answer.verdict is Verdict.ACCEPTED
    assert answer.status == 201
    [request] = oscar.requests
    assert request.path_qs == "/oscar/job/plants"
    assert request.headers["X-Delegated-Job-ID"] == invocation_name("uploads", "event-7", "plants")
    assert request.headers["Authorization"] == f"Bearer {token(1)}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"] == f"oscar-event-bridge/{__version__}"
    assert oscar.bodies == [b'{"n":7}']


async def test_an_owner_is_in_the_query_and_in_the_identity() -> None:
    async with (
        FakeOscar().serve() as oscar,
        service(oscar.url, TOKEN_AUTH, key="lane", service="plants", owner="a b@egi.eu") as plants,
    ):
        await plants.prepare(event()).attempt()
    [request] = oscar.requests
    assert request.path == "/job/plants"
    assert request.query == {"owner": "a b@egi.eu"}
    assert request.headers["X-Delegated-Job-ID"] == invocation_name("uploads", "event-1", "a b@egi.eu/plants")


async def test_a_run_has_no_name_and_base64_is_no_json() -> None:
    async with (
        FakeOscar(answer=always(200, "done")).serve() as oscar,
        service(oscar.url, TOKEN_AUTH, mode="run") as plants,
    ):
        answer = await plants.prepare(event(data=b"\xff\x00")).attempt()
    assert answer.verdict is Verdict.ACCEPTED
    [request] = oscar.requests
    assert request.path == "/run/plants"
    assert "X-Delegated-Job-ID" not in request.headers
    assert request.headers["Content-Type"] == "application/octet-stream"


async def test_only_events_of_trusted_sources_choose_credentials() -> None:
    data = b'{"Records":[{"requestParameters":{"principalId":"someone"}}]}'
    async with (
        FakeOscar().serve() as oscar,
        service(oscar.url, TOKEN_AUTH, trusted=frozenset({"minio"})) as plants,
    ):
        await plants.prepare(event(data=data, source="minio")).attempt()
        await plants.prepare(event(data=data, source="uploads")).attempt()
    assert [b"principalId" in body for body in oscar.bodies] == [True, False]


@pytest.mark.parametrize(
    ("more", "connections"), [({"idempotent": True}, 1), ({}, 3)], ids=["idempotent", "not idempotent"]
)
async def test_only_calls_that_may_be_repeated_share_a_connection_and_bodies_are_read_away(
    more: dict[str, Any], connections: int
) -> None:
    async with (
        FakeOscar(answer=always(200, "x" * 300_000)).serve() as oscar,
        service(oscar.url, TOKEN_AUTH, mode="run", **more) as plants,
    ):
        for number in range(3):
            assert (await plants.prepare(event(number)).attempt()).verdict is Verdict.ACCEPTED
    assert len(set(oscar.ports)) == connections


async def test_a_server_that_hangs_up_between_two_calls_loses_no_run() -> None:
    """It resets a connection as its second request comes, which looks like an answer that was lost."""
    read = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        await read_request(reader)
        read += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read(1)
        writer.transport.abort()

    async with raw_server(once) as url, service(url, TOKEN_AUTH, mode="run") as plants:
        answers = [await plants.prepare(event(number)).attempt() for number in range(5)]
    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 5
    assert read == 5


# --- Answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [409, 500])
async def test_our_own_name_that_exists_already_is_success(status: int) -> None:
    ours = invocation_name("uploads", "event-1", "plants")
    async with FakeOscar().serve() as oscar, service(oscar.url, TOKEN_AUTH) as plants:
        oscar.answer = always(status, f'jobs.batch "{ours}" already exists')
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.DUPLICATE
        other = await plants.prepare(event(2)).attempt()
    assert other.verdict in (Verdict.FAILED, Verdict.REFUSED)
    assert other.cause == f"http_{status}"


@pytest.mark.parametrize(
    ("status", "text", "content_type"),
    [
        (200, "<html>Please log in", "text/html"),
        (200, "Service under maintenance", "text/plain"),
        (200, '{"error": "quota exceeded"}', "application/json"),
        (202, "queued", "text/plain"),
        (204, "", "text/plain"),
    ],
)
async def test_another_success_than_201_accepts_no_job(status: int, text: str, content_type: str) -> None:
    async def page(_request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response(status=status, text=text, content_type=content_type)

    async with FakeOscar(answer=page).serve() as oscar:
        async with service(oscar.url, TOKEN_AUTH) as job:
            answer = await job.prepare(event()).attempt()
        async with service(oscar.url, TOKEN_AUTH, mode="run") as run:  # it is the application's
            assert (await run.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
    assert (answer.verdict, answer.cause, answer.status) == (Verdict.REFUSED, f"http_{status}", status)
    assert "is the endpoint OSCAR's?" in answer.detail
    assert answer.detail.endswith(text)


@pytest.mark.parametrize(
    "rest",
    [
        b"X-Trace: " + b"t" * 9_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"X-Trace: " + b"t" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"".join(b"X-Trace-%d: t\r\n" % number for number in range(200)) + b"\r\n",
        b"not a header\r\n\r\n",
        b"Content-Length: many\r\n\r\n",
        b"Content-Length: 100\r\n\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
        b"Content-Le",
        b"",
    ],
    ids=[
        "9 KB",
        "100 KB",
        "200 headers",
        "no header",
        "no length",
        "half a body",
        "no chunk",
        "cut",
        "nothing",
    ],
)
@pytest.mark.parametrize("mode", ["job", "run"])
async def test_whatever_follows_the_status_line_of_a_success_it_is_one(mode: str, rest: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 201 Created\r\n" + rest)
        await writer.drain()

    async with raw_server(handler) as url, service(url, TOKEN_AUTH, mode=mode) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.status) == (Verdict.ACCEPTED, 201)


async def test_a_success_whose_headers_never_end_is_one() -> None:
    done = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 201 Created\r\nX-Trace: t")
        await writer.drain()
        await done.wait()

    async with raw_server(handler) as url, service(url, TOKEN_AUTH, timeout_seconds=0.3) as plants:
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        done.set()


async def test_a_success_on_a_kept_connection_says_nothing_about_the_next_call() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await read_request(reader)

    async with raw_server(handler) as url, service(url, TOKEN_AUTH) as plants:
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.ACCEPTED
        lost = await plants.prepare(event(2)).attempt()
    assert (lost.verdict, lost.cause) == (Verdict.UNAVAILABLE, "answer_lost")


@pytest.mark.parametrize("status", [502, 504])
async def test_a_gateway_that_had_no_answer_leaves_the_run_unknown(status: int) -> None:
    async with FakeOscar(answer=always(status)).serve() as oscar:
        async with service(oscar.url, TOKEN_AUTH, mode="run") as once:
            answer = await once.prepare(event()).attempt()
        async with service(oscar.url, TOKEN_AUTH, mode="run", idempotent=True) as again:
            assert (await again.prepare(event()).attempt()).verdict is Verdict.UNAVAILABLE
    assert (answer.verdict, answer.cause) == (Verdict.UNKNOWN, f"http_{status}")
    assert len(oscar.requests) == 2


@pytest.mark.parametrize("mode", ["job", "run"])
@pytest.mark.parametrize(("status", "verdict"), [(200, None), (201, Verdict.ACCEPTED), (500, Verdict.FAILED)])
async def test_a_body_that_does_not_end_in_time_leaves_the_status_standing(
    mode: str, status: int, verdict: Verdict | None
) -> None:
    done = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 %d So\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n" % status)
        await writer.drain()
        await done.wait()

    async with (
        raw_server(handler) as url,
        service(url, TOKEN_AUTH, mode=mode, timeout_seconds=0.3) as plants,
    ):
        answer = await plants.prepare(event()).attempt()
        done.set()
    verdict = verdict or (Verdict.REFUSED if mode == "job" else Verdict.ACCEPTED)
    assert (answer.verdict, answer.status) == (verdict, status)


async def test_of_a_huge_management_answer_that_is_no_success_only_the_beginning_is_read() -> None:
    sent = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Down\r\nContent-Length: %d\r\n\r\n" % (1 << 30))
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                writer.write(b"password" * 8192)
                await writer.drain()
                sent += 65536

    async with raw_server(handler) as url, service(url) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "http_503")
    assert sent < 4 << 20  # the kernel's buffers, and a few chunks


async def test_an_answer_is_told_with_its_pause_and_an_excerpt() -> None:
    async with (
        FakeOscar(answer=always(503, "try\nlater " * 1000, **{"Retry-After": "7"})).serve() as oscar,
        service(oscar.url, TOKEN_AUTH) as plants,
    ):
        answer = await plants.prepare(event()).attempt()
    assert answer.verdict is Verdict.CAPACITY
    assert (answer.cause, answer.status, answer.retry_after) == ("http_503", 503, 7)
    assert answer.detail.startswith("503 Service Unavailable: try later try later")
    assert len(answer.detail) <= 500


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with (
        FakeOscar(answer=always(307, Location="/job/other")).serve() as oscar,
        service(oscar.url, TOKEN_AUTH) as plants,
    ):
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, "http_307")
    assert len(oscar.requests) == 1


async def test_a_body_that_breaks_off_leaves_the_status_standing() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 1000\r\n\r\nhalf a wo")
        await writer.drain()

    async with raw_server(handler) as url, service(url, TOKEN_AUTH) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.status) == (Verdict.FAILED, 500)


async def test_a_compressed_answer_is_no_surprise() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"accept-encoding: identity" in (await read_request(reader)).lower()
        body = gzip.compress(b"x" * 10_000_000)
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()

    async with raw_server(handler) as url, service(url, TOKEN_AUTH) as plants:
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.status) == (Verdict.FAILED, 500)
    assert len(answer.detail) <= 500


async def test_an_event_too_large_is_rejected_unsent() -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url, TOKEN_AUTH) as plants:
        fits = await plants.prepare(event(data=b'{"x":"' + b"a" * (131_065 - 8) + b'"}')).attempt()
        large = await plants.prepare(event(data=b'{"x":"' + b"a" * (131_065 - 7) + b'"}')).attempt()
    assert fits.verdict is Verdict.ACCEPTED
    assert (large.verdict, large.cause) == (Verdict.REJECTED, "too_large")
    assert "131066" in large.detail
    assert "131065" in large.detail
    assert len(oscar.requests) == 1


async def test_an_event_that_can_t_be_encoded_for_a_reason_nobody_foresaw_is_rejected_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = client.encode

    def fails(given: Event, **more: Any) -> bytes:
        return real(given, **more) if given.id == "event-2" else bytes(given.data[10])

    monkeypatch.setattr(client, "encode", fails)
    async with FakeOscar().serve() as oscar, service(oscar.url, TOKEN_AUTH) as plants:
        with capture_logs() as logs:
            odd = await plants.prepare(event(1)).attempt()
            good = await plants.prepare(event(2)).attempt()
    assert (odd.verdict, odd.cause, good.verdict) == (Verdict.REJECTED, "defect", Verdict.ACCEPTED)
    assert odd.detail == "defect in calling OSCAR: IndexError: index out of range"
    assert [line["reason"] for line in logs if line.get("exc_info")] == ["IndexError: index out of range"]
    assert len(oscar.bodies) == 1


@pytest.mark.parametrize(("mode", "verdict"), [("job", Verdict.FAILED), ("run", Verdict.UNKNOWN)])
async def test_a_call_that_fails_in_a_way_nobody_foresaw_fails_alone(
    mode: str, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **_more: Any) -> Any:
        raise ZeroDivisionError

    async with FakeOscar().serve() as oscar, service(oscar.url, TOKEN_AUTH, mode=mode) as plants:
        monkeypatch.setattr(plants._cluster.calls, "exchange", fails)
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (verdict, "defect")
    assert answer.perhaps_its_own == (verdict is Verdict.FAILED)


async def test_an_ingress_that_refuses_the_body_unread_is_heard() -> None:
    done = asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await done.wait()  # neither reads on nor hangs up

    async with raw_server(refuse) as url, service(url, TOKEN_AUTH, payload="base64") as plants:
        answer = await plants.prepare(event(data=b"x" * 98_000)).attempt()
        done.set()
    assert (answer.verdict, answer.cause) == (Verdict.REJECTED, "http_413")


@pytest.mark.parametrize("auth", ["basic", "service-token"])
async def test_a_404_of_run_is_the_applications_only_when_the_service_is_there(auth: str) -> None:
    async with (
        FakeOscar().serve() as oscar,
        service(oscar.url, TOKEN_AUTH if auth == "service-token" else None, mode="run") as plants,
    ):
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        oscar.answer = always(404, "no such thing")
        there = await plants.prepare(event()).attempt()
        oscar.services.clear()
        gone = await plants.prepare(event()).attempt()
        oscar.management_status = 503
        untold = await plants.prepare(event()).attempt()
    assert gone.cause == there.cause == untold.cause == "http_404"
    assert there.verdict is untold.verdict is Verdict.REJECTED  # not run again, whoever can't be asked
    assert gone.verdict is (Verdict.REJECTED if auth == "service-token" else Verdict.REFUSED)
    assert len(oscar.requests) == 4


# --- Whose refusal it is ----------------------------------------------------------------------------------


FIREWALL = "<html><title>Request Rejected</title>The requested URL was rejected"


@pytest.mark.parametrize("status", [400, 403, 406])
@pytest.mark.parametrize("auth", [None, TOKEN_AUTH], ids=["basic", "service token"])
async def test_a_refusal_may_be_of_one_event_where_oscar_has_the_service(
    auth: dict[str, Any] | None, status: int
) -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.ACCEPTED
        oscar.answer = always(status, FIREWALL)
        answer = await plants.prepare(event(2)).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.REFUSED, f"http_{status}")
    assert answer.perhaps_its_own
    assert FIREWALL in answer.detail
    assert (oscar.definitions_read, oscar.tokens_asked) == ((2, 0) if auth is None else (0, 1))


@pytest.mark.parametrize(
    ("auth", "status", "text", "own"),
    [
        ("basic", 401, "", False),
        ("basic", 403, "User ana doesn't have permision to get this service", True),  # that tells nothing
        ("basic", 404, "", False),
        ("basic", 500, 'service "plants" found in multiple namespaces', True),  # nor does that
        ("basic", 503, "", False),
        ("basic", 302, "", False),
        ("basic", 204, "", False),
        ("service token", 401, "", False),
        ("service token", 403, "<html>only /job is for you", True),
        ("service token", 404, "", False),
        ("service token", 404, "404 page not found", True),  # OSCAR has it from 4.1.0 on
        ("service token", 500, "", False),  # as of a service that is not there
        ("service token", 503, "", False),
    ],
)
async def test_a_refusal_is_the_service_s_where_oscar_does_not_say_that_it_is_well(
    auth: str, status: int, text: str, own: bool
) -> None:
    given = TOKEN_AUTH if auth == "service token" else None
    async with FakeOscar().serve() as oscar, service(oscar.url, given) as plants:
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.ACCEPTED
        oscar.answer = always(403, FIREWALL)
        oscar.management_status, oscar.management_text = status, text
        answer = await plants.prepare(event(2)).attempt()
    assert (answer.verdict, answer.cause, answer.status) == (Verdict.REFUSED, "http_403", 403)
    assert answer.perhaps_its_own is own


@pytest.mark.parametrize("auth", [None, TOKEN_AUTH], ids=["basic", "service token"])
async def test_a_refusal_is_the_service_s_where_that_has_gone_or_has_another_token(
    auth: dict[str, Any] | None,
) -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        assert (await plants.prepare(event(1)).attempt()).verdict is Verdict.ACCEPTED
        oscar.answer = always(403, FIREWALL)
        oscar.services.clear()
        assert not (await plants.prepare(event(2)).attempt()).perhaps_its_own
        oscar.services.add("plants")
        assert (await plants.prepare(event(3)).attempt()).perhaps_its_own, "no is not believed for long"


async def test_a_service_out_of_reach_a_moment_later_is_not_said_to_be_there() -> None:
    async def refuse_and_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        await read_request(reader)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse_and_go, "127.0.0.1", 0)
    async with (
        server,
        service(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", TOKEN_AUTH) as plants,
    ):
        answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause, answer.perhaps_its_own) == (Verdict.REFUSED, "http_403", False)


@pytest.mark.parametrize("auth", [None, TOKEN_AUTH], ids=["basic", "service token"])
async def test_a_flood_of_refusals_asks_once_a_minute(
    auth: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(client, "monotonic", lambda: now)

    async def refused(count: int) -> int:
        """Have `count` events refused at once; how often OSCAR was asked about the service by then."""
        before = oscar.definitions_read + oscar.tokens_asked
        calls = (plants.prepare(event(number)).attempt() for number in range(count))
        assert all(answer.perhaps_its_own for answer in await asyncio.gather(*calls))
        return oscar.definitions_read + oscar.tokens_asked - before

    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        oscar.answer = always(403, FIREWALL)
        assert await refused(16) == 1
        now += 59
        assert await refused(16) == 0
        now += 2
        assert await refused(16) == 1


async def test_who_is_cancelled_while_asking_leaves_it_to_the_next() -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url) as plants:
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        oscar.answer, oscar.held = always(403, FIREWALL), asyncio.Event()
        first = asyncio.create_task(plants.prepare(event(1)).attempt())
        await until(lambda: oscar.definitions_read == 2)
        second = asyncio.create_task(plants.prepare(event(2)).attempt())
        await until(lambda: len(oscar.requests) == 3)
        first.cancel()
        oscar.held.set()
        assert (await second).perhaps_its_own
    assert first.cancelled()
    assert oscar.definitions_read == 3


@pytest.mark.parametrize(
    ("mode", "status", "text"),
    [
        ("job", 200, FIREWALL),
        ("job", 302, ""),
        ("job", 404, ""),
        ("job", 407, ""),
        ("job", 400, "More than one service authorize, use the owner query to select the service"),
        ("job", 413, ""),
        ("job", 429, ""),
        ("job", 500, "no such secret"),
        ("run", 303, ""),  # the application's word, which OSCAR knows nothing of
        ("run", 403, FIREWALL),
    ],
)
async def test_nobody_asks_about_the_service_where_its_answer_would_change_nothing(
    mode: str, status: int, text: str
) -> None:
    async with (
        FakeOscar(answer=always(status, text)).serve() as oscar,
        service(oscar.url, TOKEN_AUTH, mode=mode) as plants,
    ):
        await plants.prepare(event()).attempt()
    assert (oscar.definitions_read, oscar.tokens_asked) == (0, 0)


# --- No answer --------------------------------------------------------------------------------------------


async def hang_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await read_request(reader)


async def cut_in_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 20")
    await writer.drain()


async def speak_no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"+OK ready\r\n\r\n")
    await writer.drain()


@pytest.mark.parametrize("handler", [hang_up, cut_in_the_head, speak_no_http])
async def test_a_lost_answer_is_harmless_to_jobs_and_unknown_to_runs(handler: Handler) -> None:
    async with raw_server(handler) as url:
        async with service(url, TOKEN_AUTH) as job:
            assert (await job.prepare(event()).attempt()).verdict is Verdict.UNAVAILABLE
        async with service(url, TOKEN_AUTH, mode="run", idempotent=True) as again:
            assert (await again.prepare(event()).attempt()).verdict is Verdict.UNAVAILABLE
        async with service(url, TOKEN_AUTH, mode="run") as run:
            answer = await run.prepare(event()).attempt()
    assert (answer.verdict, answer.cause, answer.status) == (Verdict.UNKNOWN, "answer_lost", None)
    assert answer.detail.startswith("POST /run/plants: the ")


async def test_a_timeout_after_sending_is_unknown_to_runs() -> None:
    async def never(_request: web.Request, _body: bytes) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with FakeOscar(answer=never).serve() as oscar:
        async with service(oscar.url, TOKEN_AUTH, timeout_seconds=0.2) as job:
            answer = await job.prepare(event()).attempt()
            assert (answer.verdict, answer.cause) == (Verdict.CAPACITY, "timeout")
            assert answer.detail == "POST /job/plants: no answer in time"
            assert answer.perhaps_its_own
        async with service(oscar.url, TOKEN_AUTH, mode="run", timeout_seconds=0.2) as run:
            answer = await run.prepare(event()).attempt()
            assert (answer.verdict, answer.cause) == (Verdict.UNKNOWN, "timeout")


@pytest.mark.parametrize("mode", ["job", "run"])
async def test_a_refused_connection_sends_nothing(mode: str) -> None:
    with socket.socket() as bound:  # bound, but it listens to nobody
        bound.bind(("127.0.0.1", 0))
        async with service(f"http://127.0.0.1:{bound.getsockname()[1]}", TOKEN_AUTH, mode=mode) as plants:
            answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "connect")
    assert not answer.perhaps_its_own


@pytest.mark.parametrize("mode", ["job", "run"])
async def test_a_connection_that_never_comes_about_sends_nothing(mode: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert context.verify_mode is ssl.CERT_REQUIRED
    waiting = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await waiting.wait()  # no TLS handshake

    async with raw_server(silent) as url:
        url = url.replace("http:", "https:")
        async with service(url, TOKEN_AUTH, mode=mode, timeout_seconds=0.2) as plants:
            answer = await plants.prepare(event()).attempt()
        waiting.set()
    assert (answer.verdict, answer.perhaps_its_own) == (Verdict.UNAVAILABLE, False)
    assert answer.cause in ("connect", "timeout")


async def test_a_connection_the_server_closed_while_idle_is_not_used() -> None:
    ports: list[int] = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        ports.append(writer.get_extra_info("peername")[1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(once) as url, service(url, TOKEN_AUTH, mode="run") as plants:
        for number in range(3):
            assert (await plants.prepare(event(number)).attempt()).verdict is Verdict.ACCEPTED
            await until(lambda: not kept_connections(plants))
    assert len(set(ports)) == 3


# --- TLS and proxies --------------------------------------------------------------------------------------


async def test_authorities_come_from_a_file_or_a_plain_directory(tmp_path: Path) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    directory = tmp_path / "certificates"
    directory.mkdir()
    (directory / "ours.signing_policy").write_text("not a certificate")
    (directory / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (directory / "dangling.0").symlink_to(tmp_path / "nowhere")
    ca.cert_pem.write_to_path(directory / "ours.pem")
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with FakeOscar().serve(context) as oscar:
        for tls in ({"ca_file": directory / "ours.pem"}, {"ca_path": directory}, {"verify": False}):
            async with service(oscar.url, TOKEN_AUTH, tls=tls) as plants:
                assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED, tls
        for wrong in ({"ca_file": other}, None):
            async with service(oscar.url, TOKEN_AUTH, tls=wrong, mode="run") as plants:
                answer = await plants.prepare(event()).attempt()
            assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "tls")
            assert "certificate verify failed" in answer.detail


async def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_obeyed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, str]] = []

    async def forward(request: web.Request) -> web.Response:
        seen.append((str(request.url), request.headers.get("Proxy-Authorization", "")))
        return web.Response(status=201)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", forward)
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with serve(app) as url, FakeOscar().serve() as oscar:
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:word@"))
        async with service("http://oscar.example.org", TOKEN_AUTH) as plants:
            assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with service(oscar.url, TOKEN_AUTH) as plants:
            assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED
    assert seen == [("http://oscar.example.org/job/plants", "Basic bWU6d29yZA==")]
    assert len(oscar.requests) == 1


async def test_a_proxy_that_refuses_the_tunnel_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(refuse) as url:
        monkeypatch.setenv("https_proxy", url.replace("//", "//me:hidden-word@"))
        async with service("https://oscar.example.org", TOKEN_AUTH, mode="run") as plants:
            answer = await plants.prepare(event()).attempt()
    assert (answer.verdict, answer.cause) == (Verdict.UNAVAILABLE, "proxy")
    assert "hidden-word" not in answer.detail


# --- What "once" means ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "once"),
    [
        ("4.1.0", "one job an event"),
        ("v4.10.2-rc1", "one job an event"),
        ("4.0.9", "at least once: this OSCAR is older than 4.1.0"),
        ("devel", "one job an event if this version is 4.1.0 or later"),
    ],
)
async def test_a_cluster_tells_what_once_means(version: str, once: str) -> None:
    async with FakeOscar(version=version).serve() as oscar:
        oscar.definition = {"federation": {"members": [{"type": "oscar"}]}}
        async with OscarCluster("main", cluster_config(oscar.url)) as cluster:
            plants = OscarService(
                "plants", ServiceConfig(cluster="main"), cluster, trusted_sources=frozenset()
            )
            with capture_logs() as lines:
                await announce(cluster, [plants])
    [line] = lines
    assert (line["version"], line["once"], line["at_least_once"]) == (version, once, ["plants"])


async def test_a_service_whose_jobs_are_removed_has_its_events_once_on_this_replica_alone() -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url) as plants:
        with capture_logs() as lines:
            await announce(plants._cluster, [plants], ["plants"])
            await announce(plants._cluster, [plants])
    assert [line["at_least_once"] for line in lines] == [["plants"], []]


async def test_a_cluster_out_of_reach_is_no_reason_to_fail() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        config = cluster_config(f"http://127.0.0.1:{bound.getsockname()[1]}")
        async with OscarCluster("main", config) as cluster:
            with capture_logs() as lines:
                await announce(cluster, [])
    assert [(line["event"], line["cause"]) for line in lines] == [
        ("the cluster can't be asked what once means", "connect")
    ]


# --- What the bridge lacks itself -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["job", "run"])
async def test_no_descriptor_to_connect_with_is_no_failure_of_the_service(mode: str) -> None:
    async with FakeOscar().serve() as oscar, service(oscar.url, TOKEN_AUTH, mode=mode) as plants:
        with no_descriptor_left():
            answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause, answer.ours) == (Verdict.UNAVAILABLE, "no_descriptors", True)
        assert "Too many open files" in answer.detail
        assert (await plants.prepare(event()).attempt()).verdict is Verdict.ACCEPTED


async def test_no_descriptor_to_read_a_password_with_is_no_refusal(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text(token(1))
    auth = {"type": "service-token", "token_file": str(secret)}
    async with FakeOscar().serve() as oscar, service(oscar.url, auth) as plants:
        with no_descriptor_left():
            answer = await plants.prepare(event()).attempt()
        assert (answer.verdict, answer.cause, answer.ours) == (Verdict.UNAVAILABLE, "no_descriptors", True)
