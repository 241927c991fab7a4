"""The way back of parked events: the oldest of a service, read in one go."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from contextlib import closing
from itertools import islice

from bridge.core.ports import Parked
from bridge.store import schema
from bridge.store.schema import raw

_BYTES = 16 * 2**20
"""What is given at once; one event is always given."""


def oldest(
    connection: sqlite3.Connection, service: str, without: Collection[int], limit: int
) -> list[Parked]:
    """Give the oldest parked events of `service` but for the numbers in `without`.

    They are at most `limit`, and fewer where they are big; none only when there is none.
    Raises sqlite3.Error and BrokenRowError.
    """
    numbers = connection.execute(
        "SELECT number FROM kept INDEXED BY kept_by_reason "
        "WHERE reason = 'parked' AND service = CAST(? AS TEXT) ORDER BY number",
        (raw(service),),
    )
    with closing(numbers):  # those in `without` are the oldest: the walk over them is short
        chosen = list(islice((number for (number,) in numbers if number not in without), limit))
    rows = connection.execute(
        f"SELECT number, attempts, first_attempt, {schema.EVENT} FROM kept NOT INDEXED "  # noqa: S608 - our columns
        "WHERE number IN (SELECT value FROM json_each(?)) AND reason = 'parked' ORDER BY number",
        (json.dumps(chosen),),
    )
    found: list[Parked] = []
    size = 0
    with closing(rows):
        for number, attempts, first_attempt, *columns in rows:
            event = schema.to_event(tuple(columns))
            found.append(Parked(number=number, event=event, attempts=attempts, first_attempt=first_attempt))
            size += event.size
            if size >= _BYTES:
                break
    return found
