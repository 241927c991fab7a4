"""The places of simulated pods: who waits for one, who has one, and until when."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable
from heapq import heappop, heappush

from bridge.sandbox.oscar.job import Job
from bridge.sandbox.oscar.ledger import Ledger
from bridge.sandbox.oscar.quotas import Quotas
from bridge.sandbox.oscar.settings import Settings

_LEAST_PAUSE = 0.002
"""Seconds between two looks at what is due. All times are exact all the same: see `advance`."""
_LOOKED_AT = 20
"""Jobs of a user that Kueue looks at behind the first that does not fit. In truth it looks at all."""


class Places:
    """The room of all nodes, in jobs at once, handed out in the order of creation; and Kueue before it.

    Everything that happens has a time of its own, whenever it is looked at: a place that comes free is
    taken by the next job at that very moment. There is one timer for all, so 50,000 jobs cost what they
    do, not what waits.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, quotas: Quotas, on_end: Callable[[Job], None]
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._quotas = quotas
        self._on_end = on_end
        self._bound = math.inf if settings.max_pods is None else settings.max_pods
        self._used = 0
        self._alive: set[Job] = set()
        """Neither ended nor deleted."""
        self._held: defaultdict[str, deque[Job]] = defaultdict(deque)
        """Namespace → the jobs that Kueue has not admitted; with some that were deleted."""
        self._waiting: list[tuple[float, int, Job]] = []
        """A heap by the moment from which a job may have a place; with some that were deleted."""
        self._ends: list[tuple[float, int, Job]] = []
        """A heap by the end of those that have one; with some that were deleted."""
        self._reached = 0.0
        """Everything up to this moment has happened."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, job: Job) -> None:
        """Let the job wait for its place, from when its pod is there and has been pending long enough."""
        self.advance()
        self._alive.add(job)
        if job.pod_from == math.inf:
            self._held[job.namespace].append(job)
            self._admit(job.namespace)
        else:
            self._wait(job, job.created)
        self.advance()

    def remove(self, job: Job) -> None:
        """End the pod of a deleted job; its place is free."""
        self.advance()
        if job not in self._alive:
            return
        now = time.time()
        self._ledger.ended(job.service)
        self._leave(job)
        if job.placed < math.inf:
            self._used -= 1
            self._ledger.place_left(now)
        if job.started <= now:
            job.finished, job.failed = now, True
        self.advance()

    def admit_all(self) -> None:
        """Let Kueue look again at all that it holds, as when a quota was changed."""
        self.advance()
        for namespace in list(self._held):
            self._admit(namespace)
        self.advance()

    def advance(self) -> None:
        """Let happen, in order, all that is due."""
        now = time.time()
        while (due := self._due()) <= now:
            self._reached = max(self._reached, due)
            if self._ends and self._ends[0][0] <= due:
                *_, job = heappop(self._ends)
                if job in self._alive:
                    self._end(job)
            else:
                *_, job = heappop(self._waiting)
                if job in self._alive:
                    self._place(job)
        self._reached = max(self._reached, now)
        self._look_again(due - now)

    def _due(self) -> float:
        """When something happens next."""
        end = self._ends[0][0] if self._ends else math.inf
        if not self._waiting or self._used >= self._bound:
            return end
        return min(end, max(self._waiting[0][0], self._reached))

    def _place(self, job: Job) -> None:
        at = self._reached
        self._used += 1
        self._ledger.place_taken(at)
        job.placed = at
        if job.hangs:
            return
        job.started = at + self._settings.starting_seconds
        part = 0.0 if job.start_error else 0.5 if job.evicted else 1.0
        job.finished = job.started + part * self._settings.simulated_seconds
        heappush(self._ends, (job.finished, job.sequence, job))

    def _end(self, job: Job) -> None:
        self._used -= 1
        self._ledger.place_left(job.finished)
        self._leave(job)
        self._on_end(job)

    def _leave(self, job: Job) -> None:
        self._alive.discard(job)
        if job.pod_from < math.inf:
            self._quotas.give_back(job)
            self._admit(job.namespace)

    def _admit(self, namespace: str) -> None:
        """Kueue's turn: `BestEffortFIFO`, so what does not fit lets a smaller one pass that does."""
        passed: deque[Job] = deque()
        too_big: set[str] = set()
        held = self._held[namespace]
        while held and len(passed) < _LOOKED_AT:
            job = held.popleft()
            if job not in self._alive:
                continue
            if job.service in too_big or not self._quotas.admits(job):
                too_big.add(job.service)
                passed.append(job)
                continue
            job.pod_from = self._reached + self._settings.controller_seconds
            self._wait(job, self._reached)
        held.extendleft(reversed(passed))

    def _wait(self, job: Job, since: float) -> None:
        self._quotas.take(job)
        held = max(self._settings.pending_seconds, self._settings.controller_seconds)
        heappush(self._waiting, (since + held, job.sequence, job))

    def _look_again(self, pause: float) -> None:
        self.close()
        if pause < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(pause, _LEAST_PAUSE), self.advance)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
