"""What Kueue lets a user's services take at once, and `/system/quotas/user`."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from bridge.sandbox.oscar.job import Job
from bridge.sandbox.oscar.services import CLUSTER_ADMIN, Service, Services, namespace_of
from bridge.sandbox.oscar.settings import Settings

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kMG]|[KMG]i|)")
_UNITS = {
    "": 1.0, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30,
}  # fmt: skip


class InvalidQuotaError(Exception):
    """What OSCAR says about a change of a quota."""


def _quantity(text: str) -> float:
    """Kubernetes' notation, as far as quotas have it. Raises InvalidQuotaError."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise InvalidQuotaError("quantities must match the regular expression")
    return float(found[1]) * _UNITS[found[2]]


@dataclass(slots=True)
class _Quota:
    """The defaults of `KUEUE_DEFAULT_CPU` and `KUEUE_DEFAULT_MEMORY` (pkg/types/config.go)."""

    cores: float = 2.0
    memory: float = 2.0 * 2**30


class Quotas:
    """The ClusterQueues of all users, and what they have admitted."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._services = services
        self._users: dict[str, _Quota] = {}
        self._admitted: Counter[tuple[str, str]] = Counter()
        """Namespace and service → its Jobs that may have a pod and have not ended."""

    def admits(self, job: Job) -> bool:
        """Whether Kueue would let the job's pod be made just now."""
        service = self._service(job.namespace, job.service)
        return service is None or self.fits(service)

    def take(self, job: Job) -> None:
        """Count an admitted job."""
        self._admitted[job.namespace, job.service] += 1

    def give_back(self, job: Job) -> None:
        """Count a job no more that was taken: it ended, or was deleted."""
        self._admitted[job.namespace, job.service] -= 1

    def fits(self, service: Service) -> bool:
        """`VerifyWorkload` of pkg/utils/kueue.go: whether a call of `service` would be admitted just now."""
        if not self._settings.kueue or service.owner == CLUSTER_ADMIN:
            return True
        quota = self._users.setdefault(service.owner, _Quota())
        cores, memory = self._used(service.owner)
        more_cores, more_memory = needs(service)
        return cores + more_cores <= quota.cores and memory + more_memory <= quota.memory

    def of(self, user: str) -> dict[str, Any]:
        """`QuotaResponse` of pkg/types/quotas.go: millicores and bytes."""
        quota = self._users.setdefault(user, _Quota())
        cores, memory = self._used(user)
        return {
            "user_id": user,
            "cluster_queue": f"oscar-cq-{user}",
            "resources": {
                "cpu": {"max": round(quota.cores * 1000), "used": round(cores * 1000)},
                "memory": {"max": round(quota.memory), "used": round(memory)},
                "ephemeral-storage": {"max": 2**30, "used": 0},
                "gpu": {"max": 0, "used": 0},
            },
        }

    def change(self, user: str, body: bytes) -> None:
        """Take the body of `PUT /system/quotas/user/{user}`. Raises InvalidQuotaError."""
        try:
            asked = json.loads(body)
        except ValueError as error:
            raise InvalidQuotaError(f"invalid payload: {error}") from error
        if not isinstance(asked, dict) or not (asked.get("cpu") or asked.get("memory")):
            raise InvalidQuotaError("cpu, memory, ephemeral_storage, volumes or minio must be provided")
        quota = self._users.setdefault(user, _Quota())
        if asked.get("cpu"):
            quota.cores = _quantity(str(asked["cpu"]))
        if asked.get("memory"):
            quota.memory = _quantity(str(asked["memory"]))

    def _used(self, user: str) -> tuple[float, float]:
        cores = memory = 0.0
        for (namespace, name), count in self._admitted.items():
            if count and namespace == namespace_of(user):
                service = self._service(namespace, name)
                if service is not None and service.owner == user:
                    of_one = needs(service)
                    cores, memory = cores + count * of_one[0], memory + count * of_one[1]
        return cores, memory

    def _service(self, namespace: str, name: str) -> Service | None:
        known = [service for service in self._services.named(name) if service.namespace == namespace]
        return known[0] if known else None


def needs(service: Service) -> tuple[float, float]:
    """Cores and bytes of one pod; the defaults are those of `pkg/handlers/create.go`."""
    definition = service.definition
    return _quantity(str(definition.get("cpu") or "0.2")), _quantity(str(definition.get("memory") or "256Mi"))
