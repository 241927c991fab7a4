"""What commands do to events that are kept: back into the pipeline, to another service, or among the dead."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection

import bridge.store.changes as changes
import bridge.store.schema as schema
from bridge.core.event import Event
from bridge.core.ports import NO_LANE
from bridge.store.changes import THESE, Change
from bridge.store.schema import DEAD, JOB_FAILED, PARKED, ROUTES, SPOOLED, raw
from bridge.store.spool_rows import KEY, number_of

SERVICE_REMOVED = "service_removed"
"""The cause of a dead letter that was parked for a service which is not in the configuration any more."""
SOURCE_REMOVED = "source_removed"
"""The same for what a source had kept before anything was decided about it: its data is what the upstream
told, which only that source can read."""
_THERE = "SELECT 1 FROM kept WHERE source = CAST(? AS TEXT) AND id = CAST(? AS TEXT)"
_MOST_DIGITS = 9
"""Of a generation."""
_UNREAD = b"unread:"
"""Before its key then, so that it is not taken for a dead letter of an event."""


def free(connection: sqlite3.Connection, numbers: Collection[int], service: str) -> list[int]:
    """Return those of `numbers` whose event is not kept for `service` already: one event is kept once."""
    taken: set[tuple[str, str]] = set()
    found: list[int] = []
    for number, source, event_id in connection.execute(
        f"SELECT number, source, id FROM kept NOT INDEXED WHERE {THESE} ORDER BY number",  # noqa: S608 - no outside text
        (json.dumps(list(numbers)),),
    ):
        there = connection.execute(schema.FIND, (raw(source), raw(event_id), raw(service))).fetchone()
        if (source, event_id) not in taken and (there is None or there[0] == number):
            taken.add((source, event_id))
            found.append(number)
    return found


def move(connection: sqlite3.Connection, numbers: Collection[int], to: str) -> tuple[int, Change]:
    """Park the parked events among `numbers` for the service `to`, each in its old place; return how many."""
    change = Change()
    numbers = free(connection, numbers, to)
    moved = 0
    for service, count in connection.execute(
        "SELECT service, count(*) FROM kept NOT INDEXED "  # noqa: S608 - no outside text
        f"WHERE {THESE} AND reason = 'parked' GROUP BY service",
        (json.dumps(numbers),),
    ):
        change.tally[service, PARKED, ""] -= count
        moved += count
    change.tally[to, PARKED, ""] += moved
    change.returned.add(to)
    connection.execute(
        f"UPDATE kept SET service = CAST(? AS TEXT) WHERE {THESE} AND reason = 'parked'",  # noqa: S608 - no outside text
        (raw(to), json.dumps(numbers)),
    )
    return moved, change


def cause_of(reason: str) -> str:
    """Return the cause of a dead letter that was kept for `reason`, and that nothing would have taken."""
    return SOURCE_REMOVED if reason == SPOOLED else SERVICE_REMOVED


def bury(connection: sqlite3.Connection, numbers: Collection[int]) -> tuple[int, Change]:
    """Make dead letters of those among `numbers` that wait; return how many, and the change."""
    change = Change()
    now = time.time()
    rows = connection.execute(
        "SELECT number, source, id, service, reason FROM kept NOT INDEXED "  # noqa: S608 - no outside text
        f"WHERE {THESE} AND reason IN ('parked', 'spooled')",
        (json.dumps(list(numbers)),),
    ).fetchall()
    for number, source, event_id, service, reason in rows:
        change.tally[service, reason, ""] -= 1
        if reason == SPOOLED:
            change.spooled[number_of(source)] -= 1
            detail = "its source is not in the configuration any more"
            _name_unread(connection, number, raw(source), raw(event_id), change)
        else:
            detail = "its service is not in the configuration any more"
            change.unparked.append(number)
        cause = cause_of(reason)
        change.tally[service, DEAD, cause] += 1
        connection.execute(
            "UPDATE kept SET reason = 'dead', cause = ?, detail = ?, kept_at = ? WHERE number = ?",
            (cause, detail, now, number),
        )
    return len(rows), change


def _name_unread(
    connection: sqlite3.Connection, number: int, source: bytes, key: bytes, change: Change
) -> None:
    """Give an occurrence another name, for its source may tell it again; an earlier one of it goes."""
    name = _UNREAD + key.removeprefix(KEY)
    earlier = connection.execute(schema.FIND, (source, name, raw(NO_LANE))).fetchone()
    if earlier is not None:
        change.tally[NO_LANE, DEAD, earlier[2]] -= 1
        connection.execute("DELETE FROM kept WHERE number = ?", earlier[:1])
    connection.execute("UPDATE kept SET id = CAST(? AS TEXT) WHERE number = ?", (name, number))


def replay(
    connection: sqlite3.Connection, numbers: Collection[int], *, as_new: bool, to: str | None = None
) -> tuple[int, Change]:
    """Park the dead letters among `numbers` that can be replayed; return how many, and the change.

    As new events they get identities that they never had. Each is for its own service, or for `to`; those of
    a route that could not choose one go round the routes again.
    """
    change = Change()
    if to is not None:
        numbers = free(connection, numbers, to)
    rows = connection.execute(
        "SELECT number, source, id, service, cause, generation FROM kept NOT INDEXED "  # noqa: S608 - no outside text
        f"WHERE {THESE} AND reason = 'dead'",
        (json.dumps(list(numbers)),),
    ).fetchall()
    replayed: list[int] = []
    for number, source, event_id, service, cause, generation in rows:
        aim = service if to is None else to
        if (cause == JOB_FAILED and not as_new) or (aim == NO_LANE and cause not in ROUTES):
            continue
        if aim != service:
            connection.execute(
                "UPDATE kept SET service = CAST(? AS TEXT) WHERE number = ?", (raw(aim), number)
            )
        if as_new:
            _renew(connection, number, raw(source), raw(event_id), raw(aim), generation)
        replayed.append(number)
        change.tally[service, DEAD, cause] -= 1
        change.tally[aim, PARKED, ""] += 1
        change.returned.add(aim)
    connection.execute(
        "UPDATE kept SET reason = 'parked', cause = '', detail = '', status = NULL, attempts = 0, "  # noqa: S608 - no outside text
        f"first_attempt = NULL, last_attempt = NULL, kept_at = ? WHERE {THESE}",
        (time.time(), json.dumps(replayed)),
    )
    return len(replayed), change


def again(connection: sqlite3.Connection, event: Event) -> tuple[str, Change]:
    """Park `event` to go round its routes once more, with an identity that it never had; return that."""
    change = Change()
    source, first = raw(event.source), raw(event.id)
    (given,) = connection.execute(
        "SELECT coalesce(max(generation), 0) FROM generations "
        "WHERE source = CAST(? AS TEXT) AND id = CAST(? AS TEXT)",
        (source, first),
    ).fetchone()
    generation = given + 1
    while connection.execute(_THERE, (source, b"%b+%d" % (first, generation))).fetchone():
        generation += 1
    _note(connection, source, first, raw(NO_LANE), generation)
    anew = event.replace(id=f"{event.id}+{generation}")
    changes.keep(connection, schema.parked_row(anew, NO_LANE, 0, None), change)
    change.returned.add(NO_LANE)
    return anew.id, change


def _renew(
    connection: sqlite3.Connection,
    number: int,
    source: bytes,
    event_id: bytes,
    service: bytes,
    generation: int,
) -> None:
    """Give the row `number` the next identity of its event."""
    if generation:
        first = event_id.removesuffix(b"+%d" % generation)
    else:
        first, generation = first_of(connection, source, event_id)
    (given,) = connection.execute(
        "SELECT coalesce(max(generation), 0) FROM generations WHERE source = CAST(? AS TEXT) "
        "AND id = CAST(? AS TEXT) AND service IN (CAST(? AS TEXT), '')",
        (source, first, service),
    ).fetchone()
    generation = max(generation, given) + 1
    while connection.execute(schema.FIND, (source, b"%b+%d" % (first, generation), service)).fetchone():
        generation += 1
    _note(connection, source, first, service, generation)
    connection.execute(
        "UPDATE kept SET id = CAST(? AS TEXT), generation = ? WHERE number = ?",
        (b"%b+%d" % (first, generation), generation, number),
    )


def first_of(connection: sqlite3.Connection, source: bytes, event_id: bytes) -> tuple[bytes, int]:
    """Return the first id of an event, and which generation of it the id `event_id` is: 0 for the first."""
    first, _, number = event_id.rpartition(b"+")
    if not first or not number.isdigit() or len(number) > _MOST_DIGITS:
        return event_id, 0
    found = connection.execute(
        "SELECT 1 FROM generations WHERE source = CAST(? AS TEXT) AND id = CAST(? AS TEXT) "
        "AND generation >= ?",
        (source, first, int(number)),
    ).fetchone()
    return (event_id, 0) if found is None else (first, int(number))


def _note(
    connection: sqlite3.Connection, source: bytes, first: bytes, service: bytes, generation: int
) -> None:
    connection.execute(
        "INSERT INTO generations VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?) "
        "ON CONFLICT DO UPDATE SET generation = excluded.generation, given_at = excluded.given_at",
        (source, first, service, generation, time.time()),
    )
