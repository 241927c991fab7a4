"""The listing of a service's jobs (`GET /system/logs/{service}`), again and again: which have ended.

A page costs OSCAR a listing of pods for each job on it (70 by default), from the throttle that `/job` lives
on too. So while a page is asked for OSCAR could take `_SHARE` jobs, and the services of a cluster take turns.
"""

from __future__ import annotations

import asyncio
import base64
import json
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Any

import structlog

from bridge.core.jobs import Ended, JobOutcome, JobSeen, JobWatch, Phase
from bridge.credentials import NoCredentialError
from bridge.destinations.oscar.client import OscarService
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.destinations.oscar.outputs import Outputs

_SHARE = 20
"""Jobs that OSCAR could take while one page is asked for."""
_SHARE_OF_REMOVING = 2
"""Likewise while one job is deleted: that takes two calls of each kind (`MakeDeleteJobHandler` of
pkg/handlers/logs.go, `ReadService` of pkg/backends/knative.go), as many as making one."""
_REST = 1.5
"""Times that a page took, from its beginning to that of the next: the rest of the throttle is `/job`'s."""
SECONDS_A_JOB = _REST / 5
"""What one more job in the listing adds to a sweep, by the 5 calls a second that OSCAR makes by default."""
_SHORTEST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
"""Seconds from the beginning of a page to that of the next."""
_FIRST_PAUSE = 1.0
_LONGEST_SILENCE = 60.0
"""Seconds between two tries of a page that fails: 1, 2, 4 … at most."""
_TRIES = 5
"""Of a page behind the first, before the listing is begun anew."""
_TRIES_OF_REMOVING = 3
"""Jobs of one page that can't be deleted, before the others of it are left as well."""
_PHASES = {
    "Suspended": Phase.WAITING,
    "Pending": Phase.WAITING,
    "Running": Phase.RUNNING,
    "Failed": Phase.FAILED,
}
"""`getPod` of pkg/handlers/logs.go; Suspended is a job without a pod."""
_LATEST = -1
"""In place of a resource version: what is there now. A page's token ends with its version, after minutes, and
Kubernetes itself goes on with this then (`inconsistentContinueToken` of the API server's etcd3/errors.go).
What is there all the time is on one of the pages, however their versions differ."""
_VERSION = "meta.k8s.io/v1"
_STEM = 57
"""Characters of a job's name with which its pod's name begins as well: `job-xxxxx`, of which Kubernetes cuts
all but 58 before the suffix (apiserver/pkg/storage/names). OSCAR lists the pods of a page with the page's own
token, so it must begin before the pod of its first job."""

_log = structlog.get_logger(__name__)


class _Turns:
    """Whose page, or deletion, is next: the sweeps of all services of a cluster share the pace."""

    def __init__(self, cluster: OscarCluster) -> None:
        self._cluster = cluster
        cluster.throttle.is_wanted = True
        self._turn = asyncio.Lock()
        self._next = 0.0

    async def page(self, service: OscarService, token: str) -> tuple[dict[str, Any], float]:
        """Ask for a page when it is time; return it, and when that was. Raise NoCredentialError."""
        async with self._one(_SHARE, _SHORTEST_PAUSE) as began:
            return await self._cluster.jobs_page(service.name, token), began

    async def remove(self, service: OscarService, job: str) -> None:
        """Delete a job when it is time. Raise NoCredentialError."""
        async with self._one(_SHARE_OF_REMOVING, 0.0):
            await self._cluster.remove_job(service.name, job)

    @asynccontextmanager
    async def _one(self, share: float, shortest_pause: float) -> AsyncIterator[float]:
        """Let whoever is inside make one call, during which OSCAR could take `share` jobs; give its time."""
        async with self._turn:
            await asyncio.sleep(self._next - monotonic())
            began, throttle = monotonic(), self._cluster.throttle
            try:
                with throttle.aside():
                    yield began
            finally:
                took = monotonic() - began
                pause = max(share / throttle.rate, took * _REST, shortest_pause)
                self._next = began + min(pause, max(_LONGEST_PAUSE, took))


async def follow(cluster: OscarCluster, services: Sequence[tuple[OscarService, JobWatch]]) -> None:
    """Tell the watches what the listings of their services show, until cancelled.

    Never raises for what the cluster does.
    """
    turns = _Turns(cluster)
    async with asyncio.TaskGroup() as tasks:
        for service, watch in services:
            tasks.create_task(_Sweeper(cluster, service, watch, turns).run(), name=f"jobs of {service.name}")


