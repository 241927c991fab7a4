"""Each alert fires when it should, ends, and does not fire in the ordinary case beside it: by promtool."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bridge.telemetry.metrics import Metrics
from bridge.telemetry.process import Process
from tests.alerts.cases import CASES, Case
from tests.alerts.rules import rules
from tests.servers import debian


def families() -> dict[str, set[str]]:
    """Every metric with its labels, and those of histograms that are scraped apart."""
    registry = Metrics().registry
    Process(registry=registry)
    found = {}
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            names = [f"{name}_sum", f"{name}_count"] if family.type == "histogram" else [name]
            found |= {each: set(getattr(collector, "_labelnames", ())) for each in names}
    return found


@pytest.mark.parametrize("rule", rules().values(), ids=rules())
def test_an_alert_asks_for_metrics_and_labels_that_there_are(rule: dict[str, Any]) -> None:
    known = families()
    named = re.findall(r"\b(?:bridge|process)_\w+", rule["expr"])
    assert named
    assert set(named) <= set(known)
    labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]):
        labels |= {label.strip() for label in group.split(",")}
    labels |= {
        label
        for chosen in re.findall(r"\{([^}]*)\}", rule["expr"])
        for label in re.findall(r"(\w+)!?=", chosen)
    }
    assert labels - {"instance", "job"} <= set.union(*(known[name] for name in named))
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


def test_an_alerts_runbook_is_under_its_name() -> None:
    for name, rule in rules().items():
        assert rule["annotations"]["runbook_url"] == f"docs/operating.md#{name.lower()}"


def test_every_alert_has_a_story_and_an_ordinary_case_beside_it() -> None:
    assert {case.alert for case in CASES} == set(rules())
    assert {case.alert for case in CASES if case.ordinary} == set(rules())


def _told(case: Case) -> list[Any]:
    rule = rules()[case.alert]
    told = []
    for labels, summary in ((case.labels, case.summary), *case.others):
        annotations = {**rule["annotations"], "summary": summary}
        if case.description is not None:
            annotations["description"] = case.description
        told.append({"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": annotations})
    return told


def _test(case: Case, series: Mapping[str, str], told: Mapping[int, list[Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in told.items()
        ],
    }


def test_each_alert_fires_and_ends_and_is_quiet_in_the_ordinary_case(tmp_path: Path) -> None:
    debian.need("prometheus")
    for number, case in enumerate(CASES):
        never = {minute: list[Any]() for minute in (*case.quiet, case.fires, *case.looks)}
        told = {minute: list[Any]() for minute in case.quiet} | {case.fires: _told(case)}
        tests = [_test(case, case.series, told)]
        tests += [_test(case, series, never) for series in case.ordinary]
        # One rule a file: each is evaluated for every minute of a story. JSON is YAML.
        rule = {"groups": [{"name": "one", "rules": [rules()[case.alert]]}]}
        (tmp_path / f"{number}.rules.json").write_text(json.dumps(rule))
        story = {"rule_files": [f"{number}.rules.json"], "evaluation_interval": "1m", "tests": tests}
        (tmp_path / f"{number}.story.json").write_text(json.dumps(story))
    stories = sorted(tmp_path.glob("*.story.json"))
    done = subprocess.run(
        ["promtool", "test", "rules", *stories], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
