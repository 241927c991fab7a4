"""Counters and histograms for an event's own way: numbers that one thread adds to, read at each scrape.

Those of prometheus_client take a lock for every number, which costs an event a twentieth of its time, and
show the time at which each was made as a series of its own (`_created`).
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Count:
    """One counter of a family."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Count `amount` more."""
        self.value += amount


class Counts(Collector):
    """A family of counters; `name` as it is scraped, so with `_total`."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._family = (name.removesuffix("_total"), documentation)
        self._labelnames = labels
        self._counts: dict[Sequence[str], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """Give the counter with these labels, from 0 when it is new."""
        if (found := self._counts.get(values)) is None:
            found = self._counts[values] = Count()
        return found

    def counted(self) -> Iterable[tuple[Sequence[str], int]]:
        """Give the labels of each counter, and what it has counted so far."""
        return [(values, count.value) for values, count in self._counts.items()]

    def describe(self) -> Iterable[Metric]:
        """Give the family, whose name the registry keeps free of others."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """Give what is counted so far."""
        family = CounterMetricFamily(*self._family, labels=self._labelnames)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        yield family


class Happening(Count):
    """A counter of what is rare and is to be told, and when that last happened."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        super().__init__()
        self.at: float | None = None
        """In seconds since 1970; None until it happens."""

    def inc(self, amount: int = 1) -> None:
        """Count `amount` more, now."""
        if amount:
            super().inc(amount)
            self.at = time.time()


class Happenings(Counts):
    """A family of counters, and beside it `NAME_timestamp_seconds`: when each last rose, absent until it has.

    That is what an alert asks for. What was counted before the first scrape of a process, or with a label
    that was never scraped before, is no increase that Prometheus sees.
    """

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        base = name.removesuffix("_total")
        self._times = f"{base}_timestamp_seconds", f"When {name} last rose, in seconds since 1970."
        self._happenings: dict[Sequence[str], Happening] = {}
        super().__init__(name, documentation, labels, registry)

    def labels(self, *values: str) -> Happening:
        """Give the counter with these labels, from 0 when it is new."""
        if (found := self._happenings.get(values)) is None:
            found = self._counts[values] = self._happenings[values] = Happening()
        return found

    def collect(self) -> Iterable[Metric]:
        """Give what is counted so far, and when."""
        yield from super().collect()
        family = GaugeMetricFamily(*self._times, labels=self._labelnames)
        for values, happening in self._happenings.items():
            if happening.at is not None:
                family.add_metric(values, happening.at)
        yield family


class Readings(Collector):
    """A family of gauges that are read at each scrape, and absent while what they tell is not known."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._family = (name, documentation)
        self._labelnames = labels
        self._calls: dict[Sequence[str], Callable[[], float | None]] = {}
        registry.register(self)

    def take(self, *values: str, call: Callable[[], float | None]) -> None:
        """Take the gauge with these labels from `call` at each scrape; None leaves it out."""
        self._calls[values] = call

    def describe(self) -> Iterable[Metric]:
        """Give the family, whose name the registry keeps free of others."""
        return self.collect()

    def collect(self) -> Iterable[Metric]:
        """Give what is known now."""
        family = GaugeMetricFamily(*self._family, labels=self._labelnames)
        for values, call in self._calls.items():
            if (value := call()) is not None:
                family.add_metric(values, value)
        yield family


class Spread:
    """One histogram of a family."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket, those above all bounds last."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count `value` into its bucket: the first whose bound is not below it."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Spreads(Collector):
    """A family of histograms with the same rising `bounds`."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str],
        registry: CollectorRegistry,
        bounds: Sequence[float],
    ) -> None:
        self._family = (name, documentation)
        self._labelnames = labels
        self._bounds = bounds
        self._spreads: dict[Sequence[str], Spread] = {}
        registry.register(self)

    def labels(self, *values: str) -> Spread:
        """Give the histogram with these labels, empty when it is new."""
        return self._spreads.setdefault(values, Spread(self._bounds))

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Give the family, whose names the registry keeps free of others."""
        return self.collect()

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Give what is counted so far, each bucket with those below it (Prometheus' text format)."""
        family = HistogramMetricFamily(*self._family, labels=self._labelnames)
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for values, spread in self._spreads.items():
            family.add_metric(
                values, list(zip(names, accumulate(spread.counts), strict=True)), sum_value=spread.total
            )
        yield family
