"""All that is behind the front door: what a cluster is made of, and what tests do with it in process."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from bridge.sandbox.oscar.errors import RefusedError
from bridge.sandbox.oscar.faults import Faults
from bridge.sandbox.oscar.job import Job
from bridge.sandbox.oscar.jobs import Jobs
from bridge.sandbox.oscar.kubernetes import Throttle
from bridge.sandbox.oscar.ledger import Activity, Ledger
from bridge.sandbox.oscar.oidc import Oidc
from bridge.sandbox.oscar.pods import Pods
from bridge.sandbox.oscar.quotas import Quotas
from bridge.sandbox.oscar.services import (
    CLUSTER_ADMIN,
    Service,
    Services,
    check_definition,
    format_uid,
    new_token,
)
from bridge.sandbox.oscar.settings import Settings
from bridge.sandbox.oscar.storage import Buckets


class Cluster:
    """An OSCAR with its Kubernetes, its MinIO and its issuer of tokens, without HTTP."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.services = Services()
        self.faults = Faults(self.settings.seed)
        self.oidc = Oidc(self.settings, self.faults)
        self.ledger = Ledger(keep_bodies=self.settings.keep_bodies, file=self.settings.ledger_file)
        self.buckets = Buckets(self.settings)
        self.quotas = Quotas(self.settings, self.services)
        self.pods = Pods(self.settings, self.ledger, self.buckets, self.quotas, self._job_ended)
        self.jobs = Jobs(self.settings, on_gone=self.pods.remove, advance=self.pods.advance)
        self.throttle = Throttle(self.settings)

    def add_service(
        self, name: str, script: str | Path = "cat", owner: str = CLUSTER_ADMIN, **more: Any
    ) -> Service:
        """Create a service without HTTP; `more` are further fields of its definition.

        Also for what the API refuses: a second owner of a name.
        """
        text = script.read_text() if isinstance(script, Path) else script
        definition = check_definition({"name": name, "image": "sandbox", "script": text, **more})
        service = self.services.add(definition, owner)
        self.buckets.make(service)
        return service

    def rotate_token(self, service: Service) -> str:
        """Give a service a new token, as deleting and creating it does (and an update, before 4.0.0)."""
        service.token = new_token()
        return service.token

    def job(self, name: str, service: str | None = None) -> Job | None:
        """The Job of that name, of that service or of any."""
        for job in self.jobs.named(name):
            if service in (None, job.service):
                return job
        return None

    def activity(self) -> Activity:
        """How many jobs are active and were at most at any instant, and the places' use up to now."""
        self.pods.advance()
        return self.ledger.activity()

    def preload(
        self,
        service: Service,
        count: int,
        *,
        failed: int = 0,
        seconds_ago: float = 3600.0,
        prefix: str | None = None,
        user: str | None = None,
    ) -> None:
        """Put `count` jobs there that ended `seconds_ago`, `failed` of them badly.

        Their names are `prefix` (by default the service's name and a hyphen, as OSCAR makes them) and a
        UUID. With `user` they carry that user's label. The ledger does not know them.
        """
        start = f"{service.name}-" if prefix is None else prefix
        names = (f"{start}{uuid.uuid4()}" for _ in range(count))
        label = None if user is None else format_uid(user)[:62]
        self.jobs.preload(service, names, ended=time.time() - seconds_ago, failed=failed, owner_label=label)

    async def only_service(self, name: str) -> Service:
        """`ReadService` without a namespace: `resolveServiceNamespace` of `pkg/backends/knative.go`."""
        await self.throttle.calls("core")
        services = self.services.named(name)
        if not services:
            raise RefusedError(404)
        if len(services) > 1:
            raise RefusedError(500, f'service "{name}" found in multiple namespaces')
        await self.throttle.calls("core")
        return services[0]

    def _job_ended(self, job: Job) -> None:
        self.jobs.ended(job)
