"""One source's part of the store, where its upstream keeps nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import bridge.store.spool_rows as rows
from bridge.core.ports import Spooled
from bridge.store.access import Access
from bridge.store.changes import Done

_CHUNK = 4000
"""Marks that one transaction deals with: others are written between two of them."""


class SourceSpool:
    """The Spool (`core.ports`) of one source. Made by `Store.spool`, one for each source."""

    def __init__(
        self, source: str, access: Access, kept: Mapping[int, int], marks: Mapping[int, int]
    ) -> None:
        self.number = rows.number_of(source)
        self._source = source
        self._access = access
        self._kept = kept
        self._marks = marks
        self._leaving: dict[int, Done] = {}
        """Occurrences that are done and may not be gone yet, by number."""
        self._marking: Counter[bytes] = Counter()
        """Versions that are marked with them."""

    async def append(self, occurrences: Sequence[Spooled], position: str | None = None) -> None:
        """Return when `occurrences` and `position` are on disk, in one transaction.

        Raises StoreFullError when the budget has no room for them, StoreError when they can't be written.
        Cancelling leaves open whether all or nothing was written.
        """
        written, size = rows.rows_of(self._source, occurrences)
        await self._access.write(
            partial(rows.append, spool=self.number, source=self._source, rows=written, position=position),
            size,
        )

    async def position(self) -> str | None:
        """Return the last position kept; None when there was never one. Raises StoreError."""
        return await self._access.read(partial(rows.position, spool=self.number))

    async def oldest(self, *, without: Collection[int], limit: int) -> Sequence[tuple[int, Spooled]]:
        """Return the oldest occurrences, numbered, but for `without`, those laid aside and those done.

        They are at most `limit`, and fewer where they are big; none only when there is none.
        Raises StoreError.
        """
        if limit <= 0:
            return ()
        others = {*without, *self._leaving}
        return await self._access.read(partial(rows.oldest, source=self._source, without=others, limit=limit))

    async def tried(self, numbers: Collection[int], *, aside: Collection[int]) -> None:
        """Note that `numbers` were tried in vain, and lay those in `aside` aside. Raise StoreError."""
        await self._access.write(partial(rows.tried, numbers=numbers, aside=aside))

    async def take_up(self, after: int, limit: int) -> int | None:
        """Lay aside no longer the first `limit` behind number `after`; return the last, None without any.

        Raise StoreError.
        """
        return await self._access.write(partial(rows.take_up, source=self._source, after=after, limit=limit))

    def done(self, number: int, entered: bytes | None = None) -> None:
        """Take an occurrence away and mark `entered`: soon, with others, and before the store closes."""
        done = Done(number, self.number, entered)
        if number in self._leaving or not self._access.finish(done):
            return
        self._leaving[number] = done
        if entered is not None:
            self._marking[entered] += 1

    def finished(self, done: Done) -> None:
        """Hear that `done` is on disk."""
        del self._leaving[done.number]
        if done.entered is not None:
            self._marking[done.entered] -= 1
            if not self._marking[done.entered]:
                del self._marking[done.entered]

    async def entered(self, versions: Collection[bytes]) -> set[bytes]:
        """Return those of `versions` that are marked, or will be by a `done`. Raises StoreError."""
        marking = {version for version in versions if version in self._marking}
        others = [version for version in versions if version not in marking]
        if not others:
            return marking
        return marking | await self._access.read(partial(rows.entered, spool=self.number, versions=others))

    async def mark(self, versions: Collection[bytes], listing: int) -> None:
        """Mark `versions` as entered, and as shown by `listing`. Raises StoreFullError, StoreError."""
        for some in _chunks(versions):
            await self._access.write(
                partial(rows.mark, spool=self.number, source=self._source, versions=some, listing=listing),
                len(some) * rows.MARK_BYTES,
            )

    async def shown(self, versions: Collection[bytes], listing: int) -> None:
        """Note that `listing` shows those of `versions` that are marked. Raises StoreError."""
        for some in _chunks(versions):
            await self._access.write(partial(rows.show, spool=self.number, versions=some, listing=listing))

    async def forget_unshown(self, listing: int) -> int:
        """Forget the marks that neither `listing` nor a later one has shown; return how many.

        Raises StoreError; what is forgotten by then stays so.
        """
        count, after = 0, b""
        while True:
            forgotten, last = await self._access.write(
                partial(rows.forget_unshown, spool=self.number, listing=listing, after=after, limit=_CHUNK)
            )
            count += forgotten
            if last is None:
                return count
            after = last

    async def next_listing(self) -> int:
        """Return the number of a listing that begins now. Raises StoreError."""
        return await self._access.write(partial(rows.next_listing, spool=self.number, source=self._source))

    def now(self) -> float:
        """Return the time by which what is kept has an age, in seconds since 1970 UTC."""
        return self._access.now()

    @property
    def waiting(self) -> int:
        """How many occurrences are kept; those done are not among them."""
        return self._kept.get(self.number, 0) - len(self._leaving)

    @property
    def remembered(self) -> int:
        """How many versions are marked on disk."""
        return self._marks.get(self.number, 0)


def _chunks(versions: Collection[bytes]) -> Iterator[list[Any]]:
    everything = list(versions)
    for at in range(0, len(everything), _CHUNK):
        yield everything[at : at + _CHUNK]
