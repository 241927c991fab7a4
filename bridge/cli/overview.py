"""The status of a bridge as lines for a terminal of 80 columns and more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bridge.cli.columns import CLUSTERS, SERVICES, SOURCES, changed, span
from bridge.cli.output import Column, on_one_line, table
from bridge.values import written_size

_MOST_PROBLEMS = 8
"""Lines of them, so that there is room for what follows, which shows who has them."""
HEADING, TROUBLE, PLAIN = "heading", "trouble", "plain"


def lines(status: Mapping[str, Any], width: int) -> Iterator[tuple[str, str]]:
    """Yield the lines, none longer than `width` characters, each HEADING, TROUBLE or PLAIN."""
    problems = status["problems"]
    many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    ready = "ready" if status["ready"] else f"NOT READY: {many}"
    up = span(status["now"] - status["started"])
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(status["now"]))
    used, most = (written_size(status["store"][name]) for name in ("used_bytes", "limit_bytes"))
    head = f"oscar-bridge {status['version']}  {ready}  up {up}  store {used} of {most}"
    yield HEADING, f"{_cut(head, width - len(clock) - 2).ljust(width - len(clock))}{clock}"
    for problem in problems[:_MOST_PROBLEMS]:
        yield TROUBLE, _cut(f"! {problem['part']}: {problem['reason']}", width)
    if (more := len(problems) - _MOST_PROBLEMS) > 0:
        yield TROUBLE, _cut(f"! and {more} more: /readyz tells them", width)
    yield from _table(SOURCES, status["sources"], lambda one: one["problems"] or not one["up"], width)
    yield from _table(SERVICES, status["services"], lambda one: one["problems"] or not one["open"], width)
    yield from _table(CLUSTERS, status["clusters"], lambda one: one["credential_ok"] is False, width)
    if limits := [row for row in status["limits"] if row["since"] is not None]:
        yield from _table(changed(status["now"]), limits, lambda _: False, width)


def _table(
    columns: Sequence[Column],
    items: Sequence[Mapping[str, Any]],
    is_trouble: Callable[[Mapping[str, Any]], object],
    width: int,
) -> Iterator[tuple[str, str]]:
    yield PLAIN, ""
    kinds = [HEADING, *(TROUBLE if is_trouble(item) else PLAIN for item in items)]
    for kind, line in zip(kinds, table(columns, items), strict=True):
        yield kind, _cut(line.rstrip(), width)


def _cut(text: str, width: int) -> str:
    return on_one_line(text, max(1, width))
