"""Which jobs have left an output: the objects under a service's output paths (`success: output`).

faas-supervisor ends well whatever the script did, and uploads what the script has left. OSCAR lists the
cluster's own MinIO (`GET /system/buckets/{bucket}`, from 3.6.5 on), at no call of Kubernetes'. The listing
tells of no job, so a job's output is known by its name: see `_Written.has_output_of`.
"""

from __future__ import annotations

import asyncio
import base64
import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from time import monotonic
from typing import Any

import structlog

from bridge.core.event import Event
from bridge.core.jobs import JobOutcome, JobSeen
from bridge.credentials import NoCredentialError, refused
from bridge.destinations.oscar.client import OscarService
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.telemetry.logging import excerpt

_GATHER_SECONDS = 5.0
"""From the first job that is to be judged to the listing: those that end meanwhile are judged with it."""
_REST = 9
"""Times as long as a listing took, to the next."""
_TRIES = 5
"""Of a listing that fails, before the jobs that wait for it are given up."""
_LONGEST_SILENCE = 60.0
"""Seconds between two tries: 5, 10, 20 … at most."""
_BELIEVED_SECONDS = 600.0
"""How long it is believed where a service's outputs go, since its definition costs calls of Kubernetes'."""
_MOST_PAGES = 300
"""Of one output path: 21,000 objects, as OSCAR makes its pages by default (`JOB_LISTING_LIMIT`)."""
_SKEW = 2.0
"""Seconds by which the clocks of MinIO and of a node may differ."""
_A_FILE = re.compile(r"[/.:]")
"""In the subject of an event that names the file fetched for the job: a path, a name with an ending or a DID.
A key of Kafka's such as `sensor-7` names none."""
_OF_A_JOB = re.compile(r"-[0-9a-f]{38}(?![0-9a-z])")
"""The end of a job's name in a key (`invocation_name`)."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where outputs go."""

    bucket: str
    folder: str
    """What their keys begin with: empty, or with `/` at its end."""

    def __str__(self) -> str:
        return f"{self.bucket}/{self.folder}"


def places_of(definition: Mapping[str, Any]) -> tuple[list[Place], list[str]]:
    """Return the places of a service's outputs that OSCAR lists, and the other storages that have some.

    With `isolation_level: USER` the supervisor takes the bucket of the event in place of the service's own
    (`upload_output` of faas-supervisor's storage/config.py).
    """
    places: list[Place] = []
    others: list[str] = []
    by_user = str(definition.get("isolation_level")).upper() == "USER"
    users = definition.get("bucket_list")
    of_users = [_name(each) for each in users] if by_user and isinstance(users, list) else []
    outputs = definition.get("output")
    for output in outputs if isinstance(outputs, list) else ():
        if not isinstance(output, dict):
            continue
        provider = str(output.get("storage_provider")).strip()
        kind, _, identifier = provider.partition(".")
        if kind.lower() != "minio" or identifier not in ("", "default"):
            others.append(provider)
            continue
        bucket, _, folder = _name(output.get("path")).strip(" /").partition("/")
        places += [Place(each, f"{folder}/" if folder else "") for each in (bucket, *of_users)]
    return list(dict.fromkeys(places)), others


def _name(value: object) -> str:
    """Return a name that can be asked for, whatever the definition has: a lone surrogate never can."""
    return str(value).encode("utf-8", "replace").decode()


