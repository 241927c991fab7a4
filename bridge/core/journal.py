"""What is written down of an event's way, also of one that went well: for a person who asks later."""

from __future__ import annotations

from typing import Literal, Protocol

from bridge.core.event import Event

What = Literal[
    "accepted",
    "dead",
    "discarded",
    "duplicate",
    "ended",
    "failed",
    "filtered",
    "moved",
    "parked",
    "released",
    "replayed",
    "returned",
    "sent",
    "waits",
]
"""What happened. `failed` is one attempt; `returned` is back from the store; one that `waits` has entered a
window, and was `sent` in another event; `ended` says what became of a job that was followed. An event that
goes the straight way has one line, `accepted` or `filtered`."""


class Journal(Protocol):
    """Writes lines about events, some of which may be lost: at a kill, or where the disk is too slow."""

    def note(
        self,
        what: What,
        event: Event,
        service: str = "",
        at: float | None = None,
        since: float | None = None,
        job: str = "",
        attempts: int = 0,
        cause: str = "",
        detail: str = "",
        number: int = 0,
        route: str = "",
        into: str = "",
    ) -> None:
        """Write one line soon, in the background. Never blocks or raises; on the loop's thread alone.

        It happened `at` that monotonic time, now when not given, to an event that has been in the bridge's
        hands `since` then. `service` is the lane's key, `job` its job's name, `attempts` how many were made
        by now, `cause` and `detail` what a dead letter, a failed attempt or a filtered event has, `number`
        the dead letter's, `route` the window's, and `into` the id of the event that it was sent in, or
        goes as once more.
        """


class NoJournal:
    """In place of a journal where none is kept."""

    def note(self, what: What, event: Event, service: str = "", *_more: object, **_others: object) -> None:
        """Do nothing."""

    def problems(self) -> list[str]:
        """Return nothing: there is nothing that could fail."""
        return []


NO_JOURNAL = NoJournal()
