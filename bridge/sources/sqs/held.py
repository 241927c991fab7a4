"""What of a queue is in the bridge's hands, and in which order a FIFO queue's groups go."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event

LONGEST_HOLD = 12 * 3600.0 - 60.0
"""Seconds that a message can be kept invisible from its receipt on: SQS's 12 hours, less some for the way."""


class Held:
    """One message from its receipt until it is deleted or given back. Times are monotonic seconds."""

    __slots__ = (
        "delivery",
        "due",
        "failures",
        "gives_way",
        "group",
        "id",
        "not_before",
        "receipt",
        "received",
    )

    def __init__(
        self,
        event: Event,
        receipt: str,
        group: str | None,
        settled: Callable[[Held, Outcome], None],
        *,
        fault: str | None = None,
        nearly_dead: bool = False,
    ) -> None:
        self.id = event.id
        self.receipt = receipt
        self.group = group
        """Its MessageGroupId, where that means order."""
        self.received = 0.0
        self.gives_way = 0.0
        """When it must be out of the bridge's hands: a little before others can have it."""
        self.due = 0.0
        """When to put that off; infinity while that is under way, and when it can't be any more."""
        self.not_before = 0.0
        """When to try again to put that off, after a failure."""
        self.failures = 0
        """To delete it or to give it back."""
        self.delivery = Delivery(
            event, lambda _, outcome: settled(self, outcome), fault=fault, nearly_dead=nearly_dead
        )

    def is_received(self, now: float, visibility: float) -> None:
        """Note that it was received at `now`, for `visibility` seconds."""
        self.received = now
        self.is_kept(now, visibility)

    def is_kept(self, now: float, visibility: float) -> None:
        """Note that it stays invisible for `visibility` seconds from `now`."""
        self.gives_way = now + visibility - min(visibility / 10, 3.0)
        at = now + visibility / 2
        # What can't be put off by the whole time any more is not: it is given back when that ends.
        self.due = at if at + visibility <= self.received + LONGEST_HOLD else math.inf


class Groups:
    """Lets one message of a FIFO queue's group into the pipeline at a time, in their order."""

    def __init__(self) -> None:
        self._groups: dict[str, deque[Held]] = {}

    @property
    def waiting(self) -> int:
        """How many messages wait for one before them."""
        return sum(map(len, self._groups.values())) - len(self._groups)

    def enter(self, held: Held) -> bool:
        """Take `held` in; whether it may go at once."""
        if held.group is None:
            return True
        group = self._groups.setdefault(held.group, deque())
        group.append(held)
        return len(group) == 1

    def leave(self, held: Held, outcome: Outcome) -> tuple[Held | None, list[Held]]:
        """Take `held` out; give who may go now, and who must be given back because `held` was."""
        group = None if held.group is None else self._groups.get(held.group)
        if held.group is None or group is None or held not in group:
            return None, []
        if outcome is Outcome.RELEASED:
            left: list[Held] = []
            while (last := group.pop()) is not held:
                left.insert(0, last)
        else:
            left = []
            group.popleft()
        if not group:
            del self._groups[held.group]
            return None, left
        return (None, left) if outcome is Outcome.RELEASED else (group[0], left)
