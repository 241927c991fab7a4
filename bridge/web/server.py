"""/livez, /readyz and /metrics; and what `api` answers to who has a token."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler as HttpHandler
from prometheus_client import CollectorRegistry, PlatformCollector
from prometheus_client.exposition import choose_encoder

from bridge.telemetry.process import Process
from bridge.web.answers import LONGEST_COMMAND, Handler
from bridge.web.api import Api
from bridge.web.config import HttpConfig
from bridge.web.connections import Connections


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
    command: Handler,
) -> AsyncIterator[str]:
    """Answer at `config`'s address while inside; gives the base URL, such as `http://127.0.0.1:9464`.

    `readiness` is asked at every /readyz and must be cheap. /metrics has the process's own metrics beside
    those of `registry`. `command` answers whoever has the token. Raises OSError when the address can't be
    listened on, ValueError when the files for TLS can't be used.
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

    app = web.Application(
        middlewares=[_one_request_a_connection, _errors_as_json], client_max_size=LONGEST_COMMAND
    )
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    connections = Connections(config.context())
    Api(config, command, connections).add_to(app)
    own = [Process(registry=registry), PlatformCollector(registry=registry)]
    log = logging.getLogger(__name__)
    log.addFilter(_is_of_ours)
    # What is read and thrown away, for its sender has no token, is not unpacked: that could take seconds.
    runner = web.AppRunner(app, access_log=None, logger=log, shutdown_timeout=1, auto_decompress=False)
    try:
        await runner.setup()
        assert runner.server is not None  # noqa: S101 - it is set up
        try:
            # Not by a TCPSite, which takes any number of connections for any time.
            listening = await asyncio.get_running_loop().create_server(
                partial(connections.admit, runner.server), config.host, config.port
            )
        except OSError as error:
            # asyncio's own text says it all again, with the address as a tuple.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise OSError(f"http: can't listen on {config.host} port {config.port}: {reason}") from error
        host, port = listening.sockets[0].getsockname()[:2]
        try:
            scheme = "http" if config.tls is None else "https"
            yield f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        finally:
            listening.close()
            await connections.close()
    finally:
        await runner.cleanup()
        for collector in own:
            registry.unregister(collector)


def _is_of_ours(record: logging.LogRecord) -> bool:
    """Tell whether a log line is about a defect, not about a request that is none, or breaks off."""
    theirs = HttpProcessingError, ConnectionError
    return record.exc_info is None or not isinstance(record.exc_info[1], theirs)


@web.middleware
async def _one_request_a_connection(request: web.Request, handler: HttpHandler) -> web.StreamResponse:
    response = await handler(request)
    response.force_close()
    return response


@web.middleware
async def _errors_as_json(request: web.Request, handler: HttpHandler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return web.json_response({"error": error.reason}, status=error.status, headers=headers)
