"""Windows on disk, in SQL: their members, when they are due, and how they are sent.

A member is a row of `kept` with the reason `window`; `windows` has a row for each window. When a window is
sent, one transaction takes members away, keeps the one event that they are together, and notes their ids in
`merged`: so a kill at any moment leaves each member in one place.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from math import inf

import bridge.store.changes as changes
import bridge.store.merges as merges
import bridge.store.schema as schema
from bridge.core.event import Event
from bridge.core.ports import DeadLetter
from bridge.core.windows import (
    FULL,
    ROUTE_GONE,
    Closed,
    Joined,
    Member,
    Name,
    Part,
    Policy,
    Rules,
    State,
)
from bridge.store.changes import THESE, Change
from bridge.store.schema import DEAD, JOB_FAILED, WINDOW, Row, raw

_BYTES = 16 * 2**20
"""What is read of all windows at once; of one window something is always read."""
_BYTES_OF_ONE = 2**18
"""What is read of one window: more than an event can have."""
_MEMBER, _MARKER = b"", b"marker"
"""What `cause` says of a row of a window."""

_JOIN = """
    INSERT INTO kept (source, id, service, type, subject, time, attributes, data,
                      reason, cause, detail, attempts, kept_at, in_window)
    VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?,
            'window', CAST(? AS TEXT), '', 0, ?, ?)
    ON CONFLICT (source, id, service) DO UPDATE SET
        type = excluded.type, subject = excluded.subject, time = excluded.time,
        attributes = excluded.attributes, data = excluded.data,
        reason = excluded.reason, cause = excluded.cause, detail = '', status = NULL, attempts = 0,
        first_attempt = NULL, last_attempt = NULL, kept_at = excluded.kept_at, in_window = excluded.in_window
"""
_OPEN = """
    SELECT number, opened, last, members, bytes, marked, late FROM windows
    WHERE source = CAST(? AS TEXT) AND service = CAST(? AS TEXT) AND route = CAST(? AS TEXT)
        AND key = CAST(? AS TEXT) AND closed = 0
"""
_INSERT = """
    INSERT INTO windows (source, service, route, key, manner, opened, last, members, bytes, marked, late, due,
                         reason, closed)
    VALUES (CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, 0, 0,
            NULL, ?, 0, '', 0)
"""
_UPDATE = """
    UPDATE windows SET manner = CAST(? AS TEXT), opened = ?, last = ?, members = ?, bytes = ?, marked = ?,
                       due = ?, reason = ?, closed = ?
    WHERE number = ?
