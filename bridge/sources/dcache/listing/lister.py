"""Lists what is on the agenda, and concludes from a listing that has ended."""

from __future__ import annotations

import asyncio
import random
from itertools import islice

from bridge.core.errors import StoreFullError
from bridge.sources.dcache.agenda import Agenda, Directory, Listing
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.departures import Departures
from bridge.sources.dcache.listing.directory import DirectoryLister
from bridge.sources.dcache.listing.entering import Entering
from bridge.sources.dcache.listing.unreadable import UnreadableDirectories
from bridge.sources.dcache.progress import Progress
from bridge.sources.dcache.rest.answers import Denied, Missing, Unanswered
from bridge.sources.dcache.rest.connection import ChannelGone
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.watches import Watches

WALKERS = 4
"""Directories that are watched and listed at once."""
ATTEMPTS = 6
"""How often a directory is tried before the listing goes on without it."""
_PAUSE = 0.25
"""Seconds; the pause before the second attempt is twice as long, and each pause is twice the one before."""
RETRY_SECONDS = 60.0
"""How often directories that could not be watched are tried again."""
_MOST_UNLISTED = 100
"""Directories not listed yet that are remembered: they are kept in the store with the position."""
FULL_SECONDS = 30.0
"""Until all is listed again after the store had no room for what a listing found."""


class Lister:
    """Runs the walkers that watch and list directories, each of them as a part of a listing."""

    def __init__(
        self,
        site: Site,
        watches: Watches,
        progress: Progress,
        agenda: Agenda,
        departures: Departures,
        reader: SpoolReader,
    ) -> None:
        self._site = site
        self._position = site.position
        self._watches = watches
        self._progress = progress
        self._agenda = agenda
        self._departures = departures
        self._reader = reader
        self._log = site.log
        self._directory_lister = DirectoryLister(site, watches, agenda, Entering(site, reader))
        self._unreadable = UnreadableDirectories(site.log)
        self._is_full = False
        """The store had no room for all that the last listing found."""

    async def run(self) -> None:
        """List until cancelled. Raise StoreError, in a group; a store that is full is only waited for."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._retry_unreadable(), name="dcache tries unreadable directories again")
            tasks.create_task(self._list_all_regularly(), name="dcache lists all regularly")
            for number in range(WALKERS):
                tasks.create_task(self._walk(), name=f"dcache walker {number}")

    def problems(self) -> list[str]:
        """Return which directories can't be watched, and whether the store is full."""
        full = ["the store is full: not all that was found could be kept"] if self._is_full else []
        return [*self._unreadable.problems(), *full]

    async def _walk(self) -> None:
        while True:
            if (listing := self._agenda.begin_complete()) is not None:
                await self._prepare(listing)
            elif (directory := self._agenda.next_directory()) is not None:
                await self._list(directory)
            else:
                await self._agenda.wait()

    async def _retry_unreadable(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            for path in self._unreadable.next_to_try():
                self._agenda.list_soon(path)

    async def _list_all_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._site.config.relist * random.uniform(0.9, 1.1))
            self._agenda.list_all_soon()

    async def _prepare(self, listing: Listing) -> None:
        """Give a complete listing its number, see which watches are gone, and put its roots on the agenda."""
        listing.number = self._progress.newest = await self._site.spool.next_listing()
        self._log.info("dcache: listing all", listing=listing.number, since=self._position.since)
        await self._compare_watches()
        if not self._agenda.is_abandoned(listing):
            self._agenda.add(Directory(root, None, listing) for root in self._site.scope.roots)

    async def _compare_watches(self) -> None:
        """Trust no watch that dCache does not name, so that it is made again."""
        ours = self._watches.keys()
        if not ours:
            return
        try:
            alive = await self._site.connection.subscriptions(self._position.channel)
        except (Unanswered, Denied, Missing):
            alive = ()
        self._watches.distrust(ours.difference(alive))

    async def _list(self, directory: Directory) -> None:
        """Watch and list one directory, again if dCache does not answer. The last one ends its listing."""
        path, _, listing = directory
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1))
            if self._agenda.is_abandoned(listing):
                return
            try:
                await self._directory_lister.watch_and_list(directory)
                self._unreadable.remove(path)
            except ChannelGone:
                continue  # The stream finds that out too, and the channel is replaced.
            except Unanswered as error:
                if attempt < ATTEMPTS - 1:
                    continue
                listing.has_failed = True
                listing.unseen.append(path)
                self._unreadable.add(path, str(error))
            except Missing as error:
                if path in self._site.scope.roots:
                    listing.has_failed = True
                    self._unreadable.add(path, str(error))
                else:
                    self._unreadable.remove(path)
            except Denied as error:
                listing.unseen.append(path)
                self._unreadable.add(path, str(error))
            except StoreFullError:
                listing.has_failed = listing.is_full = True
            break
        else:
            listing.has_failed = True
            listing.unseen.append(path)
            self._agenda.list_soon(path)
        listing.unfinished -= 1
        if listing.unfinished == 0 and not self._agenda.is_abandoned(listing):
            self._agenda.end(listing)
            await (self._conclude_complete(listing) if listing.is_complete else self._conclude(listing))

    async def _conclude(self, listing: Listing) -> None:
        if listing.is_full:
            self._is_full = True
            self._agenda.list_all_soon()
        elif self._note_listed(listing):
            await self._reader.append((), self._position.text())

    async def _conclude_complete(self, listing: Listing) -> None:
        self._is_full = listing.is_full
        if not listing.has_failed:
            self._departures.end_left_over()
        forgotten = 0
        if not listing.is_full and not self._progress.is_outdated:
            if not listing.has_failed:
                # What this listing alone has not shown is kept: a file may have been moved past it.
                if self._position.listed is not None:
                    forgotten = await self._site.spool.forget_unshown(self._position.listed)
                self._position.listed = listing.number
            self._note_listed(listing)
            self._position.since = None
            await self._reader.append((), self._position.text())
        self._log.info(
            "dcache: all is listed",
            listing=listing.number,
            directories=len(self._watches),
            forgotten=forgotten,
            complete=not listing.has_failed,
        )
        if listing.is_full:
            self._log.warning("dcache: the store had no room for all that was found: it is listed again")
            await asyncio.sleep(FULL_SECONDS)
            if not self._agenda.is_abandoned(listing):
                self._agenda.list_all_soon()
        self._agenda.end_complete(listing)

    def _note_listed(self, listing: Listing) -> bool:
        """Note which directories no listing has shown yet; return whether that has changed."""
        unlisted = self._position.unlisted_after(listing.paths, listing.unseen)
        if len(unlisted) > _MOST_UNLISTED:
            self._log.warning("dcache: files of the past may enter from directories that could not be read")
            unlisted = dict(islice(unlisted.items(), _MOST_UNLISTED))
        before, self._position.unlisted = self._position.unlisted, unlisted
        return before != unlisted
