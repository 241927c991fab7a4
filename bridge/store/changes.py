"""What one transaction does to the kept events, and what it tells of that to those who count them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import bridge.store.schema as schema
from bridge.store.schema import DEAD, JOB_FAILED, PARKED, SPOOLED, WINDOW, Row


class Done(NamedTuple):
    """A spooled occurrence to be taken away, and the version that has entered with it."""

    number: int
    spool: int
    entered: bytes | None


@dataclass(slots=True)
class Change:
    """What a transaction changed."""

    tally: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Events kept more (or fewer), by service, reason and cause."""
    unparked: list[int] = field(default_factory=list)
    """Numbers of parked events that are dead letters now."""
    forgotten: list[int] = field(default_factory=list)
    """Numbers that are certainly not parked any more."""
    returned: set[str] = field(default_factory=set)
    """Services of dead letters that are parked now."""
    oldest: dict[str, float | None] = field(default_factory=dict)
    """Since when the event longest parked waits, in seconds since 1970, of services where that is another one
    now; None where none is parked any more."""
    spooled: Counter[int] = field(default_factory=Counter)
    """Occurrences kept more (or fewer), by spool."""
    sources: dict[int, str] = field(default_factory=dict)
    """Identities of the sources of spools that have occurrences when the store is opened."""
    marks: Counter[int] = field(default_factory=Counter)
    """Versions marked more (or fewer), by spool."""
    windows: Counter[str] = field(default_factory=Counter)
    """Windows more (or fewer), by service."""
    finished: list[Done] = field(default_factory=list)
    """What is certainly not spooled any more."""


@dataclass(slots=True, eq=False)
class Keep:
    """One event to be kept, and who waits for it."""

    row: Row
    done: asyncio.Future[None]
    size: int
    """About how many bytes a new row takes."""

    @property
    def is_letter(self) -> bool:
        """Whether it is a dead letter."""
        return bool(self.row[8] == DEAD)

    @classmethod
    def of(cls, row: Row, done: asyncio.Future[None]) -> Keep:
        """Take `row`, and estimate its size: its key twice (an index has it too), data, texts, overhead."""
        source, event_id, service = row[:3]
        texts = 2 * (len(source) + len(event_id) + len(service)) + len(row[6]) + len(row[10])
        return cls(row, done, texts + len(row[7]) + 200)


KEY_OF = {
    PARKED: ("service", "kept_by_reason"),
    WINDOW: ("service", "kept_by_reason"),
    SPOOLED: ("source", "spooled_by_source"),
}
"""By what the events that wait for a reason belong together, and the index that has them so."""


def groups(connection: sqlite3.Connection, reason: str) -> Iterable[tuple[str, int]]:
    """Count the events that wait for `reason`, by service or by source. Raise sqlite3.Error."""
    key, index = KEY_OF[reason]
    return connection.execute(
        f"SELECT {key}, count(*) FROM kept INDEXED BY {index} WHERE reason = '{reason}' GROUP BY {key}"  # noqa: S608 - our reasons
    )


def totals(connection: sqlite3.Connection) -> Change:
    """Count what is kept for services."""
    change = Change()
    for service, count in groups(connection, PARKED):
        change.tally[service, PARKED, ""] = count
    for service, cause, count in connection.execute(
        "SELECT service, cause, count(*) FROM kept INDEXED BY dead_by_number WHERE reason = 'dead' "
        "GROUP BY service, cause"
    ):
        change.tally[service, DEAD, cause] = count
    return change


_State = tuple[int, str, str] | None
"""A row's number, reason and cause; None where there is none. A number is 0 until the row is written."""


def write(
    connection: sqlite3.Connection, group: Sequence[Keep | int], room: int, of_letters: int = 0
) -> tuple[Change, Collection[Keep]]:
    """Keep events and forget parked ones (given by their numbers), in the order of `group`.

    An event that is kept already needs no room. Returns the change, and the events that `room` bytes
    had no place for, the last `of_letters` of which are for dead letters alone.
    """
    change = Change(forgotten=[item for item in group if isinstance(item, int)])
    keeps = [item for item in group if isinstance(item, Keep)]
    if _all_new(connection, keeps, room - of_letters):
        _delete_parked(connection, change.forgotten, change)
        for keep in keeps:
            change.tally[_label(keep.row)] += 1
        return change, ()
    plan = _Plan(connection, group, room, of_letters)
    _delete_parked(connection, plan.doomed, change)
    connection.executemany(schema.KEEP, [row for rows in plan.rows.values() for row in rows])
    for key in plan.rows:
        old, new = plan.before[key], plan.after[key]
        service = schema.text(key[2])
        if old is not None:
            change.tally[service, old[1], old[2]] -= 1
        if new is not None:
            change.tally[service, new[1], new[2]] += 1
            if _is_parked(old) and not _is_parked(new):
                change.unparked.append(new[0])
    return change, plan.refused


