"""The status page and its API: which paths there are, and who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler as HttpHandler

from bridge.core.errors import CredentialError
from bridge.web.access import Access, is_ours
from bridge.web.answers import Handler, answered, command_in, fault, too_long
from bridge.web.config import HttpConfig
from bridge.web.connections import Connections

_MOST_AT_ONCE = 16
"""Of those who ask for anything but the page: a thread and a piece of memory each, at most."""
_ANSWER_SECONDS = 60.0
"""For one command: to mark a million rows takes half of it."""
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

_Responding = Callable[[web.Request], Awaitable[web.Response]]

_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "oscar-bridge",
}
"""Of every answer: the page runs no script but its own, is in no other page, and nothing is kept of it."""

_CLOSED = (
    "there is nothing here but /livez, /readyz and /metrics: the status page and its API need a token, so "
    "write one into a file that nobody else can read, and its path as http.token_file (docs/http-api.md)"
)
_NO_TOKEN = "send the token that is in http.token_file as `Authorization: Bearer TOKEN`"  # noqa: S105 - says how
_STRANGE_NAME = (
    "this bridge is not called by that name: use an address or localhost, or write the name under http.names"
)


class Api:
    """What is answered beside /livez, /readyz and /metrics."""

    def __init__(self, config: HttpConfig, command: Handler, connections: Connections) -> None:
        """Answer with what `command` gives; it knows nothing of HTTP."""
        self._names = config.names
        self._access = None if config.token_file is None else Access(config.token_file)
        self._command = command
        self._connections = connections
        self._at_once = 0
        self._open: set[str] = set()
        """Paths that need no token, for nothing of an event is there."""
        self._page: set[str] = set()
        """Likewise, once there is a token."""

    def add_to(self, app: web.Application) -> None:
        """Add the paths, behind those that `app` has: they are open."""
        router = app.router
        self._open = {resource.canonical for resource in router.resources()}
        app.middlewares.append(self._guard)
        app.on_response_prepare.append(_add_headers)
        if self._access is None:
            return
        for path, content, content_type in _page():
            self._page.add(path)
            router.add_get(path, _giving(content, content_type))
        router.add_get("/api/status", self._asks("status"))
        router.add_get("/api/history", self._asks("history", hours=float))
        router.add_get("/api/events", self._asks("events"))
        router.add_get("/api/dead-letters", self._asks("dead-letters", before=int, limit=int))
        router.add_get(r"/api/dead-letters/{number:[0-9]{1,19}}", self._asks("dead-letter", number=int))
        router.add_get("/api/parked", self._asks("parked", before=int, limit=int))
        router.add_post("/api/commands", self._carry_out)

    @web.middleware
    async def _guard(self, request: web.Request, handler: HttpHandler) -> web.StreamResponse:
        # By what was found for the path, however that is written. Nothing is found for another method.
        resource = request.match_info.route.resource
        path = None if resource is None else resource.canonical
        if path in self._open or (path is None and request.path in self._open):
            return await handler(request)
        if self._access is None:
            return fault(404, _CLOSED)
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1 or not is_ours(hosts[0], self._names):
            return fault(403, _STRANGE_NAME)
        if path in self._page:
            return await handler(request)
        if self._at_once >= _MOST_AT_ONCE:
            return fault(503, "too many ask at once: try again", {"Retry-After": "1"})
        self._at_once += 1
        try:
            return await self._refusal(request, self._access) or await handler(request)
        finally:
            self._at_once -= 1

    async def _refusal(self, request: web.Request, access: Access) -> web.Response | None:
        given = request.headers.getall("Authorization", [])
        try:
            if len(given) == 1 and await access.is_granted(given[0]):
                return None
        except CredentialError as error:
            return fault(503, str(error))
        if access.fail():
            return fault(429, "too many wrong tokens: try again in a second", {"Retry-After": "1"})
        return fault(401, _NO_TOKEN, {"WWW-Authenticate": "Bearer"})

    def _asks(self, do: str, **kinds: Callable[[str], Any]) -> _Responding:
        """Make the handler that has `do` carried out, with the members of path and query that are given."""

        async def handler(request: web.Request) -> web.Response:
            command: dict[str, Any] = {"do": do}
            for name, text in (*request.query.items(), *request.match_info.items()):
                if name in command:
                    return fault(400, f"`{name}` is given twice")
                if text:
                    try:
                        command[name] = kinds.get(name, str)(text)
                    except ValueError:
                        return fault(400, f"`{name}`: expected a number")
            return await self._answer(request, command)

        return handler

    async def _carry_out(self, request: web.Request) -> web.Response:
        try:
            command = await command_in(request)
        except ValueError as error:
            return fault(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return too_long()
        return await self._answer(request, command)

    async def _answer(self, request: web.Request, command: Mapping[str, Any]) -> web.Response:
        with self._connections.working(request.protocol):
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await answered(self._command, command)
            except TimeoutError:
                told = f"no answer within {_ANSWER_SECONDS:g} s: what was asked for may be done all the same"
                return fault(503, told)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _page() -> list[tuple[str, bytes, str]]:
    """Return the page's files with their paths and types. They are read once: there are few, and small."""
    found = []
    for file in files("bridge.web").joinpath("page").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            path = "/" if file.name == "index.html" else f"/page/{file.name}"
            found.append((path, file.read_bytes(), kind))
    return found


def _giving(content: bytes, content_type: str) -> _Responding:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=content, content_type=content_type, charset="utf-8")

    return handler
