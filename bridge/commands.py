"""Commands on events that are kept: by a running daemon, or on the store itself when none runs.

Either way they only mark rows. Invoking is the lane's, at its own pace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from bridge.core.errors import StoreError, StoreLockedError
from bridge.core.event import Event
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.pipeline.decisions import matcher
from bridge.settings import Settings
from bridge.settings.expressions import mistakes_in
from bridge.store import Choice, Count, Filter, JournalFiles, Known, Store, Summary, orders
from bridge.store.schema import FILE
from bridge.telemetry.metrics import Metrics
from bridge.values import Document
from bridge.web.socket import ask


class Command(Document):
    """What to do, with which events: those to which every condition given applies.

    `replay` and `discard` are for dead letters, `move` and `bury` for events that nothing will take.
    """

    do: Literal["replay", "discard", "move", "bury"]
    as_new: bool = False
    """Replay with a fresh identity, so that OSCAR makes another job."""
    to: str | None = None
    """The service to replay or move to, in place of the event's own."""
    dry_run: bool = False
    """Count only."""
    numbers: Annotated[tuple[int, ...], Field(fail_fast=True)] | None = None
    service: str | None = None
    source: str | None = None
    """By identity; of events that nothing will take."""
    cause: str | None = None
    older_than: float | None = Field(default=None, ge=0)
    """Seconds since it was given up."""
    younger_than: float | None = Field(default=None, ge=0)
    kept_before: float | None = Field(default=None, ge=0)
    """Given up before this time, seconds since 1970 UTC: so it means the same however late it comes."""
    when: str | None = None
    """CEL over the event, as in a route. One that lacks a key it names is not meant."""


def known(settings: Settings) -> Known:
    """Return what the configuration has."""
    sources = frozenset(config.identity or key for key, config in settings.sources.items())
    return Known(settings.services.keys(), sources)


async def carry_out(
    store: Store, there: Known, command: Mapping[str, Any], journal: Journal = NO_JOURNAL
) -> dict[str, Any]:
    """Do what `command` says, and write it down; `there` is what the configuration has.

    Raises ValueError for a command that can't be understood, and StoreError.
    """
    wanted = Command.read(command)
    if wanted.to is not None and wanted.to not in there.services:
        raise ValueError(f"the bridge that runs has no service {wanted.to!r}")
    count = await _carry_out(store, there, wanted, journal)
    return {"changed": count.changed, "refused": count.refused}


async def _carry_out(store: Store, there: Known, wanted: Command, journal: Journal) -> Count:
    if wanted.do in ("move", "bury"):
        choice = Choice(numbers=wanted.numbers, service=wanted.service, source=wanted.source)
        if wanted.do == "bury":
            return await orders.bury(store, choice, there, dry_run=wanted.dry_run, journal=journal)
        if wanted.to is None:
            raise ValueError("say which service to move to")
        return await orders.move(store, choice, wanted.to, there, dry_run=wanted.dry_run, journal=journal)
    chosen = Filter(
        numbers=wanted.numbers,
        service=wanted.service,
        cause=wanted.cause,
        older_than=wanted.older_than,
        younger_than=wanted.younger_than,
        kept_before=wanted.kept_before,
        matches=None if wanted.when is None else _matching(wanted.when),
    )
    if wanted.do == "discard":
        return await orders.discard(store, chosen, dry_run=wanted.dry_run, journal=journal)
    return await orders.replay(
        store,
        chosen,
        known=there,
        as_new=wanted.as_new,
        to=wanted.to,
        dry_run=wanted.dry_run,
        journal=journal,
    )


async def give(settings: Settings, command: Command) -> Count:
    """Have `command` carried out: by the daemon of `state_dir`, or here, under its lock, when none runs.

    Raises as `ordered` does.
    """
    document = command.model_dump()
    there = known(settings)
    answer = await ordered(
        settings, document, lambda store, journal: carry_out(store, there, document, journal)
    )
    return Count(changed=answer["changed"], refused=dict(answer["refused"]))


async def ordered(
    settings: Settings,
    document: Mapping[str, Any],
    here: Callable[[Store, Journal], Awaitable[Mapping[str, Any]]],
) -> Mapping[str, Any]:
    """Return what the daemon of `state_dir` answers to `document`; when none runs what `here` does.

    That is done under the lock of the store. Raises ValueError, StoreError, also when there is no store, and
    OSError when a daemon runs and gives no answer.
    """
    answer = ask(settings.state_dir, document) if settings.state_dir.is_dir() else None
    if answer is not None:
        return answer
    if not (settings.state_dir / FILE).exists():
        raise StoreError(
            f"there is no store in {settings.state_dir}: is state_dir right, and has the bridge run?"
        )
    try:
        metrics = Metrics()
        async with (
            Store.open(settings.state_dir, metrics, settings.store) as store,
            JournalFiles.open(settings.state_dir, metrics, settings.journal, store.now) as journal,
        ):
            return await here(store, journal)
    except StoreLockedError as error:
        raise StoreError(f"{error}, which takes no command now: it starts or stops; try again") from error


def _matching(when: str) -> Callable[[Summary, Event], bool]:
    if mistakes := mistakes_in(when):
        raise ValueError("; ".join(mistakes))
    matches = matcher(when)
    return lambda _summary, event: matches(event)
