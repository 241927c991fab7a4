"""`deploy/grafana-dashboard.json` asks for what a bridge exposes, for all of it, and shows what there is."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client import PlatformCollector

from bridge.telemetry.metrics import Metrics
from bridge.telemetry.process import Process
from tests.dashboard.reading import DASHBOARD, OF_A_TARGET, PANELS, VARIABLES, Query, queries, selected, told

LEFT_OUT = {
    "bridge_certificate_lifetime_seconds": "the alert asks for it, which knows how soon is soon",
    "bridge_dead_lettered_timestamp_seconds": "for the alert: new dead letters are shown by their count",
    "bridge_http_certificate_lifetime_seconds": "likewise",
    "bridge_journal_lines_lost_timestamp_seconds": "for the alert: they are shown by their count",
    "bridge_log_lines_dropped_timestamp_seconds": "for the alert: they are shown by their count",
    "python_info": "which Python runs is no matter of an operator's",
    "process_virtual_memory_bytes": "what is reserved is no measure of what is used",
}
"""Families that no query asks for, and why."""
OF_PROMETHEUS = {
    "ALERTS": {"alertname", "alertstate", "severity"},
}
"""Made by Prometheus itself."""
ROWS = [
    "Health and problems",
    "Flow: from the sources",
    "Flow: to the services",
    "Lanes",
    "OSCAR's answers",
    "Limits: what is found to fit",
    "Store: parked events and dead letters",
    "Jobs: of services with `track` or `active_jobs`",
    "Process",
]


def families() -> dict[str, set[str]]:
    """Every family of /metrics with its labels, by the name that is asked for."""
    registry = Metrics().registry
    Process(registry=registry)
    PlatformCollector(registry=registry)
    found = {}
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = set(getattr(collector, "_labelnames", ()))
    return found


FAMILIES = families()


def labels_of(name: str) -> set[str]:
    """The labels of a series as Prometheus has it. Raises KeyError for one that there is not."""
    if name in OF_PROMETHEUS:
        return OF_PROMETHEUS[name]
    bucket = name.removesuffix("_bucket")
    if bucket != name:
        return FAMILIES[bucket] | OF_A_TARGET | {"le"}
    return FAMILIES[name] | OF_A_TARGET


QUERIES = list(queries())


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.where}: {query.legend}")
def test_a_query_asks_for_metrics_and_labels_that_there_are(query: Query) -> None:
    parsed = promql.parse(query.filled_in())
    for series in selected(parsed):
        assert series.labels <= labels_of(series.name), series
    assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= told(parsed, labels_of)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.where}: {query.legend}")
def test_a_query_is_of_the_bridges_that_are_chosen(query: Query) -> None:
    """But for a whole variable of bridges, and what Prometheus says of its alerts."""
    series = list(selected(promql.parse(query.filled_in())))
    free = {one.name for one in series if "instance" not in one.labels}
    assert free <= {"ALERTS", "bridge_build_info"}
    assert len(free) < len(series) or free == {"ALERTS"} or query.where == "variable instance"


def test_what_is_divided_by_a_query_is_divided_by_a_label_of_the_series() -> None:
    for query in QUERIES:
        for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", query.expr):
            known = set.union(*(labels_of(one.name) for one in selected(promql.parse(query.filled_in()))))
            assert {label.strip() for label in by.split(",")} <= known, query


def test_no_family_is_left_out_without_a_reason() -> None:
    asked = {one.name for query in QUERIES for one in selected(promql.parse(query.filled_in()))}
    shown = {
        name.removesuffix("_bucket") if name.removesuffix("_bucket") in FAMILIES else name for name in asked
    }
    assert FAMILIES.keys() - shown == LEFT_OUT.keys()


def test_its_panels_stand_in_rows_and_do_not_lie_on_each_other() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert 0 <= panel["gridPos"]["x"] <= 24 - panel["gridPos"]["w"]
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        assert (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )


def datasources(node: Any) -> list[dict[str, str]]:
    if isinstance(node, list):
        return [found for each in node for found in datasources(each)]
    if isinstance(node, dict):
        own = [node["datasource"]] if "datasource" in node else []
        return own + [
            found for key, each in node.items() if key != "datasource" for found in datasources(each)
        ]
    return []


def test_it_names_no_prometheus_and_no_bridge() -> None:
    """Any Grafana can load it: the Prometheus and the bridges are chosen in it."""
    assert list(VARIABLES) == ["datasource", "instance", "source", "service"]
    named = {(one["type"], one["uid"]) for one in datasources(DASHBOARD)}
    assert named == {("prometheus", "${datasource}"), ("grafana", "-- Grafana --")}
    assert DASHBOARD["id"] is None, "else it takes the place of another dashboard"
    assert DASHBOARD["schemaVersion"] == 41, "Grafana 12 and 11.6; later ones bring it up to theirs"
    for panel in PANELS:
        if panel["type"] != "row":
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
            assert panel["datasource"]["uid"] == "${datasource}"
