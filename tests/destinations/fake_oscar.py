"""A small OSCAR of the tests' own: real sockets, tokens that rotate, answers on request."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from bridge.core.event import Event
from bridge.destinations.oscar.client import OscarService
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.destinations.oscar.config import ClusterConfig, ServiceConfig
from bridge.telemetry.metrics import Metrics

USER, PASSWORD = "oscar", "pass-of-the-cluster"
Answerer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


def token(number: int) -> str:
    """A service token as OSCAR makes them: 64 characters."""
    return f"{number:064x}"


async def created(_request: web.Request, _body: bytes) -> web.StreamResponse:
    return web.Response(status=201)


def always(status: int, text: str = "", **headers: str) -> Answerer:
    async def answer(_request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers)

    return answer


@dataclass
class FakeOscar:
    """`/job`, `/run` and `/system` for services that all have one token."""

    token: str = token(1)
    services: set[str] = field(default_factory=lambda: {"plants"})
    answer: Answerer = created
    bearers: set[str] = field(default_factory=set)
    """Access tokens accepted beside the service token."""
    refusal: int = 401
    definition: dict[str, Any] = field(default_factory=dict)
    version: str = "4.1.0"
    management_status: int = 200
    management_text: str | None = None
    """With `management_status`; when not given, one that repeats a secret."""
    held: asyncio.Event | None = None
    """What a reading of a definition waits for."""
    definitions_read: int = 0
    tokens_asked: int = 0
    """How often a service token was asked for whether it opens its service."""
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    """Of the callers."""
    url: str = ""

    def _manages(self, request: web.Request) -> bool:
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        sent = request.headers.get("Authorization", "")
        return sent == basic or sent.removeprefix("Bearer ") in self.bearers

    async def invoke(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(request)
        self.bodies.append(body)
        if request.transport is not None:
            self.ports.append(request.transport.get_extra_info("peername")[1])
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in {
            self.token,
            *self.bearers,
        }:
            return web.Response(status=self.refusal)
        return await self.answer(request, body)

    async def service(self, request: web.Request) -> web.StreamResponse:
        self.definitions_read += 1
        await asyncio.sleep(0)
        if self.held is not None:
            await self.held.wait()
        if self.management_status != 200:
            return self._trouble()
        if not self._manages(request):
            return web.Response(status=401)
        name = request.match_info["service"]
        if name not in self.services:
            return web.Response(status=404)
        return web.json_response({"name": name, "token": self.token, **self.definition})

    async def auth(self, request: web.Request) -> web.Response:
        """As GetServiceTokenMiddleware (pkg/utils/auth/service_token.go) does with a service token."""
        self.tokens_asked += 1
        await asyncio.sleep(0)
        if self.management_status != 200:
            return self._trouble()
        if request.match_info["service"] not in self.services:
            return web.Response(status=500)  # it takes the first of none
        known = request.headers.get("Authorization") == f"Bearer {self.token}"
        return web.Response(status=200 if known else 401)

    def _trouble(self) -> web.Response:
        text = self.management_text
        return web.Response(
            status=self.management_status, text=f"token {self.token}" if text is None else text
        )

    async def info(self, request: web.Request) -> web.StreamResponse:
        if not self._manages(request):
            return web.Response(status=401)
        return web.json_response({"version": self.version})

    @asynccontextmanager
    async def serve(self, tls: SSLContext | None = None, prefix: str = "") -> AsyncIterator[FakeOscar]:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_post(prefix + "/job/{service}", self.invoke)
        app.router.add_post(prefix + "/run/{service}", self.invoke)
        app.router.add_get(prefix + "/system/services/{service}", self.service)
        app.router.add_get(prefix + "/system/services/{service}/auth", self.auth)
        app.router.add_get(prefix + "/system/info", self.info)
        async with serve(app, tls) as url:
            self.url = url + prefix
            yield self


@asynccontextmanager
async def serve(app: web.Application, tls: SSLContext | None = None) -> AsyncIterator[str]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def cluster_config(endpoint: str, auth: dict[str, Any] | None = None, **more: Any) -> ClusterConfig:
    auth = auth or {"type": "basic", "username": USER, "password": PASSWORD}
    return TypeAdapter(ClusterConfig).validate_python({"endpoint": endpoint, "auth": auth, **more})


@asynccontextmanager
async def service(
    endpoint: str,
    auth: dict[str, Any] | None = None,
    *,
    tls: dict[str, Any] | None = None,
    metrics: Metrics | None = None,
    key: str = "plants",
    trusted: frozenset[str] = frozenset(),
    **more: Any,
) -> AsyncIterator[OscarService]:
    """Open a cluster with one service; `more` is the service's configuration."""
    config = cluster_config(endpoint, auth, **({} if tls is None else {"tls": tls}))
    async with OscarCluster("main", config, metrics=metrics) as cluster:
        yield OscarService(
            key, ServiceConfig.model_validate({"cluster": "main", **more}), cluster, trusted_sources=trusted
        )


def event(number: int = 1, data: bytes = b'{"n":1}', source: str = "uploads") -> Event:
    return Event(id=f"event-{number}", source=source, type="test", data=data)
