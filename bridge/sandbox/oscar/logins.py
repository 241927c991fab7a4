"""Who asks `/system/*`: the administrator, a user, or nobody that OSCAR knows."""

from __future__ import annotations

import base64
import hmac
from asyncio import sleep
from collections.abc import Awaitable, Callable

from aiohttp import web

from bridge.sandbox.oscar.cluster import Cluster
from bridge.sandbox.oscar.errors import RefusedError
from bridge.sandbox.oscar.oidc import UnreadableTokenError, UserInfoError
from bridge.sandbox.oscar.services import format_uid

Handler = Callable[[web.Request, str | None], Awaitable[web.Response]]
"""Takes the caller: the OIDC subject, or None for the administrator."""


class Logins:
    """Knows the callers, and what the first call of each leaves behind."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._users_seen: list[str] = []

    def known(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Give `handler` the caller, and answer for it where that is refused."""

        async def handle(request: web.Request) -> web.Response:
            try:
                return await handler(request, await self.caller(request))
            except RefusedError as refused:
                answer = refused.answer()
                if refused.status == 401:
                    answer.headers["WWW-Authenticate"] = 'Basic realm="Authorization Required"'
                return answer

        return handle

    async def caller(self, request: web.Request) -> str | None:
        """`CustomAuth` and `getOIDCMiddleware` of `pkg/utils/auth`. A service token is no readable JWT."""
        header = request.headers.get("Authorization", "")
        if not header.startswith("Bearer "):
            expected = base64.b64encode(
                f"{self._cluster.settings.username}:{self._cluster.settings.password}".encode()
            )
            if not hmac.compare_digest(header.encode(), b"Basic " + expected):
                raise RefusedError(401)
            return None
        token = header.removeprefix("Bearer ")
        try:
            issuer = self._cluster.oidc.issuer_of(token)
        except UnreadableTokenError as error:
            raise RefusedError(400, str(error)) from error
        if issuer != self._cluster.oidc.issuer:
            raise RefusedError(401, f"'{issuer}' is not listed as an authorized issuer")
        if not await self._cluster.oidc.authorised(token):
            raise RefusedError(401)
        try:
            user = await self._cluster.oidc.user_info(token)
        except UserInfoError as error:
            raise RefusedError(500, str(error)) from error
        await self._provision(user.subject)
        return user.subject

    async def _provision(self, subject: str) -> None:
        """The first direct request of a user provisions the MinIO user that `/job` asks for.

        Each one looks after the user's namespace and what must be in it: `EnsureUserNamespace` of
        `pkg/utils/namespaces.go` and `EnsureVolumeLimits` of `pkg/utils/volume_limit.go`.
        """
        name = format_uid(subject)
        if len(self._users_seen) < 2 or subject not in self._users_seen:
            # `UserExists` looks into its cache only once that has two entries.
            await self._cluster.throttle.calls("core")
            self._users_seen.append(subject)
        if name not in self._cluster.settings.provisioned:
            if self._cluster.settings.first_contact_seconds:
                await sleep(self._cluster.settings.first_contact_seconds)
            if name in self._cluster.settings.provisioned:  # by a call that looked at the same moment
                raise RefusedError(
                    500, f'Error creating secret for user {subject}: secrets "{name}" already exists'
                )
            self._cluster.settings.provisioned.add(name)
        await self._cluster.throttle.calls("core")  # the namespace
        await self._cluster.throttle.calls("rbac", 2)  # a role and its binding
        await self._cluster.throttle.calls("core", 3)  # a volume claim, a quota, a limit range


class Api:
    """A part of `/system`, with handlers for callers who are known."""

    def __init__(self, cluster: Cluster, logins: Logins) -> None:
        self._cluster = cluster
        self._logins = logins
