"""`oscar-bridge where ID`: what became of an event, from the store and the clusters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

import aiohttp
from aiohttp import hdrs
from yarl import URL

from bridge.core.errors import CredentialError
from bridge.core.identity import invocation_name
from bridge.core.ports import NO_LANE
from bridge.credentials import BasicAuth, basic
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.net.bodies import body_of
from bridge.settings import Settings
from bridge.store.find import Kept, Traces, Waited, find, removed
from bridge.telemetry.logging import excerpt

_ASK_SECONDS = 10.0
_LONGEST_ANSWER = 16 << 20
"""Bytes; a page of the list of jobs is the longest."""
_SEARCH_SECONDS = 20.0
"""For one job: a page of the list costs OSCAR a listing of pods for each job on it (logs.go, getPod)."""


class Fate(StrEnum):
    """What became of an event at one service."""

    KEPT = "kept"
    """In the store: parked or a dead letter."""
    JOB = "job"
    """Its job is on the cluster."""
    NO_JOB = "no job"
    """The cluster has no job of its name."""
    REMOVED = "removed"
    """Its job succeeded, and the bridge has removed it since (`remove_finished`)."""
    UNKNOWN = "unknown"
    """The cluster can't be asked, or has no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of an event at one service."""

    source: str
    """Key of the source."""
    service: str
    """Key of the service; empty for a dead letter of a route that chose none."""
    fate: Fate
    detail: str
    """For a person."""
    job: str | None = None
    """The name that its job has, or would have."""
    status: str | None = None
    """The job's, as OSCAR tells it: Pending, Running, Succeeded, Failed, Suspended."""
    kept: Kept | None = None
    sent_in: str | None = None
    """The id of the event that it was sent in with others: what is told is told of that one."""


async def where(settings: Settings, event_id: str, source: str | None = None) -> Sequence[Found]:
    """Tell what became of event `event_id`, at each service that routes from `source` (or any) lead to.

    Works beside a daemon and without one. Raises StoreError when there is a store that can't be read.
    """
    sources = {key: one.identity or key for key, one in settings.sources.items() if source in (None, key)}
    traces = await asyncio.to_thread(find, settings.state_dir, sources.values(), event_id)
    found: list[Found] = []
    questions: dict[str, list[_Question]] = {}
    for key, identity in sources.items():
        rows = [row for row in traces.kept if row.source == identity]
        found += [_of_row(settings, key, row, traces) for row in rows]
        for name in settings.reachable(key):
            if all(row.service != name for row in rows):
                newest = traces.renewed.get((identity, name), event_id)
                cluster = settings.services[name].cluster
                sent_in = traces.merged.get((identity, name))
                questions.setdefault(cluster, []).append(_Question(key, identity, newest, name, sent_in))
    answers = await asyncio.gather(*(_ask(settings, *asked) for asked in questions.items()))
    return [*found, *await asyncio.to_thread(_removed, settings, [one for some in answers for one in some])]


def _removed(settings: Settings, found: Sequence[Found]) -> Sequence[Found]:
    """Tell of jobs that are not found whether the bridge has removed them."""
    missing = [(one.service, one.job) for one in found if one.fate is not Fate.JOB and one.job is not None]
    gone = removed(settings.state_dir, missing)
    detail = "its job succeeded and was removed (`remove_finished`)"
    return [
        replace(one, fate=Fate.REMOVED, detail=detail) if (one.service, one.job) in gone else one
        for one in found
    ]


class _Question(NamedTuple):
    """Whether an event has a job of one service."""

    source: str
    identity: str
    event_id: str
    service: str
    sent_in: str | None


def _of_row(settings: Settings, source: str, row: Kept, traces: Traces) -> Found:
    sent_in = traces.merged.get((row.source, row.service))
    if row.number in traces.windows:
        detail = _waits(traces.windows[row.number])
    elif row.reason == "dead":
        detail = f"dead letter {row.number}: {row.cause}" + (f": {row.detail}" if row.detail else "")
    elif row.service == NO_LANE:
        detail = f"{row.reason}: it waits in the store to go round its routes again"
    elif row.service in settings.services:
        detail = f"{row.reason}: it waits in the store for its service"
    else:
        detail = (
            f"{row.reason}: its service is not in the configuration (`oscar-bridge parked move`, or `bury`)"
        )
    return Found(source=source, service=row.service, fate=Fate.KEPT, detail=detail, kept=row, sent_in=sent_in)