class Outputs:
    """Judges the jobs of one service that have ended, many with one listing."""

    def __init__(
        self,
        cluster: OscarCluster,
        service: OscarService,
        judged: Callable[[Sequence[tuple[JobSeen, JobOutcome]], str], Awaitable[None]],
    ) -> None:
        """Have `judged` told what became of the jobs, and where their outputs were looked for."""
        self._cluster = cluster
        self._service = service
        self._judged = judged
        self._waiting: dict[str, tuple[JobSeen, Event]] = {}
        self._some = asyncio.Event()
        self._places: Sequence[Place] = ()
        self._places_until = float("-inf")
        self._told = False
        """Whether a person was told that no output can be looked for."""

    def add(self, seen: JobSeen, event: Event) -> None:
        """Have a job of `event` judged that was seen to have ended."""
        self._waiting[seen.name] = seen, event
        self._some.set()

    async def run(self) -> None:
        """Judge until cancelled. Never raises for what the cluster does."""
        pause, failures = _GATHER_SECONDS, 0
        while True:
            await self._some.wait()
            await asyncio.sleep(pause)
            began, waiting = monotonic(), list(self._waiting.values())
            try:
                where, outcomes = await self._judge(waiting)
            except NoCredentialError as error:
                failures += 1
                pause = min(_GATHER_SECONDS * 2**failures, _LONGEST_SILENCE)
                _log.warning(
                    "the outputs of jobs can't be listed",
                    cluster=self._cluster.key,
                    service=self._service.name,
                    cause=error.answer.cause,
                    detail=str(error),
                    again_in_seconds=pause,
                )
                if failures < _TRIES:
                    continue
                where, outcomes = "", [JobOutcome.UNJUDGED] * len(waiting)
            else:
                pause = max(_GATHER_SECONDS, _REST * (monotonic() - began))
            failures = 0
            for seen, _ in waiting:
                if self._waiting[seen.name][0] is seen:
                    del self._waiting[seen.name]
            if not self._waiting:
                self._some.clear()
            ended = [seen for seen, _ in waiting]
            await self._judged(list(zip(ended, outcomes, strict=True)), where)

    async def _judge(self, jobs: Sequence[tuple[JobSeen, Event]]) -> tuple[str, list[JobOutcome]]:
        """Return where outputs were looked for, and what became of `jobs`. Raise NoCredentialError."""
        places = await self._known_places()
        if not places:
            return "", [JobOutcome.UNJUDGED] * len(jobs)
        where = ", ".join(map(str, places))
        since = min((seen.started for seen, _ in jobs if seen.started is not None), default=0.0) - _SKEW
        written, whole = _Written(), True
        for place in places:
            whole = await self._list(place, since, written) and whole
        if not whole:
            _log.warning(
                "there are too many outputs to look at all of them: have old ones deleted, as by a rule for "
                "the bucket's lifecycle",
                service=self._service.name,
                outputs=where,
                looked_at=_MOST_PAGES,
            )
        outcomes = []
        for seen, event in jobs:
            # In another thread: where there are very many, and a file is called `1.txt`, it takes 20 ms.
            outcomes.append(await asyncio.to_thread(_outcome, written, seen, event, whole=whole))
        return where, outcomes

    async def _known_places(self) -> Sequence[Place]:
        """Return where outputs go, as the service's definition has told lately. Raise NoCredentialError."""
        if monotonic() >= self._places_until:
            self._places, others = places_of(await self._service.definition())
            self._places_until = monotonic() + _BELIEVED_SECONDS
            if not self._places and not self._told:
                self._told = True
                _log.warning(
                    "no output can be looked for (`success: output`), so no job is known to have succeeded: "
                    "OSCAR lists its own MinIO alone",
                    service=self._service.name,
                    outputs=others,
                )
        return self._places

    async def _list(self, place: Place, since: float, written: _Written) -> bool:
        """Add to `written` the objects of `place` written since then; tell whether that is all.

        Raise NoCredentialError.
        """
        token = _token_behind(place.folder)
        for number in range(_MOST_PAGES):
            try:
                page = await self._cluster.bucket_page(place.bucket, token)
            except NoCredentialError:
                if number or not token:
                    raise
                # What stands in for MinIO may have tokens of another kind.
                page = await self._cluster.bucket_page(place.bucket, "")
            key, objects = "", page.get("objects")
            for each in objects if isinstance(objects, list) else ():
                key = str(each.get("object_name")) if isinstance(each, dict) else ""
                if key.startswith(place.folder) and not key.endswith("/"):
                    when = _written_at(each.get("last_modified"))
                    if when >= since:
                        written.add(key[len(place.folder) :], when)
            token = str(page.get("next_page") or "")
            if not token or (key > place.folder and not key.startswith(place.folder)):
                return True
        return False


def _outcome(written: _Written, seen: JobSeen, event: Event, *, whole: bool) -> JobOutcome:
    if seen.started is None:
        return JobOutcome.UNJUDGED
    if written.has_output_of(seen, event):
        return JobOutcome.SUCCEEDED
    return JobOutcome.FAILED if whole else JobOutcome.UNJUDGED


class _Written:
    """Objects with the times at which they were written last."""

    def __init__(self) -> None:
        self._keys = [""]
        self._ends: list[int] = []
        """Where in the text of all keys each ends."""
        self._times: list[float] = []
        self._of_no_job: list[float] = []
        """Times of those whose keys have no job's name, in order."""

    def add(self, key: str, when: float) -> None:
        """Add an object; `key` is what its own has below the output path."""
        self._keys.append(key.replace("\n", " "))
        self._ends.append((self._ends[-1] if self._ends else 0) + len(key) + 1)
        self._times.append(when)
        if _OF_A_JOB.search(key) is None:
            insort(self._of_no_job, when)

    @cached_property
    def _text(self) -> str:
        """All keys in one text, since that is searched much faster. No more may be added then."""
        return "\n".join([*self._keys, ""])

    def has_output_of(self, seen: JobSeen, event: Event) -> bool:
        """Tell whether one of them is an output of a job that began (`seen.started`), made of `event`.

        It was written since the job began, and its key has the job's name, which the script knows as
        `JOB_UUID`, or the name of the file that was fetched for it, without its ending. Where the event names
        no file any object will do that was written while the job ran, and that has no job's name.
        """
        began = (seen.started or 0.0) - _SKEW
        if self._has(seen.name, began):
            return True
        if (name := input_name(event)) is not None:
            return self._has(name, began)
        end = float("inf") if seen.finished is None else seen.finished + 1.0 + _SKEW
        at = bisect_left(self._of_no_job, began)
        return at < len(self._of_no_job) and self._of_no_job[at] <= end

    def _has(self, name: str, began: float) -> bool:
        text, name, at = self._text, name.replace("\n", " "), -1
        while (at := text.find(name, at + 1)) >= 0:
            apart = not (text[at - 1].isalnum() or text[at + len(name)].isalnum())
            if apart and self._times[bisect_right(self._ends, at)] >= began:
                return True
        return False


def input_name(event: Event) -> str | None:
    """Return the name of the file fetched for the job of `event`, without its ending; None for none."""
    subject = event.subject or ""
    if _A_FILE.search(subject) is None:
        return None
    name = re.split(r"[/:]", subject.rstrip("/"))[-1]
    stem, _, _ = name.rpartition(".")
    return (stem.removesuffix(".tar") or name) or None


def _token_behind(key: str) -> str:
    """Return the token of the page that begins behind `key`; empty for the first.

    MinIO's tokens are keys in base64 (`getListObjectsV2Args` of cmd/api-resources.go).
    """
    return base64.b64encode(key.encode()).decode()


def _written_at(value: object) -> float:
    """Read a time as Go writes it (`time.Time.String`) as seconds since 1970.

    Raise NoCredentialError where it is none.
    """
    try:
        return datetime.fromisoformat(str(value).replace(" +0000 UTC", "+00:00")).timestamp()
    except ValueError:
        raise refused(f"when an object was written is not understood: {excerpt(str(value))}") from None
