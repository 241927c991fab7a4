"""Events that wait in the store as commands choose and read them, and those that nothing will take.

An event that is *parked* waits for its service's lane, one that is *spooled* for its source, one in a
*window* for others that it is sent with. It is *stranded* when the configuration has no such service or
source any more; a window ends of itself then.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bridge.store.beside as beside
import bridge.store.changes as changes
from bridge.core.ports import NO_LANE
from bridge.store.changes import KEY_OF, THESE
from bridge.store.paging import Page, Part, Sought, page
from bridge.store.schema import PARKED, SPOOLED, WINDOW, raw
from bridge.store.walk import Walk


class Known(NamedTuple):
    """What the configuration has: whatever waits for another service, or of another source, is stranded."""

    services: Collection[str]
    """By key."""
    sources: Collection[str]
    """By identity."""


class Stranded(NamedTuple):
    """Events that nothing will take."""

    reason: str
    """`parked` for a service, `spooled` by a source, or in a `window` for a service."""
    key: str
    """The service's key, or the source's identity."""
    events: int

    @property
    def message(self) -> str:
        """Say what is stranded."""
        events = "1 event is" if self.events == 1 else f"{self.events} events are"
        if self.reason == PARKED:
            return f"{events} parked for the service `{self.key}`, which is not in the configuration"
        return f"{events} kept of the source `{self.key}`, which is not in the configuration"

    @property
    def remedy(self) -> str:
        """Say what a person does about it."""
        if self.reason == PARKED:
            return (
                f"configure it again, or `oscar-bridge parked move --service {self.key} --to SERVICE`, "
                f"or `parked bury --service {self.key}`"
            )
        return f"configure it again, with that identity, or `oscar-bridge parked bury --source {self.key}`"


def stranded(waiting: Iterable[Stranded], known: Known) -> list[Stranded]:
    """Return those of `waiting` that nothing will take."""
    return [
        each
        for each in waiting
        if each.events > 0
        and each.reason != WINDOW
        and each.key not in (known.services if each.reason == PARKED else known.sources)
        and (each.reason, each.key) != (PARKED, NO_LANE)  # dead letters on their way round again
    ]


def groups(connection: sqlite3.Connection) -> list[Stranded]:
    """Count all that waits, by service and by source. Raises sqlite3.Error and BrokenRowError."""
    return [
        Stranded(reason, key, count)
        for reason in (PARKED, WINDOW, SPOOLED)
        for key, count in changes.groups(connection, reason)
    ]


def read_stranded(state_dir: Path, known: Known) -> list[Stranded]:
    """Count what is stranded beside a running daemon, or without one. Raises StoreError.

    A store that was never made holds nothing.
    """
    return stranded(beside.read_if_made(state_dir, groups, []), known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One event that waits, as a list shows it."""

    number: int
    """Its public name: stays the same and is never given to another."""
    reason: str
    """`parked`, `spooled` or `window`."""
    source: str
    """The identity of the event's source."""
    event_id: str
    subject: str | None
    service: str
    """Empty for one that is spooled, and for a dead letter that is on its way round its routes again."""
    attempts: int
    first_attempt: float | None
    kept_at: float
    """Seconds since 1970 UTC, as the attempt's time is."""
    size: int
    """Bytes of the event's data."""


_NAMES = tuple(Waiting.__dataclass_fields__)
_COLUMNS = "number, reason, source, id, subject, service, attempts, first_attempt, kept_at, length(data)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which events that wait are meant: by number, by service, by source's identity, or all."""

    numbers: Collection[int] | None = None
    service: str | None = None
    source: str | None = None


def walk(chosen: Choice, known: Known | None = None) -> Walk[Waiting]:
    """Walk over what is `chosen`; where that is all and `known` is given, over what is stranded."""
    return Walk(_COLUMNS, lambda connection: _parts(connection, chosen, known), _waiting)


def _parts(connection: sqlite3.Connection, chosen: Choice, known: Known | None) -> Iterable[Part]:
    if chosen.numbers is not None:
        these = json.dumps(list(chosen.numbers))
        yield f"NOT INDEXED WHERE {THESE} AND reason IN ('parked', 'spooled')", (these,)
        return
    if chosen.service is not None:
        meant = [Stranded(PARKED, chosen.service, 0)]
        if known is None:  # to be shown: there is nothing to be done about one in a window
            meant.append(Stranded(WINDOW, chosen.service, 0))
    elif chosen.source is not None:
        meant = [Stranded(SPOOLED, chosen.source, 0)]
    else:
        meant = groups(connection) if known is None else stranded(groups(connection), known)
    for reason, key, _ in meant:
        column, index = KEY_OF[reason]
        yield f"INDEXED BY {index} WHERE reason = '{reason}' AND {column} = CAST(? AS TEXT)", (raw(key),)


def _waiting(row: tuple[Any, ...]) -> Waiting:
    return Waiting(**dict(zip(_NAMES, row, strict=True)))


def page_of_waiting(state_dir: Path, sought: Sought, chosen: Choice) -> Page[Waiting]:
    """Return the page `sought` of what is `chosen`; a text is looked for in id, subject and source.

    Works beside a running daemon. Raises StoreError when there is no store, or it can't be read.
    """

    def question(connection: sqlite3.Connection) -> Page[Waiting]:
        parts = list(_parts(connection, chosen, None))
        return page(connection, _COLUMNS, parts, _waiting, sought, ("id", "subject", "source"))

    return beside.read(state_dir, question)


def list_waiting(state_dir: Path, chosen: Choice, limit: int) -> list[Waiting]:
    """List events that wait, the oldest of each service and source first.

    Works beside a running daemon and without one. Raises StoreError when there is no store, or it can't be
    read.
    """

    def question(connection: sqlite3.Connection) -> list[Waiting]:
        walked, found = walk(chosen), list[Waiting]()
        while len(found) < limit and (batch := walked.next(connection)):
            found += batch
        return found[:limit]

    return beside.read(state_dir, question)
