"""The site's front: routes, the life of all behind them, and what tests do in process."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog
from aiohttp import web

from bridge.sandbox.dcache.control import Control
from bridge.sandbox.dcache.door import Door
from bridge.sandbox.dcache.errors import RefusalError, answer
from bridge.sandbox.dcache.events import Events
from bridge.sandbox.dcache.faults import Faults
from bridge.sandbox.dcache.inotify import Inotify
from bridge.sandbox.dcache.logins import log_in
from bridge.sandbox.dcache.lookups import Lookups
from bridge.sandbox.dcache.namespace import Namespace, Upload, Version
from bridge.sandbox.dcache.settings import Settings
from bridge.sandbox.dcache.streams import Streams
from bridge.sandbox.dcache.trouble import Trouble

_log = structlog.get_logger(__name__)
_API = "/api/v1"
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class SandboxDcache:
    """A dCache site on a loopback port, for as long as the `async with` lasts.

    Operations on paths raise FileNotFoundError, FileExistsError, NotADirectoryError and kin. They return
    once the events are queued to the clients, and let the event loop turn, so that clients are served
    while thousands of them follow one another.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.url = ""
        """`http://host:port`, without a slash at the end."""
        self.base = ""
        """Of the REST interface: `url` + `/api/v1`."""
        self.faults = Faults()
        self.requests: Counter[str] = Counter()
        """What the REST interface was asked for: `GET namespace`, `POST events` and so on → how often."""
        dice = random.Random(self.settings.seed)
        self._inotify = Inotify()
        self.namespace = Namespace(self._inotify.notify, dice)
        self.namespace.moved_to_first = lambda: (
            dice.random() < 0.5 if self.faults.moved_to_first is None else self.faults.moved_to_first
        )
        self._streams = Streams(self.faults)
        self._events = Events(self.settings, self.faults, self.namespace, self._inotify, self._streams, dice)
        self.trouble = Trouble(self._events.channels, self._inotify, self._streams)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> SandboxDcache:
        async with AsyncExitStack() as stack:
            # A client that goes cancels its handler: so its channel's life-time begins at once.
            runner = web.AppRunner(
                self._application(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            settings = self.settings
            await web.TCPSite(runner, settings.host, settings.port, ssl_context=settings.tls).start()
            stack.callback(self.trouble.restart, shutdown=False)
            host, port = runner.addresses[0][:2]
            name = f"[{host}]" if ":" in host else host
            self.url = f"{'https' if settings.tls is not None else 'http'}://{name}:{port}"
            self.base = self.url + _API
            self._stack = stack.pop_all()
        _log.info("sandbox dCache is up", url=self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # --- files, in process ---

    async def mkdir(self, path: str) -> None:
        """Make a directory and those above it; nothing when it is there."""
        self.namespace.mkdir(path, parents=True)
        await asyncio.sleep(0)

    async def upload(self, path: str, data: bytes = b"") -> Version:
        """Write a whole file through a door; directories above it are made.

        A file of that name is replaced: removed, and another made with another pnfsId.
        """
        return await self.finish_upload(await self.begin_upload(path), data)

    async def begin_upload(self, path: str) -> Upload:
        """The first half of `upload`: the file is there, without a size."""
        self.namespace.mkdir(path.rpartition("/")[0] or "/", parents=True)
        upload = self.namespace.begin_upload(path)
        await asyncio.sleep(0)
        return upload

    async def finish_upload(self, upload: Upload, data: bytes = b"") -> Version:
        """The second half: content, size, IN_CLOSE_WRITE. See `Upload` for one renamed or removed."""
        self.namespace.finish_upload(upload, data)
        await asyncio.sleep(0)
        node = upload.node
        return Version(node.path, node.pnfs_id, node.size, node.mtime, node.closed)

    async def abort_upload(self, upload: Upload) -> None:
        """The client went in the midst: IN_CLOSE_WRITE of a file without size, then its removal."""
        self.namespace.abort_upload(upload)
        await asyncio.sleep(0)

    async def overwrite(self, path: str, data: bytes = b"") -> Version:
        """Replace a file that must be there, as WebDAV and xroot do: a new pnfsId."""
        self.namespace.lookup(path)
        return await self.upload(path, data)

    async def rewrite(self, path: str, data: bytes = b"", closes: int = 1) -> Version:
        """Write the same file again, as NFS does: the same pnfsId, another mtime, `closes` closes."""
        node = self.namespace.lookup(path)
        self.namespace.rewrite(node, data, closes)
        await asyncio.sleep(0)
        return Version(path, node.pnfs_id, node.size, node.mtime, node.closed)

    async def close_again(self, path: str, times: int = 1) -> None:
        """Tell further IN_CLOSE_WRITE of the version that is there."""
        for _ in range(times):
            self.namespace.close_again(self.namespace.lookup(path))
        await asyncio.sleep(0)

    async def rename(self, source: str, destination: str) -> None:
        """Move a file or a directory; a file in the way vanishes without an event."""
        self.namespace.rename(self.namespace.lookup(source), destination)
        await asyncio.sleep(0)

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all below it."""
        self.namespace.remove_tree(self.namespace.lookup(path))
        await asyncio.sleep(0)

    def mark_unreadable(self, path: str, *, unreadable: bool = True) -> None:
        """Let nobody list or watch a directory, nor look at anything below it."""
        self.namespace.lookup(path).readable = not unreadable

    def versions(self) -> list[Version]:
        """The truth: every file that exists now, whether closed or not."""
        return list(self.namespace.versions())

    # --- who is there ---

    @property
    def connected(self) -> int:
        """How many event streams are open."""
        return len(self._streams)

    @property
    def watched(self) -> list[str]:
        """The paths of all watches, as they were asked for; one a channel and directory."""
        return sorted(watch.path for watch in self._inotify.watches())

    # --- over HTTP ---

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=0, middlewares=[self._enter])
        application.add_routes(self._events.routes(_API))
        application.add_routes(Lookups(self.namespace, self.faults).routes(_API))
        application.add_routes(Control(self.namespace, self.faults, self.trouble).routes())
        application.add_routes(
            [web.route("*", "/{path:(?!api/|sandbox/)(?s:.*)}", Door(self.namespace).handle)]
        )
        return application

    @web.middleware
    async def _enter(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            if not request.path.startswith("/sandbox/"):
                self._admit(request)
            return await handler(request)
        except RefusalError as refusal:
            return answer(refusal, rfc7807=self.settings.rfc7807)

    def _admit(self, request: web.Request) -> None:
        if request.path.startswith(_API + "/"):
            resource = request.path[len(_API) + 1 :].partition("/")[0]
            self.requests[f"{request.method} {resource}"] += 1
            if self.faults.refusals > 0:
                self.faults.refusals -= 1
                raise RefusalError(401)
            if self.faults.busy > 0:
                self.faults.busy -= 1
                raise RefusalError(429)
        log_in(request, self.settings)
