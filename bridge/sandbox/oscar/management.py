"""`/system/*`: services, jobs and their logs, what the cluster is and how it does."""

from __future__ import annotations

import base64
import hmac
import json
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from bridge.sandbox.oscar.faults import Faults
from bridge.sandbox.oscar.invocation import SERVICE_TOKEN_LENGTH, RefusedError
from bridge.sandbox.oscar.jobs import Job, Jobs, KubernetesError
from bridge.sandbox.oscar.kubernetes import LISTING_TROUBLES, Throttle
from bridge.sandbox.oscar.oidc import Oidc, UnreadableTokenError, UserInfoError
from bridge.sandbox.oscar.pods import Pods
from bridge.sandbox.oscar.quotas import InvalidQuotaError, Quotas, needs
from bridge.sandbox.oscar.services import (
    CLUSTER_ADMIN,
    SHARED_NAMESPACE,
    InvalidDefinitionError,
    Service,
    Services,
    check_definition,
    format_uid,
    namespace_of,
    new_token,
)
from bridge.sandbox.oscar.settings import Settings
from bridge.sandbox.oscar.storage import Buckets, NoSuchBucketError

Handler = Callable[[web.Request, str | None], Awaitable[web.Response]]
"""Takes the caller: the OIDC subject, or None for the administrator."""
_NO_ROUTE = "404 page not found"
"""gin's."""
_PLACES = 20
"""Of the node, when there is no bound on pods."""
_JOB_MILLICORES, _JOB_BYTES = 200, 256 * 2**20
"""What a job asks for by default."""


