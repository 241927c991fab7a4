"""The truth and the trouble over HTTP, for a person with curl: all below `/sandbox/`, without a login."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from aiohttp import web

from bridge.sandbox.dcache.faults import Faults
from bridge.sandbox.dcache.namespace import Namespace
from bridge.sandbox.dcache.trouble import Trouble


class Control:
    """`GET truth`, `GET` and `PUT faults`, and a `POST` for each trouble, with its arguments as a query."""

    def __init__(self, namespace: Namespace, faults: Faults, trouble: Trouble) -> None:
        self._namespace = namespace
        self._faults = faults
        self._trouble = trouble

    def routes(self) -> list[web.RouteDef]:
        """All routes."""
        return [
            web.get("/sandbox/truth", self._truth),
            web.get("/sandbox/faults", self._show),
            web.put("/sandbox/faults", self._put),
            web.post("/sandbox/{kind}", self._strike),
        ]

    async def _truth(self, _request: web.Request) -> web.Response:
        return web.json_response([asdict(version) for version in self._namespace.versions()])

    async def _show(self, _request: web.Request) -> web.Response:
        return web.json_response(asdict(self._faults))

    async def _put(self, request: web.Request) -> web.Response:
        """Change the faults that are named: `{"lookup_failures": 3, "drop_after": 10}`."""
        try:
            self._faults.update(json.loads(await request.read()))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.Response(status=204)

    async def _strike(self, request: web.Request) -> web.Response:
        trouble, namespace, query = self._trouble, self._namespace, request.query
        kinds: dict[str, Callable[[], None]] = {
            "drop": trouble.drop_streams,
            "stall": trouble.stall,
            "resume": trouble.resume,
            "lose-events": trouble.lose_events,
            "begin-overflow": lambda: trouble.begin_overflow(query.get("path")),
            "end-overflow": trouble.end_overflow,
            "forget-channels": trouble.forget_channels,
            "restart": lambda: trouble.restart(shutdown=query.get("shutdown", "1") != "0"),
            "close-again": lambda: namespace.close_again(namespace.lookup(query["path"])),
            "unreadable": lambda: setattr(namespace.lookup(query["path"]), "readable", False),
            "readable": lambda: setattr(namespace.lookup(query["path"]), "readable", True),
        }
        kind = kinds.get(request.match_info["kind"])
        if kind is None:
            raise web.HTTPNotFound(text=f"one of {', '.join(kinds)}\n")
        try:
            kind()
        except (KeyError, OSError) as error:
            raise web.HTTPBadRequest(text=f"no such path: {error}\n") from error
        return web.Response(status=204)
