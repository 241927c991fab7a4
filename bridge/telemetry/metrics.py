"""The metrics, with their labels resolved once: nothing is looked up on an event's way.

Labels are bounded: configured keys, outcomes and reasons, never an id or a path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from bridge import __version__
from bridge.core.delivery import Outcome
from bridge.core.ports import Verdict
from bridge.telemetry.counting import Counts, Happenings, Readings, Spreads

_INVOCATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_AGE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 21600, 86400, 604800)
_LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """All metric families of one process, on one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry(auto_describe=True)
        gauge = partial(Gauge, registry=self.registry)
        readings = partial(Readings, registry=self.registry)
        counts = partial(Counts, registry=self.registry)
        happenings = partial(Happenings, registry=self.registry)
        spreads = partial(Spreads, registry=self.registry)
        gauge("bridge_build_info", "1, with the version that runs.", ["version"]).labels(__version__).set(1)
        self.ready = gauge("bridge_ready", "1 while /readyz has nothing to tell.")
        self.received = counts("bridge_events_received_total", "Events handed over by a source.", ["source"])
        self.settled = counts(
            "bridge_events_settled_total", "Events answered to their source.", ["source", "outcome"]
        )
        self.filtered = counts(
            "bridge_events_filtered_total", "Events no route wanted.", ["source", "reason"]
        )
        self.lost = counts(
            "bridge_events_lost_total", "Events that the upstream says it lost or no longer has.", ["source"]
        )
        self.lost_unacknowledged = gauge(
            "bridge_events_lost_unacknowledged",
            "Events lost upstream, at least, that nobody has acknowledged (`oscar-bridge acknowledge`).",
            ["source"],
        )
        self.stale_receipts = counts(
            "bridge_receipts_stale_total",
            "Acknowledgements the upstream did not recognise any more: "
            "the event came, or will come, a second time.",
            ["source"],
        )
        self.source_up = gauge("bridge_source_up", "1 while the source is connected.", ["source"])
        self.source_losses = counts(
            "bridge_source_losses_total", "Times that a source which was open was lost.", ["source"]
        )
        self.source_in_flight = gauge(
            "bridge_source_in_flight", "Events in the bridge's hands, not settled.", ["source"]
        )
        self.source_lag = gauge(
            "bridge_source_lag",
            "Events that wait for the bridge: upstream, where the broker tells; else in its own store. "
            "Absent while it is not known.",
            ["source"],
        )
        self.last_committed = gauge(
            "bridge_last_committed_timestamp_seconds",
            "When this process last told the upstream that it is done with events, and was heard, in seconds "
            "since 1970.",
            ["source"],
        )
        self.gaps = counts(
            "bridge_source_gaps_total",
            "Times that events were missed and what they told is looked for, by why.",
            ["source", "reason"],
        )
        self.source_retries = counts(
            "bridge_source_retries_total",
            "Look-ups of files that failed and will be made again, by why.",
            ["source", "reason"],
        )
        self.versions_remembered = gauge(
            "bridge_versions_remembered",
            "Versions of files that have entered, remembered until a listing shows them no more.",
            ["source"],
        )
        self.oldest_unsettled = gauge(
            "bridge_oldest_unsettled_seconds", "Age in the bridge of the oldest unsettled event.", ["source"]
        )
        self.invocations = counts(
            "bridge_invocations_total", "Attempts, by how the service answered.", ["service", "outcome"]
        )
        self.invocation_seconds = spreads(
            "bridge_invocation_seconds", "Duration of one attempt.", ["service"], bounds=_INVOCATION_BUCKETS
        )
        self.event_age = spreads(
            "bridge_event_age_seconds", "Event time to acceptance.", ["service"], bounds=_AGE_BUCKETS
        )
        self.retries = counts(
            "bridge_retries_total", "Attempts that will be made again.", ["service", "cause"]
        )
        self.lane_queued = gauge("bridge_lane_queued", "Events waiting in the lane.", ["service"])
        self.lane_in_flight = gauge("bridge_lane_in_flight", "Attempts under way.", ["service"])
        self.lane_limit = gauge("bridge_lane_limit", "Attempts allowed at once.", ["service"])
        self.cluster_limit = gauge(
            "bridge_cluster_limit",
            "Attempts that the services of a cluster are allowed at once together, as found or configured.",
            ["cluster"],
        )
        self.paused = {
            "source": gauge("bridge_source_paused", "1 while a person has the source paused.", ["source"]),
            "cluster": gauge(
                "bridge_cluster_paused", "1 while a person has the cluster paused.", ["cluster"]
            ),
        }
        self.lane_paused = gauge(
            "bridge_lane_paused", "1 while a person has the service, or its cluster, paused.", ["service"]
        )
        self.limits_overridden = {
            "service": gauge(
                "bridge_lane_limits_overridden",
                "Limits of the service in force in place of the configuration's.",
                ["service"],
            ),
            "cluster": gauge(
                "bridge_cluster_limits_overridden",
                "Limits of the cluster in force in place of the configuration's.",
                ["cluster"],
            ),
        }
        self.active_jobs = gauge(
            "bridge_active_jobs",
            "Jobs of this bridge's own that have not ended, as far as anybody can know.",
            ["service"],
        )
        self.unlisted_jobs = gauge(
            "bridge_unlisted_jobs",
            "Accepted jobs that count as active though no listing has shown them, for a day at most.",
            ["service"],
        )
        self.jobs_finished = counts(
            "bridge_jobs_finished_total",
            "Jobs that have ended, by what became of them.",
            ["service", "outcome"],
        )
        self.job_queued = spreads(
            "bridge_job_queued_seconds", "Acceptance of a job to its start.", ["service"], bounds=_AGE_BUCKETS
        )
        self.job_run = spreads(
            "bridge_job_run_seconds", "Start of a job to its end.", ["service"], bounds=_AGE_BUCKETS
        )
        self.event_to_end = spreads(
            "bridge_event_to_end_seconds",
            "Event time to the end of its job.",
            ["service"],
            bounds=_AGE_BUCKETS,
        )
        self.sweep_age = gauge(
            "bridge_sweep_age_seconds",
            "Time since the last whole listing of the service's jobs began, while some are active.",
            ["service"],
        )
        self.lane_open = gauge("bridge_lane_open", "1 while the lane's gate is open.", ["service"])
        self.lane_drain = gauge(
            "bridge_lane_drain_seconds",
            "Time until what waits and is parked for the service is accepted, at the rate of about the last "
            "minute; +Inf while nothing is accepted.",
            ["service"],
        )
        self.keys_held = gauge(
            "bridge_lane_keys_held",
            "Keys of `order_by` with events that wait for one that fails.",
            ["service"],
        )
        self.parked_oldest = gauge(
            "bridge_parked_oldest_seconds",
            "Time since the event longest parked was, or was first attempted; 0 while none is.",
            ["service"],
        )
        self.give_up_after = gauge(
            "bridge_give_up_after_seconds", "The configured `retry.give_up_after`.", ["service"]
        )
        self.last_accepted = readings(
            "bridge_last_accepted_timestamp_seconds",
            "When the service last accepted an event of this process, in seconds since 1970.",
            ["service"],
        )
        self.gate_shuts = counts("bridge_lane_shuts_total", "Times that the lane's gate shut.", ["service"])
        self.kept_events = gauge(
            "bridge_kept_events", "Events in the store, by why they are kept.", ["service", "reason"]
        )
        self.dead_letters = gauge("bridge_dead_letters", "Dead letters in the store.", ["service", "cause"])
        self.windows = gauge(
            "bridge_windows", "Windows of a merge that are open, or being sent.", ["service"]
        )
        self.windows_closed = counts(
            "bridge_windows_closed_total",
            "Windows of a merge that were closed and sent, by why.",
            ["service", "reason"],
        )
        self.window_members_late = counts(
            "bridge_window_members_late_total",
            "Events that came for a window after it was complete, and wait in another.",
            ["service"],
        )
        self.members_forgotten = counts(
            "bridge_merge_forgotten_total",
            "Members of windows whose ids were forgotten before `merge.remember`, for lack of room.",
            [],
        ).labels()
        self.dead_lettered = happenings(
            "bridge_dead_lettered_total",
            "Dead letters that came into the store, replayed ones that came again included.",
            ["service", "cause"],
        )
        self.store_bytes = gauge(
            "bridge_store_bytes", "Size of the store on disk, with room in it that is used again."
        )
        self.store_used = gauge(
            "bridge_store_used_bytes", "Bytes of the store that kept events take, which may reach its limit."
        )
        self.store_limit = gauge("bridge_store_limit_bytes", "The configured `store.max_bytes`.")
        self.loop_lag = spreads(
            "bridge_loop_lag_seconds",
            "How late the event loop woke who wanted to be woken, once a second.",
            [],
            bounds=_LAG_BUCKETS,
        ).labels()
        self.journal_bytes = gauge("bridge_journal_bytes", "Size of the journal on disk.")
        self.journal_lines_lost = happenings(
            "bridge_journal_lines_lost_total",
            "Lines of the journal that were never written, but for those that a kill takes.",
            [],
        ).labels()
        self.log_lines_dropped = happenings(
            "bridge_log_lines_dropped_total", "Log lines that could not be written in time.", []
        ).labels()
        self.credential_ok = readings(
            "bridge_credential_ok",
            "1 if the last fetch of the cluster's access token gave one, 0 if it failed.",
            ["cluster"],
        )
        self.credential_expiry = gauge(
            "bridge_credential_expiry_seconds", "Time until the cluster's access token expires.", ["cluster"]
        )
        self.certificate_lifetime = readings(
            "bridge_certificate_lifetime_seconds",
            "The whole life of the certificate that the source shows to its upstream.",
            ["source"],
        )
        self.certificate_expiry = gauge(
            "bridge_certificate_expiry_seconds",
            "Time until the certificate expires that the source shows to its upstream.",
            ["source"],
        )
        self.http_certificate_expiry = readings(
            "bridge_http_certificate_expiry_seconds",
            "Time until the certificate of the HTTP port expires, where it has one.",
            [],
        )
        self.http_certificate_lifetime = readings(
            "bridge_http_certificate_lifetime_seconds", "The whole life of that certificate.", []
        )

    def source(self, key: str) -> SourceMetrics:
        """Resolve the labels of one source."""
        return SourceMetrics(self, key)

    def lane(self, key: str) -> LaneMetrics:
        """Resolve the labels of one lane."""
        return LaneMetrics(self, key)


