"""How much is kept, as of the last write: told without asking the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import bridge.store.waiting as waiting
from bridge.store.changes import Change
from bridge.store.schema import DEAD, PARKED, SPOOLED
from bridge.store.waiting import Known, Stranded
from bridge.telemetry.metrics import Metrics


class Counts:
    """Adds up what transactions have changed, for the daemon and for its metrics."""

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        """Tell ages by `now`, in seconds since 1970."""
        self.kept: Counter[tuple[str, str]] = Counter()
        """Events, by service and reason."""
        self.spooled: Counter[int] = Counter()
        """Occurrences, by spool."""
        self.marks: Counter[int] = Counter()
        """Versions marked, by spool."""
        self._windows: Counter[str] = Counter()
        """By service."""
        self._sources: dict[int, str] = {}
        """Identities of the sources of spools that had occurrences when the store was opened."""
        self._parked_since: dict[str, float] = {}
        """When the event longest parked for a service was, in seconds since 1970."""
        self._metrics = metrics
        self._now = now

    def add(self, change: Change, *, opening: bool) -> None:
        """Add a change, or at the `opening` what is there."""
        metrics = self._metrics
        for (service, reason, cause), difference in change.tally.items():
            self.kept[service, reason] += difference
            metrics.kept_events.labels(service, reason).set(self.kept[service, reason])
            if reason == DEAD:
                metrics.dead_letters.labels(service, cause).inc(difference)
                came = metrics.dead_lettered.labels(service, cause)
                if difference > 0 and not opening:
                    came.inc(difference)
        for service, difference in change.windows.items():
            self._windows[service] += difference
            metrics.windows.labels(service).set(self._windows[service])
        for service, since in change.oldest.items():
            if since is None:
                self._parked_since.pop(service, None)
            else:
                self._parked_since[service] = since
                self.tell_age(service)
        self.spooled.update(change.spooled)
        self.marks.update(change.marks)
        self._sources.update(change.sources)

    def tell_age(self, service: str) -> None:
        """Have the metrics tell for how long the event longest parked for `service` has waited."""
        self._metrics.parked_oldest.labels(service).set_function(lambda: self._age(service))

    def _age(self, service: str) -> float:
        since = self._parked_since.get(service)
        return 0.0 if since is None else max(0.0, self._now() - since)

    def stranded(self, known: Known) -> list[Stranded]:
        """Count what waits for a service, or of a source, that is not among those `known`."""
        parked = [
            Stranded(PARKED, key, count) for (key, reason), count in self.kept.items() if reason == PARKED
        ]
        spooled = [
            Stranded(SPOOLED, source, self.spooled[number]) for number, source in self._sources.items()
        ]
        return waiting.stranded([*parked, *spooled], known)
