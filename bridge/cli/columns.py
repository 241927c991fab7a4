"""What the commands print in columns, and how numbers and times are written there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bridge.cli.output import Column

if TYPE_CHECKING:
    from bridge.control import Row

_KEY = 20
"""Letters shown of a key where there is little room."""


def when(seconds: float | None) -> str:
    """Write a time given in seconds since 1970."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def span(seconds: float) -> str:
    """Write a duration in the largest unit that leaves a number of two."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def short(count: int) -> str:
    """Write a count in at most five characters."""
    if count < 100_000:
        return str(count)
    for unit in "kMG":
        count //= 1000
        if count < 10_000:
            return f"{count}{unit}"
    return f"{count}G"


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if rate < 1000 else short(round(rate))


def _number(name: str, cell: Any) -> Column:
    return Column(name, cell, right=True)


# Of dataclasses, for lists.

_WHERE_TO = (
    Column("NUMBER", lambda event: event.number),
    Column("KEPT", lambda event: when(event.kept_at)),
    Column("SERVICE", lambda event: event.service or "-"),
)
_WHAT = (
    Column("TRIES", lambda event: event.attempts),
    Column("SOURCE", lambda event: event.source),
    Column("EVENT", lambda event: event.event_id),
)
LETTERS = (
    *_WHERE_TO,
    Column("CAUSE", lambda letter: letter.cause),
    *_WHAT,
    Column("DETAIL", lambda letter: letter.detail, most=100),
)
WAITING = (*_WHERE_TO, Column("REASON", lambda event: event.reason), *_WHAT)


def _until(row: Row) -> str:
    if row.since is None or row.until is not None:
        return when(row.until)
    return "it is resumed" if row.name == "paused" else "it is reset"


LIMITS = (
    Column("KIND", lambda row: row.kind),
    Column("KEY", lambda row: row.key),
    Column("LIMIT", lambda row: row.name),
    Column("CONFIGURED", lambda row: row.configured),
    Column("IN FORCE", lambda row: row.in_force),
    Column("FOUND", lambda row: "-" if row.found is None else row.found),
    Column("SINCE", lambda row: when(row.since)),
    Column("UNTIL", _until),
)

# Of the parts of a status, for `top`: as narrow as can be.


def _source_state(one: Mapping[str, Any]) -> str:
    if one["paused"] or not one["up"]:
        return "paused" if one["paused"] else "down"
    return "up, but see above" if one["problems"] else ""


def _drained_in(one: Mapping[str, Any]) -> str:
    if not (one["queued"] or one["parked"]):
        return "-"
    return "?" if one["drain_seconds"] is None else span(one["drain_seconds"])


def _token(one: Mapping[str, Any]) -> str:
    left = one["credential_expires_seconds"]  # one that is over is fetched when it is needed
    token = "-" if left is None or left < 0 else span(left)
    return f"{token}, no new" if one["credential_ok"] is False else token


SOURCES: Sequence[Column] = (
    Column("SOURCE", lambda one: one["key"], most=_KEY),
    _number("IN/S", lambda one: _rate(one["rate"])),
    _number("IN HAND", lambda one: f"{short(one['in_flight'])}/{short(one['slots'])}"),
    _number("LAG", lambda one: "-" if one["lag"] is None else short(one["lag"])),
    _number("OLDEST", lambda one: span(one["oldest_seconds"]) if one["in_flight"] else "-"),
    _number("FILTERED", lambda one: short(one["filtered"])),
    _number("RECEIVED", lambda one: short(one["received"])),
    Column("", _source_state),
)
SERVICES: Sequence[Column] = (
    Column("SERVICE", lambda one: one["key"], most=_KEY),
    _number("OUT/S", lambda one: _rate(one["rate"])),
    _number("AT ONCE", lambda one: f"{one['in_flight']}/{one['limit']}"),
    _number("QUEUED", lambda one: short(one["queued"])),
    _number("PARKED", lambda one: short(one["parked"])),
    _number("OLDEST", lambda one: span(one["parked_oldest_seconds"]) if one["parked"] else "-"),
    _number("DEAD", lambda one: short(one["dead_letters"])),
    _number("DONE IN", _drained_in),
    Column("", lambda one: f"{'' if one['open'] else 'shut: '}{one['why'] or ''}"),
)
CLUSTERS: Sequence[Column] = (
    Column("CLUSTER", lambda one: one["key"], most=_KEY),
    _number("LIMIT", lambda one: one["limit"]),
    _number("TOKEN FOR", _token),
    Column("", lambda one: f"{'paused: ' if one['paused'] else ''}{one['endpoint']}"),
)


def changed(now: float) -> Sequence[Column]:
    """Return the columns of limits that were changed, as at the time `now`."""
    return (
        Column("CHANGED", lambda row: f"{row['kind']} {row['key']} {row['name']}"),
        _number("CONFIGURED", lambda row: row["configured"]),
        _number("IN FORCE", lambda row: row["in_force"]),
        _number(
            "UNTIL", lambda row: "it is ended" if row["until"] is None else f"in {span(row['until'] - now)}"
        ),
        Column("", lambda _: ""),
    )
