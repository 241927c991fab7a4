"""The metrics are an interface: dashboards and alerts are written against their names and labels."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.delivery import Outcome
from bridge.core.ports import Verdict
from bridge.telemetry.metrics import Metrics

_NAMES = {
    "bridge_ready": ("gauge", []),
    "bridge_events_received_total": ("counter", ["source"]),
    "bridge_events_settled_total": ("counter", ["source", "outcome"]),
    "bridge_events_filtered_total": ("counter", ["source", "reason"]),
    "bridge_events_lost_total": ("counter", ["source"]),
    "bridge_events_lost_unacknowledged": ("gauge", ["source"]),
    "bridge_receipts_stale_total": ("counter", ["source"]),
    "bridge_invocations_total": ("counter", ["service", "outcome"]),
    "bridge_invocation_seconds": ("histogram", ["service"]),
    "bridge_event_age_seconds": ("histogram", ["service"]),
    "bridge_retries_total": ("counter", ["service", "cause"]),
    "bridge_oldest_unsettled_seconds": ("gauge", ["source"]),
    "bridge_source_gaps_total": ("counter", ["source", "reason"]),
    "bridge_source_retries_total": ("counter", ["source", "reason"]),
    "bridge_versions_remembered": ("gauge", ["source"]),
    "bridge_source_up": ("gauge", ["source"]),
    "bridge_source_losses_total": ("counter", ["source"]),
    "bridge_source_in_flight": ("gauge", ["source"]),
    "bridge_source_lag": ("gauge", ["source"]),
    "bridge_lane_queued": ("gauge", ["service"]),
    "bridge_lane_in_flight": ("gauge", ["service"]),
    "bridge_lane_limit": ("gauge", ["service"]),
    "bridge_cluster_limit": ("gauge", ["cluster"]),
    "bridge_lane_open": ("gauge", ["service"]),
    "bridge_source_paused": ("gauge", ["source"]),
    "bridge_lane_paused": ("gauge", ["service"]),
    "bridge_cluster_paused": ("gauge", ["cluster"]),
    "bridge_lane_limits_overridden": ("gauge", ["service"]),
    "bridge_cluster_limits_overridden": ("gauge", ["cluster"]),
    "bridge_lane_drain_seconds": ("gauge", ["service"]),
    "bridge_parked_oldest_seconds": ("gauge", ["service"]),
    "bridge_active_jobs": ("gauge", ["service"]),
    "bridge_jobs_finished_total": ("counter", ["service", "outcome"]),
    "bridge_job_queued_seconds": ("histogram", ["service"]),
    "bridge_job_run_seconds": ("histogram", ["service"]),
    "bridge_event_to_end_seconds": ("histogram", ["service"]),
    "bridge_sweep_age_seconds": ("gauge", ["service"]),
    "bridge_unlisted_jobs": ("gauge", ["service"]),
    "bridge_kept_events": ("gauge", ["service", "reason"]),
    "bridge_dead_letters": ("gauge", ["service", "cause"]),
    "bridge_windows": ("gauge", ["service"]),
    "bridge_windows_closed_total": ("counter", ["service", "reason"]),
    "bridge_window_members_late_total": ("counter", ["service"]),
    "bridge_merge_forgotten_total": ("counter", []),
    "bridge_store_bytes": ("gauge", []),
    "bridge_journal_bytes": ("gauge", []),
    "bridge_journal_lines_lost_total": ("counter", []),
    "bridge_log_lines_dropped_total": ("counter", []),
    "bridge_certificate_expiry_seconds": ("gauge", ["source"]),
    "bridge_credential_expiry_seconds": ("gauge", ["cluster"]),
}
"""Every family with its type and labels. Changed only on purpose, with the changelog."""


def test_the_families_and_their_labels_are_the_documented_ones() -> None:
    metrics = Metrics()
    collectors = metrics.registry._collector_to_names
    found = {}
    for collector in collectors:
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, list(collector._labelnames))  # type: ignore[attr-defined]
    assert found == _NAMES


def test_every_family_says_what_it_measures() -> None:
    metrics = Metrics()
    for collector in metrics.registry._collector_to_names:
        (family,) = collector.describe()
        assert family.documentation.endswith("."), family.name


def test_the_outcomes_are_there_from_the_start_and_are_bounded() -> None:
    """A rate over a counter that appears with its first increment misses that increment."""
    metrics = Metrics()
    metrics.source("uploads")
    metrics.lane("plants")
    settled = {"filtered", "accepted", "parked", "dead_lettered", "released"}
    invoked = {
        "accepted",
        "duplicate",
        "capacity",
        "unavailable",
        "failed",
        "refused",
        "rejected",
        "unknown",
    }
    assert settled == {outcome.name.lower() for outcome in Outcome}
    assert invoked == {verdict.value for verdict in Verdict}
    for outcome in settled:
        labels = {"source": "uploads", "outcome": outcome}
        assert metrics.registry.get_sample_value("bridge_events_settled_total", labels) == 0
    for outcome in invoked:
        labels = {"service": "plants", "outcome": outcome}
        assert metrics.registry.get_sample_value("bridge_invocations_total", labels) == 0
    for name in ("bridge_events_lost_total", "bridge_receipts_stale_total"):
        assert metrics.registry.get_sample_value(name, {"source": "uploads"}) == 0


def test_what_is_told_is_what_is_shown() -> None:
    metrics = Metrics()
    source, lane = metrics.source("uploads"), metrics.lane("plants")
    source.filtered("no_match")
    source.lag(7)
    spooling = metrics.source("arrivals")
    spooling.waiting(lambda: 9)
    source.oldest_unsettled(lambda: 2.5)
    lane.retried("http_503")
    value = metrics.registry.get_sample_value
    assert value("bridge_events_filtered_total", {"source": "uploads", "reason": "no_match"}) == 1
    assert value("bridge_source_lag", {"source": "uploads"}) == 7
    assert value("bridge_source_lag", {"source": "arrivals"}) == 9
    assert value("bridge_oldest_unsettled_seconds", {"source": "uploads"}) == 2.5
    assert value("bridge_retries_total", {"service": "plants", "cause": "http_503"}) == 1


def test_the_lag_is_absent_until_the_source_tells_it() -> None:
    metrics = Metrics()
    metrics.source("uploads")
    assert metrics.registry.get_sample_value("bridge_source_lag", {"source": "uploads"}) is None


def test_the_page_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.source("uploads")
    metrics.lane("plants")
    text = generate_latest(metrics.registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert {"bridge_events_received", "bridge_lane_open", "bridge_invocation_seconds"} <= names


def test_two_bridges_in_one_process_do_not_share_their_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.source("uploads").received.inc()
    second.source("uploads")
    assert second.registry.get_sample_value("bridge_events_received_total", {"source": "uploads"}) == 0
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(first.registry)
