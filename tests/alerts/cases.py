"""For each alert, series of which it fires and ends again, and ordinary ones of which it must not fire.

Values are written as promtool reads them: `a+bxn` is a, and n more that grow by b; `_xn` is n scrapes without
a sample, `stale` one that Prometheus knows to have failed. One is a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TARGET = 'job="bridge",instance="a:9464"'
_OTHER = 'job="bridge",instance="b:9464"'
DAY = 24 * 60
_RUNS_LONG = {f"process_start_time_seconds{{{TARGET}}}": "-1000000+0x400"}


def _source(name: str, more: str = "") -> str:
    return f'{name}{{{TARGET},source="uploads"{more}}}'


def _service(name: str, more: str = "") -> str:
    return f'{name}{{{TARGET},service="plants"{more}}}'


def _cluster(name: str) -> str:
    return f'{name}{{{TARGET},cluster="main"}}'


def _own(name: str, target: str = TARGET) -> str:
    return f"{name}{{{target}}}"


_SOURCE = {"job": "bridge", "instance": "a:9464", "source": "uploads"}
_SERVICE = {"job": "bridge", "instance": "a:9464", "service": "plants"}
_CLUSTER = {"job": "bridge", "instance": "a:9464", "cluster": "main"}
_OWN = {"job": "bridge", "instance": "a:9464"}
_BUILD = _own("bridge_build_info", TARGET + ',version="1"')
_OTHER_BUILD = _own("bridge_build_info", _OTHER + ',version="1"')


@dataclass(frozen=True, kw_only=True)
class Case:
    """One story of an alert; times are minutes since its begin."""

    alert: str
    series: Mapping[str, str]
    fires: int
    quiet: Sequence[int]
    """Times at which it does not fire: before, and after its end."""
    labels: Mapping[str, str]
    summary: str
    description: str | None = None
    """Where it is not the rule's text as it stands."""
    others: Sequence[tuple[Mapping[str, str], str]] = ()
    """Labels and summaries of what fires beside it."""
    ordinary: Sequence[Mapping[str, str]] = field(default_factory=list)
    """Series of which it does not fire at any of those times, nor at `looks`."""
    looks: Sequence[int] = ()


