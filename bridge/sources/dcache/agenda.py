"""Which directories are to be listed, and which of them first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bridge.sources.dcache.progress import Phase, Progress
from bridge.sources.dcache.scope import Scope


@dataclass(slots=True)
class Listing:
    """Some directories that are listed with all below them."""

    paths: Sequence[str]
    """The directories it began with."""
    is_complete: bool
    """It lists all there is to watch."""
    number: int
    """What the store calls it. A listing that is not complete has the number of the last complete one."""
    began: int
    """The agenda's count when it began."""
    channel: int
    """The agenda's count of channels when it began."""
    unfinished: int
    """How many directories are still to be listed."""
    has_failed: bool = False
    """Not everything was seen, so nothing may be forgotten."""
    is_full: bool = False
    """The store had no room for everything that was found."""
    unseen: list[str] = field(default_factory=list)
    """Directories that are there and could not be read."""


class Directory(NamedTuple):
    """One directory that is to be watched and listed."""

    path: str
    pnfsid: str | None
    """Its PNFS-ID, if the directory above it was listed just before."""
    listing: Listing
    """The listing that it is a part of."""


class Agenda:
    """Takes from the stream what is to be listed, and gives it to the lister, one directory at a time.

    First come directories that events were about, then those that were found below others.
    """

    def __init__(self, scope: Scope, progress: Progress, *, recursive: bool) -> None:
        self._scope = scope
        self._progress = progress
        self._recursive = recursive
        self._count = 0
        """Counts requests and beginnings, to know which of two came first."""
        self._channel = 0
        """Counts channels: a listing that began on an earlier one is abandoned."""
        self._requested: dict[str, int] = {}
        """Directories that events were about, the oldest request first, and the count of the last request."""
        self._under_way: dict[str, int] = {}
        """Where listings that have not ended began, and the count of that."""
        self._found: deque[Directory] = deque()
        """Directories found below others. The deepest are taken first, so that they stay few."""
        self._has_work = asyncio.Event()

    # What the stream asks for

    def list_soon(self, path: str) -> None:
        """Have the directory `path`, if it is to be watched, listed soon with all below it."""
        if self._scope.has_directory(path):
            self._requested[path] = self._next_count()
            self._has_work.set()

    def list_all_soon(self) -> None:
        """Have everything listed: events were missed, or may have been."""
        self._progress.want()
        self._has_work.set()

    def replace_channel(self) -> None:
        """Abandon what is under way: no watch is left. Once the new channel is connected, all is listed."""
        self._channel += 1
        self._progress.replace_channel()
        self._requested.clear()
        self._under_way.clear()
        self._found.clear()

    # What the lister takes

    async def wait(self) -> None:
        """Return when there may be something to list."""
        self._has_work.clear()
        await self._has_work.wait()

    def begin_complete(self) -> Listing | None:
        """Begin the complete listing that is wanted; its directories are added later. None if none is."""
        if self._progress.phase is not Phase.WANTED:
            return None
        self._progress.begin()
        return self._begin(self._scope.roots, is_complete=True)

    def next_directory(self) -> Directory | None:
        """Take the directory that is to be listed next; None when there is none."""
        while self._requested:
            path = next(iter(self._requested))
            if not self._is_covered(path, self._requested.pop(path)):
                return Directory(path, None, self._begin([path], is_complete=False))
        return self._found.pop() if self._found else None

    def add(self, found: Iterable[Directory]) -> None:
        """Have these listed as parts of their listings."""
        self._found.extend(found)
        self._has_work.set()

    def is_abandoned(self, listing: Listing) -> bool:
        """Return whether `listing` began on a channel that has been replaced."""
        return listing.channel != self._channel

    def end(self, listing: Listing) -> None:
        """Note that all directories of `listing` have been watched and listed."""
        for path in listing.paths:
            if self._under_way.get(path) == listing.began:
                del self._under_way[path]
        if listing.is_complete:
            self._progress.has_watched_all = True

    def end_complete(self, listing: Listing) -> None:
        """Note that all is done that follows `listing`, so that another may begin if it is wanted."""
        if not self.is_abandoned(listing):
            self._progress.end()
        self._has_work.set()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is requested or under way."""
        return not (self._requested or self._under_way)

    def _begin(self, paths: Sequence[str], *, is_complete: bool) -> Listing:
        began = self._next_count()
        self._under_way |= dict.fromkeys(paths, began)
        return Listing(paths, is_complete, self._progress.newest, began, self._channel, len(paths))

    def _is_covered(self, path: str, requested: int) -> bool:
        """Return whether a listing of `path`, or from above it, began after the request, or is to begin."""
        for above in _ways_up(path) if self._recursive else (path,):
            if self._under_way.get(above, 0) > requested or (above != path and above in self._requested):
                return True
        return False

    def _next_count(self) -> int:
        self._count += 1
        return self._count


def _ways_up(path: str) -> Iterator[str]:
    """Return `path`, the directory that it is in, and so on up to `/`."""
    yield path
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