"""


class _Window:
    """One open window inside a transaction that changes it."""

    __slots__ = ("late", "number", "policy", "state")

    def __init__(self, number: int, policy: Policy, state: State, *, late: bool) -> None:
        self.number = number
        self.policy = policy
        self.state = state
        self.late = late

    def write(self, connection: sqlite3.Connection) -> None:
        self._write(connection, *self.policy.rules.due(self.state), closed=False)

    def close(self, connection: sqlite3.Connection, reason: str) -> None:
        self._write(connection, 0.0, reason, closed=True)

    def _write(self, connection: sqlite3.Connection, due: float, reason: str, *, closed: bool) -> None:
        state, manner = self.state, raw(self.policy.manner)
        values = (manner, state.opened, state.last, state.members, state.bytes, state.marked)
        connection.execute(_UPDATE, (*values, due, reason, closed, self.number))


# Writing, each inside a transaction


def size(row: Row) -> int:
    """Estimate the bytes of a member: its key twice (an index has it too), texts, data, overhead."""
    source, event_id, service = row[:3]
    return 2 * (len(source) + len(event_id) + len(service)) + len(row[6]) + len(row[7]) + 250


def join(
    connection: sqlite3.Connection, joining: Sequence[tuple[Member, Row]], now: float
) -> tuple[tuple[list[Joined], float], Change]:
    """Keep members in their windows; return what became of each, and when a window is next due."""
    change = Change()
    windows: dict[Name, _Window] = {}
    results = [_join_one(connection, member, row, now, windows, change) for member, row in joining]
    for window in windows.values():
        window.write(connection)
    return (results, _next_due(connection)), change


def _join_one(
    connection: sqlite3.Connection,
    member: Member,
    row: Row,
    now: float,
    windows: dict[Name, _Window],
    change: Change,
) -> Joined:
    source, event_id, service = row[:3]
    found = connection.execute(schema.FIND, row[:3]).fetchone()
    if found is not None and (found[1] != DEAD or found[2] == JOB_FAILED):
        return Joined.THERE
    if merges.was_merged(connection, event_id, source, service):
        return Joined.REPEATED
    name, rules = member.window, member.policy.rules
    window = windows.pop(name, None) or _open(connection, member, now, change)
    if not member.is_marker and not rules.holds(window.state, len(member.event.data)):
        window.close(connection, FULL)
        window = _new(connection, member, now, change)
    if found is not None:
        change.tally[name.service, DEAD, found[2]] -= 1
    change.tally[name.service, WINDOW, ""] += 1
    cause = _MARKER if member.is_marker else _MEMBER
    connection.execute(_JOIN, (*row, cause, time.time(), window.number))
    state = window.state
    if not member.is_marker:
        state.last, state.members, state.bytes = now, state.members + 1, state.bytes + len(member.event.data)
    elif state.marked is None:
        state.marked = now
    due, reason = rules.due(state)
    if due <= now:  # at once: what comes behind it in this transaction must not join it
        window.close(connection, reason)
    else:
        windows[name] = window
    return Joined.LATE if window.late else Joined.NEW


def _open(connection: sqlite3.Connection, member: Member, now: float, change: Change) -> _Window:
    found = connection.execute(_OPEN, [raw(part) for part in member.window]).fetchone()
    if found is None:
        return _new(connection, member, now, change)
    number, opened, last, members, size, marked, late = found
    state = State(opened, last, members, size, marked)
    return _Window(number, member.policy, state, late=bool(late))


def _new(connection: sqlite3.Connection, member: Member, now: float, change: Change) -> _Window:
    name = [raw(part) for part in member.window]
    late = member.policy.rules.by_marker and merges.was_complete(connection, name)
    number = connection.execute(_INSERT, (*name, raw(member.policy.manner), now, now, late)).lastrowid
    assert number is not None  # noqa: S101 - an INSERT has one
    change.windows[member.window.service] += 1
    return _Window(number, member.policy, State(now, now), late=late)


def _next_due(connection: sqlite3.Connection) -> float:
    (due,) = connection.execute("SELECT min(due) FROM windows").fetchone()
    return inf if due is None else float(due)


def begin(
    connection: sqlite3.Connection,
    policy_of: Callable[[Name], Policy | None],
    sources: Collection[str] | None,
    now: float,
) -> tuple[float, Change]:
    """Have windows follow their routes as they are now; return when one is next due."""
    _listen_anew(connection, policy_of, sources, now)
    return _next_due(connection), Change()


def _listen_anew(
    connection: sqlite3.Connection,
    policy_of: Callable[[Name], Policy | None],
    sources: Collection[str] | None,
    now: float,
    due: float = inf,
) -> None:
    """Have what is due by then, of `sources` or of all, follow its policy as if something had come by now."""
    of_sources = "" if sources is None else "AND source IN (SELECT value FROM json_each(?))"
    rows = connection.execute(
        "SELECT number, source, service, route, key, manner, opened, members, bytes, marked, late "  # noqa: S608 - no outside text
        f"FROM windows INDEXED BY windows_by_due WHERE due <= ? AND closed = 0 {of_sources}",
        (due, *(() if sources is None else (json.dumps(list(sources)),))),
    ).fetchall()
    for number, source, service, route, key, manner, opened, members, size, marked, late in rows:
        policy = policy_of(Name(source, service, route, key))
        # A clock that was set back meanwhile must not make it wait the longer.
        state = State(min(opened, now), now, members, size, None if marked is None else now)
        window = _Window(number, policy or Policy(Rules(), manner), state, late=bool(late))
        if policy is None:
            window.close(connection, ROUTE_GONE)
        else:
            window.write(connection)


def close(
    connection: sqlite3.Connection,
    policy_of: Callable[[Name], Policy | None],
    unheard: Collection[str],
    now: float,
    limit: int,
) -> tuple[tuple[list[Closed], float], Change]:
    """Close what is due; return windows that are closed, and when the next is due."""
    if unheard:
        _listen_anew(connection, policy_of, unheard, now, due=now)
    connection.execute("UPDATE windows SET closed = 1, due = 0 WHERE due <= ? AND closed = 0", (now,))
    rows = connection.execute(
        "SELECT number, source, service, route, key, manner, reason, members FROM windows "
        "WHERE due = 0 ORDER BY number LIMIT ?",
        (limit,),
    )
    found = [
        Closed(number, Name(source, service, route, key), manner, reason, members)
        for number, source, service, route, key, manner, reason, members in rows
    ]
    return (found, _next_due(connection)), Change()


def send(
    connection: sqlite3.Connection, parts: Sequence[Part], now: float, most: int
) -> tuple[tuple[set[int], int], Change]:
    """Put what the parts are in the place of their members.

    Return the windows that are gone with them, and how many members were forgotten before their time.
    """
    change = Change()
    gone = {part.window.number for part in parts if _send_one(connection, part, now, change)}
    return (gone, merges.forget(connection, now, most)), change


def _send_one(connection: sqlite3.Connection, part: Part, now: float, change: Change) -> bool:
    """Send a part; return whether its window is gone with it."""
    window, service = part.window.number, part.window.name.service
    these = f"FROM kept NOT INDEXED WHERE {THESE} AND reason = 'window' AND in_window = ?"
    chosen = (json.dumps(list(part.numbers)), window)
    ids = [raw(found) for (found,) in connection.execute(f"SELECT id {these}", chosen)]
    if len(ids) < len(part.numbers):
        return False  # one of them has left meanwhile: the event is put together anew
    connection.execute(f"DELETE {these}", chosen)
    rest = "FROM kept INDEXED BY members WHERE reason = 'window' AND in_window = ?"
    is_gone = not connection.execute(f"SELECT 1 {rest} AND cause = ''", (window,)).fetchone()
    if is_gone:
        ids += [raw(marker) for (marker,) in connection.execute(f"SELECT id {rest}", (window,))]
        connection.execute(f"DELETE {rest}", (window,))
        connection.execute("DELETE FROM windows WHERE number = ?", (window,))
        change.windows[service] -= 1
    change.tally[service, WINDOW, ""] -= len(ids)
    merges.remember(connection, part, ids, now)
    if isinstance(part.sent, DeadLetter):
        changes.keep(connection, schema.dead_row(part.sent), change)
    elif part.sent is not None:
        changes.keep(connection, schema.parked_row(part.sent, service, 0, None), change)
        change.returned.add(service)
    return is_gone


# Reading


def members(connection: sqlite3.Connection, windows: Sequence[Closed]) -> dict[int, list[tuple[int, Event]]]:
    """Return the first members of `windows`, by the number of the window."""
    found: defaultdict[int, list[tuple[int, Event]]] = defaultdict(list)
    size = 0
    for window in windows:
        rows = connection.execute(
            f"SELECT number, {schema.EVENT} FROM kept INDEXED BY members "  # noqa: S608 - our columns
            "WHERE reason = 'window' AND in_window = ? AND cause = '' ORDER BY number",
            (window.number,),
        )
        members, of_one = found[window.number], 0
        with closing(rows):
            for number, *columns in rows:
                event = schema.to_event(tuple(columns))
                members.append((number, event))
                of_one += event.size
                if of_one >= _BYTES_OF_ONE:
                    break
        size += of_one
        if size >= _BYTES:
            break
    return dict(found)


def totals(connection: sqlite3.Connection, change: Change) -> None:
    """Count the windows and their members."""
    for service, count in connection.execute("SELECT service, count(*) FROM windows GROUP BY service"):
        change.windows[service] = count
    for service, count in changes.groups(connection, WINDOW):
        change.tally[service, WINDOW, ""] = count