class SourceMetrics:
    """One source's metrics. `key` is its key in the configuration."""

    def __init__(self, metrics: Metrics, key: str) -> None:
        self.key = key
        self.received = metrics.received.labels(key)
        self.settled = {outcome: metrics.settled.labels(key, outcome.name.lower()) for outcome in Outcome}
        self._filtered = metrics.filtered
        self.lost = metrics.lost.labels(key)
        self.stale_receipts = metrics.stale_receipts.labels(key)
        self.up = metrics.source_up.labels(key)
        self.losses = metrics.source_losses.labels(key)
        self.in_flight = metrics.source_in_flight.labels(key)
        self._lag = metrics.source_lag
        self._last_committed = metrics.last_committed
        self._committed: Gauge | None = None
        """Made at the first commit: until then there is no time of one."""
        self._oldest = metrics.oldest_unsettled.labels(key)
        self._remembered = metrics.versions_remembered
        self._gaps = metrics.gaps
        self._retries = metrics.source_retries

    def filtered(self, reason: str) -> None:
        """Count one event that no route wanted, by a bounded reason."""
        self._filtered.labels(self.key, reason).inc()

    def lag(self, events: int | None) -> None:
        """Tell how many events wait upstream; None takes the metric away while nobody knows."""
        if events is not None:
            self._lag.labels(self.key).set(events)
        else:
            self._lag.remove(self.key)

    def waiting(self, count: Callable[[], int]) -> None:
        """Take how many events wait in the store from `count` at each scrape, in place of `lag`."""
        self._lag.labels(self.key).set_function(count)

    def committed(self) -> None:
        """Note that the upstream has just taken the answer to some events."""
        if self._committed is None:
            self._committed = self._last_committed.labels(self.key)
        self._committed.set(time.time())

    def may_miss(self, *reasons: str) -> None:
        """Begin to count gaps for these reasons, from 0."""
        for reason in reasons:
            self._gaps.labels(self.key, reason)

    def gap(self, reason: str) -> None:
        """Count that events were missed, by a bounded reason."""
        self._gaps.labels(self.key, reason).inc()

    def retried(self, reason: str) -> None:
        """Count a look-up that failed and will be made again, by a bounded reason."""
        self._retries.labels(self.key, reason).inc()

    def remembered(self, count: Callable[[], int]) -> None:
        """Take how many versions are remembered from `count` at each scrape."""
        self._remembered.labels(self.key).set_function(count)

    def oldest_unsettled(self, age: Callable[[], float]) -> None:
        """Take the age in seconds from `age` at each scrape."""
        self._oldest.set_function(age)