def _waits(window: Waited) -> str:
    others = window.members - 1
    of_key = f" of key {window.key}" if window.key else ""
    with_others = f"window{of_key}: it waits in the store with {others} others"
    if not window.due:
        return f"{with_others}, and is about to be sent ({window.reason})"
    due = datetime.fromtimestamp(window.due, UTC).isoformat(" ", "seconds")
    return f"{with_others}, until {due} as it is now ({window.reason})"


async def _ask(settings: Settings, key: str, questions: Sequence[_Question]) -> Sequence[Found]:
    """Ask one cluster for jobs, one after the other: each may cost OSCAR a long listing."""
    config = settings.clusters[key]
    found = []
    async with OscarCluster(key, config) as cluster:
        jobs = _Jobs(cluster, config.auth if isinstance(config.auth, BasicAuth) else None)
        for source, identity, event_id, name, sent_in in questions:
            service = settings.services[name]
            job, status = None, None
            if service.mode == "run":
                fate, detail = Fate.UNKNOWN, "`mode: run`: a call leaves no trace on the cluster"
            else:
                job = invocation_name(identity, event_id, service.identity(name))
                fate, status, detail = await jobs.find(service.service or name, job)
            found.append(
                Found(
                    source=source,
                    service=name,
                    fate=fate,
                    detail=detail,
                    job=job,
                    status=status,
                    sent_in=sent_in,
                )
            )
    return found


_Answer = tuple[Fate, str | None, str]


class _Unanswered(Exception):  # noqa: N818 - a finding, not an error
    """The cluster did not tell; carries why."""


class _Jobs:
    """Asks one cluster for jobs by name."""

    def __init__(self, cluster: OscarCluster, auth: BasicAuth | None) -> None:
        self._cluster = cluster
        self._auth = auth

    async def find(self, service: str, job: str) -> _Answer:
        """Find a job of `service`.

        First its log: it is one question, whatever the number of jobs. 200: its pod has run. 404 with a
        service that exists: a pod that has not. 500 without a text: no pod (logs.go, MakeGetLogsHandler: the
        error is nil, and asking it for its text panics), so no such job, or one that waits Suspended, or one
        whose pod is gone. Then the list of jobs, for the state: in the order of names, so a page that begins
        behind the job's name ends the search, and `_SEARCH_SECONDS` do.
        """
        if not self._cluster.manages:
            return Fate.UNKNOWN, None, "a service token can't ask for jobs: use the cluster's user or OIDC"
        url = self._cluster.endpoint / "system" / "logs" / service
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                made = await self._has_pod(url / job, service)
        except TimeoutError:
            return Fate.UNKNOWN, None, f"cluster {self._cluster.key}: no answer within {_ASK_SECONDS:g} s"
        except _Unanswered as reason:
            return Fate.UNKNOWN, None, f"cluster {self._cluster.key}: {reason}"
        state, complete, looked_at = await self._state(url, job)
        if state is not None:
            return Fate.JOB, str(state.get("status")), _times(state)
        if made:
            return Fate.JOB, None, f"its job is there; its state is not among the first {looked_at} jobs"
        if complete:
            return Fate.NO_JOB, None, f"none among the {looked_at} jobs that may be seen"
        return Fate.UNKNOWN, None, f"no pod of it, and its job is not among the first {looked_at} jobs"

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
            raise _Unanswered(excerpt(f"GET {url.path}: {str(error) or type(error).__name__}")) from None


def _times(state: Mapping[str, Any]) -> str:
    told = [f"{word} {state[key]}" for word, key in _TIMES if state.get(key)]
    return ", ".join(told) or "not started"


_TIMES = (("started", "start_time"), ("finished", "finish_time"))


def lines(found: Sequence[Found]) -> Iterator[str]:
    """Tell a person what was found, a line for each service, with the job's name behind it."""
    for one in found:
        fate = f"{one.fate} {one.status}" if one.status else str(one.fate)
        yield f"{one.source} → {one.service or '-'}: {fate}: {one.detail}"
        if one.sent_in is not None:
            yield f"    sent with others as event {one.sent_in}"
        if one.job is not None:
            yield f"    job {one.job}"
        if one.kept is not None:
            kept = datetime.fromtimestamp(one.kept.kept_at, UTC).isoformat(" ", "seconds")
            yield f"    in the store since {kept}, as event {one.kept.event_id}, {one.kept.attempts} attempts"
