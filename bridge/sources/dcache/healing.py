"""Makes the watches, and lists what they can't have told: what a new directory held, what a gap swallowed."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.core.errors import StoreFullError
from bridge.core.ports import Spool, Spooled
from bridge.sources.dcache.arrivals import (
    ARRIVALS,
    CLOSED,
    MOVED_IN,
    MOVED_OUT,
    Occurrence,
    digest_of,
    version_of,
)
from bridge.sources.dcache.asking import Denied, Missing, Unanswered
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.connection import ChannelGone, Connection, Entry
from bridge.sources.dcache.scope import Scope, joined
from bridge.sources.dcache.state import Position
from bridge.sources.dcache.watches import Watches
from bridge.telemetry.metrics import SourceMetrics

WALKERS = 4
"""Directories dealt with at once."""
PAGE = 1000
"""Entries of a directory asked for at once."""
OVERLAP = 20
"""Entries of which the next page shows at least one again, or something was removed and entries moved up."""
MOST_WAITING = 200_000
"""Occurrences in the store, above which a listing goes slowly: what it finds will still be there later."""
SLOW_SECONDS = 10.0
"""A page, then."""
FULL_SECONDS = 30.0
"""Until all is listed again after the store had no room for what a listing found."""
ATTEMPTS = 6
"""To watch and list a directory, of a listing."""
_PAUSE = 0.25
"""Seconds before the second of them; each pause is twice as long."""
AGAIN_SECONDS = 60.0
"""Until what could not be watched is tried again."""
_MOST_AGAIN = 20
"""Directories, each time."""
_MOST_TOLD = 5


@dataclass(slots=True)
class Listing:
    """Some directories to be listed with all below them."""

    number: int
    complete: bool
    """Of all there is to watch."""
    open: int = 0
    """Directories that are not done."""
    failed: bool = False
    """Not all was seen, so nothing may be forgotten."""
    full: bool = False
    """The store had no room."""


class Healer:
    """Walks directories: watches each, then lists it, so that nothing falls between the two."""

    def __init__(
        self,
        config: DcacheConfig,
        connection: Connection,
        spool: Spool,
        position: Position,
        *,
        scope: Scope,
        watches: Watches,
        append: Callable[[Sequence[Spooled], str | None], Awaitable[None]],
        metrics: SourceMetrics,
        log: Any,
    ) -> None:
        self._recursive = config.recursive
        self._every = config.relist
        self._with_path = config.renames == "arrival"
        self._enters = bool(ARRIVALS & set(config.flags))
        self._flags = sorted({*config.flags, "IN_CREATE", MOVED_IN, MOVED_OUT})
        self._connection = connection
        self._spool = spool
        self._position = position
        self._scope = scope
        self._watches = watches
        self._append = append
        self._metrics = metrics
        self._log = log
        self._urgent: dict[str, None] = {}
        """Directories that events were about, in their order."""
        self._rest: deque[tuple[str, Listing]] = deque()
        """Directories found below others; the deepest first, so that they stay few."""
        self._some = asyncio.Event()
        self._complete: Listing | None = None
        self._again = False
        """A gap came after the complete listing under way had begun."""
        self.number = position.listed or 0
        """Of the newest listing."""
        self.healed = False
        """A complete listing has been done on this channel since the last gap."""
        self.walked = False
        """All directories have been watched on this channel."""
        self.unreadable: dict[str, str] = {}
        """Directories that can't be watched or listed, and why."""
        self.full = False
        """The store had no room for all that the last listing found."""

    # Asking for it

    def look_at(self, path: str) -> None:
        """Have the directory `path` watched and listed soon, with all below it."""
        if self._scope.has_directory(path):
            self._urgent[path] = None
            self._some.set()

    def look_at_all(self) -> None:
        """Have everything listed: there was a gap."""
        self.healed = False
        self._again = True
        self._some.set()

    def new_channel(self) -> None:
        """Hear that the channel is another: no watch is left."""
        self.walked = False
        self.look_at_all()

    def problems(self) -> list[str]:
        """Tell what can't be watched."""
        told = [f"{path} can't be watched: {reason}" for path, reason in self.unreadable.items()]
        more = [f"and {len(told) - _MOST_TOLD} more directories"] if len(told) > _MOST_TOLD else []
        full = ["the store is full: not all that was found could be kept"] if self.full else []
        return [*told[:_MOST_TOLD], *more, *full]

    # Doing it

    async def run(self) -> None:
        """Walk until cancelled. Raises StoreError, in a group; for a full store it only waits."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._try_again(), name="dcache tries again")
            tasks.create_task(self._relist(), name="dcache lists again")
            for number in range(WALKERS):
                tasks.create_task(self._walk(), name=f"dcache walker {number}")

    async def _walk(self) -> None:
        while True:
            if self._again and self._complete is None:
                await self._begin()
            elif self._urgent:
                path = next(iter(self._urgent))
                del self._urgent[path]
                await self._do(path, Listing(self.number, complete=False, open=1))
            elif self._rest:
                await self._do(*self._rest.pop())
            else:
                self._some.clear()
                await self._some.wait()

    async def _begin(self) -> None:
        self._again = False
        listing = self._complete = Listing(0, complete=True, open=len(self._scope.roots))
        listing.number = self.number = await self._spool.next_listing()
        self._log.info("dcache: listing all", listing=listing.number, since=self._position.since)
        self._add([(root, listing) for root in self._scope.roots])

    def _add(self, directories: Sequence[tuple[str, Listing]]) -> None:
        self._rest.extend(directories)
        self._some.set()

    async def _do(self, path: str, listing: Listing) -> None:
        """Watch and list one directory, and try again what dCache does not answer."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1))
            try:
                await self._watch_and_list(path, listing)
                self.unreadable.pop(path, None)
            except ChannelGone:
                continue  # the stream finds out too, and makes another
            except Unanswered as error:
                if attempt < ATTEMPTS - 1:
                    continue
                listing.failed = True
                self._is_unreadable(path, str(error))
            except Missing as error:
                self._is_missing(path, listing, str(error))
            except Denied as error:
                self._is_unreadable(path, str(error))
            except StoreFullError:
                listing.failed = listing.full = True
            break
        else:
            listing.failed = True
            self._urgent[path] = None
        listing.open -= 1
        if listing.open == 0:
            await self._finish(listing)

    async def _try_again(self) -> None:
        """Look from time to time at what could not be watched: it may be mended."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            for path in list(self.unreadable)[:_MOST_AGAIN]:
                self.unreadable[path] = self.unreadable.pop(path)  # the others are first next time
                self.look_at(path)

    async def _relist(self) -> None:
        while True:
            await asyncio.sleep(self._every * random.uniform(0.9, 1.1))
            self.look_at_all()

    def _is_missing(self, path: str, listing: Listing, reason: str) -> None:
        self.unreadable.pop(path, None)
        if path in self._scope.roots:
            listing.failed = True
            self._is_unreadable(path, reason)

    def _is_unreadable(self, path: str, reason: str) -> None:
        if self.unreadable.get(path) != reason:
            self._log.warning("dcache: a directory can't be watched", path=path, reason=reason)
        self.unreadable[path] = reason

    async def _watch_and_list(self, path: str, listing: Listing) -> None:
        subscription = await self._connection.watch(self._position.channel, path, self._flags)
        self._watches.add(subscription, path)
        size, offset, tail = PAGE, 0, frozenset[str]()
        while True:
            if self._spool.waiting > MOST_WAITING:
                await asyncio.sleep(SLOW_SECONDS)
            entries = await self._connection.list_page(path, offset=offset, limit=size)
            if tail and not any(entry.name in tail for entry in entries):
                size, offset, tail = min(2 * size, 100 * PAGE), 0, frozenset()  # some moved up: once more
                continue
            if self._enters:
                await self._enter(path, subscription, entries, listing)
            self._descend(path, entries, listing)
            if len(entries) < size:
                return
            tail = frozenset(entry.name for entry in entries[-OVERLAP:])
            offset += size - OVERLAP

    def _descend(self, path: str, entries: Sequence[Entry], listing: Listing) -> None:
        if not self._recursive:
            return
        below = [joined(path, entry.name) for entry in entries if entry.kind == "DIR"]
        found = [(each, listing) for each in below if self._scope.has_directory(each)]
        listing.open += len(found)
        self._add(found)

    async def _enter(self, path: str, subscription: str, entries: Sequence[Entry], listing: Listing) -> None:
        """Let enter what has not. Its files are known with their versions: no look-up is needed."""
        files: dict[bytes, Entry] = {}
        for entry in entries:
            at = joined(path, entry.name)
            if entry.kind == "REGULAR" and entry.size is not None and self._scope.has_file(at):
                files[digest_of(version_of(at, entry, with_path=self._with_path))] = entry
        if not files:
            return
        entered = await self._spool.entered(files.keys())
        if entered:
            await self._spool.shown(entered, listing.number)
        since = self._position.since
        old = [
            digest
            for digest, entry in files.items()
            if digest not in entered and since is not None and entry.mtime < since * 1000
        ]
        if old:
            await self._spool.mark(old, listing.number)
        new = files.keys() - entered - set(old)
        if new:
            rows = [
                Occurrence(
                    directory=path, name=entry.name, mask=[CLOSED], subscription=subscription, entry=entry
                ).spooled(f"listed/{digest.hex()}")
                for digest, entry in sorted(files.items(), key=lambda each: each[1].mtime)
                if digest in new
            ]
            await self._append(rows, None)
            self._log.debug("dcache: found by listing", path=path, files=len(rows))

    async def _finish(self, listing: Listing) -> None:
        if not listing.complete:
            if listing.full:
                self.full = True
                self.look_at_all()
            return
        self.full = listing.full
        self.walked = True
        forgotten = 0
        if not listing.full and not self._again:
            if not listing.failed:
                if self._position.listed is not None:
                    # Not what this listing alone has not shown: a file may have been moved past it.
                    forgotten = await self._spool.forget_unshown(self._position.listed)
                self._position.listed = listing.number
            self._position.since = None
            await self._append((), self._position.text())
            self.healed = not self._again
        self._log.info(
            "dcache: all is listed",
            listing=listing.number,
            directories=len(self._watches),
            forgotten=forgotten,
            complete=not listing.failed,
        )
        if listing.full:
            self._log.warning("dcache: the store had no room for all that was found: it is listed again")
            await asyncio.sleep(FULL_SECONDS)
            self._again = True
        self._complete = None
        self._some.set()
