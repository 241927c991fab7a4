"""Dead letters as commands choose and read them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bridge.store.beside as beside
import bridge.store.schema as schema
from bridge.core.event import Event
from bridge.store.changes import THESE
from bridge.store.paging import Page, Part, Sought, page
from bridge.store.schema import raw
from bridge.store.walk import Walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One dead letter as a list shows it: all but the event's data."""

    number: int
    """Its public name: stays the same and is never given to another."""
    source: str
    """The identity of the event's source."""
    event_id: str
    service: str
    type: str
    subject: str | None
    cause: str
    detail: str
    status: int | None
    attempts: int
    first_attempt: float | None
    last_attempt: float | None
    kept_at: float
    """Seconds since 1970 UTC, as the attempts' times are."""
    size: int
    """Bytes of the event's data."""


_SUMMARY = (
    "number, source, id, service, type, subject, cause, detail, status, attempts, first_attempt, "
    "last_attempt, kept_at, length(data)"
)
_NAMES = tuple(Summary.__dataclass_fields__)
_WIDTH = len(_NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which dead letters are meant: those to which all of it applies."""

    numbers: Collection[int] | None = None
    service: str | None = None
    cause: str | None = None
    older_than: float | None = None
    """Seconds since it was given up."""
    younger_than: float | None = None
    kept_before: float | None = None
    """Seconds since 1970 UTC. No number says it: what was parked before keeps its own as a dead letter."""
    matches: Callable[[Summary, Event], bool] | None = None
    """Called in another thread. What it raises ends the command."""

    def part(self) -> Part:
        """Return what chooses them in SQL, but for `matches`. Ages count from now."""
        now = time.time()
        terms: list[tuple[str, Any]] = []
        if self.numbers is not None:
            terms.append((THESE, json.dumps(list(self.numbers))))
        if self.service is not None:
            terms.append(("service = CAST(? AS TEXT)", raw(self.service)))
        if self.cause is not None:
            terms.append(("cause = CAST(? AS TEXT)", raw(self.cause)))
        if self.older_than is not None:
            terms.append(("kept_at < ?", now - self.older_than))
        if self.younger_than is not None:
            terms.append(("kept_at >= ?", now - self.younger_than))
        if self.kept_before is not None:
            terms.append(("kept_at < ?", self.kept_before))
        where = " AND ".join(["reason = 'dead'", *(term for term, _ in terms)])
        return f"INDEXED BY dead_by_number WHERE {where}", tuple(value for _, value in terms)


@dataclass(slots=True)
class Count:
    """What a command did, or would do in a dry run."""

    changed: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """How many were left as they are, by the reason in words."""


def walk(chosen: Filter) -> Walk[Summary]:
    """Walk over the dead letters chosen, in the order they were kept."""
    part, matches = chosen.part(), chosen.matches
    if matches is None:
        return Walk(_SUMMARY, lambda _: [part], _summary)

    def matching(row: tuple[Any, ...]) -> Summary | None:
        summary = _summary(row)
        return summary if matches(summary, schema.to_event(row[_WIDTH:])) else None

    return Walk(f"{_SUMMARY}, {schema.EVENT}", lambda _: [part], matching)


def _summary(row: tuple[Any, ...]) -> Summary:
    return Summary(**dict(zip(_NAMES, row, strict=False)))


def _one(connection: sqlite3.Connection, number: int) -> tuple[Summary, Event] | None:
    """Return one dead letter and its event as it was received, or None.

    Raises sqlite3.Error and BrokenRowError.
    """
    if not 0 < number <= schema.LARGEST:
        return None
    row = connection.execute(
        f"SELECT {_SUMMARY}, {schema.EVENT} FROM kept WHERE reason = 'dead' AND number = ?",  # noqa: S608 - no outside text
        (number,),
    ).fetchone()
    return None if row is None else (_summary(row), schema.to_event(row[_WIDTH:]))


def read_dead_letters(
    state_dir: Path, service: str | None = None, cause: str | None = None, limit: int | None = None
) -> list[Summary]:
    """List the dead letters, the newest first; works beside a running daemon and without one.

    Raises StoreError when there is no store, or it can't be read.
    """
    where, parameters = Filter(service=service, cause=cause).part()
    question = f"SELECT {_SUMMARY} FROM kept {where} ORDER BY number DESC LIMIT ?"  # noqa: S608 - no outside text
    most = schema.LARGEST if limit is None else min(limit, schema.LARGEST)
    return beside.read(
        state_dir,
        lambda connection: [_summary(row) for row in connection.execute(question, (*parameters, most))],
    )


def page_of_dead_letters(
    state_dir: Path, sought: Sought, *, service: str | None = None, cause: str | None = None
) -> Page[Summary]:
    """Return the page `sought`; a text is looked for in id, subject, source, cause and detail.

    Works beside a running daemon. Raises StoreError when there is no store, or it can't be read.
    """
    parts = [Filter(service=service, cause=cause).part()]
    searched = ("id", "subject", "source", "cause", "detail")
    return beside.read(
        state_dir, lambda connection: page(connection, _SUMMARY, parts, _summary, sought, searched)
    )


def read_dead_letter(state_dir: Path, number: int) -> tuple[Summary, Event] | None:
    """Return one dead letter and its event as it was received, or None when there is none of that number.

    Raises StoreError when there is no store, or it can't be read.
    """
    return beside.read(state_dir, lambda connection: _one(connection, number))