class LaneMetrics:
    """One lane's metrics. `key` is the service's key in the configuration."""

    def __init__(self, metrics: Metrics, key: str) -> None:
        self.key = key
        self.invocations = {verdict: metrics.invocations.labels(key, verdict.value) for verdict in Verdict}
        self.seconds = metrics.invocation_seconds.labels(key)
        self.age = metrics.event_age.labels(key)
        self._retries = metrics.retries
        self._active_jobs = metrics.active_jobs
        self._sweep_age = metrics.sweep_age
        self._unlisted_jobs = metrics.unlisted_jobs
        self._jobs_finished = metrics.jobs_finished
        self._job_seconds = metrics.job_queued, metrics.job_run, metrics.event_to_end
        self.queued = metrics.lane_queued.labels(key)
        self.in_flight = metrics.lane_in_flight.labels(key)
        self.limit = metrics.lane_limit.labels(key)
        self.open = metrics.lane_open.labels(key)
        self.drain = metrics.lane_drain.labels(key)
        self.paused = metrics.lane_paused.labels(key)
        self.shuts = metrics.gate_shuts.labels(key)
        self.give_up_after = metrics.give_up_after.labels(key)
        self._last_accepted = metrics.last_accepted
        self.keys_held = metrics.keys_held.labels(key)

    def follow(
        self, active: Callable[[], float], sweep_age: Callable[[], float], unlisted: Callable[[], float]
    ) -> None:
        """Take these at each scrape: active jobs, the age of the last listing, jobs that none has shown."""
        self._active_jobs.labels(self.key).set_function(active)
        self._sweep_age.labels(self.key).set_function(sweep_age)
        self._unlisted_jobs.labels(self.key).set_function(unlisted)

    def last_accepted(self, at: Callable[[], float | None]) -> None:
        """Take the time of the last acceptance, in seconds since 1970, from `at` at each scrape."""
        self._last_accepted.take(self.key, call=at)

    def job_finished(self, outcome: str, *seconds: float | None) -> None:
        """Count a job that has ended; `seconds` queued, run, and from its event to its end, where known."""
        self._jobs_finished.labels(self.key, outcome).inc()
        for family, value in zip(self._job_seconds, seconds, strict=False):
            if value is not None:
                family.labels(self.key).observe(max(0.0, value))

    def retried(self, cause: str) -> None:
        """Count one attempt that will be made again, by a bounded cause."""
        self._retries.labels(self.key, cause).inc()
