"""A WebDAV door for a person with curl: every path outside of `/api/` and `/sandbox/` is dCache's own path.

curl -u bridge:bridge -X MKCOL URL/data/in
curl -u bridge:bridge -T leaf.nc URL/data/in/leaf.nc            # an overwrite makes a new pnfsId
curl -u bridge:bridge -T leaf.nc 'URL/data/in/leaf.nc?nfs=1'    # rewrites the same file, as NFS does
curl -u bridge:bridge -X MOVE -H 'Destination: /data/out/leaf.nc' URL/data/in/leaf.nc
curl -u bridge:bridge -X DELETE URL/data/out/leaf.nc
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from aiohttp import web

from bridge.sandbox.dcache.errors import RefusalError
from bridge.sandbox.dcache.logins import user_of
from bridge.sandbox.dcache.lookups import request_path
from bridge.sandbox.dcache.namespace import Namespace


class Door:
    """GET, PUT, MKCOL, MOVE and DELETE (RFC 4918). A directory that goes, goes with all below it."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request that no other route took."""
        user_of(request)
        path = request_path(request)
        try:
            match request.method:
                case "GET" | "HEAD":
                    return self._get(path)
                case "PUT":
                    return await self._put(request, path)
                case "MKCOL":
                    self._namespace.mkdir(path)
                case "MOVE":
                    return self._move(request, path)
                case "DELETE":
                    self._namespace.remove_tree(self._namespace.lookup(path))
                    return web.Response(status=204)
                case _:
                    raise RefusalError(405)
        except FileNotFoundError as error:
            raise RefusalError(409 if request.method in ("PUT", "MKCOL") else 404, str(error)) from error
        except (FileExistsError, IsADirectoryError) as error:
            raise RefusalError(405, str(error)) from error
        except (ValueError, OSError) as error:
            raise RefusalError(409, str(error)) from error
        return web.Response(status=201)

    def _get(self, path: str) -> web.Response:
        node = self._namespace.lookup(path)
        if node.hidden or not node.readable:
            raise RefusalError(403)
        if node.is_dir:
            names = [child.name + "/" * child.is_dir for child in self._namespace.list(node)]
            return web.Response(text="".join(f"{name}\n" for name in names))
        if node.size is None:
            raise RefusalError(409, f"{path} is being written")
        return web.Response(body=self._namespace.read(node), content_type="application/octet-stream")

    async def _put(self, request: web.Request, path: str) -> web.Response:
        if "nfs" in request.query:
            file = self._namespace.lookup(path)
            self._namespace.rewrite(file, await request.read(), int(request.query.get("closes", "1")))
            return web.Response(status=204)
        upload = self._namespace.begin_upload(path)
        finished = False
        try:
            # The client sends while the file is there without a size, for as long as it takes.
            data = await request.read()
            finished = True
        finally:
            if not finished:
                self._namespace.abort_upload(upload)
        self._namespace.finish_upload(upload, data)
        return web.Response(status=201)

    def _move(self, request: web.Request, path: str) -> web.Response:
        destination = unquote(urlsplit(request.headers.get("Destination", "")).path)
        if not destination.startswith("/"):
            raise RefusalError(400, "MOVE needs a Destination")
        self._namespace.rename(self._namespace.lookup(path), destination)
        return web.Response(status=201)
