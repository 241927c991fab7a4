"""Servers that refuse in ways the real ones of the tests can't be made to."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from aiohttp import web
from aiokafka.protocol.admin import (
    ApiVersionResponse_v0,
    DescribeConfigsResponse_v1,
    DescribeGroupsResponse_v0,
    SaslAuthenticateResponse_v0,
    SaslHandShakeResponse_v1,
)
from aiokafka.protocol.commit import OffsetFetchResponse_v1
from aiokafka.protocol.coordination import FindCoordinatorResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v1
from aiokafka.protocol.offset import OffsetResponse_v1

_API_VERSIONS = 18


@asynccontextmanager
async def broker_that_answers(*answers: Any) -> AsyncIterator[str]:
    """A Kafka broker with one fixed answer to each question: aiokafka's own `Response`s; gives HOST:PORT.

    An answer may be a function of the port.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        known = {one.API_KEY: one for one in (one(port) if callable(one) else one for one in answers)}
        apis = [(one.API_KEY, one.API_VERSION) for one in known.values()]
        known[_API_VERSIONS] = ApiVersionResponse_v0(
            error_code=0, api_versions=[(_API_VERSIONS, 0, 0), *((key, at, at) for key, at in apis)]
        )
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                api, _, correlation = struct.unpack(">hhi", (await reader.readexactly(size))[:8])
                answer = struct.pack(">i", correlation) + known[api].encode()
                writer.write(struct.pack(">i", len(answer)) + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def refusing_broker() -> AbstractAsyncContextManager[str]:
    """A Kafka broker that takes no password (Kafka protocol guide, SaslAuthenticate)."""
    return broker_that_answers(
        SaslHandShakeResponse_v1(error_code=0, enabled_mechanisms=["PLAIN"]),
        SaslAuthenticateResponse_v0(
            error_code=58, error_message="Authentication failed: Invalid username", sasl_auth_bytes=b""
        ),
    )


def describing_broker(
    topic: str,
    *,
    group: tuple[int, str, str, str, list[Any]] = (0, "Empty", "", "", []),
    retention_ms: int = -1,
    shortest_session_ms: int = 6000,
) -> AbstractAsyncContextManager[str]:
    """A Kafka broker with an empty topic; `group` is error, state, kind, protocol and members."""
    error, *described = group

    def configs(values: Mapping[str, int]) -> list[Any]:
        return [(name, str(value), False, 1, False, []) for name, value in values.items()]

    return broker_that_answers(
        lambda port: MetadataResponse_v1(
            brokers=[(1, "127.0.0.1", port, None)],
            controller_id=1,
            topics=[(0, topic, False, [(0, 0, 1, [1], [1])])],
        ),
        lambda port: FindCoordinatorResponse_v0(error_code=0, coordinator_id=1, host="127.0.0.1", port=port),
        DescribeGroupsResponse_v0(groups=[(error, "g", *described)]),
        OffsetFetchResponse_v1(topics=[(topic, [(0, -1, "", 0)])]),
        OffsetResponse_v1(topics=[(topic, [(0, 0, -1, 0)])]),
        DescribeConfigsResponse_v1(
            throttle_time_ms=0,
            resources=[
                (0, "", 2, topic, configs({"retention.ms": retention_ms})),
                (0, "", 4, "1", configs({"group.min.session.timeout.ms": shortest_session_ms})),
            ],
        ),
    )


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """A server that takes connections and never says a word; gives its port."""
    over = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def sqs_that_answers(code: str, message: str, operation: str = "") -> AsyncIterator[str]:
    """An SQS that refuses every call, or those of one `operation` alone, with an error; gives its URL."""

    async def answer(request: web.Request) -> web.Response:
        asked = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if asked.startswith(operation):
            return web.json_response({"__type": f"com.amazonaws.sqs#{code}", "message": message}, status=403)
        told: dict[str, Any] = {
            "Attributes": {"VisibilityTimeout": "60"},
            "QueueUrl": f"{request.url.origin()}/1/q",
        }
        return web.json_response(told)

    application = web.Application()
    application.router.add_post("/{rest:.*}", answer)
    async with serving(application) as url:
        yield url


@asynccontextmanager
async def oscar_that_answers(
    paths: Mapping[str, Any], *, status: int = 200, **headers: str
) -> AsyncIterator[str]:
    """An HTTP server with JSON documents (or texts) by path, and 404 elsewhere; gives its URL."""

    async def answer(request: web.Request) -> web.Response:
        if request.path not in paths:
            return web.Response(status=404, text="404 page not found")
        told = paths[request.path]
        if isinstance(told, str):
            return web.Response(text=told, status=status, headers=headers)
        return web.json_response(told, headers=headers)

    application = web.Application()
    application.router.add_get("/{rest:.*}", answer)
    async with serving(application) as url:
        yield url


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
