"""`POST /job/{service}` and `POST /run/{service}`: who may call, and what becomes of the body."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

from aiohttp import web

from bridge.sandbox.oscar.cluster import Cluster
from bridge.sandbox.oscar.errors import RefusedError, ingress_page, ingress_text
from bridge.sandbox.oscar.jobs import KubernetesError
from bridge.sandbox.oscar.kubernetes import TROUBLES
from bridge.sandbox.oscar.oidc import UnreadableTokenError, User, UserInfoError
from bridge.sandbox.oscar.services import SERVICE_TOKEN_LENGTH, SHARED_NAMESPACE, Service, format_uid

_AMBIGUOUS = "More than one service authorize, use the owner query to select the service"
_NOT_ENROLLED = "this user isn't enrrolled on the vo: "
_DOES_NOT_FIT = "invalid workload: try to reduce the service resource (cpu, memory, etc.)"


def _finite(text: str) -> float:
    """Go refuses a number that no float64 holds."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"cannot unmarshal number {text}")
    return number


def _no_constant(text: str) -> Any:
    raise ValueError(f"invalid character {text[0]!r}")


def principal(body: bytes) -> str | None:
    """`decodeEventBytes` of `pkg/handlers/job.go`: whose MinIO secret the body asks for.

    None when it is no event with records. When the records are not as expected (empty, no
    `principalId`, no `sourceIPAddress`, not strings) the Go code panics, recovers and returns an empty
    user *without an error*: then the job's owner label is emptied.
    """
    if b"Records" not in body and b"\\u" not in body:
        return None
    try:
        document = json.loads(
            body.decode("utf-8", "replace"),
            parse_float=_finite, parse_int=_finite, parse_constant=_no_constant,
        )  # fmt: skip
    except (ValueError, RecursionError):
        return None
    records = document.get("Records") if isinstance(document, dict) else None
    if not isinstance(records, list):
        return None
    try:
        parameters = records[0]["requestParameters"]
        uid, address = parameters["principalId"], parameters["sourceIPAddress"]
    except (LookupError, TypeError):
        return ""
    return uid if isinstance(uid, str) and isinstance(address, str) else ""


