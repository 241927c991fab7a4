"""A walk over rows of the store in batches, in the order of their numbers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Generic, TypeVar

from bridge.store.paging import Part

_Row = TypeVar("_Row")

_BATCH = 500
_BATCH_BYTES = 16 * 2**20
"""Read at once, and changed by one transaction."""


class Walk(Generic[_Row]):
    """Rows of one part after another; between two batches nothing is held open.

    Those that come later than its begin are left out.
    """

    def __init__(
        self,
        columns: str,
        parts: Callable[[sqlite3.Connection], Iterable[Part]],
        make: Callable[[tuple[Any, ...]], _Row | None],
    ) -> None:
        """Walk over `parts`, whose `columns` begin with `number`.

        `make` makes a row of them, or leaves it out by None; what it raises ends the walk.
        """
        self._columns = columns
        self._parts = parts
        self._make = make
        self._left: list[Part] = []
        """Of which the first is walked over now."""
        self._after = 0
        self._last: int | None = None

    def next(self, connection: sqlite3.Connection) -> list[_Row]:
        """Return the next ones, none at the end. Raise sqlite3.Error and BrokenRowError."""
        if self._last is None:
            (self._last,) = connection.execute("SELECT coalesce(max(number), 0) FROM kept").fetchone()
            self._left = list(self._parts(connection))
        found: list[_Row] = []
        while self._left and not found:
            chosen, parameters = self._left[0]
            rows = connection.execute(
                f"SELECT {self._columns} FROM kept {chosen} AND number > ? AND number <= ? "  # noqa: S608 - no outside text
                f"ORDER BY number LIMIT {_BATCH}",
                (*parameters, self._after, self._last),
            )
            with closing(rows):
                if self._take(rows, found):
                    self._after = 0
                    del self._left[0]
        return found

    def _take(self, rows: Iterable[tuple[Any, ...]], found: list[_Row]) -> bool:
        """Put a batch into `found`; return whether these were the last ones of their part."""
        seen = size = 0
        for row in rows:
            self._after = row[0]
            seen += 1
            size += sum([len(value) for value in row if isinstance(value, bytes)])  # data, where that is read
            if (made := self._make(row)) is not None:
                found.append(made)
            if size >= _BATCH_BYTES:
                return False
        return seen < _BATCH
