"""The cluster's front door: routes, faults, outages, and the life of all behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from bridge.sandbox.oscar.faults import MANAGEMENT, Fault, Faults
from bridge.sandbox.oscar.invocation import Invocation, ingress_page
from bridge.sandbox.oscar.jobs import Job, Jobs
from bridge.sandbox.oscar.kubernetes import Throttle
from bridge.sandbox.oscar.ledger import Activity, Ledger
from bridge.sandbox.oscar.management import Management
from bridge.sandbox.oscar.oidc import Oidc
from bridge.sandbox.oscar.pods import Pods
from bridge.sandbox.oscar.quotas import Quotas
from bridge.sandbox.oscar.services import (
    CLUSTER_ADMIN,
    Service,
    Services,
    check_definition,
    format_uid,
    new_token,
)
from bridge.sandbox.oscar.settings import Settings
from bridge.sandbox.oscar.storage import Buckets

_log = structlog.get_logger(__name__)
_BACKLOG = 1024
_LEDGER_PAGE = 10_000
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SandboxOscar:
    """An OSCAR cluster on a loopback port, for as long as the `async with` lasts."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.url = ""
        """`http://host:port`, without a slash at the end."""
        self.services = Services()
        self.faults = Faults(self.settings.seed)
        self.oidc = Oidc(self.settings, self.faults)
        self.ledger = Ledger(keep_bodies=self.settings.keep_bodies, file=self.settings.ledger_file)
        self.buckets = Buckets(self.settings)
        self.quotas = Quotas(self.settings, self.services)
        self._pods = Pods(self.settings, self.ledger, self.buckets, self.quotas, self._job_ended)
        self.jobs = Jobs(self.settings, on_gone=self._pods.remove, advance=self._pods.advance)
        self._throttle = Throttle(self.settings)
        self._stack = AsyncExitStack()
        self._outage_ends: asyncio.Event | None = None
        self._outage: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SandboxOscar:
        async with AsyncExitStack() as stack:
            stack.callback(self.ledger.close)
            await stack.enter_async_context(self._pods)
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

    # --- in process ---

    def add_service(
        self, name: str, script: str | Path = "cat", owner: str = CLUSTER_ADMIN, **more: Any
    ) -> Service:
        """Create a service without HTTP; `more` are further fields of its definition.

        Also for what the API refuses: a second owner of a name.
        """
        text = script.read_text() if isinstance(script, Path) else script
        definition = check_definition({"name": name, "image": "sandbox", "script": text, **more})
        service = self.services.add(definition, owner)
        self.buckets.make(service)
        return service

    def rotate_token(self, service: Service) -> str:
        """Give a service a new token, as deleting and creating it does (and an update, before 4.0.0)."""
        service.token = new_token()
        return service.token

    def job(self, name: str, service: str | None = None) -> Job | None:
        """The Job of that name, of that service or of any."""
        for job in self.jobs.named(name):
            if service in (None, job.service):
                return job
        return None

    def activity(self) -> Activity:
        """How many jobs are active and were at most at any instant, and the places' use up to now."""
        self._pods.advance()
        return self.ledger.activity()

    def preload(
        self,
        service: Service,
        count: int,
        *,
        failed: int = 0,
        seconds_ago: float = 3600.0,
        prefix: str | None = None,
        user: str | None = None,
    ) -> None:
        """Put `count` jobs there that ended `seconds_ago`, `failed` of them badly.

        Their names are `prefix` (by default the service's name and a hyphen, as OSCAR makes them) and a
        UUID. With `user` they carry that user's label. The ledger does not know them.
        """
        start = f"{service.name}-" if prefix is None else prefix
        names = (f"{start}{uuid.uuid4()}" for _ in range(count))
        label = None if user is None else format_uid(user)[:62]
        self.jobs.preload(service, names, ended=time.time() - seconds_ago, failed=failed, owner_label=label)

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
        try:
            async with asyncio.timeout(seconds):
                await ends.wait()
        except TimeoutError:
            pass
        await self._listen()

    async def _listen(self) -> None:
        self._site = web.SockSite(self._runner, self._reserved.dup(), backlog=_BACKLOG)
        await self._site.start()

    def _job_ended(self, job: Job) -> None:
        self.jobs.ended(job)

    # --- over HTTP ---

    def _application(self) -> web.Application:
        invocation = Invocation(
            self.settings,
            self.services,
            self.jobs,
            self._pods,
            self.oidc,
            self.ledger,
            self.faults,
            self._throttle,
            self.quotas,
        )
        management = Management(
            self.settings,
            self.services,
            self.jobs,
            self._pods,
            self.oidc,
            self.faults,
            self._throttle,
            self.quotas,
            self.buckets,
        )
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
                web.get("/sandbox/ledger", self._show_ledger),
                web.get("/sandbox/activity", self._show_activity),
                web.post("/sandbox/jobs", self._preload),
                web.get("/sandbox/faults", self._show_faults),
                web.put("/sandbox/faults", self._put_faults),
                *(
                    web.RouteDef(route.method, route.path, self._troubled(route.handler), {})
                    for route in management.routes()
                ),
            ]
        )
        return application

    def _invoked(self, handler: _Handler) -> _Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.ledger.requests += 1
            return await self._answer(self.faults.of(request.match_info["service"]), request, handler)

        return handle

    def _troubled(self, handler: _Handler) -> _Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._answer(self.faults.rules.get(MANAGEMENT), request, handler)

        return handle

    async def _answer(
        self, fault: Fault | None, request: web.Request, handler: _Handler
    ) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await (handler(request) if fault is None else self._with_fault(fault, request, handler))
        late = loop.time() - began > self.settings.write_timeout_seconds
        return _cut(request) if late else answer

    async def _with_fault(self, fault: Fault, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if self.faults.strikes("cut", fault.cut):
            return _cut(request)
        if (status := self.faults.status(fault)) is not None:
            answer = ingress_page(status, "Sandbox Fault")
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = fault.retry_after
            return answer
        response = await handler(request)
        if self.faults.strikes("lost_answer", fault.lost_answers):
            return _cut(request)
        return response

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="Ok")

    async def _show_ledger(self, request: web.Request) -> web.Response:
        try:
            offset = int(request.query.get("offset", "0"))
            limit = int(request.query.get("limit", str(_LEDGER_PAGE)))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response(self.ledger.page(offset, limit, bodies="bodies" in request.query))

    async def _show_activity(self, _request: web.Request) -> web.Response:
        return web.json_response(self.activity().as_json())

    async def _preload(self, request: web.Request) -> web.Response:
        """`{"service": NAME, "count": 10000}` and what else `preload` takes."""
        try:
            document = json.loads(await request.read())
            [service] = self.services.named(document.pop("service"))
            self.preload(service, **document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"not a description of jobs: {error}") from error
        return web.Response(status=204)

    async def _show_faults(self, _request: web.Request) -> web.Response:
        rules = {service: fault.as_json() for service, fault in self.faults.rules.items()}
        return web.json_response({"services": rules, "injected": self.faults.injected})

    async def _put_faults(self, request: web.Request) -> web.Response:
        """Replace all faults: `{"services": {"*": {…}, NAME: {…}, "system": {…}}, "outage_seconds": 3}`."""
        try:
            document = json.loads(await request.read())
            rules = {name: Fault.of_json(fault) for name, fault in document.get("services", {}).items()}
            seconds = float(document.get("outage_seconds", 0))
        except (ValueError, TypeError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"not a description of faults: {error}") from error
        self.faults.rules = rules
        if seconds > 0:
            # The caller's own connection is cut with the rest: no answer is the answer.
            await self.outage(seconds)
        return web.Response(status=204)


def _cut(request: web.Request) -> web.Response:
    """Reset the connection in place of an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


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
