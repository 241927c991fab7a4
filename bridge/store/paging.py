"""Rows of the store a page at a time, the newest first: a page takes a bounded time of however many."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from bridge.store.schema import LARGEST, raw

_Row = TypeVar("_Row")

_SECONDS = 1.0
"""After which a page is given with what was found by then."""
_MOST_SECONDS = 5.0
"""After which whatever is under way is broken off: a disk that answers so slowly has other work."""
_SPAN, _MOST_SPAN = 256, 2**20
"""Numbers that are looked through at once, at first and at most: no row need match among them."""
_BRIEF = 0.1
"""Seconds of a look below which the next takes twice as many numbers."""
_STEPS = 10_000
"""Of SQLite's virtual machine between two looks at the clock: about half a millisecond."""


@dataclass(frozen=True, slots=True)
class Page(Generic[_Row]):
    """Some rows, the newest first."""

    rows: Sequence[_Row]
    total: int | None
    """How many there are in all; None where they were not counted: to look for a text in all takes long."""
    next: int | None
    """Older rows may be before this number; None when there are none."""


class Sought(NamedTuple):
    """Which page is wanted."""

    text: str | None = None
    """What is in one of the columns that are searched, whatever the case of ASCII letters."""
    before: int | None = None
    """Numbers are below it; None for the newest."""
    limit: int = 50
    """Rows, at most."""


Part = tuple[str, tuple[Any, ...]]
"""What follows FROM to choose rows by an index that gives them in the order of their numbers, and its
parameters."""


def page(
    connection: sqlite3.Connection,
    columns: str,
    parts: Sequence[Part],
    make: Callable[[tuple[Any, ...]], _Row],
    sought: Sought,
    searched: Sequence[str],
) -> Page[_Row]:
    """Return the page `sought` of all `parts`, made by `make` of `columns`, of which `number` is the first.

    A text is looked for in the columns `searched`. Raises sqlite3.Error.
    """
    text, before, limit = sought
    began = monotonic()
    connection.set_progress_handler(lambda: monotonic() > began + _MOST_SECONDS, _STEPS)
    try:
        counted = None if text is not None else _count(connection, parts)
        condition, texts = _search(text, searched)
        lowest, highest = connection.execute(_BOUNDS).fetchone()
        upper, span = min(highest + 1, LARGEST if before is None else before), _SPAN
        found: list[tuple[Any, ...]] = []
        while upper > lowest and len(found) <= limit:
            look_began, lower = monotonic(), max(lowest, upper - span)
            rows: list[tuple[Any, ...]] = []
            for chosen, parameters in parts:
                rows += connection.execute(
                    f"SELECT {columns} FROM kept {chosen} AND number >= ? AND number < ?{condition} "  # noqa: S608 - no outside text
                    "ORDER BY number DESC LIMIT ?",
                    (*parameters, lower, upper, *texts, limit + 1 - len(found)),
                )
            rows.sort(key=lambda row: -row[0])
            found += rows[: limit + 1 - len(found)]
            upper = lower
            now = monotonic()
            if now > began + _SECONDS:
                break
            brief = now - look_began < _BRIEF
            span = min(_MOST_SPAN, 2 * span) if brief else max(_SPAN, span // 2)
    finally:
        connection.set_progress_handler(None, 0)
    older = found[limit - 1][0] if len(found) > limit else upper if upper > lowest else None
    if text is not None and before is None and older is None:
        counted = len(found)
    return Page([make(row) for row in found[:limit]], counted, older)


_BOUNDS = "SELECT coalesce(min(number), 1), coalesce(max(number), 0) FROM kept"


def _count(connection: sqlite3.Connection, parts: Sequence[Part]) -> int:
    counts = [
        connection.execute(f"SELECT count(*) FROM kept {chosen}", parameters).fetchone()[0]  # noqa: S608 - likewise
        for chosen, parameters in parts
    ]
    return sum(counts)


def _search(text: str | None, searched: Sequence[str]) -> tuple[str, tuple[bytes, ...]]:
    """Return a condition in SQL with its parameters; what is quickly read stands first."""
    if text is None:
        return "", ()
    terms = " OR ".join(f"instr(lower({name}), lower(CAST(? AS TEXT)))" for name in searched)
    return f" AND ({terms})", (raw(text),) * len(searched)