CASES = [
    Case(
        alert="OscarBridgeAbsent",
        series={_BUILD: "1+0x10 stale _x18 1+0x20"},
        fires=17,
        quiet=(0, 10, 15, 31),
        labels={},
        summary="No bridge is scraped",
        ordinary=[{_BUILD: "1+0x10 stale _x3 1+0x20"}],  # a restart
    ),
    Case(
        alert="OscarBridgeDown",
        series={
            _own("up"): "1+0x10 0+0x18 1+0x20",
            _BUILD: "1+0x10 stale _x18 1+0x20",
            _own("up", _OTHER): "1+0x60",
            _OTHER_BUILD: "1+0x60",
        },
        fires=17,
        quiet=(0, 10, 14, 31),
        labels=_OWN,
        summary="The bridge at a:9464 does not answer",
        ordinary=[
            {_own("up"): "1+0x10 0+0x3 1+0x20", _BUILD: "1+0x10 stale _x3 1+0x20"},
            # Something else that is down, in the job of the bridges.
            {_own("up"): "0+0x60", _own("up", _OTHER): "1+0x60", _OTHER_BUILD: "1+0x60"},
            # Taken away on purpose.
            {_own("up"): "1+0x10 stale", _BUILD: "1+0x10 stale"},
        ],
    ),
    Case(
        alert="OscarBridgeDown",  # for a day
        series={_own("up"): f"1+0x10 0+0x{DAY} 1+0x20", _BUILD: f"1+0x10 stale _x{DAY} 1+0x20"},
        fires=DAY,
        quiet=(10, DAY + 20),
        labels=_OWN,
        summary="The bridge at a:9464 does not answer",
    ),
    Case(
        alert="OscarBridgeVanished",
        series={
            _own("up"): "1+0x70 stale",
            _BUILD: "1+0x70 stale",
            _own("up", _OTHER): "1+0x200",
            _OTHER_BUILD: "1+0x200",
        },
        fires=85,
        quiet=(0, 61, 70, 78, 135),
        labels={"job": "bridge"},
        summary="bridge has fewer bridges than an hour ago: then there were 2",
        ordinary=[
            # One that is down is still a target: OscarBridgeDown.
            {
                _own("up"): "1+0x70 0+0x100",
                _BUILD: "1+0x70 stale",
                _own("up", _OTHER): "1+0x200",
                _OTHER_BUILD: "1+0x200",
            },
            # A pod takes the place of another, which is seen beside it for a while.
            {
                _own("up"): "1+0x70 stale",
                _BUILD: "1+0x70 stale",
                _own("up", _OTHER): "_x68 1+0x140",
                _OTHER_BUILD: "_x68 1+0x140",
            },
            # A new version.
            {
                _own("up"): "1+0x200",
                _BUILD: "1+0x70 stale",
                _BUILD.replace('"1"', '"2"'): "_x72 1+0x140",
            },
        ],
        looks=range(0, 200, 3),
    ),
    Case(
        alert="OscarBridgeVanished",  # the only one of its job
        series={_own("up"): "1+0x70 stale", _BUILD: "1+0x70 stale"},
        fires=100,
        quiet=(70, 78, 135),
        labels={"job": "bridge"},
        summary="bridge has fewer bridges than an hour ago: then there were 1",
    ),
    Case(
        alert="OscarBridgeRestarts",
        series={
            _own("process_start_time_seconds"): "0+0x10 700+60x4 940+0x100",
            _BUILD: "1+0x10 stale 1+0x120",
        },
        fires=50,
        quiet=(0, 10, 90),
        looks=(30, 40),
        labels=_OWN,
        summary="The bridge at a:9464 was started 5 times within an hour",
        ordinary=[
            {_own("process_start_time_seconds"): "0+0x10 700+0x10 1400+0x80", _BUILD: "1+0x110"},
            {_own("process_start_time_seconds"): "0+0x10 700+60x4 940+0x100"},  # of another program
        ],
    ),
    Case(
        alert="OscarBridgeNotReady",
        series={_own("bridge_ready"): "1+0x10 0+0x40 1+0x10"},
        fires=45,
        quiet=(0, 10, 39, 53),
        labels=_OWN,
        summary="The bridge at a:9464 is not as it should be",
        ordinary=[{_own("bridge_ready"): "0+0x28 1+0x80"}],
    ),
    Case(
        alert="OscarBridgeLoopLags",
        series={
            _own("bridge_loop_lag_seconds_sum"): "0+0x10 0+12x30 360+0x30",
            _own("bridge_loop_lag_seconds_count"): "0+60x10 600+40x30 1800+60x30",
        },
        fires=35,
        quiet=(10, 20, 50, 60),
        labels=_OWN,
        summary="The bridge at a:9464 is late by 300ms in all it does",
        ordinary=[
            {  # one stall of 20 s, and a busy loop
                _own("bridge_loop_lag_seconds_sum"): "0+10x10 120+10x60",
                _own("bridge_loop_lag_seconds_count"): "0+60x70",
            },
            {  # just started: nothing was measured
                _own("bridge_loop_lag_seconds_sum"): "0+0x70",
                _own("bridge_loop_lag_seconds_count"): "0+0x70",
            },
        ],
    ),
    Case(
        alert="OscarBridgeLogLinesDropped",
        # At the first scrape, and just before a restart.
        series={_own("bridge_log_lines_dropped_timestamp_seconds"): "_x3 150+0x1 stale"},
        fires=14,
        quiet=(0, 2, 18, 40),
        labels=_OWN,
        summary="The bridge at a:9464 can't write its log",
        ordinary=[{_own("bridge_log_lines_dropped_total"): "0+0x60"}],
    ),
    Case(
        alert="OscarBridgeJournalLinesLost",
        series={_own("bridge_journal_lines_lost_timestamp_seconds"): "_x3 150+0x1 stale"},
        fires=14,
        quiet=(0, 2, 18, 40),
        labels=_OWN,
        summary="The bridge at a:9464 can't write its journal",
        ordinary=[{_own("bridge_journal_lines_lost_total"): "0+0x60"}],
    ),
    Case(
        alert="OscarBridgeHttpCertificateExpires",
        series={
            _own("bridge_http_certificate_expiry_seconds"): "1210200-60x40 7776000-60x60",
            _own("bridge_http_certificate_lifetime_seconds"): "7776000+0x110",
        },
        fires=20,
        quiet=(0, 9, 12, 41),
        labels=_OWN,
        summary="The certificate of the HTTP port of the bridge at a:9464 expires in 13d 23h 50m 0s",
        ordinary=[
            {  # of thirty days, with eight left
                _own("bridge_http_certificate_expiry_seconds"): "691200-60x60",
                _own("bridge_http_certificate_lifetime_seconds"): "2592000+0x60",
            },
        ],
    ),
    Case(
        alert="OscarBridgeStoreFills",
        series={
            _own("bridge_store_used_bytes"): "1000+0x10 91000+0x20 1000+0x20",
            _own("bridge_store_limit_bytes"): "100000+0x60",
        },
        fires=25,
        quiet=(0, 15, 33),
        labels=_OWN,
        summary="The store of the bridge at a:9464 is at 91% of `store.max_bytes`",
        ordinary=[
            {  # as much, of more; and the file keeps its size
                _own("bridge_store_used_bytes"): "91000+0x60",
                _own("bridge_store_limit_bytes"): "200000+0x60",
                _own("bridge_store_bytes"): "200000+0x60",
            }
        ],
    ),
    Case(
        alert="OscarBridgeEventsLost",  # before the first scrape, and over a restart
        series={
            _source("bridge_events_lost_unacknowledged"): "_x3 5+0x10 stale 5+0x10 0+0x60",
            _source("bridge_events_lost_total"): "_x3 5+0x10 stale 0+0x70",
        },
        fires=4,
        quiet=(0, 2, 26, 90),
        labels=_SOURCE,
        summary="Source uploads lost 5 events or more upstream",
        ordinary=[
            {
                _source("bridge_events_lost_unacknowledged"): "0+0x100",
                _source("bridge_events_lost_total"): "5+0x100",
            }
        ],
    ),
    Case(
        alert="OscarBridgeSourceDown",
        series={
            _source("bridge_source_up"): "1+0x5 0+0x20 1+0x10",
            _source("bridge_source_paused"): "0+0x60",
        },
        fires=20,
        quiet=(5, 14, 27),
        labels=_SOURCE,
        summary="Source uploads is not connected",
        ordinary=[
            {_source("bridge_source_up"): "1+0x5 0+0x8 1+0x10", _source("bridge_source_paused"): "0+0x60"},
            {_source("bridge_source_up"): "1+0x5 0+0x20 1+0x10", _source("bridge_source_paused"): "1+0x60"},
        ],
    ),
    Case(
        alert="OscarBridgeSourceComesAndGoes",
        series={_source("bridge_source_losses_total"): "0+0x5 0+1x6 6+0x60"} | _RUNS_LONG,
        fires=30,
        quiet=(5, 50),
        labels=_SOURCE,
        summary="Source uploads is lost again and again",
        ordinary=[{_source("bridge_source_losses_total"): "0+0x5 1+0x20 2+0x20"} | _RUNS_LONG],
    ),
    Case(
        alert="OscarBridgeSourceComesAndGoes",  # before the first scrape
        series={
            _source("bridge_source_losses_total"): "_x3 5+0x60",
            _own("process_start_time_seconds"): "_x3 120+0x60",
        },
        fires=25,
        quiet=(0, 2, 33),
        labels=_SOURCE,
        summary="Source uploads is lost again and again",
        ordinary=[
            # Not young any more, when Prometheus is.
            {_source("bridge_source_losses_total"): "_x3 5+0x60"} | _RUNS_LONG,
            {
                _source("bridge_source_losses_total"): "_x3 2+0x60",
                _own("process_start_time_seconds"): "_x3 120+0x60",
            },
        ],
    ),
    Case(
        alert="OscarBridgeEventsMissed",
        series={
            _source("bridge_source_gaps_total", ',reason="overflow"'): "0+0x5 0+1x2 2+0x90",
            _source("bridge_source_gaps_total", ',reason="event_loss"'): "0+0x5 0+1x2 2+0x90",
        }
        | _RUNS_LONG,
        fires=50,
        quiet=(5, 75),
        labels=_SOURCE,
        summary="Source uploads misses events again and again",
        ordinary=[
            {_source("bridge_source_gaps_total", ',reason="channel_lost"'): "0+0x5 2+0x80"} | _RUNS_LONG
        ],
    ),
    Case(
        alert="OscarBridgeEventsMissed",  # before the first scrape
        series={
            _source("bridge_source_gaps_total", ',reason="overflow"'): "_x3 5+0x90",
            _own("process_start_time_seconds"): "_x3 120+0x90",
        },
        fires=50,
        quiet=(0, 63),
        labels=_SOURCE,
        summary="Source uploads misses events again and again",
        ordinary=[
            {
                _source("bridge_source_gaps_total", ',reason="overflow"'): "_x3 2+0x90",
                _own("process_start_time_seconds"): "_x3 120+0x90",
            }
        ],
    ),
    Case(
        alert="OscarBridgeReceiptsStale",
        series={_source("bridge_receipts_stale_total"): "0+0x5 0+2x10 20+0x90"} | _RUNS_LONG,
        fires=50,
        quiet=(5, 80),
        labels=_SOURCE,
        summary="Messages of source uploads come more than once",
        ordinary=[  # a broken network
            {_source("bridge_receipts_stale_total"): "0+0x5 8+0x90"} | _RUNS_LONG
        ],
    ),
    Case(
        alert="OscarBridgeReceiptsStale",  # before the first scrape
        series={
            _source("bridge_receipts_stale_total"): "_x3 20+0x90",
            _own("process_start_time_seconds"): "_x3 120+0x90",
        },
        fires=50,
        quiet=(0, 63),
        labels=_SOURCE,
        summary="Messages of source uploads come more than once",
        ordinary=[
            {
                _source("bridge_receipts_stale_total"): "_x3 8+0x90",
                _own("process_start_time_seconds"): "_x3 120+0x90",
            }
        ],
    ),
    Case(
        alert="OscarBridgeCertificateExpires",  # a grid proxy of 12 hours
        series={
            _source("bridge_certificate_expiry_seconds"): "7800-60x40 43200-60x60",
            _source("bridge_certificate_lifetime_seconds"): "43200+0x110",
        },
        fires=20,
        quiet=(0, 9, 12, 41),
        labels=_SOURCE,
        summary="The certificate of source uploads expires in 1h 50m 0s",
        ordinary=[
            {  # of a year, with a month left
                _source("bridge_certificate_expiry_seconds"): "2592000-60x60",
                _source("bridge_certificate_lifetime_seconds"): "31536000+0x60",
            },
            {_source("bridge_certificate_expiry_seconds"): "NaN+0x60"},  # not read yet
        ],
    ),
    Case(
        alert="OscarBridgeCertificateExpires",  # of a year, 14 days before
        series={
            _source("bridge_certificate_expiry_seconds"): "1210200-60x40 31536000-60x60",
            _source("bridge_certificate_lifetime_seconds"): "31536000+0x110",
        },
        fires=20,
        quiet=(0, 9, 12, 41),
        labels=_SOURCE,
        summary="The certificate of source uploads expires in 13d 23h 50m 0s",
    ),
    Case(
        alert="OscarBridgeStalled",
        series={
            _source("bridge_source_lag"): "0+0x10 7+0x50 0+0x20",
            _source("bridge_events_settled_total", ',outcome="accepted"'): "0+5x10 50+0x50 50+5x20",
            _source("bridge_events_settled_total", ',outcome="released"'): "0+0x10 0+5x50 250+0x20",
            _source("bridge_source_paused"): "0+0x90",
        },
        fires=50,
        quiet=(10, 30, 63),
        labels=_SOURCE,
        summary="7 events wait at source uploads, and none is answered",
        ordinary=[
            {  # slow
                _source("bridge_source_lag"): "7+0x90",
                _source(
                    "bridge_events_settled_total", ',outcome="accepted"'
                ): "0+0x10 1+0x10 2+0x10 3+0x10 4+0x60",
                _source("bridge_source_paused"): "0+0x45 1+0x45",
            },
            {  # paused
                _source("bridge_source_lag"): "7+0x90",
                _source("bridge_events_settled_total", ',outcome="accepted"'): "3+0x90",
                _source("bridge_source_paused"): "1+0x90",
            },
            {  # idle
                _source("bridge_source_lag"): "0+0x90",
                _source("bridge_events_settled_total", ',outcome="accepted"'): "3+0x90",
                _source("bridge_source_paused"): "0+0x90",
            },
        ],
    ),
    Case(
        alert="OscarBridgeEventStuck",
        series={_source("bridge_oldest_unsettled_seconds"): "0+60x90 0+0x20"},
        fires=68,
        quiet=(59, 64, 92),
        labels=_SOURCE,
        summary="An event of source uploads has been in the bridge's hands for 1h 8m 0s",
        ordinary=[{_source("bridge_oldest_unsettled_seconds"): "0+60x50 0+60x50"}],
    ),
    Case(
        alert="OscarBridgeCredentialFails",
        series={_cluster("bridge_credential_ok"): "1+0x5 0+0x10 1+0x20"},
        fires=12,
        quiet=(5, 10, 17),
        labels=_CLUSTER,
        summary="There is no new access token for cluster main",
        ordinary=[
            {_cluster("bridge_credential_ok"): "1+0x5 0+0x3 1+0x20"},
            # Idle: the token has expired, and the next event gets another.
            {
                _cluster("bridge_credential_ok"): "1+0x60",
                _cluster("bridge_credential_expiry_seconds"): "300-60x60",
            },
        ],
    ),
    Case(
        alert="OscarBridgeServiceRefused",
        series={
            _service("bridge_lane_open"): "1+0x5 0+0x20 1+0x10",
            _service("bridge_lane_paused"): "0+0x60",
        },
        fires=20,
        quiet=(5, 14, 27),
        labels=_SERVICE,
        summary="OSCAR takes no event for plants",
        ordinary=[
            {_service("bridge_lane_open"): "1+0x5 0+0x8 1+0x10", _service("bridge_lane_paused"): "0+0x60"},
            # No probe goes out in a pause, so the gate stays as it was.
            {_service("bridge_lane_open"): "0+0x60", _service("bridge_lane_paused"): "1+0x60"},
        ],
    ),
    Case(
        alert="OscarBridgeServiceComesAndGoes",
        series={_service("bridge_lane_shuts_total"): "0+0x5 0+1x8 8+0x60"} | _RUNS_LONG,
        fires=30,
        quiet=(5, 50),
        labels=_SERVICE,
        summary="OSCAR takes events for plants and takes none, again and again",
        ordinary=[{_service("bridge_lane_shuts_total"): "0+0x5 1+0x20 4+0x20"} | _RUNS_LONG],
    ),
    Case(
        alert="OscarBridgeServiceComesAndGoes",  # before the first scrape
        series={
            _service("bridge_lane_shuts_total"): "_x3 8+0x60",
            _own("process_start_time_seconds"): "_x3 120+0x60",
        },
        fires=25,
        quiet=(0, 33),
        labels=_SERVICE,
        summary="OSCAR takes events for plants and takes none, again and again",
        ordinary=[
            {
                _service("bridge_lane_shuts_total"): "_x3 4+0x60",
                _own("process_start_time_seconds"): "_x3 120+0x60",
            }
        ],
    ),
    Case(
        alert="OscarBridgeEventsWait",
        series={
            _service("bridge_parked_oldest_seconds"): "0+60x90 0+0x20",
            _service("bridge_lane_paused"): "0+0x120",
        },
        fires=68,
        quiet=(59, 64, 92),
        labels=_SERVICE,
        summary="An event has waited for plants for 1h 8m 0s",
        ordinary=[
            {  # there is always one, and none waits for two minutes
                _service("bridge_parked_oldest_seconds"): "60 90 30 110 100 60 90 30 110 100" * 9,
                _service("bridge_kept_events", ',reason="parked"'): "5+0x90",
                _service("bridge_lane_paused"): "0+0x120",
            },
            {
                _service("bridge_parked_oldest_seconds"): "0+60x90 0+0x20",
                _service("bridge_lane_paused"): "1+0x120",
            },
            {  # what a pause kept goes out after it
                _service("bridge_parked_oldest_seconds"): "0+60x90 0+0x20",
                _service("bridge_lane_paused"): "1+0x70 0+0x40",
            },
        ],
    ),
    Case(
        alert="OscarBridgeEventsWait",  # for a service that is not configured any more
        series={_service("bridge_parked_oldest_seconds"): "0+60x90 0+0x20"},
        fires=68,
        quiet=(59, 64, 92),
        labels=_SERVICE,
        summary="An event has waited for plants for 1h 8m 0s",
    ),
    Case(
        alert="OscarBridgeEventsWillBeGivenUp",  # where that is after an hour
        series={
            _service("bridge_parked_oldest_seconds"): "0+60x55 0+0x20",
            _service("bridge_give_up_after_seconds"): "3600+0x80",
            _service("bridge_lane_paused"): "0+0x80",
        },
        fires=46,
        quiet=(0, 45, 57),
        labels=_SERVICE,
        summary="Events for plants will soon be given up, parked for 46m 0s",
        ordinary=[
            {  # the same, where that is after a day
                _service("bridge_parked_oldest_seconds"): "0+60x80",
                _service("bridge_give_up_after_seconds"): "86400+0x80",
                _service("bridge_lane_paused"): "0+0x80",
            },
            {  # a pause takes no time from an event
                _service("bridge_parked_oldest_seconds"): "0+60x80",
                _service("bridge_give_up_after_seconds"): "3600+0x80",
                _service("bridge_lane_paused"): "1+0x80",
            },
            {  # nor while what it kept goes out after it
                _service("bridge_parked_oldest_seconds"): "0+60x70 0+0x10",
                _service("bridge_give_up_after_seconds"): "3600+0x80",
                _service("bridge_lane_paused"): "1+0x60 0+0x20",
            },
        ],
    ),
    Case(
        alert="OscarBridgeFallsBehind",
        series={
            _service("bridge_lane_drain_seconds"): "0+0x10 +Inf+0x200 90000+0x200 100+0x20",
            _service("bridge_lane_paused"): "0+0x500",
        },
        fires=400,
        quiet=(10, 365, 415),
        labels=_SERVICE,
        summary="What waits for plants will not be accepted within a day",
        description="At the rate of the last minute it takes 1d 1h 0m 0s; +Inf is a service that accepts "
        "nothing. More comes than OSCAR takes: give the service more room (quota, `limits`), or send it "
        "less.",
        ordinary=[
            {  # all that `active_jobs` allows are busy, for hours
                _service("bridge_lane_drain_seconds"): "+Inf+0x200 50 +Inf+0x200 50",
                _service("bridge_lane_paused"): "0+0x500",
            },
            {
                _service("bridge_lane_drain_seconds"): "80000+0x410",
                _service("bridge_lane_paused"): "0+0x500",
            },
            {
                _service("bridge_lane_drain_seconds"): "+Inf+0x410",
                _service("bridge_lane_paused"): "1+0x500",
            },
        ],
    ),
    Case(
        alert="OscarBridgePaused",
        series=dict.fromkeys(
            (
                _service("bridge_lane_paused"),
                _source("bridge_source_paused"),
                _cluster("bridge_cluster_paused"),
            ),
            f"0+0x5 1+0x{DAY + 20} 0+0x10",
        ),
        fires=DAY + 10,
        quiet=(5, DAY - 10, DAY + 30),
        labels=_SERVICE,
        summary="Paused for a day: plants",
        others=[(_SOURCE, "Paused for a day: uploads"), (_CLUSTER, "Paused for a day: main")],
        ordinary=[{_cluster("bridge_cluster_paused"): f"0+0x5 1+0x{DAY - 20} 0+0x60"}],
    ),
    Case(
        alert="OscarBridgeDeadLetters",  # twice, of one cause
        series={
            _service("bridge_dead_letters", ',cause="http_413"'): "_x3 1+0x37 2+0x60",
            _service("bridge_dead_lettered_timestamp_seconds", ',cause="http_413"'): "_x3 170+0x37 2455+0x60",
        },
        fires=42,
        quiet=(0, 2, 18, 40, 56, 80),
        labels=_SERVICE | {"cause": "http_413"},
        summary="New dead letters of plants with cause http_413",
        ordinary=[
            {  # there were some before the start
                _service("bridge_dead_letters", ',cause="http_413"'): "7+0x80",
                _service("bridge_dead_lettered_total", ',cause="http_413"'): "0+0x80",
            }
        ],
    ),
    Case(
        alert="OscarBridgeDeadLetters",
        series={
            # Just before a restart.
            _service("bridge_dead_lettered_timestamp_seconds", ',cause="http_413"'): "_x3 170+0x1 stale",
        },
        fires=14,
        quiet=(2, 18, 40),
        labels=_SERVICE | {"cause": "http_413"},
        summary="New dead letters of plants with cause http_413",
    ),
    Case(
        alert="OscarBridgeDeadLettersWait",
        series={_service("bridge_dead_letters", ',cause="http_413"'): f"0+0x5 3+0x{DAY + 20} 0+0x10"},
        fires=DAY + 10,
        quiet=(5, DAY, DAY + 30),
        labels=_SERVICE | {"cause": "http_413"},
        summary="3 dead letters of plants with cause http_413 wait for a person",
        ordinary=[{_service("bridge_dead_letters", ',cause="http_413"'): f"0+0x5 3+0x{DAY - 20} 0+0x90"}],
    ),
]