class _Resource:
    """What a node has of something, what its pods ask for, and what those that run use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.asked = self.used = 0

    def add(self, amount: int, *, running: bool) -> None:
        self.asked += amount
        self.used += amount * running

    @property
    def free(self) -> int:
        return max(0, self.capacity - self.used)

    @property
    def schedulable(self) -> int:
        return max(0, self.capacity - self.asked)

    def as_json(self, unit: str) -> dict[str, int]:
        """`NodeResource` of `pkg/types/status.go`: what is 0 is left out."""
        amounts = {"capacity": self.capacity, "usage": self.used, "request": self.asked}
        return {f"{what}_{unit}": amount for what, amount in amounts.items() if amount}


class Management:
    """The handlers of the management API."""

    def __init__(
        self,
        settings: Settings,
        services: Services,
        jobs: Jobs,
        pods: Pods,
        oidc: Oidc,
        faults: Faults,
        throttle: Throttle,
        quotas: Quotas,
        buckets: Buckets,
    ) -> None:
        self._settings = settings
        self._services = services
        self._jobs = jobs
        self._pods = pods
        self._oidc = oidc
        self._faults = faults
        self._throttle = throttle
        self._quotas = quotas
        self._buckets = buckets
        self._users_seen: list[str] = []

    def routes(self) -> list[web.RouteDef]:
        """As in OSCAR's `main.go`."""
        routes: list[tuple[Callable[..., web.RouteDef], str, Handler]] = [
            (web.get, "/system/services", self._list),
            (web.post, "/system/services", self._create),
            (web.put, "/system/services", self._update),
            (web.get, "/system/services/{service}", self._read),
            (web.delete, "/system/services/{service}", self._delete),
            (web.get, "/system/logs/{service}", self._job_list),
            (web.delete, "/system/logs/{service}", self._delete_jobs),
            (web.get, "/system/logs/{service}/{job}", self._job_log),
            (web.delete, "/system/logs/{service}/{job}", self._delete_job),
            (web.get, "/system/buckets/{bucket}", self._bucket),
            (web.get, "/system/info", self._info),
            (web.get, "/system/config", self._config),
            (web.get, "/system/status", self._status),
            (web.get, "/system/quotas/user", self._own_quota),
            (web.get, "/system/quotas/user/{user}", self._quota),
            (web.put, "/system/quotas/user/{user}", self._change_quota),
        ]
        return [
            *(method(path, self._known(handler)) for method, path, handler in routes),
            web.get("/system/services/{service}/auth", self._auth),
        ]

    def _known(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                return await handler(request, await self._caller(request))
            except RefusedError as refused:
                answer = refused.answer()
                if refused.status == 401:
                    answer.headers["WWW-Authenticate"] = 'Basic realm="Authorization Required"'
                return answer

        return handle

    async def _caller(self, request: web.Request) -> str | None:
        """`CustomAuth` and `getOIDCMiddleware` of `pkg/utils/auth`. A service token is no readable JWT."""
        header = request.headers.get("Authorization", "")
        if not header.startswith("Bearer "):
            expected = base64.b64encode(f"{self._settings.username}:{self._settings.password}".encode())
            if not hmac.compare_digest(header.encode(), b"Basic " + expected):
                raise RefusedError(401)
            return None
        token = header.removeprefix("Bearer ")
        try:
            issuer = self._oidc.issuer_of(token)
        except UnreadableTokenError as error:
            raise RefusedError(400, str(error)) from error
        if issuer != self._oidc.issuer:
            raise RefusedError(401, f"'{issuer}' is not listed as an authorized issuer")
        if not await self._oidc.authorised(token):
            raise RefusedError(401)
        try:
            user = await self._oidc.user_info(token)
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
            await self._throttle.calls("core")
            self._users_seen.append(subject)
        if name not in self._settings.provisioned:
            if self._settings.first_contact_seconds:
                await sleep(self._settings.first_contact_seconds)
            if name in self._settings.provisioned:  # by a call that looked at the same moment
                raise RefusedError(
                    500, f'Error creating secret for user {subject}: secrets "{name}" already exists'
                )
            self._settings.provisioned.add(name)
        await self._throttle.calls("core")  # the namespace
        await self._throttle.calls("rbac", 2)  # a role and its binding
        await self._throttle.calls("core", 3)  # a volume claim, a quota, a limit range

    async def _only(self, name: str) -> Service:
        """`ReadService` without a namespace: `resolveServiceNamespace` of `pkg/backends/knative.go`."""
        await self._throttle.calls("core")
        services = self._services.named(name)
        if not services:
            raise RefusedError(404)
        if len(services) > 1:
            raise RefusedError(500, f'service "{name}" found in multiple namespaces')
        await self._throttle.calls("core")
        return services[0]

    # --- services ---

    async def _list(self, _request: web.Request, uid: str | None) -> web.Response:
        await self._throttle.calls("core")
        return web.json_response(
            [service.as_json() for service in self._services.all() if service.open_to(uid)]
        )

    async def _read(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._only(request.match_info["service"])
        if not service.open_to(uid):
            raise RefusedError(403, f"User {uid} doesn't have permision to get this service")
        return web.json_response(service.as_json())

    async def _create(self, request: web.Request, uid: str | None) -> web.Response:
        definition = await _definition(request)
        if self._services.named(definition["name"]):
            # 4.1.0 looks itself (400); before, it was the config map's name in one namespace (409).
            raise RefusedError(
                400 if self._settings.at_least("4.1.0") else 409,
                "A service with the provided name already exists",
            )
        self._buckets.make(self._services.add(definition, CLUSTER_ADMIN if uid is None else uid))
        return web.Response(status=201)

    async def _update(self, request: web.Request, uid: str | None) -> web.Response:
        definition = await _definition(request)
        service = await self._only(definition["name"])
        if uid is not None and service.owner != uid:
            raise RefusedError(403, f"User {uid} doesn't have permision to modify this service")
        if uid is None:
            # An administrator's update takes the owner from the body, where there is one or not.
            service.owner = str(definition.get("owner", ""))
        if not self._settings.at_least("4.0.0"):
            # `checkValues` makes a token for every definition; 4.0.0 keeps the old one on an update.
            service.token = new_token()
        service.definition = definition
        self._buckets.make(service)
        return web.Response(status=204)

    async def _delete(self, request: web.Request, uid: str | None) -> web.Response:
        name = request.match_info["service"]
        if uid is None:
            service = await self._only(name)
        else:
            owned = [known for known in self._services.named(name) if known.namespace == namespace_of(uid)]
            if not owned:
                # With a namespace given, a missing config map is no NotFound to `pkg/handlers/delete.go`.
                raise RefusedError(500, f'the service "{name}" does not have a registered ConfigMap')
            service = owned[0]
            if service.owner != uid:
                raise RefusedError(403, f"User {uid} doesn't have permision to delete this service")
        self._services.remove(service)
        for job in self._jobs.of(service):
            self._jobs.delete(job)
        return web.Response(status=204)

    async def _auth(self, request: web.Request) -> web.Response:
        """`BuildServiceAuthMiddlewareChain` of `pkg/utils/auth/auth.go`, since 4.1.0."""
        if not self._settings.at_least("4.1.0"):
            return web.Response(status=404, text=_NO_ROUTE)
        name = request.match_info["service"]
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and len(token.strip()) == SERVICE_TOKEN_LENGTH:
            services = self._services.named(name)
            if not services:
                return web.Response(status=500)  # `serviceList[0]` of an empty list: a panic
            return web.Response(status=200 if token.strip() == services[0].token else 401)
        try:
            uid = await self._caller(request)
            service = await self._only(name)
            return web.Response(status=200 if service.open_to(uid) else 403)
        except RefusedError as refused:
            return refused.answer()

    # --- quotas ---

    def _quotas_are_on(self) -> None:
        """`main.go` has no such route without Kueue; before 4.0.0 the handler said so."""
        if self._settings.kueue:
            return
        if self._settings.at_least("4.0.0"):
            raise RefusedError(404, _NO_ROUTE)
        raise RefusedError(503, "kueue is not enabled: /system/quotas requires KUEUE_ENABLE=true")

    async def _own_quota(self, _request: web.Request, uid: str | None) -> web.Response:
        self._quotas_are_on()
        if uid is None:
            raise RefusedError(401, "missing user identificator: missing user identificator")
        return web.json_response(self._quotas.of(uid))

    async def _quota(self, request: web.Request, uid: str | None) -> web.Response:
        self._quotas_are_on()
        if uid is not None:
            raise RefusedError(403, "forbidden")
        return web.json_response(self._quotas.of(request.match_info["user"]))

    async def _change_quota(self, request: web.Request, uid: str | None) -> web.Response:
        self._quotas_are_on()
        if uid is not None:
            raise RefusedError(403, "forbidden")
        user = request.match_info["user"]
        try:
            self._quotas.change(user, await request.read())
        except InvalidQuotaError as error:
            raise RefusedError(400, str(error)) from error
        self._pods.admit_all()
        return web.json_response(self._quotas.of(user))

    # --- jobs ---

    async def _job_list(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._only(request.match_info["service"])
        if not service.open_to(uid):
            # `getAuthorizedService` writes nothing for a stranger, and the handler returns: an empty 200.
            return web.Response()
        label = None if uid is None else format_uid(uid)[:62]
        return web.json_response(await self.page_of_jobs(service, label, request.query.get("page", "")))

    async def page_of_jobs(self, service: Service, label: str | None, token: str) -> dict[str, Any]:
        """`MakeJobsInfoHandler` of `pkg/handlers/logs.go`, which knows the service. Raises RefusedError."""
        await self._throttle.calls("batch")
        if (trouble := self._faults.trouble_of_listing()) is not None:
            raise RefusedError(500, _of_listing(trouble, service, "jobs.batch", "apis/batch/v1"))
        try:
            page = self._jobs.page(service, label, token)
        except KubernetesError as error:
            raise RefusedError(500, str(error)) from error
        jobs: dict[str, Any] = {}
        refused = ""
        async for number in self._throttle.together("core", len(page.jobs)):  # the pods of each
            job = page.jobs[number]
            if (trouble := self._faults.trouble_of_listing()) is None:
                self._pods.advance()
                jobs[job.name] = job.as_json(page.moment, page.start)
            else:
                refused += _of_listing(trouble, service, "pods", "api/v1")
        # `remaining_jobs` is never there: Kubernetes does not count behind a label selector.
        answer: dict[str, Any] = {"jobs": jobs} | ({"next_page": page.following} if page.following else {})
        if refused:
            # The handler goes on after an error: what it found stands behind the text.
            raise RefusedError(500, refused + json.dumps(answer))
        return answer

    async def _delete_jobs(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._only(request.match_info["service"])
        if not service.open_to(uid):
            return web.Response()
        await self._throttle.calls("batch")
        everything = request.query.get("all", "false") in ("1", "t", "T", "true", "TRUE", "True")
        for job in self._jobs.of(service):
            if everything or job.phase == "Succeeded":
                self._jobs.delete(job)
        return web.Response(status=204)

    async def _job_log(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._only(request.match_info["service"])
        if not service.open_to(uid):
            return web.Response()
        await self._throttle.calls("core")
        job = self._job(service, request)
        if job is None or not job.has_pod(time.time()):
            # No pod: `err.Error()` of a nil error, a panic that gin turns into 500.
            raise RefusedError(500)
        await self._throttle.calls("core")
        if job.phase == "Pending":
            raise RefusedError(404)
        return web.Response(body=self._pods.log(job), content_type="text/plain", charset="utf-8")

    async def _delete_job(self, request: web.Request, uid: str | None) -> web.Response:
        await self._throttle.calls("core", 2)
        services = self._services.named(request.match_info["service"])
        if len(services) != 1 or not services[0].open_to(uid):
            raise RefusedError(403, "You do not have permission to access this service")
        await self._throttle.calls("batch")
        job = self._job(services[0], request)
        if job is None:
            raise RefusedError(404)
        await self._throttle.calls("batch")
        self._jobs.delete(job)
        return web.Response(status=204)

    def _job(self, service: Service, request: web.Request) -> Job | None:
        job = self._jobs.find(service.namespace, request.match_info["job"])
        return job if job is not None and job.service == service.name else None

    # --- storage ---

    async def _bucket(self, request: web.Request, uid: str | None) -> web.Response:
        """No call of Kubernetes': MinIO answers."""
        name = request.match_info["bucket"]
        if uid is not None and not self._buckets.visible(name):
            raise RefusedError(403, f"User '{uid}' is not authorised")
        try:
            return web.json_response(self._buckets.page(name, request.query.get("page", "")))
        except NoSuchBucketError as error:
            text = "NoSuchBucket: The specified bucket does not exist\n\tstatus code: 404"
            raise RefusedError(500, f"Error listing objects in bucket '{name}': {text}") from error

    # --- the cluster ---

    async def _info(self, _request: web.Request, _uid: str | None) -> web.Response:
        return web.json_response(
            {
                "version": self._settings.version,
                "git_commit": "",
                "architecture": "amd64",
                "kubernetes_version": "v1.33.1",
                "serverless_backend": {"name": "Knative", "version": "v1.18.0"},
            }
        )

    async def _config(self, _request: web.Request, uid: str | None) -> web.Response:
        return web.json_response(
            {
                "config": {
                    "name": "oscar",
                    "namespace": "oscar",
                    "services_namespace": SHARED_NAMESPACE,
                    "gpu_available": False,
                    "interLink_available": True,
                    "serverless_backend": "knative",
                    "yunikorn_enable": False,
                    "kueue_enable": self._settings.kueue,
                    "oidc_groups": list(self._settings.oidc_groups),
                },
                "minio_provider": {
                    "endpoint": "http://minio.minio:9000",
                    "verify": False,
                    "access_key": uid or "minio",
                    "secret_key": "sandbox",
                    "region": "us-east-1",
                },
                "allowed_image_repositories": [],
            }
        )

    async def _status(self, _request: web.Request, uid: str | None) -> web.Response:
        """`pkg/handlers/status.go`: what the nodes have left, for all; the counts for the administrator only.

        Six calls, however many jobs there are. The counts are of the shared namespace, all services
        together.
        """
        await self._throttle.calls("core", 2)
        await self._throttle.calls("apps")
        states: dict[str, int] = {}
        jobs_count = 0
        if uid is None:
            await self._throttle.calls("batch")
            await self._throttle.calls("core")
            states = dict.fromkeys(("Pending", "Running", "Succeeded", "Failed", "Unknown"), 0)
            now = time.time()
            for job in self._jobs.all():
                if job.namespace == SHARED_NAMESPACE:
                    phase = job.phase_at(now)
                    jobs_count += phase != "Suspended"
                    if job.has_pod(now):
                        states[phase] += 1
        cpu, memory = self._left()
        return web.json_response(
            {
                "cluster": {
                    "nodes_count": 1,
                    "metrics": {
                        "cpu": {
                            "total_free_cores": cpu.free,
                            "max_free_on_node_cores": cpu.free,
                            "total_schedulable_cores": cpu.schedulable,
                            "total_schedulable_on_node_cores": cpu.schedulable,
                        },
                        "memory": {
                            "total_free_bytes": memory.free,
                            "max_free_on_node_bytes": memory.free,
                            "total_schedulable_bytes": memory.schedulable,
                            "max_schedulable_on_node_bytes": memory.schedulable,
                        },
                        "gpu": {"total_gpu": 0},
                    },
                    "nodes": [
                        {
                            "name": "sandbox-node",
                            "cpu": cpu.as_json("cores"),
                            "memory": memory.as_json("bytes"),
                            "gpu": 0,
                            "is_interlink": False,
                            "status": "Ready",
                            "conditions": [{"type": "Ready", "status": True}],
                        }
                    ],
                },
                "oscar": {
                    "deployment_name": "oscar",
                    "ready": True,
                    "jobs_count": jobs_count,
                    "pods": {"total": sum(states.values()), "states": states},
                    "oidc": {
                        "enabled": True,
                        "issuers": [self._oidc.issuer],
                        "groups": list(self._settings.oidc_groups),
                    },
                },
                "minio": {"buckets_count": 0, "total_objects": 0},
            }
        )

    def _left(self) -> tuple[_Resource, _Resource]:
        """Millicores and bytes of the one node, which `max_pods` of the default size fill."""
        places = self._settings.max_pods or _PLACES
        cpu, memory = _Resource(places * _JOB_MILLICORES), _Resource(places * _JOB_BYTES)
        now = time.time()
        for job in self._jobs.all():
            if not job.placed <= now < job.finished:
                continue
            for service in self._services.named(job.service):
                if service.namespace == job.namespace:
                    cores, size = needs(service)
                    running = job.started <= now
                    cpu.add(round(cores * 1000), running=running)
                    memory.add(round(size), running=running)
        return cpu, memory


def _of_listing(trouble: str, service: Service, resource: str, path: str) -> str:
    return LISTING_TROUBLES[trouble].format(resource=resource, path=path, namespace=service.namespace)


async def _definition(request: web.Request) -> dict[str, Any]:
    try:
        definition = check_definition(json.loads(await request.read()))
    except (ValueError, InvalidDefinitionError) as error:
        raise RefusedError(400, f"The service specification is not valid: {error}") from error
    definition["script"] = definition["script"].replace("\r\n", "\n")
    return definition
