"""What the bridge is doing now, and has done in the last hours, as one document for whoever shows it."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from time import monotonic
from typing import Any, NamedTuple

from bridge import __version__
from bridge.control import Control, Part, Row
from bridge.core.ports import Verdict
from bridge.pipeline.lane import Lane
from bridge.pipeline.runner import Runner
from bridge.settings import Settings
from bridge.store import Store
from bridge.store.schema import DEAD
from bridge.telemetry.metrics import LaneMetrics, Metrics
from bridge.web import Problem

SAMPLE_SECONDS = 10.0
_RATE_SAMPLES = 6
"""Between the one that a rate counts from and the newest: the last minute."""
STEP_SECONDS = 60.0
_STEP_SAMPLES = int(STEP_SECONDS / SAMPLE_SECONDS)
MOST_HOURS = 24.0
_MOST_STEPS = int(MOST_HOURS * 3600 / STEP_SECONDS)
_MOST_POINTS = 360
"""In one answer; of more steps several make one point."""
_LEVELS = frozenset({"parked", "dead_letters"})
_ACCEPTED = (Verdict.ACCEPTED, Verdict.DUPLICATE)
_ROW = tuple(field.name for field in fields(Row))


class _Counted(NamedTuple):
    """Counters of one source or service at one moment, since the start."""

    received: int = 0
    accepted: int = 0
    failed: int = 0


class _Series:
    """Numbers of the last `_MOST_STEPS` steps, the newest last, in eight bytes each."""

    def __init__(self) -> None:
        self._numbers = array("q")

    def add(self, number: float) -> None:
        self._numbers.append(int(number))
        if len(self._numbers) > 2 * _MOST_STEPS:  # seldom, for it moves all that stay
            del self._numbers[:_MOST_STEPS]

    def levels(self, points: int, every: int, newer: int) -> list[int]:
        """Return the number at the end of each point of `every` steps; the `newer` steps are left out."""
        last = -1 - newer
        return self._numbers[last : last - points * every : -every].tolist()[::-1]

    def sums(self, points: int, every: int, newer: int) -> list[int]:
        """Return how much the number has grown in each point."""
        ends = self.levels(points + 1, every, newer)
        return [after - before for before, after in pairwise(ends)]


class Status:
    """Reads what the parts of a running bridge tell of themselves; changes nothing, and waits for nothing."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        runners: Sequence[Runner],
        lanes: Mapping[str, Lane],
        control: Control,
        store: Store,
        readiness: Callable[[], Sequence[Problem]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._runners = {runner.key: runner for runner in runners}
        self._lanes = lanes
        self._control = control
        self._store = store
        self._readiness = readiness
        self._started = time.time()
        self._sources = {key: metrics.source(key) for key in settings.sources}
        self._services = {key: metrics.lane(key) for key in settings.services}
        self._paths = [
            {
                "name": f"routes[{index}]",
                "from": route.from_,
                "to": [key for key in settings.services if key in route.reachable],
                "when": route.when,
                "merges": route.merges,
            }
            for index, route in enumerate(settings.routes)
        ]
        self._samples: deque[dict[tuple[str, str], _Counted]] = deque(maxlen=_RATE_SAMPLES + 1)
        self._sampled_at: deque[float] = deque(maxlen=_RATE_SAMPLES + 1)
        """Monotonic times."""
        self._history: dict[tuple[str, str], dict[str, _Series]] = {
            **{("source", key): {"received": _Series()} for key in settings.sources},
            **{
                ("service", key): {
                    "accepted": _Series(),
                    "failed": _Series(),
                    "parked": _Series(),
                    "dead_letters": _Series(),
                }
                for key in settings.services
            },
        }
        self._steps = 0
        self._step_at = self._started

    async def run(self) -> None:
        """Sample what rates and history are made of, until cancelled."""
        count = 0
        while True:
            self._sample()
            if count % _STEP_SAMPLES == 0:
                self._step()
            count += 1
            await asyncio.sleep(SAMPLE_SECONDS)

    # Now

    async def document(self) -> dict[str, Any]:
        """Return what is so now. Rates are those of about the last minute.

        It is made in parts, between which the other tasks of the process have their turn: with fifty sources
        and services each takes some three milliseconds.
        """
        problems: dict[str, list[str]] = {}
        for problem in self._readiness():
            problems.setdefault(problem.part, []).append(problem.reason)
        told: dict[str, Any] = {
            "version": __version__,
            "started": self._started,
            "now": time.time(),
            "ready": not problems,
            "problems": [
                {"part": part, "reason": reason} for part, reasons in problems.items() for reason in reasons
            ],
        }
        await asyncio.sleep(0)
        told["sources"] = self._all_sources(problems)
        told["routes"] = self._paths
        await asyncio.sleep(0)
        dead = self._dead_letters()
        await asyncio.sleep(0)
        told["services"] = self._all_services(problems, dead)
        await asyncio.sleep(0)
        told["clusters"] = self._all_clusters()
        told["limits"] = [{name: getattr(row, name) for name in _ROW} for row in self._control.rows()]
        told["store"] = {
            "used_bytes": self._store.used_bytes,
            "limit_bytes": self._settings.store.max_bytes,
            "dead_letters": sum(dead.values()),
            "waiting": self._waiting(),
        }
        return told

    def _all_sources(self, problems: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        metrics = self._metrics
        up, lag = _values(metrics.source_up), _values(metrics.source_lag)
        oldest = _values(metrics.oldest_unsettled)
        filtered: dict[str, int] = {}
        for (key, _reason), count in _values(metrics.filtered).items():
            filtered[key] = filtered.get(key, 0) + int(count)
        found = []
        for key, config in self._settings.sources.items():
            intake, counted = self._runners[key].intake, self._sources[key]
            waits = lag.get((key,))
            found.append(
                {
                    "key": key,
                    "type": config.type,
                    "up": up.get((key,)) == 1,
                    "paused": intake.paused,
                    "lag": None if waits is None else int(waits),
                    "in_flight": intake.in_flight,
                    "slots": intake.most,
                    "oldest_seconds": oldest.get((key,), 0.0),
                    "received": counted.received.value,
                    "filtered": filtered.get(key, 0),
                    "settled": {
                        outcome.name.lower(): count.value for outcome, count in counted.settled.items()
                    },
                    "rate": self._rate("source", key, "received", counted.received.value),
                    "problems": problems.get(f"source {key}", []),
                }
            )
        return found

    def _all_services(
        self, problems: Mapping[str, Sequence[str]], dead: Mapping[str, int]
    ) -> list[dict[str, Any]]:
        metrics = self._metrics
        open_, at_once = _values(metrics.lane_open), _values(metrics.lane_limit)
        in_flight, queued = _values(metrics.lane_in_flight), _values(metrics.lane_queued)
        parked_oldest, drain = _values(metrics.parked_oldest), _values(metrics.lane_drain)
        active, windows = _values(metrics.active_jobs), _values(metrics.windows)
        found = []
        for key, config in self._settings.services.items():
            of = (key,)
            counted = _counted(self._services[key])
            told = problems.get(f"service {key}", [])
            jobs = active.get(of)
            is_paused = self._control.is_paused(Part("service", key))
            cluster_is_paused = self._control.is_paused(Part("cluster", config.cluster))
            found.append(
                {
                    "key": key,
                    "cluster": config.cluster,
                    "mode": config.mode,
                    "open": open_.get(of) == 1,
                    "why": _why(told, self._lanes[key], config.cluster, is_paused, cluster_is_paused),
                    "paused": is_paused,
                    "queued": int(queued.get(of, 0)),
                    "queue": config.queue,
                    "in_flight": int(in_flight.get(of, 0)),
                    "limit": int(at_once.get(of, 0)),
                    "parked": self._store.waiting(key),
                    "parked_oldest_seconds": parked_oldest.get(of, 0.0),
                    "dead_letters": dead.get(key, 0),
                    "accepted": counted.accepted,
                    "failed": counted.failed,
                    "rate": self._rate("service", key, "accepted", counted.accepted),
                    "drain_seconds": _finite(drain.get(of)),
                    "active_jobs": None if jobs is None else int(jobs),
                    "windows": int(windows.get(of, 0)),
                    "problems": told,
                }
            )
        return found

    def _all_clusters(self) -> list[dict[str, Any]]:
        limits = _values(self._metrics.cluster_limit)
        works, expiry = _values(self._metrics.credential_ok), _values(self._metrics.credential_expiry)
        return [
            {
                "key": key,
                "endpoint": config.endpoint,
                "limit": int(limits.get((key,), 0)),
                "paused": self._control.is_paused(Part("cluster", key)),
                "credential_ok": None if (ok := works.get((key,))) is None else ok == 1,
                "credential_expires_seconds": _finite(expiry.get((key,))),
            }
            for key, config in self._settings.clusters.items()
        ]

    def _dead_letters(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for (key, _cause), count in _values(self._metrics.dead_letters).items():
            found[key] = found.get(key, 0) + int(count)
        return found

    def _waiting(self) -> int:
        """Count all that is kept but dead letters: also of services that are not configured any more."""
        kept = _values(self._metrics.kept_events)
        return int(sum(count for (_service, reason), count in kept.items() if reason != DEAD))

    # The last minute, and the last hours

    def _rate(self, kind: str, key: str, name: str, count: int) -> float:
        """Return how much a counter that is at `count` grew a second, since the oldest sample there is."""
        if not self._samples:
            return 0.0
        seconds = monotonic() - self._sampled_at[0]
        before: int = getattr(self._samples[0][kind, key], name)
        return (count - before) / max(seconds, 1.0)

    def _sample(self) -> None:
        sources = {("source", key): _Counted(one.received.value) for key, one in self._sources.items()}
        services = {("service", key): _counted(one) for key, one in self._services.items()}
        self._samples.append(sources | services)
        self._sampled_at.append(monotonic())

    def _step(self) -> None:
        dead = self._dead_letters()
        for (kind, key), counted in self._samples[-1].items():
            numbers: dict[str, int] = counted._asdict()
            if kind == "service":
                numbers |= {"parked": self._store.waiting(key), "dead_letters": dead.get(key, 0)}
            for name, series in self._history[kind, key].items():
                series.add(numbers[name])
        self._steps += 1
        self._step_at = time.time()

    async def history(self, hours: float) -> dict[str, Any]:
        """Return what was received, accepted and failed in each step of the last `hours`, and the levels of
        what was parked and dead at its end; fewer steps where the bridge has not run for so long.

        It is made in parts too.
        """
        wanted = math.ceil(min(hours, MOST_HOURS) * 3600 / STEP_SECONDS)
        every = math.ceil(wanted / _MOST_POINTS)
        points = max(0, min(wanted, min(self._steps, _MOST_STEPS) - 1)) // every
        told: dict[str, Any] = {
            "step": STEP_SECONDS * every,
            "end": self._step_at,
            "sources": {},
            "services": {},
        }
        steps = self._steps
        for (kind, key), found in self._history.items():
            newer = self._steps - steps
            told[f"{kind}s"][key] = {
                name: (series.levels if name in _LEVELS else series.sums)(points, every, newer)
                for name, series in found.items()
            }
            await asyncio.sleep(0)
        return told


def _why(
    problems: Sequence[str], lane: Lane, cluster: str, is_paused: bool, cluster_is_paused: bool
) -> str | None:
    """Say what keeps the events of a lane from going on; None where nothing does."""
    if problems:
        return problems[0]
    if is_paused:
        return "paused by a person"
    if cluster_is_paused:
        return f"cluster {cluster}: paused by a person"
    held_by = lane.held_by
    if held_by == "cluster":
        return f"cluster {cluster}: a limit is reached"
    return None if held_by is None else f"{held_by}: the limit is reached"


def _values(family: Any) -> dict[tuple[str, ...], float]:
    """Return the values of a family of metrics by their labels."""
    (collected,) = family.collect()
    return {tuple(sample.labels.values()): sample.value for sample in collected.samples}


def _counted(lane: LaneMetrics) -> _Counted:
    attempts = {verdict: count.value for verdict, count in lane.invocations.items()}
    accepted = sum(attempts[verdict] for verdict in _ACCEPTED)
    return _Counted(accepted=accepted, failed=sum(attempts.values()) - accepted)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