class Invocation:
    """The two handlers that take events."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def job(self, request: web.Request) -> web.Response:
        """`MakeJobHandler` of `pkg/handlers/job.go`."""
        try:
            body, services, token = await self._asked(request)
            user: User | None = None
            if len(token) == SERVICE_TOKEN_LENGTH:
                service = _with_token(services, token)
            else:
                user, service = await self._job_user(request, services, token)
            await self._create(request, service, user, body)
        except RefusedError as refused:
            return refused.answer()
        except KubernetesError as error:
            return web.Response(status=500, text=str(error))
        return web.Response(status=201)

    async def _job_user(
        self, request: web.Request, services: list[Service], token: str
    ) -> tuple[User, Service]:
        self._check_issuer(token)
        try:
            user = await self._cluster.oidc.user_info(token)
        except UserInfoError as error:
            # `ui.Subject` is read before the error is looked at: the handler panics, gin answers 500.
            raise RefusedError(500) from error
        # The user is compared with the owner after its "@…" is cut off, the owner's is not: EGI users do
        # not reach their own private services here, and get 404.
        service = self._select(request, services, format_uid(user.subject))
        if not await self._cluster.oidc.authorised(token):
            raise RefusedError(401)
        if not self._cluster.oidc.enrolled(user):
            raise RefusedError(401, _NOT_ENROLLED)
        await self._cluster.throttle.calls("core")
        if format_uid(user.subject) not in self._cluster.settings.provisioned:
            text = f"MinIO user not provisioned for {user.subject}; submit a direct request first"
            raise RefusedError(403, text)
        return user, service

    def _check_issuer(self, token: str) -> None:
        try:
            issuer = self._cluster.oidc.issuer_of(token)
        except UnreadableTokenError as error:
            # No `return` after the 502: the next answer's text is written behind it.
            raise RefusedError(502, f"{error}Error getting oidc manager for issuer ''") from error
        if issuer != self._cluster.oidc.issuer:
            raise RefusedError(400, f"Error getting oidc manager for issuer '{issuer}'")

    async def _create(self, request: web.Request, service: Service, user: User | None, body: bytes) -> None:
        owner_label = format_uid(user.subject)[:62] if user is not None else None
        minio_user = user.subject if user is not None else service.owner
        asked = principal(body)
        if asked is not None:
            # Also for an OIDC user: the job carries the body's label, not the caller's.
            owner_label, minio_user = format_uid(asked)[:62], asked
        if minio_user in ("", service.owner):
            minio_user = "minio"
        # Whether the service has secrets of its own; and ensureMinIOSecret, below.
        await self._cluster.throttle.calls("core", 1 if service.namespace == SHARED_NAMESPACE else 2)
        has_secret = format_uid(minio_user) in self._cluster.settings.provisioned
        if not has_secret and service.namespace != SHARED_NAMESPACE:
            # ensureMinIOSecret. In the shared namespace it looks at nothing: see below.
            raise RefusedError(
                500,
                f"error ensuring credentials for user {minio_user}: "
                f'secrets "{format_uid(minio_user)}" not found',
            )
        name = (
            request.headers.get("X-Delegated-Job-ID", "") if self._cluster.settings.at_least("4.1.0") else ""
        )
        if not name:
            prefix = service.name[:16] if len(service.name) >= 25 else service.name
            name = f"{prefix}-{uuid.uuid4()}"
        await self._cluster.throttle.calls("batch")
        if (trouble := self._cluster.faults.trouble(service.name)) is not None:
            raise KubernetesError(TROUBLES[trouble].format(name=name, namespace=service.namespace))
        job = self._cluster.jobs.create(name, service, owner_label, len(body))
        self._cluster.ledger.record(name, service.name, body)
        # Without the secret the pod waits for it for ever, on a node: Pending, after a 201.
        job.hangs = not has_secret
        job.evicted = self._cluster.faults.evicts(service.name)
        job.script_status = self._cluster.faults.script_status(service.name, body)
        self._cluster.pods.start(job, service, body)

    async def run(self, request: web.Request) -> web.Response:
        """`MakeRunHandler` of `pkg/handlers/run.go`, and the service's pod behind it."""
        try:
            body, services, token = await self._asked(request)
            if len(token) == SERVICE_TOKEN_LENGTH:
                service = _with_token(services, token)
            else:
                service = await self._run_service(request, services, token)
        except RefusedError as refused:
            return refused.answer()
        if not self._cluster.quotas.fits(service):
            return web.Response(status=400, text=_DOES_NOT_FIT)
        if service.interlink:
            # pkg/backends/knative.go makes no Knative service, so the name behind the proxy does not exist.
            return web.Response(status=502)
        self._cluster.ledger.record_run(service.name, body)
        try:
            status, output = await self._cluster.pods.run(service, body)
        except TimeoutError:
            return ingress_page(504, "Gateway Time-out")
        return web.Response(status=500 if status else 200, body=output, content_type="text/plain")

    async def _run_service(self, request: web.Request, services: list[Service], token: str) -> Service:
        self._check_issuer(token)
        user: User | None
        try:
            user = await self._cluster.oidc.user_info(token)
        except UserInfoError:
            user = None
        if not await self._cluster.oidc.authorised(token):
            # An expired token, or an issuer that does not answer, shows as a service that is not there.
            raise RefusedError(404)
        if user is None:
            # The token is in OSCAR's cache, and the error was not looked at: a panic.
            raise RefusedError(500)
        service = self._select(request, services, user.subject)
        if not self._cluster.oidc.enrolled(user):
            raise RefusedError(401, _NOT_ENROLLED)
        return service

    async def _asked(self, request: web.Request) -> tuple[bytes, list[Service], str]:
        """Return the body, the services of the name, and the token.

        First of all the body, as the ingress has it; and OSCAR has it whole before its caller can hang up.
        Since 4.0.0 an unknown service is an empty list: 401 with a service token, 404 with OIDC. Before,
        `ReadService` made it a 404 ahead of any authentication.
        """
        body = await request.read()
        limit = self._cluster.settings.max_body_bytes
        if limit is not None and len(body) > limit:
            raise RefusedError(413, ingress_text(413, "Request Entity Too Large"))
        await self._cluster.throttle.calls("core")
        services = self._cluster.services.named(request.match_info["service"])
        if not services and not self._cluster.settings.at_least("4.0.0"):
            raise RefusedError(404)
        return body, services, _bearer(request)

    @staticmethod
    def _select(request: web.Request, services: list[Service], uid: str) -> Service:
        """`selectService` of `pkg/handlers/run.go`."""
        allowed = [service for service in services if service.open_to(uid)]
        if len(allowed) == 1:
            return allowed[0]
        if allowed:
            owner = request.query.get("owner", "").strip()
            if not owner:
                raise RefusedError(400, _AMBIGUOUS)
            for service in allowed:
                if service.owner == owner:
                    return service
        raise RefusedError(404)


def _bearer(request: web.Request) -> str:
    """`strings.Split(authHeader, "Bearer ")` must give two parts: basic auth gets 401."""
    parts = request.headers.get("Authorization", "").split("Bearer ")
    if len(parts) != 2:
        raise RefusedError(401)
    return parts[1].strip()


def _with_token(services: list[Service], token: str) -> Service:
    """The last one wins, as in the Go loop."""
    for service in reversed(services):
        if service.token == token:
            return service
    raise RefusedError(401)
