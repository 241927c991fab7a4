"""/livez, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from pydantic import Field

from bridge.values import Model

_REQUEST_SECONDS = 10.0
"""From a connection to the end of its one answer. What takes longer is no probe and no Prometheus."""
_MOST_CONNECTIONS = 64
"""Open at once; a new one takes the place of the oldest. Each takes a descriptor that the bridge may need."""


class HttpConfig(Model):
    """Where /livez, /readyz and /metrics are answered. They need no credential and tell no secret."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address listened on: loopback alone by default."""
    port: int = Field(default=9464, ge=0, le=65535)
    """The TCP port; 0 takes any free one. 9464 is the usual one of Prometheus exporters in OpenTelemetry."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the bridge is not ready."""

    part: str
    """What it is about: `source uploads`, `service plants`, `store`."""
    reason: str
    """For the person who mends it."""


@asynccontextmanager
async def serve(
    config: HttpConfig,
    registry: CollectorRegistry,
    readiness: Callable[[], Sequence[Problem]],
) -> AsyncIterator[str]:
    """Answer at `config`'s address while inside; gives the base URL, such as `http://127.0.0.1:9464`.

    `readiness` is asked at every /readyz and must be cheap. /metrics has the process's own metrics beside
    those of `registry`. Raises OSError when the address can't be listened on.
    """

    async def livez(_request: web.Request) -> web.Response:
        # That this is answered is the proof: the loop turns.
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        problems = [asdict(problem) for problem in readiness()]
        return web.json_response(
            {"ready": not problems, "problems": problems}, status=503 if problems else 200
        )

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    app = web.Application(middlewares=[_one_request_a_connection, _errors_as_json])
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    own = [ProcessCollector(registry=registry), PlatformCollector(registry=registry)]
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    try:
        await runner.setup()
        try:
            # Not by a TCPSite, which takes any number of connections for any time.
            listening = await asyncio.get_running_loop().create_server(
                _admitting(runner.server), config.host, config.port
            )
        except OSError as error:
            # asyncio's own text says it all again, with the address as a tuple.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise OSError(f"http: can't listen on {config.host} port {config.port}: {reason}") from error
        host, port = listening.sockets[0].getsockname()[:2]
        try:
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        finally:
            listening.close()
    finally:
        await runner.cleanup()
        for collector in own:
            registry.unregister(collector)


def _admitting(server: web.Server | None) -> Callable[[], asyncio.BaseProtocol]:
    """Return what makes the connections of `server`, so that nobody can have many, or one for long."""
    assert server is not None  # noqa: S101 - the runner is set up
    loop = asyncio.get_running_loop()

    def admit() -> web.RequestHandler:
        connections = server.connections
        for oldest in connections[: max(0, len(connections) + 1 - _MOST_CONNECTIONS)]:
            abort(oldest)
        connection = server()
        loop.call_later(_REQUEST_SECONDS, abort, connection)
        return connection

    return admit


def abort(connection: web.RequestHandler) -> None:
    """End a connection at once, whatever is under way on it."""
    transport = cast("asyncio.WriteTransport | None", connection.transport)  # uvloop's is none by its class
    if transport is not None:
        transport.abort()  # to close it would wait for who does not read


@web.middleware
async def _one_request_a_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.force_close()
    return response


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response({"error": error.reason}, status=error.status, headers=headers)