class _Sweeper:
    """The listing of one service's jobs."""

    def __init__(self, cluster: OscarCluster, service: OscarService, watch: JobWatch, turns: _Turns) -> None:
        self._cluster = cluster
        self._service = service
        self._watch = watch
        self._turns = turns
        self._token = ""
        """The newest of the cluster's that is understood: from it are made those for other places."""
        self._seeks = True
        """Whether pages without wanted jobs are left out: not after a listing that broke off."""
        self._absence_tells: bool | None = None if cluster.lists_all_jobs else False
        """None where it is still to be asked."""
        self._outputs: Outputs | None = None
        """Says which jobs have succeeded, where their pods don't."""
        if service.judged_by_output:
            self._outputs = Outputs(cluster, service, self._judged)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._outputs is not None:
                tasks.create_task(self._outputs.run(), name=f"outputs of {self._service.name}")
            await self._sweeps()

    async def _sweeps(self) -> None:
        while True:
            await self._watch.wanted()
            wanted = sorted(self._watch.sweep_began())
            seen = await self._sweep(wanted) if wanted else 0
            self._seeks = seen is not None
            if seen is not None:
                absence_tells = await self._does_absence_tell()
                await self._watch.sweep_ended(seen=seen, absence_tells=absence_tells)

    async def _sweep(self, wanted: Sequence[str]) -> int | None:
        """Show the watch each page that has one of the jobs `wanted`, whose names are sorted.

        Return how many jobs the pages had, None where the listing broke off. Jobs are listed in the order of
        their names, so a page begins with the first wanted that no page had yet, and the rest is left out.
        """
        seen = 0
        token = token_at(self._token, wanted[0][:_STEM]) if self._seeks else ""
        while (told := await self._page(token)) is not None:
            page, asked_at = told
            jobs = jobs_in(page, Phase.SUCCEEDED if self._outputs is None else Phase.ENDED)
            if min((job.name for job in jobs), default=start_of(token)) < start_of(token):
                return None  # the token was not understood
            seen += len(jobs)
            await self._look_after(self._watch.saw(jobs, asked_at))
            following = page.get("next_page")
            if not isinstance(following, str) or not following:
                return seen
            start = start_of(following)
            if start:
                self._token = following
            left = wanted[bisect_left(wanted, start) :]
            if not left:
                return seen
            token = token_at(following, max(start, left[0][:_STEM]) if self._seeks else start)
        return None

    async def _judged(self, outcomes: Sequence[tuple[JobSeen, JobOutcome]], where: str) -> None:
        await self._look_after(self._watch.judged(outcomes), f"\nIt has left no output in {where}")

    async def _look_after(self, ended: Ended, why: str = "") -> None:
        if self._outputs is not None:
            for seen, event in ended.unjudged:
                self._outputs.add(seen, event)
        for name in ended.failed:
            await self._watch.failed(name, await self._log_of(name) + why)
        failures = 0
        for name in await self._watch.remember(ended.removable) if ended.removable else ():
            try:
                await self._turns.remove(self._service, name)
            except NoCredentialError as error:
                failures += 1
                _log.warning(
                    "a job that has succeeded can't be removed: again when it is listed the next time",
                    cluster=self._cluster.key,
                    service=self._service.name,
                    cause=error.answer.cause,
                    detail=str(error),
                )
                if failures == _TRIES_OF_REMOVING:
                    break
            else:
                self._watch.removed(name)

    async def _log_of(self, name: str) -> str:
        """Return a job's log; empty where it can't be had, as of a pod that is gone."""
        try:
            return await self._cluster.job_log(self._service.name, name)
        except NoCredentialError:
            return ""

    async def _page(self, token: str) -> tuple[dict[str, Any], float] | None:
        """Ask for a page until it comes; None where it is the token, perhaps, for which it does not."""
        failures = 0
        while not token or failures < _TRIES:
            try:
                return await self._turns.page(self._service, token)
            except NoCredentialError as error:
                failures += 1
                pause = min(_FIRST_PAUSE * 2 ** min(failures - 1, 10), _LONGEST_SILENCE)
                _log.warning(
                    "the jobs can't be listed, so no place is known to be free",
                    cluster=self._cluster.key,
                    service=self._service.name,
                    cause=error.answer.cause,
                    detail=str(error),
                    again_in_seconds=pause,
                )
                await asyncio.sleep(pause)
        return None

    async def _does_absence_tell(self) -> bool:
        """Whether an accepted job that is not listed is not there.

        Not where OSCAR names jobs itself, nor where another cluster may run them. Nor with OIDC: then those
        alone are listed that carry the user's label, and a job of an S3 record carries another.
        """
        if self._absence_tells is None:
            try:
                info = await self._cluster.info()
                self._absence_tells = info.names_jobs is True and not await self._service.federated()
            except NoCredentialError:
                return False
        return self._absence_tells


def jobs_in(page: Mapping[str, Any], well: Phase = Phase.SUCCEEDED) -> list[JobSeen]:
    """Read the jobs of a page, where `well` is what a pod comes to that ends well.

    One whose status is not understood counts as running.
    """
    listed = page.get("jobs")
    if not isinstance(listed, dict):
        return []
    return [
        JobSeen(
            name,
            well
            if told.get("status") == "Succeeded"
            else _PHASES.get(str(told.get("status")), Phase.RUNNING),
            _seconds(told.get("start_time")),
            _seconds(told.get("finish_time")),
        )
        for name, told in listed.items()
        if isinstance(told, dict)
    ]


def _seconds(value: object) -> float | None:
    """Read a time of Kubernetes' (RFC 3339) as seconds since 1970; None where there is none.

    A container that could not be started did so in 1970 (kubernetes/kubernetes#120331).
    """
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp() or None
    except ValueError:
        return None


def start_of(token: str) -> str:
    """Return the name at which the page of a continue token begins; empty where it is not understood.

    JSON in base64, with version, start and resource version (`EncodeContinue` of apiserver/pkg/storage).
    """
    try:
        document = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return str(document["start"]) if document["v"] == _VERSION else ""
    except (ValueError, KeyError, TypeError):
        return ""


def token_at(token: str, start: str) -> str:
    """Return a continue token like `token` for what begins with the name `start`, that never expires.

    `token` itself where it is not understood.
    """
    if not start_of(token):
        return token
    document = {"v": _VERSION, "rv": _LATEST, "start": start}
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")
