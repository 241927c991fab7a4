"""The cluster's front door: routes, outages, and the life of all behind it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, suppress

import structlog
from aiohttp import web

from bridge.sandbox.oscar.cluster import Cluster
from bridge.sandbox.oscar.cluster_api import ClusterApi
from bridge.sandbox.oscar.control import Control
from bridge.sandbox.oscar.faults import MANAGEMENT, Fault, Handler, cut
from bridge.sandbox.oscar.invocation import Invocation
from bridge.sandbox.oscar.jobs_api import JobsApi
from bridge.sandbox.oscar.logins import Logins
from bridge.sandbox.oscar.services_api import ServicesApi
from bridge.sandbox.oscar.settings import Settings

_log = structlog.get_logger(__name__)
_BACKLOG = 1024


class SandboxOscar(Cluster):
    """An OSCAR cluster on a loopback port, for as long as the `async with` lasts."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.url = ""
        """`http://host:port`, without a slash at the end."""
        self._stack = AsyncExitStack()
        self._outage_ends: asyncio.Event | None = None
        self._outage: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SandboxOscar:
        async with AsyncExitStack() as stack:
            stack.callback(self.ledger.close)
            await stack.enter_async_context(self.pods)
            self._reserved = stack.enter_context(_reserve(self.settings.host, self.settings.port))
            host, port = self._reserved.getsockname()[:2]
            self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            self.oidc.issuer = self.url
            self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.1)
            await self._runner.setup()
            stack.push_async_callback(self._runner.cleanup)
            await self._listen()
            stack.push_async_callback(self.end_outage)
            self._stack = stack.pop_all()
        _log.info("sandbox OSCAR is up", url=self.url, version=self.settings.version)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def outage(self, seconds: float | None = None) -> None:
        """Refuse every connection and cut those there are; for `seconds`, or until `end_outage`.

        The port stays reserved meanwhile.
        """
        await self.end_outage()
        self._outage_ends = asyncio.Event()
        await self._site.stop()
        self._reserved.shutdown(socket.SHUT_RDWR)
        for connection in self._runner.server.connections if self._runner.server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        self._outage = asyncio.create_task(self._end_later(self._outage_ends, seconds))

    async def end_outage(self) -> None:
        """Accept connections again. Nothing when there is no outage."""
        if self._outage is not None and self._outage_ends is not None:
            self._outage_ends.set()
            await self._outage
            self._outage = self._outage_ends = None

    async def _end_later(self, ends: asyncio.Event, seconds: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await ends.wait()
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.SockSite(self._runner, self._reserved.dup(), backlog=_BACKLOG)
        await self._site.start()

    # --- over HTTP ---

    def _application(self) -> web.Application:
        invocation, logins = Invocation(self), Logins(self)
        # pkg/handlers/job.go reads the whole body, however large: no limit of aiohttp's either.
        application = web.Application(client_max_size=0)
        application.add_routes(
            [
                web.post("/job/{service}", self._invoked(invocation.job)),
                web.post("/run/{service}", self._invoked(invocation.run)),
                web.get("/health", self._health),
                web.post("/oidc/token", self._troubled(self.oidc.token)),
                web.get("/oidc/userinfo", self._troubled(self.oidc.userinfo)),
                web.get("/.well-known/openid-configuration", self.oidc.discovery),
                *Control(self, self.outage).routes(),
                *(
                    web.RouteDef(route.method, route.path, self._troubled(route.handler), {})
                    for api in (ServicesApi, JobsApi, ClusterApi)
                    for route in api(self, logins).routes()
                ),
            ]
        )
        return application

    def _invoked(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.ledger.requests += 1
            return await self._answer(self.faults.of(request.match_info["service"]), request, handler)

        return handle

    def _troubled(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._answer(self.faults.rules.get(MANAGEMENT), request, handler)

        return handle

    async def _answer(
        self, fault: Fault | None, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await (handler(request) if fault is None else self.faults.answer(fault, request, handler))
        late = loop.time() - began > self.settings.write_timeout_seconds
        return cut(request) if late else answer

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="Ok")


def _reserve(host: str, port: int) -> socket.socket:
    """A socket bound to a port it keeps through outages.

    Linux keeps the port of a socket that stops listening only if it was asked for by number, so a free
    one is found first.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as scout:
        scout.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        scout.bind((host, port))
        reserved = socket.socket(family)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(scout.getsockname())
    reserved.setblocking(False)
    return reserved
