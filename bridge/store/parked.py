"""The way back of parked events: the oldest of a service, read in one go."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing

import bridge.store.schema as schema
from bridge.core.ports import Parked
from bridge.store.schema import raw

_BYTES = 16 * 2**20
"""What is given at once; one event is always given."""

_OLDEST = f"""
    SELECT number, attempts, first_attempt, order_key, {schema.EVENT} FROM kept INDEXED BY {{index}}
    WHERE reason = 'parked' AND service = CAST(? AS TEXT) AND number > ? {{which}}
    ORDER BY number LIMIT ?
"""  # noqa: S608 - our columns
_NOT_THESE = " AND number NOT IN (SELECT value FROM json_each(?))"
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
    after: int = 0,
) -> list[Parked]:
    """Give the oldest parked events of `service` but for the numbers in `without`.

    Those of `order_key` if it is given, none of `without_keys`, and none up to the number `after`.
    They are at most `limit`, and fewer where they are big; none only when there is none.
    Raises sqlite3.Error and BrokenRowError.
    """
    index, which, parameters = "kept_by_reason", "", list[bytes | str | int]([raw(service), after])
    if order_key is not None:
        index, which = "parked_by_key", "AND order_key = ?"
        parameters.append(order_key)
    elif without_keys:
        which = _NOT_OF_KEYS
        parameters += [raw(service), json.dumps(list(without_keys))]
    if without:
        which += _NOT_THESE
        parameters.append(json.dumps(list(without)))
    parameters.append(limit)
    question = _OLDEST.format(index=index, which=which)
    try:
        with schema.strict_texts(connection):
            return _read(connection, question, parameters)
    except sqlite3.OperationalError:  # one of them has lone surrogates, or the trouble will come again
        return _read(connection, question, parameters)


def _read(
    connection: sqlite3.Connection, question: str, parameters: Sequence[bytes | str | int]
) -> list[Parked]:
    found: list[Parked] = []
    size = 0
    with closing(connection.execute(question, parameters)) as rows:
        for number, attempts, first_attempt, key, *columns in rows:
            event = schema.to_event(columns)
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
