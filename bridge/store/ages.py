"""The time since which the event longest parked for each service has waited."""

from __future__ import annotations

import sqlite3

from bridge.store.changes import Change
from bridge.store.schema import PARKED, raw

_STILL_PARKED = """
    SELECT 1 FROM kept INDEXED BY kept_by_reason
    WHERE reason = 'parked' AND service = CAST(? AS TEXT) AND number = ?
"""
_OLDEST = """
    SELECT number, min(kept_at, coalesce(first_attempt, kept_at)) FROM kept INDEXED BY kept_by_reason
    WHERE reason = 'parked' AND service = CAST(? AS TEXT) ORDER BY number LIMIT 1
"""


class Ages:
    """Keeps one row of each service in sight: the first in its order, until that is parked no more.

    So a replay, which parks anew in front of older events, makes them no younger; and each transaction costs
    one or two look-ups in an index for each service that it changed, however many events wait.
    """

    def __init__(self) -> None:
        self._oldest: dict[str, int] = {}

    def look(self, connection: sqlite3.Connection, change: Change) -> None:
        """Note in `change` what became of the oldest. Inside its transaction. Raise sqlite3.Error."""
        for service, reason, _ in change.tally:
            if reason == PARKED:
                self._look_at(connection, service, change)

    def _look_at(self, connection: sqlite3.Connection, service: str, change: Change) -> None:
        name, number = raw(service), self._oldest.get(service)
        if number is not None and connection.execute(_STILL_PARKED, (name, number)).fetchone():
            return
        found = connection.execute(_OLDEST, (name,)).fetchone()
        if found is None:
            self._oldest.pop(service, None)
            change.oldest[service] = None
        else:
            self._oldest[service], change.oldest[service] = found