def keep(connection: sqlite3.Connection, row: Row, change: Change) -> None:
    """Keep one event, whatever room there is; note it in `change`."""
    found = connection.execute(schema.FIND, row[:3]).fetchone()
    service, reason, cause = _label(row)
    if found is not None:
        if found[1:] == (DEAD, JOB_FAILED) and reason == PARKED:
            return
        change.tally[service, found[1], found[2]] -= 1
        if _is_parked(found) and reason != PARKED:
            change.unparked.append(found[0])
    connection.execute(schema.KEEP, row)
    change.tally[service, reason, cause] += 1


def _all_new(connection: sqlite3.Connection, keeps: Sequence[Keep], room: int) -> bool:
    """Write `keeps` if none of them is kept yet: the usual case, at half the work."""
    if sum([keep.size for keep in keeps]) > room:
        return False
    connection.execute("SAVEPOINT new")
    new = not keeps or connection.executemany(schema.KEEP_NEW, [keep.row for keep in keeps]).rowcount == len(
        keeps
    )
    if not new:
        connection.execute("ROLLBACK TO new")
    connection.execute("RELEASE new")
    return new


class _Plan:
    """What a group comes to: rows to delete first, rows to write then."""

    def __init__(
        self, connection: sqlite3.Connection, group: Sequence[Keep | int], room: int, of_letters: int
    ) -> None:
        self.before: dict[Row, _State] = {}
        """What each event is kept for, once `doomed` are deleted."""
        self.doomed: list[int] = []
        self.rows: defaultdict[Row, list[Row]] = defaultdict(list)
        self.refused: set[Keep] = set()
        self._room = room
        self._of_letters = of_letters
        self._keys: dict[int, Row] = {}
        for item in group:
            if isinstance(item, Keep) and (key := item.row[:3]) not in self.before:
                self.before[key] = found = connection.execute(schema.FIND, key).fetchone()
                if found is not None:
                    self._keys[found[0]] = key
        self.after = dict(self.before)
        for item in group:
            if isinstance(item, int):
                self._forget(item)
            else:
                self._keep(item)

    def _forget(self, number: int) -> None:
        key = self._keys.get(number)
        if key is None:
            self.doomed.append(number)
        elif _is_parked(self.before[key]) and _is_parked(self.after[key]):
            # What this group wrote to the row goes with it; the same event may be kept anew behind it.
            self.doomed.append(number)
            self.before[key] = self.after[key] = None
            self.rows.pop(key, None)

    def _keep(self, keep: Keep) -> None:
        key = keep.row[:3]
        _, reason, cause = _label(keep.row)
        state = self.after[key]
        if state is None:
            if keep.size > self._room - (0 if keep.is_letter else self._of_letters):
                self.refused.add(keep)
                return
            self._room -= keep.size
        elif state[1:] == (DEAD, JOB_FAILED) and reason == PARKED:
            return
        self.rows[key].append(keep.row)
        self.after[key] = (0 if state is None else state[0], reason, cause)


def _label(row: Row) -> tuple[str, str, str]:
    return schema.text(row[2]), row[8], schema.text(row[9])


def _is_parked(state: _State) -> bool:
    return state is not None and state[1] == PARKED


# NOT INDEXED leaves the way by number: it is the shortest, and SQLite can't know.
THESE = "number IN (SELECT value FROM json_each(?))"
"""The rows of a JSON list of numbers."""


def _delete_parked(connection: sqlite3.Connection, numbers: Sequence[int], change: Change) -> None:
    if not numbers:
        return
    where = f"FROM kept NOT INDEXED WHERE {THESE} AND reason = 'parked'"
    these = (json.dumps(numbers),)
    for service, count in connection.execute(f"SELECT service, count(*) {where} GROUP BY service", these):
        change.tally[service, PARKED, ""] -= count
    connection.execute(f"DELETE {where}", these)


def discard(connection: sqlite3.Connection, numbers: Collection[int]) -> tuple[int, Change]:
    """Delete the dead letters among `numbers`; return how many, and the change."""
    these = (json.dumps(list(numbers)),)
    where = f"FROM kept NOT INDEXED WHERE {THESE} AND reason = 'dead'"
    change = Change()
    groups = f"SELECT service, cause, count(*) {where} GROUP BY service, cause"
    for service, cause, count in connection.execute(groups, these):
        change.tally[service, DEAD, cause] -= count
    connection.execute(f"DELETE {where}", these)
    return -sum(change.tally.values()), change
