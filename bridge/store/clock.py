"""The time by which what is kept has an age: the machine's, as far as it is believed."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime
from time import monotonic

DAY = 86400.0


def newest_seen(connection: sqlite3.Connection) -> float:
    """Return the newest time that the store has seen, in seconds since 1970; 0 before the first.

    Raise sqlite3.Error.
    """
    (seen,) = connection.execute("SELECT max(seen) FROM clock").fetchone()
    return seen or 0.0


def is_doubtful(now: float, seen: float) -> bool:
    """Return whether a clock that tells `now` is more than a day beyond the newest time seen."""
    return bool(seen) and now > seen + DAY


def date(seconds: float) -> str:
    """Write a time given in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


class Clock:
    """Tells the time since the store was opened, however the machine's clock is set meanwhile.

    Where that was in doubt at the opening, the time is the newest that the store had `seen` by then, and goes
    on from there: what is kept is taken for younger by as long as the bridge was off, but never for older.
    """

    def __init__(self, seen: float) -> None:
        now = time.time()
        self._at_zero = (seen if is_doubtful(now, seen) else now) - monotonic()
        """The time when the monotonic clock was 0."""

    def now(self) -> float:
        """Return seconds since 1970 UTC.

        Of a time noted before the machine's clock was set ahead, this one's own course tells the age; of one
        noted after that was set back, the machine's.
        """
        return min(time.time(), self.steady())

    def steady(self) -> float:
        """Return seconds since 1970 UTC that go on as they do, also when the machine's clock is set back."""
        return self._at_zero + monotonic()
