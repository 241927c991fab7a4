"""`/system/services`: made, changed, read and deleted; and who may call one."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from bridge.sandbox.oscar.errors import NO_ROUTE, RefusedError
from bridge.sandbox.oscar.logins import Api
from bridge.sandbox.oscar.services import (
    CLUSTER_ADMIN,
    SERVICE_TOKEN_LENGTH,
    InvalidDefinitionError,
    check_definition,
    namespace_of,
    new_token,
)


class ServicesApi(Api):
    """Services, as `pkg/handlers` has them."""

    def routes(self) -> list[web.RouteDef]:
        """As in OSCAR's `main.go`."""
        known = self._logins.known
        return [
            web.get("/system/services", known(self._list)),
            web.post("/system/services", known(self._create)),
            web.put("/system/services", known(self._update)),
            web.get("/system/services/{service}", known(self._read)),
            web.delete("/system/services/{service}", known(self._delete)),
            web.get("/system/services/{service}/auth", self._auth),
        ]

    async def _list(self, _request: web.Request, uid: str | None) -> web.Response:
        await self._cluster.throttle.calls("core")
        return web.json_response(
            [service.as_json() for service in self._cluster.services.all() if service.open_to(uid)]
        )

    async def _read(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._cluster.only_service(request.match_info["service"])
        if not service.open_to(uid):
            raise RefusedError(403, f"User {uid} doesn't have permision to get this service")
        return web.json_response(service.as_json())

    async def _create(self, request: web.Request, uid: str | None) -> web.Response:
        definition = await _definition(request)
        if self._cluster.services.named(definition["name"]):
            # 4.1.0 looks itself (400); before, it was the config map's name in one namespace (409).
            raise RefusedError(
                400 if self._cluster.settings.at_least("4.1.0") else 409,
                "A service with the provided name already exists",
            )
        self._cluster.buckets.make(
            self._cluster.services.add(definition, CLUSTER_ADMIN if uid is None else uid)
        )
        return web.Response(status=201)

    async def _update(self, request: web.Request, uid: str | None) -> web.Response:
        definition = await _definition(request)
        service = await self._cluster.only_service(definition["name"])
        if uid is not None and service.owner != uid:
            raise RefusedError(403, f"User {uid} doesn't have permision to modify this service")
        if uid is None:
            # An administrator's update takes the owner from the body, where there is one or not.
            service.owner = str(definition.get("owner", ""))
        if not self._cluster.settings.at_least("4.0.0"):
            # `checkValues` makes a token for every definition; 4.0.0 keeps the old one on an update.
            service.token = new_token()
        service.definition = definition
        self._cluster.buckets.make(service)
        return web.Response(status=204)

    async def _delete(self, request: web.Request, uid: str | None) -> web.Response:
        name = request.match_info["service"]
        if uid is None:
            service = await self._cluster.only_service(name)
        else:
            owned = [
                known for known in self._cluster.services.named(name) if known.namespace == namespace_of(uid)
            ]
            if not owned:
                # With a namespace given, a missing config map is no NotFound to `pkg/handlers/delete.go`.
                raise RefusedError(500, f'the service "{name}" does not have a registered ConfigMap')
            service = owned[0]
            if service.owner != uid:
                raise RefusedError(403, f"User {uid} doesn't have permision to delete this service")
        self._cluster.services.remove(service)
        for job in self._cluster.jobs.of(service):
            self._cluster.jobs.delete(job)
        return web.Response(status=204)

    async def _auth(self, request: web.Request) -> web.Response:
        """`BuildServiceAuthMiddlewareChain` of `pkg/utils/auth/auth.go`, since 4.1.0."""
        if not self._cluster.settings.at_least("4.1.0"):
            return web.Response(status=404, text=NO_ROUTE)
        name = request.match_info["service"]
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and len(token.strip()) == SERVICE_TOKEN_LENGTH:
            services = self._cluster.services.named(name)
            if not services:
                return web.Response(status=500)  # `serviceList[0]` of an empty list: a panic
            return web.Response(status=200 if token.strip() == services[0].token else 401)
        try:
            uid = await self._logins.caller(request)
            service = await self._cluster.only_service(name)
            return web.Response(status=200 if service.open_to(uid) else 403)
        except RefusedError as refused:
            return refused.answer()


async def _definition(request: web.Request) -> dict[str, Any]:
    try:
        definition = check_definition(json.loads(await request.read()))
    except (ValueError, InvalidDefinitionError) as error:
        raise RefusedError(400, f"The service specification is not valid: {error}") from error
    definition["script"] = definition["script"].replace("\r\n", "\n")
    return definition
