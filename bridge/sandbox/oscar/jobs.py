"""Kubernetes' Job objects: what is refused, which names are taken, how they are listed."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice

from bridge.sandbox.oscar.job import Job
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
_PAGING_VERSION = "meta.k8s.io/v1"
_REVISIONS_A_SECOND = 1_000_000
"""A resource version here is a moment; in truth it counts the changes of all objects."""


class KubernetesError(Exception):
    """What the API server says; OSCAR passes the text on with status 500."""


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


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing."""

    jobs: list[Job]
    """In the order of names."""
    following: str
    """The token of the next page, or empty."""
    moment: float | None
    """When the pods were as they are shown; None as each is when it is asked for."""
    start: str
    """The name at which it begins."""


_Dated = list[tuple[float, int, Job]]
"""A heap of jobs by a time, then by sequence."""


class _Namespace:
    """The Jobs of one namespace."""

    def __init__(self) -> None:
        self.taken: dict[str, Job] = {}
        """Name → the Job that is there."""
        self.listed: list[tuple[str, int, Job]] = []
        """Sorted by name, then by sequence; with those gone that an older page's successor still shows."""


class Jobs:
    """The Job objects of all namespaces. A name is unique within one, and free once its object is gone."""

    def __init__(
        self, settings: Settings, on_gone: Callable[[Job], None], advance: Callable[[], None]
    ) -> None:
        """`on_gone` is told of each Job whose deletion begins; `advance` brings the pods up to date."""
        self._settings = settings
        self._on_gone = on_gone
        self._advance = advance
        self._namespaces: defaultdict[str, _Namespace] = defaultdict(_Namespace)
        self._sequence = 0
        self._ended: _Dated = []
        """By their end, for TTL_JOB; with some that have been deleted since."""
        self._leaving: _Dated = []
        """Being deleted, by when they are gone."""
        self._left: _Dated = []
        """Gone, by when; kept while a page may still show them."""
        self._dead_pods: _Dated = []
        """Jobs whose pod has ended, by creation; with some that have been deleted since."""
        self._dead_pods_there = 0

    def create(self, name: str, service: Service, owner_label: str | None, size: int) -> Job:
        """Take the name; KubernetesError when the object is refused."""
        self._tidy()
        _check(name, owner_label, size)
        namespace = self._namespaces[service.namespace]
        quota = self._settings.jobs_quota
        if quota is not None:  # admission looks before storage does, so also where the name is taken
            used = len(namespace.taken)
            if used >= quota:
                raise KubernetesError(
                    f'jobs.batch "{name}" is forbidden: exceeded quota: oscar-jobs, requested: '
                    f"count/jobs.batch=1, used: count/jobs.batch={used}, limited: count/jobs.batch={quota}"
                )
        taken = namespace.taken.get(name)
        if taken is not None:
            deleted = "" if taken.gone == math.inf else "object is being deleted: "
            raise KubernetesError(f'{deleted}jobs.batch "{name}" already exists')
        self._sequence += 1
        job = Job(name, service.name, service.namespace, owner_label, self._sequence)
        job.pod_from += self._settings.controller_seconds
        if self._settings.kueue and service.owner != CLUSTER_ADMIN:
            job.pod_from = math.inf
        namespace.taken[name] = job
        insort(namespace.listed, (name, job.sequence, job))
        return job

    def preload(
        self, service: Service, names: Iterable[str], *, ended: float, failed: int, owner_label: str | None
    ) -> None:
        """Put Jobs there that ended at `ended`, the first `failed` of them badly. The names must be free.

        They are in no ledger: nothing invoked them.
        """
        self._tidy()
        namespace = self._namespaces[service.namespace]
        for number, name in enumerate(names):
            self._sequence += 1
            job = Job(name, service.name, service.namespace, owner_label, self._sequence)
            job.created = job.pod_from = job.placed = job.started = job.finished = ended
            job.failed = number < failed
            namespace.taken[name] = job
            namespace.listed.append((name, job.sequence, job))
            self.ended(job)
        namespace.listed.sort()

    def ended(self, job: Job) -> None:
        """Note that the job's pod has ended: TTL_JOB begins, and too many such pods are collected.

        Beyond `--terminated-pod-gc-threshold` the oldest by creation go (`pkg/controller/podgc` of
        Kubernetes); their Jobs stay, and are listed as Suspended.
        """
        heappush(self._ended, (job.finished, job.sequence, job))
        heappush(self._dead_pods, (job.created, job.sequence, job))
        self._dead_pods_there += 1
        while self._dead_pods_there > self._settings.dead_pods:
            *_, oldest = heappop(self._dead_pods)
            if oldest.gone == math.inf:
                oldest.pod_until = time.time()
                self._dead_pods_there -= 1

    def find(self, namespace: str, name: str) -> Job | None:
        """The Job of that name, unless TTL_JOB or a deletion has taken it."""
        self._tidy()
        return self._namespaces[namespace].taken.get(name)

    def delete(self, job: Job) -> None:
        """Remove the pod, and the object once its `deleting_seconds` are over."""
        if job.gone == math.inf:
            if job.finished <= time.time() < job.pod_until:
                self._dead_pods_there -= 1
            job.gone = time.time() + self._settings.deleting_seconds
            heappush(self._leaving, (job.gone, job.sequence, job))
            self._on_gone(job)
        self._leave(time.time())

    def _tidy(self) -> None:
        """Bring all up to now: pods that end, TTL_JOB, and objects that are gone."""
        self._advance()
        now = time.time()
        while self._ended and self._ended[0][0] + self._settings.ttl_job_seconds <= now:
            *_, job = heappop(self._ended)
            self.delete(job)
        self._leave(now)
        while self._left and self._left[0][0] + self._settings.page_token_seconds <= now:
            *_, job = heappop(self._left)
            listed = self._namespaces[job.namespace].listed
            del listed[bisect_left(listed, (job.name, job.sequence))]

    def _leave(self, now: float) -> None:
        while self._leaving and self._leaving[0][0] <= now:
            heappush(self._left, left := heappop(self._leaving))
            del self._namespaces[left[2].namespace].taken[left[2].name]

    def all(self) -> list[Job]:
        """Every Job there is, in no order."""
        self._tidy()
        return [job for namespace in self._namespaces.values() for job in namespace.taken.values()]

    def of(self, service: Service) -> list[Job]:
        """The Jobs with the service's label."""
        self._tidy()
        jobs = self._namespaces[service.namespace].taken.values()
        return [job for job in jobs if job.service == service.name]

    def named(self, name: str) -> list[Job]:
        """The Jobs of that name, of all namespaces."""
        self._tidy()
        return [space.taken[name] for space in self._namespaces.values() if name in space.taken]

    def page(self, service: Service, owner_label: str | None, token: str) -> Page:
        """One page in the order of names; KubernetesError.

        All pages show the state of the first, pods included: OSCAR lists those under the same token, and
        the token holds the resource version. So later jobs are not among them, those deleted meanwhile
        are, and a state is as old as the first page; not so with a token of the latest version. Behind a
        label selector Kubernetes knows only that more Jobs of any service follow: the last page can be
        empty.
        """
        self._tidy()
        start, version = self._read_token(token) if token else ("", None)
        moment = time.time() if version is None else version
        jobs: list[Job] = []
        listed = self._namespaces[service.namespace].listed
        for *_, job in islice(listed, bisect_left(listed, (start,)), None):
            if not job.created <= moment < job.gone:
                continue
            if len(jobs) == self._settings.jobs_a_page:
                return Page(jobs, _token(jobs[-1].name + "\0", moment), version, start)
            if job.service == service.name and owner_label in (None, job.owner_label):
                jobs.append(job)
        return Page(jobs, "", version, start)

    def _read_token(self, token: str) -> tuple[str, float | None]:
        """`DecodeContinue` of `k8s.io/apiserver/pkg/storage`: where to go on, and the moment to show, if any.

        A negative resource version is the latest: Kubernetes itself makes such tokens for clients whose
        own has expired, but OSCAR does not pass them on.
        """
        try:
            document = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            version, start, revision = document["v"], str(document["start"]), int(document["rv"])
        except (ValueError, KeyError, TypeError) as error:
            raise KubernetesError(f"invalid continue token: continue key is not valid: {error}") from error
        if version != _PAGING_VERSION or not start or not revision:
            raise KubernetesError(
                "invalid continue token: continue key is not valid: incorrect encoded start resourceVersion "
                f"(version {version})"
            )
        if revision < 0:
            return start, None
        moment = revision / _REVISIONS_A_SECOND
        if moment + self._settings.page_token_seconds <= time.time():
            raise KubernetesError(_EXPIRED)
        return start, moment


def _token(start: str, moment: float) -> str:
    """`EncodeContinue` of `k8s.io/apiserver/pkg/storage`."""
    document = {"v": _PAGING_VERSION, "rv": int(moment * _REVISIONS_A_SECOND) + 1, "start": start}
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
