"""Counters and histograms of the project's own: what is scraped is what prometheus_client's would show."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from bridge.telemetry.counting import Counts, Spreads

BOUNDS = (0.005, 0.1, 1, 30)


@given(
    st.lists(st.tuples(st.sampled_from(["a", 'b"\n']), st.integers(0, 5))),
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([0.0, 0.005, 0.05, 1, 1.5, 30, 31, 1e9]))
    ),
)
def test_a_scrape_reads_as_that_of_prometheus_client(
    counted: list[tuple[str, int]], seen: list[tuple[str, float]]
) -> None:
    ours, theirs = CollectorRegistry(auto_describe=True), CollectorRegistry()
    counts = Counts("x_events_total", "Events.", ["source"], ours)
    counter = Counter("x_events_total", "Events.", ["source"], registry=theirs)
    spreads = Spreads("x_seconds", "Seconds.", ["service"], ours, BOUNDS)
    histogram = Histogram("x_seconds", "Seconds.", ["service"], registry=theirs, buckets=BOUNDS)
    for label, amount in counted:
        counts.labels(label).inc(amount)
        counter.labels(label).inc(amount)
    for label, value in seen:
        spreads.labels(label).observe(value)
        histogram.labels(label).observe(value)
    assert _scraped(ours) == _scraped(theirs)


def test_a_counter_that_was_never_counted_is_zero() -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counts("x_events_total", "Events.", ["source"], registry).labels("a")
    assert registry.get_sample_value("x_events_total", {"source": "a"}) == 0


def _scraped(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]
