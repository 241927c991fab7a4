"""What a running bridge is asked, over its socket and over HTTP; answering changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from bridge.core.event import readable
from bridge.settings import Settings
from bridge.status import MOST_HOURS, Status
from bridge.store import Choice, Summary, Waiting, page_of_dead_letters, page_of_waiting, read_dead_letter
from bridge.store.paging import Page, Sought
from bridge.store.schema import LARGEST
from bridge.values import Document, mistakes
from bridge.web.answers import NotThereError
from bridge.why import AskHands, why

_MOST_READING = 2
"""Questions that read the store at once, each in a thread of its own."""
_MOST_ROWS = 500
_MOST_DATA = 2**16
"""Bytes of an event's data that are shown."""


class _StatusAsked(Document):
    do: Literal["status"]


class _HistoryAsked(Document):
    do: Literal["history"]
    hours: float = Field(default=6.0, gt=0, le=MOST_HOURS)


class _PageAsked(Document):
    service: str | None = None
    text: str | None = Field(default=None, max_length=1000)
    before: int | None = Field(default=None, ge=0, le=LARGEST)
    limit: int = Field(default=50, ge=1, le=_MOST_ROWS)


class _DeadLettersAsked(_PageAsked):
    do: Literal["dead-letters"]
    cause: str | None = None


class _ParkedAsked(_PageAsked):
    do: Literal["parked"]
    source: str | None = None
    """By identity; of what its stream told and nothing has read yet."""


class _DeadLetterAsked(Document):
    do: Literal["dead-letter"]
    number: int


class _EventsAsked(Document):
    do: Literal["events"]
    query: str = Field(min_length=1)
    source: str | None = None


_Asked = _StatusAsked | _HistoryAsked | _DeadLettersAsked | _DeadLetterAsked | _ParkedAsked | _EventsAsked
_ASKED: TypeAdapter[_Asked] = TypeAdapter(Annotated[_Asked, Field(discriminator="do")])
_ALL = frozenset({"status", "history", "dead-letters", "dead-letter", "parked", "events"})


class Questions:
    """Answers what is asked of a running bridge."""

    def __init__(self, settings: Settings, status: Status, ask_hands: AskHands) -> None:
        """Answer about what is configured as `settings`; `ask_hands` looks for events in hand."""
        self._settings = settings
        self._status = status
        self._state_dir = settings.state_dir
        self._ask_hands = ask_hands
        self._reading = asyncio.Semaphore(_MOST_READING)
        self._searching = asyncio.Lock()

    @staticmethod
    def is_meant(command: Mapping[str, Any]) -> bool:
        """Tell whether a command that came is a question."""
        do = command.get("do")
        return isinstance(do, str) and do in _ALL

    async def answer(self, command: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer `command`.

        Raises NotThereError, another ValueError for one that can't be understood, and StoreError.
        """
        try:
            asked = _ASKED.validate_python(command)
        except ValidationError as error:
            raise ValueError(mistakes(error)) from error
        match asked:
            case _StatusAsked():
                return await self._status.document()
            case _HistoryAsked(hours=hours):
                return await self._status.history(hours)
            case _EventsAsked():
                return await self._events(asked.query, asked.source)
        # Beside the thread that reads for the lanes: they must not wait for who looks through the store.
        async with self._reading:
            return await asyncio.to_thread(self._read, asked)

    async def _events(self, query: str, source: str | None) -> Mapping[str, Any]:
        if source is not None and source not in self._settings.sources:
            raise ValueError(f"the bridge that runs has no source {source!r}")
        async with self._searching:  # one at a time: each reads all of the journal
            return (await why(self._settings, query, source, self._ask_hands)).document()

    def _read(self, asked: _DeadLettersAsked | _DeadLetterAsked | _ParkedAsked) -> dict[str, Any]:
        if isinstance(asked, _DeadLetterAsked):
            return self._dead_letter(asked.number)
        sought = Sought(asked.text, asked.before, asked.limit)
        if isinstance(asked, _DeadLettersAsked):
            now = time.time()  # before it is read: all that was kept earlier is in it
            found = page_of_dead_letters(self._state_dir, sought, service=asked.service, cause=asked.cause)
            return _shown(found) | {"now": now}
        if asked.service is not None and asked.source is not None:
            raise ValueError("`source` is of events that have no service yet: leave out `service`")
        return _shown(
            page_of_waiting(self._state_dir, sought, Choice(service=asked.service, source=asked.source))
        )

    def _dead_letter(self, number: int) -> dict[str, Any]:
        found = read_dead_letter(self._state_dir, number)
        if found is None:
            raise NotThereError(f"there is no dead letter {number}")
        letter, event = found
        data, encoding = readable(event.data, _MOST_DATA)
        return {
            **_row(letter),
            "time": None if event.time is None else event.time.isoformat(),
            "attributes": dict(event.attributes),
            "data": data,
            "data_encoding": encoding,
        }


def _shown(page: Page[Any]) -> dict[str, Any]:
    return {"total": page.total, "letters": [_row(row) for row in page.rows], "next": page.next}


_NAMES = {"event_id": "id", "size": "bytes"}
"""What the store calls otherwise."""


def _row(row: Summary | Waiting) -> dict[str, Any]:
    return {_NAMES.get(name, name): getattr(row, name) for name in row.__dataclass_fields__}
