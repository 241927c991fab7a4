"""Asks clusters what became of jobs, by their names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from bridge.credentials import NoCredentialError
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.settings import Settings

_ASK_SECONDS = 10.0
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
    answers = {question: _unknown(no_time) for question in questions}
    try:
        async with asyncio.timeout(_ALL_SECONDS), OscarCluster(key, config) as cluster:
            for question in questions:
                name = settings.services[question.service].service or question.service
                answers[question] = await _find(cluster, name, question.job, thorough=question.thorough)
    except TimeoutError:
        pass  # what was not asked by then says so
    return answers


async def _find(cluster: OscarCluster, service: str, job: str, *, thorough: bool) -> JobAnswer:
    """Find a job of `service`.

    First its log: it is one question, whatever the number of jobs. 200: its pod has run. 404 with a
    service that exists: a pod that has not. 500 without a text: no pod (logs.go, MakeGetLogsHandler: the
    error is nil, and asking it for its text panics), so no such job, or one that waits Suspended, or one
    whose pod is gone. Then the list of jobs, for the state: in the order of names, so a page that begins
    behind the job's name ends the search, and `_SEARCH_SECONDS` do. Unless `thorough`, one without
    a pod is taken for none.
    """
    if not cluster.manages:
        return _unknown("a service token can't ask for jobs: use the cluster's user or OIDC")
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            status = await cluster.log_status(service, job)
            if status == 404:
                await cluster.definition(service, None)
    except TimeoutError:
        return _unknown(f"cluster {cluster.key}: no answer within {_ASK_SECONDS:g} s")
    except NoCredentialError as error:
        if error.answer.status == 404:
            return _unknown(f"cluster {cluster.key}: there is no service {service}")
        named = f"cluster {cluster.key}: "
        return _unknown(f"{named}{str(error).removeprefix(named)}")
    if status == 500 and not thorough:
        return JobAnswer(Presence.ABSENT, "the cluster has no pod of it")
    state, complete, looked_at = await _state(cluster, service, job)
    if state is not None:
        return JobAnswer(Presence.THERE, _times(state), str(state.get("status")))
    if status != 500:
        return JobAnswer(Presence.THERE, f"its state is not among the first {looked_at} jobs")
    if complete:
        return JobAnswer(Presence.ABSENT, f"not among the {looked_at} jobs that may be seen")
    return _unknown(f"no pod of it, and it is not among the first {looked_at} jobs")


async def _state(cluster: OscarCluster, service: str, job: str) -> tuple[Mapping[str, Any] | None, bool, int]:
    """Page through the jobs; return the one of that name, whether all were seen, and how many were."""
    token, looked_at = "", 0
    try:
        async with asyncio.timeout(_SEARCH_SECONDS):
            while True:
                page = await cluster.jobs_page(service, token)
                jobs = page.get("jobs") or {}
                looked_at += len(jobs)
                if job in jobs:
                    return jobs[job], True, looked_at
                token = page.get("next_page") or ""
                if not token or (jobs and max(jobs) > job):
                    return None, True, looked_at
    except (TimeoutError, NoCredentialError, TypeError, ValueError):
        return None, False, looked_at


def _unknown(detail: str) -> JobAnswer:
    return JobAnswer(Presence.UNKNOWN, detail)


def _times(state: Mapping[str, Any]) -> str:
    told = [f"{word} {state[key]}" for word, key in _TIMES if state.get(key)]
    return ", ".join(told) or "not started"


_TIMES = (("started", "start_time"), ("finished", "finish_time"))
