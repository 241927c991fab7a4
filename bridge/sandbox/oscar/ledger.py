"""What the cluster was asked and what it created: the witness of "one job an event"."""

from __future__ import annotations

import base64
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One created Job."""

    job: str
    service: str
    body: bytes
    """As it arrived."""


@dataclass(frozen=True, slots=True)
class Activity:
    """How busy the cluster is and was."""

    active: dict[str, int]
    """Service → its Jobs that have neither ended nor been deleted: Pending, Running or Suspended."""
    peak: dict[str, int]
    """Service → the most it ever had of them at one instant."""
    places_used: int
    place_seconds: float
    """The time integral of the places in use up to `moment`: of 20 places, 20 a second when all are."""
    moment: float
    """Seconds since the epoch."""


class Ledger:
    """Every creation of a Job, kept also when the Job object is gone; and how many were active at once."""

    def __init__(self, *, keep_bodies: bool, file: Path | None) -> None:
        self.requests = 0
        """`POST /job` and `/run` that arrived, whatever became of them."""
        self.created: dict[str, int] = {}
        """Job name → how many times it was created: more than once only after deletion or TTL_JOB."""
        self.entries: list[Entry] = []
        """In order of creation; empty without `keep_bodies`."""
        self.runs: list[Entry] = []
        """`/run` calls that reached the service (their `job` is empty); empty without `keep_bodies`."""
        self._active: Counter[str] = Counter()
        self._peak: dict[str, int] = {}
        self._places_used = 0
        self._place_seconds = 0.0
        self._places_since = -math.inf
        self._keep_bodies = keep_bodies
        self._file: TextIOWrapper | None = file.open("a", encoding="ascii") if file is not None else None

    def record(self, job: str, service: str, body: bytes) -> None:
        """Note a created Job, which is active from now on; on the file before this returns."""
        self.created[job] = self.created.get(job, 0) + 1
        self._active[service] += 1
        self._peak[service] = max(self._peak.get(service, 0), self._active[service])
        if self._keep_bodies:
            self.entries.append(Entry(job, service, body))
        if self._file is not None:
            line = {"job": job, "service": service, "body": base64.b64encode(body).decode()}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def record_run(self, service: str, body: bytes) -> None:
        """Note a synchronous invocation."""
        if self._keep_bodies:
            self.runs.append(Entry("", service, body))

    def ended(self, service: str) -> None:
        """Note that a Job of `service` is active no more: it ended, or was deleted before."""
        self._active[service] -= 1

    def place_taken(self, moment: float) -> None:
        """Note that a pod got a place at `moment`, seconds since the epoch."""
        self._pass(moment)
        self._places_used += 1

    def place_left(self, moment: float) -> None:
        """Note that a place came free at `moment`."""
        self._pass(moment)
        self._places_used -= 1

    def _pass(self, moment: float) -> None:
        if self._places_used:
            self._place_seconds += self._places_used * (moment - self._places_since)
        self._places_since = moment

    def activity(self) -> Activity:
        """Answer at this moment; the caller has brought the pods up to it."""
        now = time.time()
        self._pass(now)
        return Activity(dict(self._active), dict(self._peak), self._places_used, self._place_seconds, now)

    @property
    def total(self) -> int:
        """Jobs created."""
        return sum(self.created.values())

    def bodies(self, service: str) -> list[bytes]:
        """The bodies of the jobs of one service, in order of creation."""
        return [entry.body for entry in self.entries if entry.service == service]

    def page(self, offset: int, limit: int, *, bodies: bool) -> dict[str, Any]:
        """A part of the ledger as JSON: names and counts, or the entries with their bodies in base64."""
        answer: dict[str, Any] = {"requests": self.requests, "total": self.total, "runs": len(self.runs)}
        if bodies:
            size = len(self.entries)
            answer["entries"] = [
                {"job": entry.job, "service": entry.service, "body": base64.b64encode(entry.body).decode()}
                for entry in self.entries[offset : offset + limit]
            ]
        else:
            size = len(self.created)
            answer["created"] = dict(islice(self.created.items(), offset, offset + limit))
        answer["next"] = offset + limit if offset + limit < size else None
        return answer

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
