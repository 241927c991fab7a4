"""The metrics are an interface: dashboards and alerts are written against their names and labels."""

from __future__ import annotations

import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.delivery import Outcome
from bridge.core.ports import Verdict
from bridge.telemetry.metrics import Metrics

_NAMES = {
    "bridge_build_info": ("gauge", ["version"]),
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
    "bridge_last_committed_timestamp_seconds": ("gauge", ["source"]),
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
    "bridge_lane_keys_held": ("gauge", ["service"]),
    "bridge_parked_oldest_seconds": ("gauge", ["service"]),
    "bridge_give_up_after_seconds": ("gauge", ["service"]),
    "bridge_last_accepted_timestamp_seconds": ("gauge", ["service"]),
    "bridge_lane_shuts_total": ("counter", ["service"]),
    "bridge_active_jobs": ("gauge", ["service"]),
    "bridge_jobs_finished_total": ("counter", ["service", "outcome"]),
    "bridge_job_queued_seconds": ("histogram", ["service"]),
    "bridge_job_run_seconds": ("histogram", ["service"]),
    "bridge_event_to_end_seconds": ("histogram", ["service"]),
    "bridge_sweep_age_seconds": ("gauge", ["service"]),
    "bridge_unlisted_jobs": ("gauge", ["service"]),
    "bridge_kept_events": ("gauge", ["service", "reason"]),
    "bridge_dead_letters": ("gauge", ["service", "cause"]),
    "bridge_dead_lettered_total": ("counter", ["service", "cause"]),
    "bridge_dead_lettered_timestamp_seconds": ("gauge", ["service", "cause"]),
    "bridge_windows": ("gauge", ["service"]),
    "bridge_windows_closed_total": ("counter", ["service", "reason"]),
    "bridge_window_members_late_total": ("counter", ["service"]),
    "bridge_merge_forgotten_total": ("counter", []),
    "bridge_store_bytes": ("gauge", []),
    "bridge_store_used_bytes": ("gauge", []),
    "bridge_store_limit_bytes": ("gauge", []),
    "bridge_loop_lag_seconds": ("histogram", []),
    "bridge_journal_bytes": ("gauge", []),
    "bridge_journal_lines_lost_total": ("counter", []),
    "bridge_journal_lines_lost_timestamp_seconds": ("gauge", []),
    "bridge_log_lines_dropped_total": ("counter", []),
    "bridge_log_lines_dropped_timestamp_seconds": ("gauge", []),
    "bridge_certificate_expiry_seconds": ("gauge", ["source"]),
    "bridge_certificate_lifetime_seconds": ("gauge", ["source"]),
    "bridge_http_certificate_expiry_seconds": ("gauge", []),
    "bridge_http_certificate_lifetime_seconds": ("gauge", []),
    "bridge_credential_ok": ("gauge", ["cluster"]),
    "bridge_credential_expiry_seconds": ("gauge", ["cluster"]),
}
"""Every family with its type and labels. Changed only on purpose, with the changelog."""


def test_the_families_and_their_labels_are_the_documented_ones() -> None:
    metrics = Metrics()
    collectors = metrics.registry._collector_to_names
    found = {}
    for collector in collectors:
        for family in collector.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, list(collector._labelnames))  # type: ignore[attr-defined]
    assert found == _NAMES


def test_every_family_says_what_it_measures() -> None:
    metrics = Metrics()
    for collector in metrics.registry._collector_to_names:
        for family in collector.describe():
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


def test_no_series_tells_when_a_counter_was_made() -> None:
    metrics = Metrics()
    metrics.source("uploads").filtered("no_match")
    metrics.source("uploads").gap("overflow")
    metrics.lane("plants").job_finished("succeeded", 1.0, 2.0, 3.0)
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        encode, _ = choose_encoder(accept)
        page = encode(metrics.registry).decode()
        assert "bridge_source_gaps_total{" in page
        assert "_created" not in page


def test_the_page_is_what_openmetrics_reads() -> None:
    metrics = Metrics()
    metrics.source("uploads").lost.inc(5)
    metrics.source("uploads").committed()
    encode, _ = choose_encoder("application/openmetrics-text; version=1.0.0")
    families = openmetrics.text_string_to_metric_families(encode(metrics.registry).decode())
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    assert samples["bridge_events_lost_total"] == 5
    assert samples["bridge_build_info"] == 1


def test_what_happened_has_a_time_once_it_has() -> None:
    metrics = Metrics()
    source = metrics.source("uploads")
    labels = {"source": "uploads"}
    value = metrics.registry.get_sample_value
    letters = {"service": "plants", "cause": "http_413"}
    times = {
        "bridge_dead_lettered_timestamp_seconds": letters,
        "bridge_last_committed_timestamp_seconds": labels,
        "bridge_log_lines_dropped_timestamp_seconds": {},
    }
    metrics.log_lines_dropped.inc(0)
    assert [value(name, by) for name, by in times.items()] == [None] * 3
    before = time.time()
    metrics.dead_lettered.labels(*letters.values()).inc(5)
    metrics.log_lines_dropped.inc()
    source.committed()
    for name, by in times.items():
        assert before <= (value(name, by) or 0) <= time.time()
    metrics.dead_lettered.labels(*letters.values()).inc()
    assert value("bridge_dead_lettered_total", letters) == 6


def test_two_bridges_in_one_process_do_not_share_their_numbers() -> None:
    first, second = Metrics(), Metrics()
    first.source("uploads").received.inc()
    second.source("uploads")
    assert second.registry.get_sample_value("bridge_events_received_total", {"source": "uploads"}) == 0
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(first.registry)
