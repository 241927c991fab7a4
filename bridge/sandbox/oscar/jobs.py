"""Kubernetes' Job objects: what is refused, which names are taken, how they are listed."""

from __future__ import annotations

import base64
import heapq
import json
import math
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from bridge.sandbox.oscar.services import CLUSTER_ADMIN, Service
from bridge.sandbox.oscar.settings import Settings

MAX_REQUEST_BYTES = 1_572_864
"""etcd's `--max-request-bytes`: no Kubernetes object is larger."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_NAME_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used "
    "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new "
    "list without the continue parameter, or use the continue token in this response to retrieve the "
    "remainder of the results. Continuing with the provided token results in an inconsistent list - objects "
    "that were created, modified, or deleted between the time the first chunk was returned and now may show "
    "up in the list."
)


class KubernetesError(Exception):
    """What the API server says; OSCAR passes the text on with status 500."""


class Job:
    """One Job with its pod. Times are seconds since the epoch; a time that has not come is infinite."""

    __slots__ = (
        "created",
        "event_seen",
        "failed",
        "finished",
        "gone",
        "input_seen",
        "log",
        "name",
        "namespace",
        "owner_label",
        "sequence",
        "service",
        "started",
        "waits_suspended",
    )  # fmt: skip

    def __init__(self, name: str, service: Service, owner_label: str | None, sequence: int) -> None:
        self.name = name
        self.service = service.name
        self.namespace = service.namespace
        self.owner_label = owner_label
        """`oscar.grycap/job-owner`; None without that label."""
        self.sequence = sequence
        self.created = time.time()
        self.started = math.inf
        self.finished = math.inf
        self.gone = math.inf
        """When the object is away, once it is being deleted."""
        self.failed = False
        self.waits_suspended = False
        """Kueue holds the Job, so it has no pod until it starts."""
        self.log = b""
        """Both streams of the pod, complete once the job has finished; the first mebibyte."""
        self.event_seen: bytes | None = None
        """Exactly what the supervisor read from its standard input, with the newline of `echo`."""
        self.input_seen: bytes | None = None
        """Exactly the bytes of the file that the user's script was given."""

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded, Failed, or Suspended: no pod (`getPod` in `pkg/handlers/logs.go`)."""
        now = time.time()
        if now < self.started:
            return "Suspended" if self.waits_suspended else "Pending"
        if now < self.finished:
            return "Running"
        return "Failed" if self.failed else "Succeeded"

    def as_json(self) -> dict[str, str]:
        """`JobInfo` of `pkg/types/jobinfo.go`: a pod that no node has taken yet has no times at all."""
        phase = self.phase
        shown = {"status": phase}
        if phase in ("Running", "Succeeded", "Failed"):
            shown["creation_time"] = shown["start_time"] = _rfc3339(self.started)
        if phase in ("Succeeded", "Failed"):
            shown["finish_time"] = _rfc3339(self.finished)
        return shown


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check(name: str, owner_label: str | None, size: int) -> None:
    """Validate as the API server does before it looks whether the name is taken."""
    causes = []
    if len(name) > 253 or _NAME.fullmatch(name) is None:
        rule = _NAME_RULE if len(name) <= 253 else "must be no more than 253 characters"
        causes.append(f'metadata.name: Invalid value: "{name}": {rule}')
    if owner_label is not None and _LABEL.fullmatch(owner_label) is None:
        # An S3 principal such as "AWS:AIDA…" is no label, so such an event fails for ever.
        causes += [
            f'{place}: Invalid value: "{owner_label}": {_LABEL_RULE}'
            for place in ("metadata.labels", "spec.template.labels")
        ]
    if len(name) > 63:
        # The API server itself puts the name into the pod template as the label `job-name`.
        causes.append(f'spec.template.labels: Invalid value: "{name}": must be no more than 63 characters')
    if causes:
        text = causes[0] if len(causes) == 1 else f"[{', '.join(causes)}]"
        raise KubernetesError(f'Job.batch "{name}" is invalid: {text}')
    if size > MAX_REQUEST_BYTES:
        raise KubernetesError("etcdserver: request is too large")


class Jobs:
    """The Job objects of all namespaces. A name is unique within one, and free once its object is gone."""

    def __init__(self, settings: Settings, on_gone: Callable[[Job], None]) -> None:
        self._settings = settings
        self._on_gone = on_gone
        self._namespaces: dict[str, dict[str, Job]] = {}
        self._sequence = 0

    def create(self, name: str, service: Service, owner_label: str | None, size: int) -> Job:
        """Take the name; KubernetesError when the object is refused."""
        _check(name, owner_label, size)
        quota = self._settings.jobs_quota
        if quota is not None:  # admission looks before storage does, so also where the name is taken
            used = sum(job.namespace == service.namespace for job in self.all())
            if used >= quota:
                raise KubernetesError(
                    f'jobs.batch "{name}" is forbidden: exceeded quota: oscar-jobs, requested: '
                    f"count/jobs.batch=1, used: count/jobs.batch={used}, limited: count/jobs.batch={quota}"
                )
        taken = self.find(service.namespace, name)
        if taken is not None:
            deleted = "" if taken.gone == math.inf else "object is being deleted: "
            raise KubernetesError(f'{deleted}jobs.batch "{name}" already exists')
        self._sequence += 1
        job = Job(name, service, owner_label, self._sequence)
        job.waits_suspended = self._settings.kueue and service.owner != CLUSTER_ADMIN
        self._namespaces.setdefault(service.namespace, {})[name] = job
        return job

    def find(self, namespace: str, name: str) -> Job | None:
        """The Job of that name, unless TTL_JOB or a deletion has taken it."""
        job = self._namespaces.get(namespace, {}).get(name)
        return job if job is not None and self._is_there(job) else None

    def delete(self, job: Job) -> None:
        """Remove the pod, and the object once its `deleting_seconds` are over."""
        if job.gone == math.inf:
            job.gone = time.time() + self._settings.deleting_seconds
            self._on_gone(job)
        if job.gone <= time.time():
            self._namespaces.get(job.namespace, {}).pop(job.name, None)

    def _is_there(self, job: Job) -> bool:
        if job.gone < math.inf or job.finished + self._settings.ttl_job_seconds <= time.time():
            self.delete(job)
        return job.gone > time.time()

    def all(self) -> list[Job]:
        """Every Job there is, in no order."""
        jobs = [job for namespace in self._namespaces.values() for job in namespace.values()]
        return [job for job in jobs if self._is_there(job)]

    def of(self, service: Service) -> Iterable[Job]:
        """The Jobs with the service's label."""
        return (
            job for job in self.all() if job.service == service.name and job.namespace == service.namespace
        )

    def page(self, service: Service, owner_label: str | None, token: str) -> tuple[list[Job], str]:
        """One page in the order of names, and the token of the next or an empty one; KubernetesError.

        All pages show the state of the first (its resource version), so later jobs are not among them.
        """
        start, sequence, first_asked = _read_token(token) if token else ("", self._sequence, time.time())
        if token and first_asked + self._settings.page_token_seconds <= time.time():
            raise KubernetesError(_EXPIRED)
        wanted = (
            job
            for job in self.of(service)
            if job.name > start
            and job.sequence <= sequence
            and (owner_label is None or job.owner_label == owner_label)
        )
        size = self._settings.jobs_a_page
        jobs = heapq.nsmallest(size + 1, wanted, key=lambda job: job.name)
        if len(jobs) <= size:
            return jobs, ""
        following = json.dumps({"start": jobs[size - 1].name, "rv": sequence, "asked": first_asked})
        return jobs[:size], base64.urlsafe_b64encode(following.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[str, int, float]:
    try:
        document = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return str(document["start"]), int(document["rv"]), float(document["asked"])
    except (ValueError, KeyError, TypeError) as error:
        raise KubernetesError(f"continue key is not valid: {error}") from error
