"""`/system/logs`: the jobs of a service, listed, shown and deleted."""

from __future__ import annotations

import json
import time
from typing import Any

from aiohttp import web

from bridge.sandbox.oscar.errors import RefusedError
from bridge.sandbox.oscar.job import Job
from bridge.sandbox.oscar.jobs import KubernetesError
from bridge.sandbox.oscar.kubernetes import LISTING_TROUBLES
from bridge.sandbox.oscar.logins import Api
from bridge.sandbox.oscar.services import Service, format_uid


class JobsApi(Api):
    """Jobs, as `pkg/handlers/logs.go` has them."""

    def routes(self) -> list[web.RouteDef]:
        """As in OSCAR's `main.go`."""
        known = self._logins.known
        return [
            web.get("/system/logs/{service}", known(self._job_list)),
            web.delete("/system/logs/{service}", known(self._delete_jobs)),
            web.get("/system/logs/{service}/{job}", known(self._job_log)),
            web.delete("/system/logs/{service}/{job}", known(self._delete_job)),
        ]

    async def _job_list(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._cluster.only_service(request.match_info["service"])
        if not service.open_to(uid):
            # `getAuthorizedService` writes nothing for a stranger, and the handler returns: an empty 200.
            return web.Response()
        label = None if uid is None else format_uid(uid)[:62]
        return web.json_response(await self.page_of_jobs(service, label, request.query.get("page", "")))

    async def page_of_jobs(self, service: Service, label: str | None, token: str) -> dict[str, Any]:
        """`MakeJobsInfoHandler` of `pkg/handlers/logs.go`, which knows the service. Raises RefusedError."""
        await self._cluster.throttle.calls("batch")
        if (trouble := self._cluster.faults.trouble_of_listing()) is not None:
            raise RefusedError(500, _of_listing(trouble, service, "jobs.batch", "apis/batch/v1"))
        try:
            page = self._cluster.jobs.page(service, label, token)
        except KubernetesError as error:
            raise RefusedError(500, str(error)) from error
        jobs: dict[str, Any] = {}
        refused = ""
        async for number in self._cluster.throttle.together("core", len(page.jobs)):  # the pods of each
            job = page.jobs[number]
            if (trouble := self._cluster.faults.trouble_of_listing()) is None:
                self._cluster.pods.advance()
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
        service = await self._cluster.only_service(request.match_info["service"])
        if not service.open_to(uid):
            return web.Response()
        await self._cluster.throttle.calls("batch")
        everything = request.query.get("all", "false") in ("1", "t", "T", "true", "TRUE", "True")
        for job in self._cluster.jobs.of(service):
            if everything or job.phase == "Succeeded":
                self._cluster.jobs.delete(job)
        return web.Response(status=204)

    async def _job_log(self, request: web.Request, uid: str | None) -> web.Response:
        service = await self._cluster.only_service(request.match_info["service"])
        if not service.open_to(uid):
            return web.Response()
        await self._cluster.throttle.calls("core")
        job = self._job(service, request)
        if job is None or not job.has_pod(time.time()):
            # No pod: `err.Error()` of a nil error, a panic that gin turns into 500.
            raise RefusedError(500)
        await self._cluster.throttle.calls("core")
        if job.phase == "Pending":
            raise RefusedError(404)
        return web.Response(body=self._cluster.pods.log(job), content_type="text/plain", charset="utf-8")

    async def _delete_job(self, request: web.Request, uid: str | None) -> web.Response:
        await self._cluster.throttle.calls("core", 2)
        services = self._cluster.services.named(request.match_info["service"])
        if len(services) != 1 or not services[0].open_to(uid):
            raise RefusedError(403, "You do not have permission to access this service")
        await self._cluster.throttle.calls("batch")
        job = self._job(services[0], request)
        if job is None:
            raise RefusedError(404)
        await self._cluster.throttle.calls("batch")
        self._cluster.jobs.delete(job)
        return web.Response(status=204)

    def _job(self, service: Service, request: web.Request) -> Job | None:
        job = self._cluster.jobs.find(service.namespace, request.match_info["job"])
        return job if job is not None and job.service == service.name else None


def _of_listing(trouble: str, service: Service, resource: str, path: str) -> str:
    return LISTING_TROUBLES[trouble].format(resource=resource, path=path, namespace=service.namespace)
