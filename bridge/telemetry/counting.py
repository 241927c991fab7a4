"""Counters and histograms for an event's own way: numbers that one thread adds to, read at each scrape.

Those of prometheus_client take a lock for every number, which costs an event a twentieth of its time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
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
        return self._counts.setdefault(values, Count())

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Give the family, whose name the registry keeps free of others."""
        return self.collect()

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Give what is counted so far."""
        family = CounterMetricFamily(*self._family, labels=self._labelnames)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
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
