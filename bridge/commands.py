"""Commands on dead letters: by a running daemon, or on the store itself when none runs.

Either way they only mark rows. Invoking is the lane's, at its own pace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.pipeline.router import matcher
from bridge.settings import Settings
from bridge.settings.references import mistakes_in
from bridge.store import Count, Filter, Store, Summary
from bridge.store.schema import FILE
from bridge.telemetry.metrics import Metrics
from bridge.values import Model
from bridge.web.socket import ask


class Command(Model):
    """What to do, with which dead letters: those to which every condition given applies."""

    do: Literal["replay", "discard"]
    as_new: bool = False
    """Replay with a fresh identity, so that OSCAR makes another job."""
    dry_run: bool = False
    """Count only."""
    numbers: tuple[int, ...] | None = None
    service: str | None = None
    cause: str | None = None
    older_than: float | None = Field(default=None, ge=0)
    """Seconds since it was given up."""
    younger_than: float | None = Field(default=None, ge=0)
    when: str | None = None
    """CEL over the event, as in a route. One that lacks a key it names is not meant."""


async def carry_out(store: Store, lanes: Collection[str], command: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `command` says; `lanes` are the services that the configuration has.

    Raises ValueError for a command that can't be understood, and StoreError.
    """
    try:
        wanted = Command.model_validate(command)
    except ValidationError as error:
        raise ValueError("; ".join(f"{e['loc']}: {e['msg']}" for e in error.errors())) from error
    chosen = Filter(
        numbers=wanted.numbers,
        service=wanted.service,
        cause=wanted.cause,
        older_than=wanted.older_than,
        younger_than=wanted.younger_than,
        matches=None if wanted.when is None else _matching(wanted.when),
    )
    if wanted.do == "discard":
        count = await store.discard(chosen, dry_run=wanted.dry_run)
    else:
        count = await store.replay(chosen, lanes=lanes, as_new=wanted.as_new, dry_run=wanted.dry_run)
    return {"changed": count.changed, "refused": count.refused}


async def give(settings: Settings, command: Command) -> Count:
    """Have `command` carried out: by the daemon of `state_dir`, or here, under its lock, when none runs.

    Raises ValueError, StoreError, also when there is no store, and OSError when a daemon runs and gives no
    answer.
    """
    document = command.model_dump()
    answer = ask(settings.state_dir, document) if settings.state_dir.is_dir() else None
    if answer is None:
        if not (settings.state_dir / FILE).exists():
            raise StoreError(
                f"there is no store in {settings.state_dir}: is state_dir right, and has the bridge run?"
            )
        async with Store.open(settings.state_dir, Metrics(), settings.store) as store:
            answer = await carry_out(store, settings.services.keys(), document)
    return Count(changed=answer["changed"], refused=dict(answer["refused"]))


def _matching(when: str) -> Callable[[Summary, Event], bool]:
    if mistakes := mistakes_in(when):
        raise ValueError("; ".join(mistakes))
    matches = matcher(when)
    return lambda _summary, event: matches(event)
