"""Deletes dead letters that are too old, by a clock that can be believed."""

from __future__ import annotations

import sqlite3
import time
from time import monotonic

import structlog

import bridge.store.changes as changes
import bridge.store.schema as schema
from bridge.store.changes import Change
from bridge.store.clock import DAY, date, is_doubtful, newest_seen

_log = structlog.get_logger(__name__)

_ITEMS = 500
_SECONDS = 600.0
"""Dead letters deleted at once, and between looks for such."""


class Expiry:
    """Deletes dead letters that are older than `keep_for` seconds.

    A clock that was set far ahead would make all of them old at once. So one that is more than a day beyond
    the newest time the store has seen is believed once it has told so for a day.
    """

    def __init__(self, keep_for: float) -> None:
        self.due = monotonic()
        """When to look again."""
        self._keep_for = keep_for
        self._every = min(_SECONDS, keep_for / 10)
        self._doubted_since: float | None = None

    def expire(self, connection: sqlite3.Connection) -> Change | None:
        """Delete some of them, the oldest first; None where none is. Raises sqlite3.Error."""
        self.due = monotonic() + self._every
        now = time.time()
        if not self._believes(now, newest_seen(connection)):
            return None
        with schema.transaction(connection):
            connection.execute("UPDATE clock SET seen = ?", (now,))
            count, change = _expire(connection, now - self._keep_for, _ITEMS)
        if not count:
            return None
        self.due = monotonic()
        _log.warning("dead letters deleted for their age (store.keep_dead_for)", count=count)
        return change

    def _believes(self, now: float, seen: float) -> bool:
        if not is_doubtful(now, seen):
            self._doubted_since = None
            return True
        if self._doubted_since is None:
            self._doubted_since = monotonic()
            _log.warning(
                "the clock is far beyond the newest time that the store has seen: no dead letter is deleted "
                "for its age before it has told so for a day, and parked events grow older from then on",
                clock=date(now),
                seen=date(seen),
            )
        return monotonic() - self._doubted_since >= DAY


def _expire(connection: sqlite3.Connection, before: float, limit: int) -> tuple[int, Change]:
    """Delete up to `limit` dead letters kept before `before` (seconds since 1970), the oldest first."""
    numbers = [
        number
        for (number,) in connection.execute(
            "SELECT number FROM kept INDEXED BY dead_by_age WHERE reason = 'dead' AND kept_at < ? "
            "ORDER BY kept_at LIMIT ?",
            (before, limit),
        )
    ]
    if not numbers:
        connection.execute("DELETE FROM generations WHERE given_at < ?", (before,))
        return 0, Change()
    return changes.discard(connection, numbers)
