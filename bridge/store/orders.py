"""What a person orders for the events that are kept: replay, discard, move, bury.

Each walks over what is chosen, in batches, and changes a batch in one transaction. Raises StoreError when it
can't be written; what is done by then stays so, and the rest is as before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import bridge.store.changes as changes
import bridge.store.letters as letters
import bridge.store.moves as moves
import bridge.store.waiting as waiting
from bridge.core.event import Event
from bridge.core.journal import NO_JOURNAL, Journal, What
from bridge.core.ports import NO_LANE
from bridge.store.access import Access
from bridge.store.changes import Change
from bridge.store.letters import Count, Filter, Summary
from bridge.store.schema import JOB_FAILED, ROUTES, SPOOLED
from bridge.store.waiting import Choice, Known, Waiting
from bridge.store.walk import Walk

_Row = TypeVar("_Row", Summary, Waiting)

_OVERHEAD = 500
"""Bytes of a row beside its event, about."""

NEVER_IN_A_LANE = "never reached a lane, and no route could choose one: replay it --to a service"
UNREAD = "no event, but what its source was told: only that source could read it"
NO_SUCH_LANE = "its service is not in the configuration any more: replay it --to another"
NO_SUCH_SOURCE = "its source is not in the configuration any more: replay it --to a service"
HAS_A_LANE = "its service is in the configuration: the lane takes it"
HAS_A_SOURCE = "its source is in the configuration, and will take it"
SPOOLED_ONLY = "no event yet, but what its source was told: it can only be buried"
KEPT_FOR_IT = "kept for that service already"
ON_ITS_WAY = "on its way round its routes again"
ITS_JOB_FAILED = "its job ran and failed: only a replay as a new event makes another"


async def replay(
    access: Access,
    chosen: Filter,
    *,
    known: Known | None = None,
    as_new: bool = False,
    to: str | None = None,
    dry_run: bool = False,
    journal: Journal = NO_JOURNAL,
) -> Count:
    """Park the dead letters chosen, each in its old place: their lanes make the attempts.

    Those that a route could not choose a service for go round the routes of their source again; with `to`
    all are for that service instead. As new events they get a fresh identity each: the old one and `+n`,
    n rising. Refused are those that have nowhere to go, where `known` tells what
    there is, and, if not as new, those whose job failed. Raises StoreError when it can't be written;
    what is replayed by then stays so, and the rest are dead letters as before.
    """

    def refuse(letter: Summary) -> str | None:
        if letter.cause == moves.SOURCE_REMOVED:
            return UNREAD
        if letter.cause == JOB_FAILED and not as_new:
            return ITS_JOB_FAILED
        if to is not None:
            return None
        if letter.service:
            return NO_SUCH_LANE if known is not None and letter.service not in known.services else None
        if letter.cause not in ROUTES:
            return NEVER_IN_A_LANE
        return NO_SUCH_SOURCE if known is not None and letter.source not in known.sources else None

    return await _change(
        access,
        letters.walk(chosen),
        refuse,
        partial(moves.replay, as_new=as_new, to=to),
        partial(_note, journal, "replayed", to=to, detail="as a new event" if as_new else ""),
        to=to,
        dry_run=dry_run,
    )


async def again(access: Access, event: Event) -> str:
    """Park `event` to go round the routes of its source once more, as a new event; return the id of that.

    Raises StoreFullError at the budget, StoreError when it can't be written.
    """
    return await access.write(partial(moves.again, event=event), event.size + len(event.id) + _OVERHEAD)


async def discard(
    access: Access, chosen: Filter, *, dry_run: bool = False, journal: Journal = NO_JOURNAL
) -> Count:
    """Delete the dead letters chosen. Raises StoreError as `replay` does."""
    return await _change(
        access,
        letters.walk(chosen),
        lambda _letter: None,
        changes.discard,
        partial(_note, journal, "discarded"),
        dry_run=dry_run,
    )


async def move(
    access: Access,
    chosen: Choice,
    to: str,
    known: Known,
    *,
    dry_run: bool = False,
    journal: Journal = NO_JOURNAL,
) -> Count:
    """Park the stranded events chosen for the service `to` instead, each in its old place.

    Refused are those for a service that is known, for its lane may have them in hand. Raises StoreError as
    `replay` does.
    """

    def refuse(event: Waiting) -> str | None:
        return SPOOLED_ONLY if event.reason == SPOOLED else _taken_care_of(event, known)

    return await _change(
        access,
        waiting.walk(chosen, known),
        refuse,
        partial(moves.move, to=to),
        partial(_note, journal, "moved", to=to),
        to=to,
        dry_run=dry_run,
    )


async def bury(
    access: Access,
    chosen: Choice,
    known: Known,
    *,
    dry_run: bool = False,
    journal: Journal = NO_JOURNAL,
) -> Count:
    """Make dead letters of the stranded events chosen. Raises StoreError as `replay` does."""
    return await _change(
        access,
        waiting.walk(chosen, known),
        lambda event: _taken_care_of(event, known),
        moves.bury,
        lambda event: _note(journal, "dead", event, cause=moves.cause_of(event.reason)),
        dry_run=dry_run,
    )


async def _change(
    access: Access,
    walk: Walk[_Row],
    refuse: Callable[[_Row], str | None],
    change: Callable[..., tuple[int, Change]],
    note: Callable[[_Row], None],
    *,
    to: str | None = None,
    dry_run: bool,
) -> Count:
    """Change what the walk gives but for what `refuse` has a reason for, or is kept for `to` already.

    `note` gets each row that was changed.
    """
    count = Count()
    while batch := await access.read(walk.next):
        numbers: list[int] = []
        for row in batch:
            if reason := refuse(row):
                count.refused[reason] = count.refused.get(reason, 0) + 1
            else:
                numbers.append(row.number)
        if to is not None and numbers:
            free = await access.read(partial(moves.free, numbers=numbers, service=to))
            if len(free) < len(numbers):
                more = len(numbers) - len(free)
                count.refused[KEPT_FOR_IT] = count.refused.get(KEPT_FOR_IT, 0) + more
            numbers = free
        if dry_run:
            count.changed += len(numbers)
        elif numbers:
            changed = await access.write(partial(change, numbers=numbers))
            count.changed += changed
            if changed:  # all of them, but for what another command has changed at the same time
                wanted = frozenset(numbers)
                for row in batch:
                    if row.number in wanted:
                        note(row)
    return count


def _note(
    journal: Journal,
    what: What,
    row: Summary | Waiting,
    *,
    to: str | None = None,
    cause: str = "",
    detail: str = "",
) -> None:
    """Write down what a person had done with an event that is kept, and for which service it is now."""
    event = Event(id=row.event_id, source=row.source, type="", data=b"", subject=row.subject)
    service = row.service if to is None else to
    journal.note(what, event, service, cause=cause, detail=detail, number=row.number)


def _taken_care_of(event: Waiting, known: Known) -> str | None:
    if event.reason == SPOOLED:
        return HAS_A_SOURCE if event.source in known.sources else None
    if event.service == NO_LANE:
        return ON_ITS_WAY
    return HAS_A_LANE if event.service in known.services else None
