"""The witness and the trouble over HTTP, for a person with curl: all below `/sandbox/`, without a login."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from aiohttp import web

from bridge.sandbox.oscar.cluster import Cluster
from bridge.sandbox.oscar.faults import Fault

_LEDGER_PAGE = 10_000


class Control:
    """What was asked and created, jobs put there as if they had ended, and the faults in force."""

    def __init__(self, cluster: Cluster, outage: Callable[[float], Awaitable[None]]) -> None:
        """`outage` begins one of so many seconds."""
        self._cluster = cluster
        self._outage = outage

    def routes(self) -> list[web.RouteDef]:
        """Return all routes."""
        return [
            web.get("/sandbox/ledger", self._ledger),
            web.get("/sandbox/activity", self._activity),
            web.post("/sandbox/jobs", self._preload),
            web.get("/sandbox/faults", self._show_faults),
            web.put("/sandbox/faults", self._put_faults),
        ]

    async def _ledger(self, request: web.Request) -> web.Response:
        try:
            offset = int(request.query.get("offset", "0"))
            limit = int(request.query.get("limit", str(_LEDGER_PAGE)))
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response(self._cluster.ledger.page(offset, limit, bodies="bodies" in request.query))

    async def _activity(self, _request: web.Request) -> web.Response:
        return web.json_response(asdict(self._cluster.activity()))

    async def _preload(self, request: web.Request) -> web.Response:
        """`{"service": NAME, "count": 10000}` and what else `preload` takes."""
        try:
            document = json.loads(await request.read())
            [service] = self._cluster.services.named(document.pop("service"))
            self._cluster.preload(service, **document)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"not a description of jobs: {error}") from error
        return web.Response(status=204)

    async def _show_faults(self, _request: web.Request) -> web.Response:
        rules = {service: asdict(fault) for service, fault in self._cluster.faults.rules.items()}
        return web.json_response({"services": rules, "injected": self._cluster.faults.injected})

    async def _put_faults(self, request: web.Request) -> web.Response:
        """Replace all faults: `{"services": {"*": {…}, NAME: {…}, "system": {…}}, "outage_seconds": 3}`."""
        try:
            document = json.loads(await request.read())
            rules = {name: Fault.of_json(fault) for name, fault in document.get("services", {}).items()}
            seconds = float(document.get("outage_seconds", 0))
        except (ValueError, TypeError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"not a description of faults: {error}") from error
        self._cluster.faults.rules = rules
        if seconds > 0:
            # The caller's own connection is cut with the rest: no answer is the answer.
            await self._outage(seconds)
        return web.Response(status=204)
