"""`oscar-bridge again ID`: an event that is done goes once more, as a new one, on purpose.

By a running daemon, or on the store itself when none runs. Either way it is parked before that is answered,
and the lanes do the invoking: a kill at any moment leaves one new event, or none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from bridge.commands import known, ordered
from bridge.core.event import Event
from bridge.core.journal import NO_JOURNAL, Journal
from bridge.core.ports import NO_LANE
from bridge.settings import Settings
from bridge.sources import GoneError
from bridge.sources.registry import kind_of
from bridge.store import Filter, Store, find, history, orders
from bridge.store.find import Traces
from bridge.store.history import Needle
from bridge.store.schema import DEAD, WINDOW
from bridge.values import Document
from bridge.why import AskHands, Name

_READ_SECONDS = 20.0
"""For one upstream to give an event once more."""
_JOURNAL_SECONDS = 5.0
"""For the search of the journal: the whole of it takes about half a second."""
_CUT_OFF = "not all of the journal was looked at in the time there was: its oldest lines were left out"


class Order(Document):
    """Which event goes once more."""

    do: Literal["again"] = "again"
    id: str = Field(min_length=1)
    source: str | None = None
    """Key of its source; needed where events of several have that id."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    """What is remembered of an event with the id asked for."""

    first: str
    """The id that it had before it went once more."""
    traces: Traces
    subject: str | None
    is_known: bool
    """Whether anything is."""


class Again:
    """Carries out such orders on the store of this process, one at a time."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        ask_hands: AskHands | None = None,
        journal: Journal = NO_JOURNAL,
    ) -> None:
        """Act for the configuration `settings`; `ask_hands` looks for events in hand, where some may be."""
        self._settings = settings
        self._store = store
        self._ask_hands = ask_hands
        self._journal = journal
        self._one_at_a_time = asyncio.Lock()

    @staticmethod
    def is_meant(command: Mapping[str, Any]) -> bool:
        """Tell whether a command that came is such an order."""
        return command.get("do") == "again"

    async def carry_out(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Do what `command` says; tell which event goes, as which new one or from which dead letters.

        Of those that stay `refused` has the number and the reason, and `notes` tells what was not looked at.
        Raises ValueError with the reason where it can't go, and StoreError.
        """
        wanted = Order.read(command)
        if wanted.source is not None and wanted.source not in self._settings.sources:
            raise ValueError(f"the bridge that runs has no source {wanted.source!r}")
        async with self._one_at_a_time:
            return await self._carry_out(wanted)

    async def _carry_out(self, wanted: Order) -> dict[str, Any]:
        keys = [key for key in self._settings.sources if wanted.source in (None, key)]
        remembered, notes = await asyncio.to_thread(self._remembered, keys, wanted.id)
        sources = [key for key in keys if remembered[key].is_known] or keys
        if len(sources) > 1 and sources is not keys:
            raise ValueError(f"events of {', '.join(sources)} have that id: say of which, with --source")
        reasons = []
        for key in sources:
            try:
                return {"source": key, **await self._send(key, remembered[key]), **notes}
            except GoneError as error:
                reasons.append(f"{key}: {error}")
        reasons += notes.get("notes", ())
        raise ValueError(f"it can't go once more: {'; '.join(reasons)}")

    def _remembered(
        self, keys: Collection[str], event_id: str
    ) -> tuple[dict[str, _Remembered], dict[str, list[str]]]:
        """Read what is remembered of the event with that id, of each source, and note what was not read.

        In a thread.
        """
        state_dir, found = self._settings.state_dir, dict[str, _Remembered]()
        read = history.read(state_dir, Needle(event_id, "exact"), seconds=_JOURNAL_SECONDS)
        lines = read.lines
        for key in keys:
            identity = self._identity(key)
            first = find.first_of(state_dir, identity, event_id)
            traces = find.find(state_dir, [identity], first)
            of_it = [line for line in lines if (line.source, line.id) == (identity, event_id)]
            subject = next((line.subject for line in of_it if line.subject), None)
            known = bool(of_it or traces.kept or traces.renewed)
            found[key] = _Remembered(first, traces, subject, known)
        return found, {"notes": [_CUT_OFF]} if read.more else {}

    def _identity(self, key: str) -> str:
        return self._settings.sources[key].identity or key

    async def _send(self, key: str, event: _Remembered) -> dict[str, Any]:
        """Have the event of the source `key` go once more. Raises GoneError, ValueError and StoreError."""
        ids = {event.first, *event.traces.renewed.values()}
        if self._ask_hands is not None:
            here = await self._ask_hands(Name(event.first))
            for one in here.events:
                if one.source == self._identity(key) and one.event_id in ids:
                    raise ValueError(f"it is not done yet, but in hand: {one.doing}")
        letters = [row.number for row in event.traces.kept if row.reason == DEAD]
        if letters:
            return {"id": event.first, **await self._replay(letters)}
        for row in event.traces.kept:
            if row.service == NO_LANE:
                raise ValueError(f"it goes round its routes already, as {row.event_id}")
            where = "in a window" if row.reason == WINDOW else "parked"
            raise ValueError(f"it is not done yet, but {where} for {row.service}")
        read = await self._read(key, event)
        given = await orders.again(self._store, read)
        self._journal.note("replayed", read, detail="as a new event", into=given)
        return {"id": event.first, "as": given}

    async def _replay(self, letters: Sequence[int]) -> dict[str, Any]:
        """Replay the dead letters of one event; tell which, and why others are refused.

        Raises ValueError where all are.
        """
        replayed, refused = list[int](), dict[int, str]()
        for number in letters:  # each by itself: of several it would not be told which were refused
            count = await orders.replay(
                self._store,
                Filter(numbers=[number]),
                known=known(self._settings),
                as_new=True,
                journal=self._journal,
            )
            if count.changed:
                replayed.append(number)
            else:
                refused[number] = "; ".join(count.refused) or "it was taken meanwhile"
        if not replayed:
            raise ValueError("; ".join(f"dead letter {number}: {why}" for number, why in refused.items()))
        told = [{"dead_letter": number, "reason": why} for number, why in refused.items()]
        return {"dead_letters": replayed} | ({"refused": told} if told else {})

    async def _read(self, key: str, event: _Remembered) -> Event:
        try:
            async with asyncio.timeout(_READ_SECONDS):
                config = self._settings.sources[key]
                return await kind_of(config).read_again(config, event.first, event.subject)
        except TimeoutError:
            raise GoneError(f"its upstream gave no answer within {_READ_SECONDS:g} s") from None


async def give(settings: Settings, order: Order) -> Mapping[str, Any]:
    """Have `order` carried out: by the daemon of `state_dir`, or here, under its lock, when none runs.

    Raises as `Again.carry_out` and `commands.ordered` do.
    """
    return await ordered(
        settings,
        order.model_dump(),
        lambda store, journal: Again(settings, store, journal=journal).carry_out(order.model_dump()),
    )
