"""Lets the files that a listing shows enter, if they have not entered before."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Spooled
from bridge.sources.dcache.backlog.asking import portions_of
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.inotify import CLOSED
from bridge.sources.dcache.occurrence import Occurrence, digest_of, unreadable, version_of
from bridge.sources.dcache.rest.namespace import Entry, Unreadable
from bridge.sources.dcache.scope import joined
from bridge.sources.dcache.site import Site


class Entering:
    """Compares the files that listings show with those that have entered; the others go to the store."""

    def __init__(self, site: Site, reader: SpoolReader) -> None:
        self._site = site
        self._spool = site.spool
        self._reader = reader

    async def enter(self, path: str, subscription: str, entries: Sequence[Entry], listing: int) -> None:
        """Let the files among `entries` enter that have not. No look-up is needed: a listing shows versions.

        Raise StoreError.
        """
        files: dict[bytes, Entry] = {}
        unfinished: list[Spooled] = []
        for entry in entries:
            at = joined(path, entry.name)
            if entry.kind != "REGULAR" or not self._site.scope.has_file(at):
                continue
            if entry.size is not None:
                files[digest_of(version_of(at, entry, with_path=self._site.config.renames == "arrival"))] = (
                    entry
                )
                continue
            # It is still being written. The event of its end may give a name that it had before, where
            # nothing is by then, so its end is waited for here too.
            occurrence = Occurrence(directory=path, name=entry.name, mask=[CLOSED], subscription=subscription)
            unfinished.append(occurrence.spooled(f"unfinished/{entry.pnfsid}:{at}"))
        if unfinished:
            await self._append(unfinished)
        if not files:
            return
        entered = await self._spool.entered(files.keys())
        if entered:
            await self._spool.shown(entered, listing)
        since = self._site.position.since_in(path)
        old = [
            digest
            for digest, entry in files.items()
            if digest not in entered and since is not None and entry.mtime < since * 1000
        ]
        if old:
            await self._spool.mark(old, listing)
        new = files.keys() - entered - set(old)
        if new:
            rows = [
                Occurrence(
                    directory=path, name=entry.name, mask=[CLOSED], subscription=subscription, entry=entry
                ).spooled(f"listed/{digest.hex()}")
                for digest, entry in sorted(files.items(), key=lambda each: each[1].mtime)
                if digest in new
            ]
            await self._append(rows)
            self._site.log.debug("dcache: found by listing", path=path, files=len(rows))

    async def bury(self, path: str, entries: Sequence[Unreadable], listing: int) -> None:
        """Have entries that can't be read become dead letters, each once. Raise StoreError."""
        self._site.log.warning(
            "dcache: entries of a directory can't be read",
            path=path,
            entries=len(entries),
            reason=str(entries[0]),
        )
        digests = {digest_of(f"unreadable {path} {entry.received!r}"): entry for entry in entries}
        entered = await self._spool.entered(digests.keys())
        rows = [
            unreadable(
                f"unreadable/{digest.hex()}", f"an entry of {path} can't be read: {entry}", entry.received
            )
            for digest, entry in digests.items()
            if digest not in entered
        ]
        if entered:
            await self._spool.shown(entered, listing)
        if rows:
            await self._append(rows)

    async def _append(self, occurrences: Sequence[Spooled]) -> None:
        for portion in portions_of(occurrences):
            await self._reader.append(portion)
