"""An Event in the bridge's hands, owed an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from time import monotonic

from bridge.core.event import Event


class Outcome(IntEnum):
    """How a Delivery ended, in worst-of order: a parent takes the greatest of its children's."""

    FILTERED = 0
    """No route wanted it."""
    ACCEPTED = 1
    """OSCAR accepted its invocation."""
    PARKED = 2
    """Durably in the store, waiting for its lane."""
    DEAD_LETTERED = 3
    """Durably in the store, given up, with its cause."""
    RELEASED = 4
    """Given back upstream: shutdown, source lost, partition revoked, an upstream deadline."""


Watcher = Callable[["Delivery", Outcome], None]


class Delivery:
    """An Event with one answer owed to its source.

    `settle` is synchronous, the first call wins, and it never blocks or raises: watchers only
    record, and the source's own task commits, deletes and heartbeats. Watchers must not raise.
    """

    __slots__ = (
        "_children",
        "_open_children",
        "_watchers",
        "_worst",
        "event",
        "fault",
        "nearly_dead",
        "outcome",
        "since",
    )

    def __init__(
        self,
        event: Event,
        on_settled: Watcher | None = None,
        *,
        fault: str | None = None,
        nearly_dead: bool = False,
        since: float | None = None,
    ) -> None:
        self.event = event
        self.fault = fault
        """Why its source can't read it, for a person: no route can want it, so it becomes a dead letter."""
        self.nearly_dead = nearly_dead
        """Half of the deliveries that its upstream allows are used up: it is parked as it comes, not held."""
        self.since = monotonic() if since is None else since
        """When it came into the bridge's hands, by the monotonic clock."""
        self.outcome: Outcome | None = None
        """None while it is owed an answer."""
        self._watchers: list[Watcher] | None = None if on_settled is None else [on_settled]
        self._children: list[Delivery] | None = None
        self._open_children = 0
        self._worst = Outcome.FILTERED

    def __repr__(self) -> str:
        state = "unsettled" if self.outcome is None else self.outcome.name
        return f"<Delivery {self.event.source}:{self.event.id} {state}>"

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher(self, outcome)` once this settles: at once if it has already."""
        if self.outcome is not None:
            watcher(self, self.outcome)
        elif self._watchers is None:
            self._watchers = [watcher]
        else:
            self._watchers.append(watcher)

    def settle(self, outcome: Outcome, by: Watcher | None = None) -> None:
        """Answer the source; a second answer is ignored.

        The watcher `by` is not called: it is that of the caller, who knows. A parent that is settled from
        above (its source is lost) settles its open children with it, so that none of them stays in a lane
        beside its own redelivery.
        """
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self._open_children:
            children, self._children = self._children or [], None
            for child in children:
                child.settle(outcome)
        watchers, self._watchers = self._watchers, None
        for watcher in watchers or ():
            if watcher is not by:
                watcher(self, outcome)

    def split(self, events: Sequence[Event]) -> list[Delivery]:
        """Make one child for each of `events`; this settles with the worst outcome of theirs.

        Without events this settles FILTERED at once. Raises ValueError when split twice.
        """
        if self._children is not None:
            raise ValueError("a Delivery can be split only once")
        if not events:
            self.settle(Outcome.FILTERED)
            return []
        children = [Delivery(event, self._child_settled, nearly_dead=self.nearly_dead) for event in events]
        if self.outcome is not None:
            for child in children:
                child.settle(self.outcome)
            return children
        self._children = children
        self._open_children = len(children)
        return list(children)

    def _child_settled(self, _child: Delivery, outcome: Outcome) -> None:
        self._worst = max(self._worst, outcome)
        self._open_children -= 1
        if self._open_children == 0:
            self.settle(self._worst)


def watch_all(deliveries: Iterable[Delivery], watcher: Watcher) -> None:
    """Have each of `deliveries` call `watcher` once it settles, as `watch` does."""
    for delivery in deliveries:
        watchers = delivery._watchers  # noqa: SLF001 - of the class above, whose `watch` is a call for each
        if watchers is None:
            delivery.watch(watcher)
        else:
            watchers.append(watcher)
