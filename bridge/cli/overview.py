"""The status of a bridge as lines for a terminal of 80 columns and more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.cli.lines import on_one_line
from bridge.values import written_size

_KEY = 20
"""Columns for a key, at most."""
_MOST_PROBLEMS = 8
"""Lines of them, so that there is room for what follows, which shows who has them."""
HEADING, TROUBLE, PLAIN = "heading", "trouble", "plain"


def lines(status: Mapping[str, Any], width: int) -> Iterator[tuple[str, str]]:
    """Give the lines, none longer than `width` characters, each HEADING, TROUBLE or PLAIN."""
    problems = status["problems"]
    ready = "ready" if status["ready"] else f"NOT READY: {_many(len(problems), 'problem')}"
    up = span(status["now"] - status["started"])
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(status["now"]))
    used, most = (written_size(status["store"][name]) for name in ("used_bytes", "limit_bytes"))
    head = f"oscar-bridge {status['version']}  {ready}  up {up}  store {used} of {most}"
    yield HEADING, f"{_cut(head, width - len(clock) - 2).ljust(width - len(clock))}{clock}"
    for problem in problems[:_MOST_PROBLEMS]:
        yield TROUBLE, _cut(f"! {problem['part']}: {problem['reason']}", width)
    if (more := len(problems) - _MOST_PROBLEMS) > 0:
        yield TROUBLE, _cut(f"! and {more} more: /readyz tells them", width)
    yield PLAIN, ""
    yield from _table(_SOURCES, [_source(one) for one in status["sources"]], width)
    yield PLAIN, ""
    yield from _table(_SERVICES, [_service(one) for one in status["services"]], width)
    yield PLAIN, ""
    yield from _table(_CLUSTERS, [_cluster(one) for one in status["clusters"]], width)
    changed = [row for row in status["limits"] if row["since"] is not None]
    if changed:
        yield PLAIN, ""
        yield from _table(_LIMITS, [_limit(row, status["now"]) for row in changed], width)


_SOURCES = ("SOURCE", "IN/S", "IN HAND", "LAG", "OLDEST", "FILTERED", "RECEIVED", "")
_SERVICES = ("SERVICE", "OUT/S", "AT ONCE", "QUEUED", "PARKED", "OLDEST", "DEAD", "DONE IN", "")
_CLUSTERS = ("CLUSTER", "LIMIT", "TOKEN FOR", "")
_LIMITS = ("CHANGED", "CONFIGURED", "IN FORCE", "UNTIL", "")
_Row = tuple[bool, Sequence[str]]
"""Whether it is not well, and its cells."""


def _source(one: Mapping[str, Any]) -> _Row:
    state = "paused" if one["paused"] else "" if one["up"] else "down"
    if one["problems"] and not state:
        state = "up, but see above"
    cells = (
        one["key"],
        _rate(one["rate"]),
        f"{_short(one['in_flight'])}/{_short(one['slots'])}",
        "-" if one["lag"] is None else _short(one["lag"]),
        span(one["oldest_seconds"]) if one["in_flight"] else "-",
        _short(one["filtered"]),
        _short(one["received"]),
        state,
    )
    return bool(one["problems"]) or not one["up"], cells


def _service(one: Mapping[str, Any]) -> _Row:
    waits = one["queued"] or one["parked"]
    cells = (
        one["key"],
        _rate(one["rate"]),
        f"{one['in_flight']}/{one['limit']}",
        _short(one["queued"]),
        _short(one["parked"]),
        span(one["parked_oldest_seconds"]) if one["parked"] else "-",
        _short(one["dead_letters"]),
        "-" if not waits else "?" if one["drain_seconds"] is None else span(one["drain_seconds"]),
        f"{'' if one['open'] else 'shut: '}{one['why'] or ''}",
    )
    return bool(one["problems"]) or not one["open"], cells


def _cluster(one: Mapping[str, Any]) -> _Row:
    left, fails = one["credential_expires_seconds"], one["credential_ok"] is False
    token = "-" if left is None or left < 0 else span(left)  # one that is over is fetched when it is needed
    state = f"{'paused: ' if one['paused'] else ''}{one['endpoint']}"
    return fails, (one["key"], str(one["limit"]), f"{token}, no new" if fails else token, state)


def _limit(row: Mapping[str, Any], now: float) -> _Row:
    until = "it is ended" if row["until"] is None else f"in {span(row['until'] - now)}"
    return False, (f"{row['kind']} {row['key']} {row['name']}", row["configured"], row["in_force"], until, "")


def _table(head: Sequence[str], rows: Sequence[_Row], width: int) -> Iterator[tuple[str, str]]:
    """Write rows as columns: numbers to the right, the first and the last, which is cut, to the left."""
    all_cells = [head, *(cells for _, cells in rows)]
    widths = [max(len(cells[at]) for cells in all_cells) for at in range(len(head) - 1)]
    if head is not _LIMITS:
        widths[0] = min(widths[0], _KEY)
    for at, cells in enumerate(all_cells):
        first = _cut(cells[0], widths[0]).ljust(widths[0])
        numbers = [cell.rjust(wide) for cell, wide in zip(cells[1:-1], widths[1:], strict=True)]
        line = _cut("  ".join([first, *numbers, cells[-1]]).rstrip(), width)
        yield HEADING if at == 0 else TROUBLE if rows[at - 1][0] else PLAIN, line


def _cut(text: str, width: int) -> str:
    return on_one_line(text, max(1, width))


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if rate < 1000 else _short(round(rate))


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _short(count: int) -> str:
    """Write a count in at most five characters."""
    if count < 100_000:
        return str(count)
    for unit in "kMG":
        count //= 1000
        if count < 10_000:
            return f"{count}{unit}"
    return f"{count}G"


def span(seconds: float) -> str:
    """Write a time in the largest unit that leaves a number of two."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
