"""Events that wait in the store to be sent as one, and whose ids are remembered once they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import bridge.store.window_rows as rows
from bridge.core.event import Event
from bridge.core.windows import Closed, Joined, Member, Name, Part, Policy
from bridge.store.access import Access
from bridge.store.schema import event_columns

_FOR_IDS = 8
"""One part in so many of the budget may be taken by the ids of members that were sent."""


def most_remembered(max_bytes: int) -> int:
    """Return how many bytes of a store's budget the ids of members may take that were sent."""
    return max_bytes // _FOR_IDS


class Windows:
    """The WindowKeeper (`core.windows`) of a store. Made by `Store.open`."""

    def __init__(self, access: Access, most_remembered: int) -> None:
        """Keep ids in at most `most_remembered` bytes."""
        self._access = access
        self._most = most_remembered

    def now(self) -> float:
        """Return seconds since 1970 UTC that go on steadily."""
        return self._access.steady()

    async def begin(
        self, policy_of: Callable[[Name], Policy | None], sources: Collection[str] | None = None
    ) -> float:
        """Have windows follow their routes as they are now. Raise StoreError."""
        return await self._access.write(
            partial(rows.begin, policy_of=policy_of, sources=sources, now=self.now())
        )

    async def join(self, members: Sequence[Member]) -> tuple[Sequence[Joined], float]:
        """Keep members in their windows. Raise StoreFullError, StoreError."""
        columns = [event_columns(each.event, each.window.service) for each in members]
        size = sum(map(rows.size, columns))
        joining = list(zip(members, columns, strict=True))
        return await self._access.write(partial(rows.join, joining=joining, now=self.now()), size)

    async def close(
        self, limit: int, policy_of: Callable[[Name], Policy | None], unheard: Collection[str] = ()
    ) -> tuple[Sequence[Closed], float]:
        """Close what is due; return windows that are closed, and when the next is due. Raise StoreError."""
        return await self._access.write(
            partial(rows.close, policy_of=policy_of, unheard=unheard, now=self.now(), limit=limit)
        )

    async def members(self, windows: Sequence[Closed]) -> Mapping[int, Sequence[tuple[int, Event]]]:
        """Return the first members of `windows`, by the window's number. Raise StoreError."""
        return await self._access.read(partial(rows.members, windows=windows))

    async def send(self, parts: Sequence[Part]) -> tuple[Collection[int], int]:
        """Put what the parts are in the place of their members. Raise StoreError."""
        return await self._access.write(partial(rows.send, parts=parts, now=self.now(), most=self._most))
