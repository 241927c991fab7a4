"""The dashboard as a test reads it: its queries, with the variables filled in, and what each names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser as promql

FILE = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES: dict[str, dict[str, Any]] = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
_FILLED_IN = {"$__rate_interval": "5m", "$instance": ".*", "$source": ".*", "$service": ".*"}
OF_A_TARGET = {"job", "instance"}
"""The labels that Prometheus adds to every series of a target."""


class Query(NamedTuple):
    """One query of a panel, a variable or an annotation."""

    where: str
    expr: str
    legend: str

    def filled_in(self) -> str:
        """The query as Grafana sends it when everything is chosen."""
        text = self.expr
        for name, value in _FILLED_IN.items():
            text = text.replace(name, value)
        assert "$" not in text, text
        return text


def queries() -> Iterator[Query]:
    """All that the dashboard asks of Prometheus."""
    for panel in PANELS:
        for target in panel.get("targets", []):
            yield Query(panel["title"], target["expr"], target["legendFormat"])
    for variable in VARIABLES.values():
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found is not None
            yield Query(f"variable {variable['name']}", found[1], f"{{{{{found[2]}}}}}")
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield Query(annotation["name"], annotation["expr"], annotation["titleFormat"])


class Selected(NamedTuple):
    """A series that a query names, and the labels that it chooses by."""

    name: str
    labels: frozenset[str]


def selected(expr: Any) -> Iterator[Selected]:
    """Everything that a parsed query takes from Prometheus."""
    if isinstance(expr, promql.VectorSelector):
        labels = {matcher.name for matcher in expr.matchers.matchers}
        yield Selected(expr.name, frozenset(labels))
    for below in ("expr", "lhs", "rhs", "vector_selector"):
        inner = getattr(expr, below, None)
        if inner is not None:
            yield from selected(inner)
    if isinstance(expr, promql.Call):
        for argument in expr.args:
            yield from selected(argument)


def told(expr: Any, labels_of: Any) -> set[str]:
    """The labels of what a parsed query gives; `labels_of` gives those of a series by its name."""
    match expr:
        case promql.VectorSelector():
            return set(labels_of(expr.name))
        case promql.MatrixSelector():
            return told(expr.vector_selector, labels_of)
        case promql.AggregateExpr():
            assert expr.modifier is None or expr.modifier.type == promql.AggModifierType.By
            return set() if expr.modifier is None else set(expr.modifier.labels)
        case promql.BinaryExpr():
            return told(expr.lhs, labels_of) or told(expr.rhs, labels_of)
        case promql.Call():
            found = [told(argument, labels_of) for argument in expr.args]
            return set().union(*found) - ({"le"} if expr.func.name == "histogram_quantile" else set())
        case promql.ParenExpr():
            return told(expr.expr, labels_of)
        case promql.NumberLiteral():
            return set()
    raise AssertionError(f"no such thing is in the dashboard: {expr}")
