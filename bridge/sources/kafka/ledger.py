"""In-order commits over out-of-order completion, one partition at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from bridge.core.delivery import Delivery, Outcome


class Ledger:
    """What of one partition is in the bridge's hands, and how far it may be committed.

    Offsets need not be dense: compaction and transactions leave holes, and a hole counts as settled.
    """

    __slots__ = ("_entries", "committed", "position")

    def __init__(self, start: int, *, committed: int | None = None) -> None:
        self.position = start
        """The next offset to hand out."""
        self.committed = committed
        """What the broker has, as far as this reader knows; None for nothing."""
        self._entries: deque[tuple[int, Delivery]] = deque()

    def __len__(self) -> int:
        """Deliveries handed out and not yet behind the prefix, as of the last `prefix()`."""
        return len(self._entries)

    def add(self, offsets: Sequence[int], deliveries: Sequence[Delivery]) -> None:
        """Note that the Deliveries of the records at `offsets`, at least one, are handed out.

        Offsets come in order.
        """
        self._entries.extend(zip(offsets, deliveries, strict=True))
        self.position = offsets[-1] + 1

    def skip_to(self, position: int) -> None:
        """Note that there is no record from the present position up to `position`."""
        self.position = max(self.position, position)

    def prefix(self) -> int:
        """Give the offset that may be committed: everything before it is settled, and not RELEASED."""
        entries = self._entries
        while entries:
            offset, delivery = entries[0]
            if delivery.outcome is None or delivery.outcome is Outcome.RELEASED:
                return offset
            entries.popleft()
        return self.position

    def unsettled(self) -> Iterator[Delivery]:
        """Give what is owed an answer, oldest first."""
        return (delivery for _, delivery in list(self._entries) if delivery.outcome is None)
