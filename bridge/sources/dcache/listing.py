"""Makes the watches, and lists what they can't have told: what a new directory held, what a gap swallowed."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bridge.core.errors import StoreFullError
from bridge.core.ports import Spool, Spooled
from bridge.core.steady import Steady
from bridge.sources.dcache.arrivals import ARRIVALS, MOVED_IN, MOVED_OUT, MOVED_SELF
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.connection import ChannelGone, Connection, Entry
from bridge.sources.dcache.entering import Entering
from bridge.sources.dcache.http import Denied, Missing, Unanswered
from bridge.sources.dcache.scope import Scope, is_at_or_below, joined
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
"""Pause before each page while more than `MOST_WAITING` wait."""
MOST_PAGE = 32_000
"""Entries asked for at once where a directory changes faster than it can be listed in smaller pages: as JSON
they take some 10 MiB."""
FULL_SECONDS = 30.0
"""Until all is listed again after the store had no room for what a listing found."""
ATTEMPTS = 6
"""Tries per directory."""
_PAUSE = 0.25
"""Seconds before the second of them; each pause is twice as long."""
AGAIN_SECONDS = 60.0
"""Until what could not be watched is tried again."""
_MOST_AGAIN = 20
"""Unreadable directories retried per round."""
_MOST_TOLD = 5
_MOST_UNLISTED = 100
"""Directories of which it is remembered that no listing has shown them: they are kept with the position."""


@dataclass(slots=True)
class Listing:
    """Some directories to be listed with all below them."""

    number: int
    complete: bool
    """Of all there is to watch."""
    began: int
    """Logical time of its start."""
    channel: int
    """Generation of the channel; a listing of an older one is abandoned."""
    open: int
    """Directories that are not done."""
    failed: bool = False
    """Not all was seen, so nothing may be forgotten."""
    full: bool = False
    """The store had no room."""
    outdated: bool = False
    """There was a gap since it began: not all is known."""
    paths: Sequence[str] = ()
    """Those it began with."""
    unseen: list[str] = field(default_factory=list)
    """Those that are there and could not be read."""


class Lister:
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
        on_walked: Callable[[], None],
        metrics: SourceMetrics,
        log: Any,
    ) -> None:
        self._recursive = config.recursive
        self._every = config.relist
        self._enters = bool(ARRIVALS & set(config.flags))
        self._flags = sorted({*config.flags, "IN_CREATE", MOVED_IN, MOVED_OUT})
        self._connection = connection
        self._spool = spool
        self._position = position
        self._scope = scope
        self._watches = watches
        self._append = append
        self._entering = Entering(
            spool, position, scope, append, with_path=config.renames == "arrival", log=log
        )
        self._on_walked = on_walked
        self._metrics = metrics
        self._log = log
        self._clock = 0
        """Counts what is asked for and begun, to tell which came first."""
        self._channel = 0
        self._urgent: dict[str, int] = {}
        """Directories that events were about, in their order; and when they were asked for last."""
        self._began: dict[str, int] = {}
        """When the walk of a directory with all below it began, while it is not done."""
        self._rest: deque[tuple[str, str | None, Listing]] = deque()
        """Directories found below others, with their PNFS-IDs; the deepest first, so that they stay few."""
        self._some = asyncio.Event()
        self._complete: Listing | None = None
        self._again = False
        """All is to be listed once more."""
        self.number = position.listed or 0
        """Of the newest listing."""
        self.healed = False
        """A complete listing has been done on this channel since the last gap."""
        self.walked = False
        """All directories have been watched on this channel."""
        self.unreadable: dict[str, str] = {}
        """Directories that can't be watched or listed, and why."""
        self._trouble = Steady()
        """The last of them."""
        self.full = False
        """The store had no room for all that the last listing found."""

    # Asking for it

    def list_soon(self, path: str) -> None:
        """Have the directory `path` watched and listed soon, with all below it."""
        if self._scope.has_directory(path):
            self._urgent[path] = self._tick()
            self._some.set()

    def list_all_soon(self) -> None:
        """Have everything listed: there was a gap."""
        self.healed = False
        self._again = True
        if self._complete is not None:
            self._complete.outdated = True
        self._some.set()

    def new_channel(self) -> None:
        """Hear that the channel is another: no watch is left. Once it is connected, all is listed."""
        self._channel += 1
        self.walked = self.healed = self._again = False
        if self._complete is not None:
            self._complete.outdated = True
            self._complete = None
        self._urgent.clear()
        self._began.clear()
        self._rest.clear()
        self._some.set()

    def problems(self) -> list[str]:
        """Return what can't be watched."""
        told = [_unwatched(path, reason) for path, reason in self.unreadable.items()]
        if not told and self._trouble.problem is not None:
            told = [self._trouble.problem]
        more = [f"and {len(told) - _MOST_TOLD} more directories"] if len(told) > _MOST_TOLD else []
        full = ["the store is full: not all that was found could be kept"] if self.full else []
        return [*told[:_MOST_TOLD], *more, *full]

    # Doing it

    async def run(self) -> None:
        """Walk until cancelled. Raise StoreError, in a group; for a full store it only waits."""
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
                if not self._will_be_listed(path, self._urgent.pop(path)):
                    await self._do(path, None, self._listing([path], complete=False))
            elif self._rest:
                await self._do(*self._rest.pop())
            else:
                self._some.clear()
                await self._some.wait()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _listing(self, paths: Sequence[str], *, complete: bool) -> Listing:
        listing = Listing(self.number, complete, self._tick(), self._channel, open=len(paths), paths=paths)
        self._began |= dict.fromkeys(paths, listing.began)
        return listing

    def _will_be_listed(self, path: str, asked: int) -> bool:
        """Return whether a walk from `path` or above has begun since it was asked for, or is to begin."""
        for above in _ways_up(path) if self._recursive else (path,):
            if self._began.get(above, 0) > asked or (above != path and above in self._urgent):
                return True
        return False

    async def _begin(self) -> None:
        self._again = False
        listing = self._complete = self._listing(self._scope.roots, complete=True)
        listing.number = self.number = await self._spool.next_listing()
        self._log.info("dcache: listing all", listing=listing.number, since=self._position.since)
        await self._compare_watches()
        if listing.channel == self._channel:
            self._add([(root, None, listing) for root in self._scope.roots])

    async def _compare_watches(self) -> None:
        """Be sure of no watch that dCache does not tell of: it is made again, as is done for one unknown."""
        mine = self._watches.keys()
        if not mine:
            return
        try:
            alive = await self._connection.subscriptions(self._position.channel)
        except (Unanswered, Denied, Missing):
            alive = ()
        self._watches.distrust(mine.difference(alive))

    def _add(self, directories: Sequence[tuple[str, str | None, Listing]]) -> None:
        self._rest.extend(directories)
        self._some.set()

    async def _do(self, path: str, pnfsid: str | None, listing: Listing) -> None:
        """Watch and list one directory, and try again what dCache does not answer."""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1))
            if listing.channel != self._channel:
                return
            try:
                await self._watch_and_list(path, pnfsid, listing)
                self._is_readable(path)
            except ChannelGone:
                continue  # the stream finds out too, and makes another
            except Unanswered as error:
                if attempt < ATTEMPTS - 1:
                    continue
                listing.failed = True
                listing.unseen.append(path)
                self._is_unreadable(path, str(error))
            except Missing as error:
                self._is_missing(path, listing, str(error))
            except Denied as error:
                listing.unseen.append(path)
                self._is_unreadable(path, str(error))
            except StoreFullError:
                listing.failed = listing.full = True
            break
        else:
            listing.failed = True
            listing.unseen.append(path)
            self.list_soon(path)
        listing.open -= 1
        if listing.open == 0 and listing.channel == self._channel:
            self._began = {at: began for at, began in self._began.items() if began != listing.began}
            await self._finish(listing)

    async def _try_again(self) -> None:
        """Look from time to time at what could not be watched: it may be mended."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            for path in list(self.unreadable)[:_MOST_AGAIN]:
                self.unreadable[path] = self.unreadable.pop(path)  # the others are first next time
                self.list_soon(path)

    async def _relist(self) -> None:
        while True:
            await asyncio.sleep(self._every * random.uniform(0.9, 1.1))
            self.list_all_soon()

    def _is_missing(self, path: str, listing: Listing, reason: str) -> None:
        if path in self._scope.roots:
            listing.failed = True
            self._is_unreadable(path, reason)
        else:
            self._is_readable(path)

    def _is_readable(self, path: str) -> None:
        self.unreadable.pop(path, None)
        if not self.unreadable:
            self._trouble.recovered()

    def _is_unreadable(self, path: str, reason: str) -> None:
        if self.unreadable.get(path) != reason:
            self._log.warning("dcache: a directory can't be watched", path=path, reason=reason)
        self.unreadable[path] = reason
        self._trouble.failed(_unwatched(path, reason))

    async def _watch_and_list(self, path: str, pnfsid: str | None, listing: Listing) -> None:
        """Watch and list one directory, `pnfsid` by what the directory above it has shown.

        The watch is not made again where it is sure to be there: dCache writes all its watches to ZooKeeper
        for each that is made (Inotify.java).
        """
        known = None if pnfsid is None else self._watches.of_directory(path, pnfsid)
        if known is None:
            # What is above a root tells nothing of its move.
            flags = [*self._flags, MOVED_SELF] if path in self._scope.roots else self._flags
            subscription = await self._connection.watch(self._position.channel, path, flags)
            self._watches.add(subscription, path)
        else:
            subscription = known
        size, offset = PAGE, 0
        before: Sequence[Entry] = ()
        while True:
            if self._spool.waiting > MOST_WAITING:
                await asyncio.sleep(SLOW_SECONDS)
            page = await self._connection.list_page(path, offset=offset, limit=size)
            if page.pnfsid == pnfsid:
                # The same before and after the watch was made, so that is its, and no other's of this name.
                self._watches.recognise(subscription, path, pnfsid)
            elif known is not None:
                await self._watch_and_list(path, None, listing)
                return
            if offset and not _goes_on(before, page.entries):
                # Some moved up, or dCache gives the same page whatever it is asked for: once more, in fewer.
                if size >= MOST_PAGE:
                    raise Unanswered(f"{path} can't be listed: no page goes on where the one before ended")
                size, offset = min(2 * size, MOST_PAGE), 0
                continue
            if page.unreadable:
                listing.failed = True
                await self._entering.bury(path, page.unreadable, listing.number)
            if self._enters:
                await self._entering.enter(path, subscription, page.entries, listing.number)
            self._descend(path, page.entries, listing)
            if page.size != size:  # fewer: the last; more: dCache gives all, whatever it is asked for
                return
            before = page.entries
            offset += size - OVERLAP

    def _descend(self, path: str, entries: Sequence[Entry], listing: Listing) -> None:
        if not self._recursive:
            return
        below = [(joined(path, entry.name), entry.pnfsid) for entry in entries if entry.kind == "DIR"]
        found = [(at, pnfsid, listing) for at, pnfsid in below if self._scope.has_directory(at)]
        if listing.channel != self._channel:
            return
        listing.open += len(found)
        self._add(found)

    async def _finish(self, listing: Listing) -> None:
        if not listing.complete:
            if listing.full:
                self.full = True
                self.list_all_soon()
            elif self._note_unseen(listing):
                await self._append((), self._position.text())
            return
        self.full = listing.full
        self.walked = True
        if not listing.failed:
            self._on_walked()
        forgotten = 0
        if not listing.full and not listing.outdated:
            if not listing.failed:
                if self._position.listed is not None:
                    # Not what this listing alone has not shown: a file may have been moved past it.
                    forgotten = await self._spool.forget_unshown(self._position.listed)
                self._position.listed = listing.number
            self._note_unseen(listing)
            self._position.since = None
            await self._append((), self._position.text())
            self.healed = not listing.outdated
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
            if listing.channel == self._channel:
                self.list_all_soon()
        if listing.channel == self._channel:
            self._complete = None
        self._some.set()

    def _note_unseen(self, listing: Listing) -> bool:
        """Note what has been listed for the first time, and what has not; True when that is news."""
        position = self._position
        unseen = {path: position.since_in(path) for path in listing.unseen}
        unlisted = {
            at: since
            for at, since in position.unlisted.items()
            if not any(is_at_or_below(at, path) for path in listing.paths)
        } | {path: since for path, since in unseen.items() if since is not None}
        if len(unlisted) > _MOST_UNLISTED:
            self._log.warning("dcache: files of the past may enter from directories that could not be read")
            unlisted = dict(islice(unlisted.items(), _MOST_UNLISTED))
        before, position.unlisted = position.unlisted, unlisted
        return before != unlisted


def _unwatched(path: str, reason: str) -> str:
    return f"{path} can't be watched: {reason}"


def _goes_on(before: Sequence[Entry], entries: Sequence[Entry]) -> bool:
    """Return whether a page begins before the end of the one before, and shows more than that."""
    known = {entry.name for entry in before}
    tail = {entry.name for entry in before[-OVERLAP:]}
    names = [entry.name for entry in entries]
    if not tail:
        return True
    return not tail.isdisjoint(names) and (len(names) <= OVERLAP or any(name not in known for name in names))


def _ways_up(path: str) -> Iterator[str]:
    """Return `path`, the directory it is in, and so on up to `/`."""
    yield path
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
