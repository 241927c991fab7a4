"""Watches one directory and lists it, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.sources.dcache.agenda import Agenda, Directory
from bridge.sources.dcache.inotify import ARRIVALS, MOVED_IN, MOVED_OUT, MOVED_SELF
from bridge.sources.dcache.listing.entering import Entering
from bridge.sources.dcache.rest.answers import Unanswered
from bridge.sources.dcache.rest.namespace import Entry
from bridge.sources.dcache.scope import joined
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.watches import Watches

PAGE = 1000
"""Entries of a directory asked for at once."""
MOST_PAGE = 32_000
"""Entries asked for at once where a directory changes faster than it can be listed in smaller pages: as JSON
they take some 10 MiB."""
OVERLAP = 20
"""Each page begins so many entries before the end of the one before. If it shows none of them, entries were
removed meanwhile and others have moved up, perhaps past what was asked for."""
MOST_WAITING = 200_000
"""Occurrences in the store, above which listings go slowly: what they find will still be there later."""
SLOW_SECONDS = 10.0
"""Pause before each page while more than `MOST_WAITING` wait."""


class DirectoryLister:
    """Makes a directory's watch first and lists it then, so that no file falls between the two."""

    def __init__(self, site: Site, watches: Watches, agenda: Agenda, entering: Entering) -> None:
        flags = site.config.flags
        self._finds_files = bool(ARRIVALS & set(flags))
        self._flags = sorted({*flags, "IN_CREATE", MOVED_IN, MOVED_OUT})
        self._site = site
        self._watches = watches
        self._agenda = agenda
        self._entering = entering

    async def watch_and_list(self, directory: Directory) -> None:
        """Watch and list `directory`; what is below it goes on the agenda.

        Raise Missing, Denied, Unanswered, ChannelGone, StoreError.
        """
        path, pnfsid, listing = directory
        # A watch is not made again where it is sure to be there: dCache writes all its watches to ZooKeeper
        # for each that is made (Inotify.java).
        known = None if pnfsid is None else self._watches.of_directory(path, pnfsid)
        subscription = await self._watch(path) if known is None else known
        size, offset = PAGE, 0
        before: Sequence[Entry] = ()
        while True:
            if self._site.spool.waiting > MOST_WAITING:
                await asyncio.sleep(SLOW_SECONDS)
            page = await self._site.connection.list_page(path, offset=offset, limit=size)
            if page.pnfsid == pnfsid:
                # It was this directory before the watch was made and still is, so the watch is of this one.
                self._watches.recognise(subscription, path, pnfsid)
            elif known is not None:
                await self.watch_and_list(Directory(path, None, listing))
                return
            if offset and not _continues(before, page.entries):
                # Entries have moved up, or dCache gives the same page whatever it is asked for: begin again,
                # with bigger pages.
                if size >= MOST_PAGE:
                    raise Unanswered(f"{path} can't be listed: no page goes on where the one before ended")
                size, offset = min(2 * size, MOST_PAGE), 0
                continue
            if page.unreadable:
                listing.has_failed = True
                await self._entering.bury(path, page.unreadable, listing.number)
            if self._finds_files:
                await self._entering.enter(path, subscription, page.entries, listing.number)
            self._add_directories(directory, page.entries)
            if page.size != size:  # Fewer: it is the last page. More: dCache gives all in one page.
                return
            before = page.entries
            offset += size - OVERLAP

    async def _watch(self, path: str) -> str:
        # The directory above a root is not watched, so only a root's own event says that it was moved.
        flags = [*self._flags, MOVED_SELF] if path in self._site.scope.roots else self._flags
        subscription = await self._site.connection.watch(self._site.position.channel, path, flags)
        self._watches.add(subscription, path)
        return subscription

    def _add_directories(self, above: Directory, entries: Sequence[Entry]) -> None:
        if not self._site.config.recursive or self._agenda.is_abandoned(above.listing):
            return
        found = [
            Directory(path, entry.pnfsid, above.listing)
            for entry in entries
            if entry.kind == "DIR" and self._site.scope.has_directory(path := joined(above.path, entry.name))
        ]
        above.listing.unfinished += len(found)
        self._agenda.add(found)


def _continues(before: Sequence[Entry], entries: Sequence[Entry]) -> bool:
    """Return whether a page begins before the end of the one before, and shows more than that one."""
    known = {entry.name for entry in before}
    tail = {entry.name for entry in before[-OVERLAP:]}
    names = [entry.name for entry in entries]
    if not tail:
        return True
    return not tail.isdisjoint(names) and (len(names) <= OVERLAP or any(name not in known for name in names))
