"""`/system/*` of the cluster itself: what it is, how it does, its quotas and its buckets."""

from __future__ import annotations

import time

from aiohttp import web

from bridge.sandbox.oscar.errors import NO_ROUTE, RefusedError
from bridge.sandbox.oscar.logins import Api
from bridge.sandbox.oscar.oidc import GROUPS
from bridge.sandbox.oscar.quotas import InvalidQuotaError, needs
from bridge.sandbox.oscar.services import SHARED_NAMESPACE
from bridge.sandbox.oscar.storage import NoSuchBucketError

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


class ClusterApi(Api):
    """The cluster, as `pkg/handlers` tells of it."""

    def routes(self) -> list[web.RouteDef]:
        """As in OSCAR's `main.go`."""
        known = self._logins.known
        return [
            web.get("/system/buckets/{bucket}", known(self._bucket)),
            web.get("/system/info", known(self._info)),
            web.get("/system/config", known(self._config)),
            web.get("/system/status", known(self._status)),
            web.get("/system/quotas/user", known(self._own_quota)),
            web.get("/system/quotas/user/{user}", known(self._quota)),
            web.put("/system/quotas/user/{user}", known(self._change_quota)),
        ]

    async def _info(self, _request: web.Request, _uid: str | None) -> web.Response:
        return web.json_response(
            {
                "version": self._cluster.settings.version,
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
                    "kueue_enable": self._cluster.settings.kueue,
                    "oidc_groups": list(GROUPS),
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
        await self._cluster.throttle.calls("core", 2)
        await self._cluster.throttle.calls("apps")
        states: dict[str, int] = {}
        jobs_count = 0
        if uid is None:
            await self._cluster.throttle.calls("batch")
            await self._cluster.throttle.calls("core")
            states = dict.fromkeys(("Pending", "Running", "Succeeded", "Failed", "Unknown"), 0)
            now = time.time()
            for job in self._cluster.jobs.all():
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
                        "issuers": [self._cluster.oidc.issuer],
                        "groups": list(GROUPS),
                    },
                },
                "minio": {"buckets_count": 0, "total_objects": 0},
            }
        )

    def _left(self) -> tuple[_Resource, _Resource]:
        """Millicores and bytes of the one node, which `max_pods` of the default size fill."""
        places = self._cluster.settings.max_pods or _PLACES
        cpu, memory = _Resource(places * _JOB_MILLICORES), _Resource(places * _JOB_BYTES)
        now = time.time()
        for job in self._cluster.jobs.all():
            if not job.placed <= now < job.finished:
                continue
            for service in self._cluster.services.named(job.service):
                if service.namespace == job.namespace:
                    cores, size = needs(service)
                    running = job.started <= now
                    cpu.add(round(cores * 1000), running=running)
                    memory.add(round(size), running=running)
        return cpu, memory

    def _quotas_are_on(self) -> None:
        """`main.go` has no such route without Kueue; before 4.0.0 the handler said so."""
        if self._cluster.settings.kueue:
            return
        if self._cluster.settings.at_least("4.0.0"):
            raise RefusedError(404, NO_ROUTE)
        raise RefusedError(503, "kueue is not enabled: /system/quotas requires KUEUE_ENABLE=true")

    async def _own_quota(self, _request: web.Request, uid: str | None) -> web.Response:
        self._quotas_are_on()
        if uid is None:
            raise RefusedError(401, "missing user identificator: missing user identificator")
        return web.json_response(self._cluster.quotas.of(uid))

    async def _quota(self, request: web.Request, uid: str | None) -> web.Response:
        self._quotas_are_on()
        if uid is not None:
            raise RefusedError(403, "forbidden")
        return web.json_response(self._cluster.quotas.of(request.match_info["user"]))

    async def _change_quota(self, request: web.Request, uid: str | None) -> web.Response:
        self._quotas_are_on()
        if uid is not None:
            raise RefusedError(403, "forbidden")
        user = request.match_info["user"]
        try:
            self._cluster.quotas.change(user, await request.read())
        except InvalidQuotaError as error:
            raise RefusedError(400, str(error)) from error
        self._cluster.pods.admit_all()
        return web.json_response(self._cluster.quotas.of(user))

    async def _bucket(self, request: web.Request, uid: str | None) -> web.Response:
        """No call of Kubernetes': MinIO answers."""
        name = request.match_info["bucket"]
        if uid is not None and not self._cluster.buckets.visible(name):
            raise RefusedError(403, f"User '{uid}' is not authorised")
        try:
            return web.json_response(self._cluster.buckets.page(name, request.query.get("page", "")))
        except NoSuchBucketError as error:
            text = "NoSuchBucket: The specified bucket does not exist\n\tstatus code: 404"
            raise RefusedError(500, f"Error listing objects in bucket '{name}': {text}") from error
