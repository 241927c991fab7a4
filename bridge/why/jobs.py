"""Asks clusters what became of jobs, by their names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import aiohttp
from aiohttp import hdrs
from yarl import URL

from bridge.core.errors import CredentialError
from bridge.credentials import BasicAuth, basic
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.net.bodies import body_of
from bridge.net.unanswered import why_unanswered
from bridge.settings import Settings
from bridge.telemetry.logging import excerpt

_ASK_SECONDS = 10.0
_LONGEST_ANSWER = 16 << 20
"""Bytes; a page of the list of jobs is the longest."""
_SEARCH_SECONDS = 20.0
"""For one job: a page of the list costs OSCAR a listing of pods for each job on it (logs.go, getPod)."""
_ALL_SECONDS = 30.0
"""For all that is asked of one cluster."""


class Question(NamedTuple):
    """Whether there is a job of a service."""

    service: str
    """Key of the service."""
    job: str
    """Its name."""
    thorough: bool = True
    """Whether a job that has no pod is searched for in the list of jobs too."""


class Presence(StrEnum):
    """Whether a job is on its cluster."""

    THERE = "there"
    ABSENT = "absent"
    UNKNOWN = "unknown"
    """The cluster can't be asked, or has no answer."""


class JobAnswer(NamedTuple):
    """What a cluster tells of a job."""

    presence: Presence
    detail: str
    """For a person."""
    status: str | None = None
    """As OSCAR tells it: Pending, Running, Succeeded, Failed, Suspended; None where it is not told."""


async def ask(settings: Settings, questions: Sequence[Question]) -> Mapping[Question, JobAnswer]:
    """Ask all clusters at once, each for one job after the other: each may cost OSCAR a long listing.

    Never raises for what the network or a cluster does.
    """
    of_cluster: dict[str, list[Question]] = {}
    for question in dict.fromkeys(questions):
        of_cluster.setdefault(settings.services[question.service].cluster, []).append(question)
    answers = await asyncio.gather(*(_ask(settings, *asked) for asked in of_cluster.items()))
    return {question: answer for some in answers for question, answer in some.items()}


async def _ask(settings: Settings, key: str, questions: Sequence[Question]) -> dict[Question, JobAnswer]:
    config = settings.clusters[key]
    no_time = f"cluster {key}: it took more than {_ALL_SECONDS:g} s to tell of other jobs"
    answers = {question: JobAnswer(Presence.UNKNOWN, no_time) for question in questions}
    try:
        async with asyncio.timeout(_ALL_SECONDS), OscarCluster(key, config) as cluster:
            jobs = _Jobs(cluster, config.auth if isinstance(config.auth, BasicAuth) else None)
            for question in questions:
                name = settings.services[question.service].service or question.service
                answers[question] = await jobs.find(name, question.job, thorough=question.thorough)
    except TimeoutError:
        pass  # what was not asked by then says so
    return answers


class _Unanswered(Exception):  # noqa: N818 - a finding, not an error
    """The cluster did not tell; carries why."""


class _Jobs:
    """Asks one cluster for jobs by name."""

    def __init__(self, cluster: OscarCluster, auth: BasicAuth | None) -> None:
        self._cluster = cluster
        self._auth = auth

    async def find(self, service: str, job: str, *, thorough: bool) -> JobAnswer:
        """Find a job of `service`.

        First its log: it is one question, whatever the number of jobs. 200: its pod has run. 404 with a
        service that exists: a pod that has not. 500 without a text: no pod (logs.go, MakeGetLogsHandler: the
        error is nil, and asking it for its text panics), so no such job, or one that waits Suspended, or one
        whose pod is gone. Then the list of jobs, for the state: in the order of names, so a page that begins
        behind the job's name ends the search, and `_SEARCH_SECONDS` do. Unless `thorough`, one without
        a pod is taken for none.
        """
        if not self._cluster.manages:
            return _unknown("a service token can't ask for jobs: use the cluster's user or OIDC")
        url = self._cluster.endpoint / "system" / "logs" / service
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                made = await self._has_pod(url / job, service)
        except TimeoutError:
            return _unknown(f"cluster {self._cluster.key}: no answer within {_ASK_SECONDS:g} s")
        except _Unanswered as reason:
            return _unknown(f"cluster {self._cluster.key}: {reason}")
        if not made and not thorough:
            return JobAnswer(Presence.ABSENT, "the cluster has no pod of it")
        state, complete, looked_at = await self._state(url, job)
        if state is not None:
            return JobAnswer(Presence.THERE, _times(state), str(state.get("status")))
        if made:
            return JobAnswer(Presence.THERE, f"its state is not among the first {looked_at} jobs")
        if complete:
            return JobAnswer(Presence.ABSENT, f"not among the {looked_at} jobs that may be seen")
        return _unknown(f"no pod of it, and it is not among the first {looked_at} jobs")

    async def _has_pod(self, url: URL, service: str) -> bool:
        status, text = await self._get(url, log=True)
        if status == 404:
            there, text = await self._get(self._cluster.endpoint / "system" / "services" / service)
            if there == 404:
                raise _Unanswered(f"there is no service {service}")
            return True
        if status not in (200, 500):
            raise _Unanswered(excerpt(f"GET {url.path} answered {status}: {text}"))
        return status == 200

    async def _state(self, url: URL, job: str) -> tuple[Mapping[str, Any] | None, bool, int]:
        """Page through the jobs; gives the one of that name, whether all were seen, and how many were."""
        page, looked_at = "", 0
        try:
            async with asyncio.timeout(_SEARCH_SECONDS):
                while True:
                    status, text = await self._get(url.with_query(page=page) if page else url)
                    if status != 200:
                        return None, False, looked_at
                    told = json.loads(text or "{}")
                    jobs = told.get("jobs") or {}
                    looked_at += len(jobs)
                    if job in jobs:
                        return jobs[job], True, looked_at
                    page = told.get("next_page") or ""
                    if not page or (jobs and max(jobs) > job):
                        return None, True, looked_at
        except (TimeoutError, _Unanswered, AttributeError, RecursionError, TypeError, ValueError):
            return None, False, looked_at

    async def _get(self, url: URL, *, log: bool = False) -> tuple[int, str]:
        """Ask; a `log` that is there is not read, as it may be long."""
        try:
            authorization = (
                await self._cluster.bearer("", None).get() if self._auth is None else await basic(self._auth)
            )
            async with self._cluster.session.get(
                url,
                headers={hdrs.AUTHORIZATION: authorization},
                allow_redirects=False,
                proxy=self._cluster.proxy,
                timeout=aiohttp.ClientTimeout(total=_ASK_SECONDS),
            ) as response:
                if log and response.status == 200:
                    response.close()
                    return 200, ""
                raw = await body_of(response, _LONGEST_ANSWER)
                return response.status, raw.decode("utf-8", "replace")
        except TimeoutError:
            raise _Unanswered(f"GET {url.path}: no answer within {_ASK_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, CredentialError) as error:
            raise _Unanswered(excerpt(f"GET {url.path}: {why_unanswered(error)}")) from None


def _unknown(detail: str) -> JobAnswer:
    return JobAnswer(Presence.UNKNOWN, detail)


def _times(state: Mapping[str, Any]) -> str:
    told = [f"{word} {state[key]}" for word, key in _TIMES if state.get(key)]
    return ", ".join(told) or "not started"


_TIMES = (("started", "start_time"), ("finished", "finish_time"))
