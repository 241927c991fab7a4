"""The REST resource `namespace`. After `FileResources.java`, `NamespaceUtils.java`."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from urllib.parse import unquote

from aiohttp import web

from bridge.sandbox.dcache.errors import RefusalError
from bridge.sandbox.dcache.faults import Faults
from bridge.sandbox.dcache.logins import user_of
from bridge.sandbox.dcache.namespace import Namespace, Node

_MAX_INT = 2**31 - 1


class Lookups:
    """Attributes and listings, and the few changes that the REST interface makes."""

    def __init__(self, namespace: Namespace, faults: Faults) -> None:
        self._namespace = namespace
        self._faults = faults

    def routes(self, base: str) -> list[web.RouteDef]:
        """All routes, below `base`."""
        return [
            web.get(base + "/namespace{path:(?s:/.*)?}", self._get),
            web.post(base + "/namespace{path:(?s:/.*)?}", self._modify),
            web.delete(base + "/namespace{path:(?s:/.*)?}", self._delete),
        ]

    async def _get(self, request: web.Request) -> web.Response:
        if self._faults.lookup_delay_seconds:
            await asyncio.sleep(self._faults.lookup_delay_seconds)
        if self._faults.lookup_failures > 0:
            self._faults.lookup_failures -= 1
            raise RefusalError(self._faults.lookup_status, "Sandbox fault")
        node = self._node(request)
        document = _attributes(node)
        if node.is_dir and request.query.get("children", "").lower() == "true":
            if not node.readable:
                raise RefusalError(403)
            offset, limit = _range(request)
            if self._faults.ignores_offset:
                offset = 0
            children = self._namespace.list(node)[offset : offset + limit]
            document["children"] = [{**_attributes(child), "fileName": child.name} for child in children]
        return web.json_response(document)

    async def _modify(self, request: web.Request) -> web.Response:
        node = self._node(request)
        known = True
        try:
            document = json.loads(await request.read())
            match document["action"]:
                case "mkdir":
                    self._namespace.mkdir(f"{node.path}/{document['name']}")
                case "mv":
                    target = document["destination"]
                    parent = node.parent.path if node.parent is not None else "/"
                    self._namespace.rename(node, target if target.startswith("/") else f"{parent}/{target}")
                case _:
                    known = False
        except FileNotFoundError as error:
            raise RefusalError(404, str(error)) from error
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise RefusalError(400, str(error)) from error
        if not known:
            raise RefusalError(400, f"No such action {document['action']}")
        return web.json_response({"status": "success"}, status=201)

    async def _delete(self, request: web.Request) -> web.Response:
        node = self._node(request)
        try:
            self._namespace.remove(node)
        except OSError as error:
            raise RefusalError(400, str(error)) from error
        return web.json_response({"status": "success"})

    def _node(self, request: web.Request) -> Node:
        user_of(request)  # a site may let the world read; this one does not
        path = request_path(request).partition("/namespace")[2]
        try:
            node = self._namespace.lookup(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RefusalError(404, f"No such file or directory: {path}") from error
        if node.hidden:
            raise RefusalError(403)
        return node


def request_path(request: web.Request) -> str:
    """The path as it was sent, decoded once: a `%25` is a percent sign, a `+` is a plus."""
    return unquote(request.raw_path.partition("?")[0])


def _attributes(node: Node) -> dict[str, object]:
    document: dict[str, object] = {
        "fileMimeType": "application/vnd.dcache.folder" if node.is_dir else _mime_type(node.name),
        "fileType": "DIR" if node.is_dir else "REGULAR",
        "pnfsId": node.pnfs_id,
        "nlink": len(node.children) + 2 if node.is_dir else 1,
        "mtime": node.mtime,
        "creationTime": node.created,
        "mode": 0o755 if node.is_dir else 0o644,
    }
    if node.size is not None:
        # ChimeraNameSpaceProvider: no size, no location and no level 2 means that it is new.
        document["size"] = node.size
    return document


def _mime_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def _range(request: web.Request) -> tuple[int, int]:
    try:
        offset, limit = (
            int(request.query.get(name, default))
            for name, default in (("offset", "0"), ("limit", str(_MAX_INT)))
        )
    except ValueError as error:
        raise RefusalError(400, "limit and offset must be an integer value.") from error
    if offset < 0 or limit < 0:
        raise RefusalError(400, "limit and offset can not be less than zero.")
    return offset, limit
