"""The way back of parked events: the oldest of a service, read in one go."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from itertools import islice

from bridge.core.ports import Parked
from bridge.store import schema
from bridge.store.schema import raw

_BYTES = 16 * 2**20
"""What is given at once; one event is always given."""


_NOT_OF_KEYS = """
    AND number NOT IN (
        SELECT number FROM kept INDEXED BY parked_by_key
        WHERE reason = 'parked' AND service = CAST(? AS TEXT)
            AND order_key IN (SELECT value FROM json_each(?))
    )
"""


def oldest(
    connection: sqlite3.Connection,
    service: str,
    without: Collection[int],
    limit: int,
    *,
    order_key: int | None = None,
    without_keys: Collection[int] = (),
) -> list[Parked]:
    """Give the oldest parked events of `service` but for the numbers in `without`.

    Those of `order_key` if it is given, and none of `without_keys`.
    They are at most `limit`, and fewer where they are big; none only when there is none.
    Raises sqlite3.Error and BrokenRowError.
    """
    if order_key is not None:
        numbers = connection.execute(
            "SELECT number FROM kept INDEXED BY parked_by_key "
            "WHERE reason = 'parked' AND service = CAST(? AS TEXT) AND order_key = ? ORDER BY number",
            (raw(service), order_key),
        )
    else:
        others, parameters = "", list[bytes | str]([raw(service)])
        if without_keys:
            others = _NOT_OF_KEYS
            parameters += [raw(service), json.dumps(list(without_keys))]
        numbers = connection.execute(
            "SELECT number FROM kept INDEXED BY kept_by_reason "  # noqa: S608 - no outside text
            f"WHERE reason = 'parked' AND service = CAST(? AS TEXT) {others} ORDER BY number",
            parameters,
        )
    with closing(numbers):  # those in `without` are the oldest: the walk over them is short
        chosen = list(islice((number for (number,) in numbers if number not in without), limit))
    try:
        with schema.strict_texts(connection):
            return _read(connection, chosen)
    except sqlite3.OperationalError:  # one of them has lone surrogates, or the trouble will come again
        return _read(connection, chosen)


def _read(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[Parked]:
    """Read the parked events of `numbers`, but for the last of those that are big. Raise as `oldest` does."""
    rows = connection.execute(
        f"SELECT number, attempts, first_attempt, order_key, {schema.EVENT} FROM kept NOT INDEXED "  # noqa: S608 - our columns
        "WHERE number IN (SELECT value FROM json_each(?)) AND reason = 'parked' ORDER BY number",
        (json.dumps(numbers),),
    )
    found: list[Parked] = []
    size = 0
    with closing(rows):
        for number, attempts, first_attempt, key, *columns in rows:
            event = schema.to_event(tuple(columns))
            found.append(
                Parked(
                    number=number,
                    event=event,
                    attempts=attempts,
                    first_attempt=first_attempt,
                    order_key=key,
                )
            )
            size += event.size
            if size >= _BYTES:
                break
    return found
