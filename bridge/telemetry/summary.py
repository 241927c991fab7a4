"""One log line a minute that sums up what happened, made of the counters; none where nothing did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import structlog

from bridge.core.delivery import Outcome
from bridge.core.ports import Verdict
from bridge.telemetry.metrics import Metrics

SUMMARY_SECONDS = 60.0

_SETTLED = {
    Outcome.FILTERED.name.lower(): "filtered",
    Outcome.PARKED.name.lower(): "parked",
    Outcome.RELEASED.name.lower(): "given back",
}
"""What is told of an outcome; events that were accepted or given up are told by service."""
_INVOKED = {Verdict.ACCEPTED.value: "accepted", Verdict.DUPLICATE.value: "duplicate"}
_FAILED = "failed attempts"
_ORDER = ("received", "accepted", "duplicate", "filtered", "dead", "parked", "given back", "lost", _FAILED)

_log = structlog.get_logger(__name__)


class Summary:
    """Tells, once a minute, by how much the counters have risen."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._before: Counter[tuple[str, str, str]] = Counter(self._counted())

    async def run(self) -> None:
        """Tell until cancelled; then what is left to be told."""
        try:
            while True:
                await asyncio.sleep(SUMMARY_SECONDS)
                self._tell()
        finally:
            self._tell()

    def _tell(self) -> None:
        counted = Counter(self._counted())
        risen = counted - self._before
        self._before = counted
        if not risen:
            return
        total: Counter[str] = Counter()
        parts: dict[str, dict[str, Counter[str]]] = {"sources": {}, "services": {}}
        for (kind, key, what), count in risen.items():
            total[what] += count
            parts[kind].setdefault(key or "none", Counter())[what] += count
        _log.info(
            _written(total),
            **{
                kind: {key: _written(counts) for key, counts in sorted(of_kind.items())}
                for kind, of_kind in parts.items()
                if len(of_kind) > 1
            },
        )

    def _counted(self) -> dict[tuple[str, str, str], int]:
        """Return all counts since the start, by kind of part, its key, and what is counted."""
        found: Counter[tuple[str, str, str]] = Counter()
        for (source,), count in self._metrics.received.counted():
            found["sources", source, "received"] += count
        for (source, outcome), count in self._metrics.settled.counted():
            if outcome in _SETTLED:
                found["sources", source, _SETTLED[outcome]] += count
        for (source,), count in self._metrics.lost.counted():
            found["sources", source, "lost"] += count
        for (service, outcome), count in self._metrics.invocations.counted():
            found["services", service, _INVOKED.get(outcome, _FAILED)] += count
        for (service, _cause), count in self._metrics.dead_lettered.counted():
            found["services", service, "dead"] += count
        return found


def _written(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {counts[what]}" for what in _ORDER if counts[what])
