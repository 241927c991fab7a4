"""What becomes of the files that a listing shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from bridge.core.ports import Spool, Spooled
from bridge.sources.dcache.arrivals import CLOSED, Occurrence, digest_of, unreadable, version_of
from bridge.sources.dcache.connection import Entry, Unreadable
from bridge.sources.dcache.scope import Scope, joined
from bridge.sources.dcache.state import Position
from bridge.sources.spool import portions_of


class Entering:
    """Compares what listings show with what has entered, and spools the rest."""

    def __init__(
        self,
        spool: Spool,
        position: Position,
        scope: Scope,
        append: Callable[[Sequence[Spooled], str | None], Awaitable[None]],
        *,
        with_path: bool,
        log: Any,
    ) -> None:
        """Spool by `append`; `with_path`: a file under another name is another version."""
        self._spool = spool
        self._position = position
        self._scope = scope
        self._append = append
        self._with_path = with_path
        self._log = log

    async def enter(self, path: str, subscription: str, entries: Sequence[Entry], listing: int) -> None:
        """Let enter what has not. Its files are known with their versions: no look-up is needed.

        Raise StoreError.
        """
        files: dict[bytes, Entry] = {}
        unfinished: list[Spooled] = []
        for entry in entries:
            at = joined(path, entry.name)
            if entry.kind != "REGULAR" or not self._scope.has_file(at):
                continue
            if entry.size is not None:
                files[digest_of(version_of(at, entry, with_path=self._with_path))] = entry
                continue
            # Its end may be told under another name that it had, where nothing is by then: it is looked up.
            occurrence = Occurrence(directory=path, name=entry.name, mask=[CLOSED], subscription=subscription)
            unfinished.append(occurrence.spooled(f"unfinished/{entry.pnfsid}:{at}"))
        if unfinished:
            for portion in portions_of(unfinished):
                await self._append(portion, None)
        if not files:
            return
        entered = await self._spool.entered(files.keys())
        if entered:
            await self._spool.shown(entered, listing)
        since = self._position.since_in(path)
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
            for portion in portions_of(rows):
                await self._append(portion, None)
            self._log.debug("dcache: found by listing", path=path, files=len(rows))

    async def bury(self, path: str, entries: Sequence[Unreadable], listing: int) -> None:
        """Have entries that can't be read become dead letters, each once. Raise StoreError."""
        self._log.warning(
            "dcache: entries of a directory can't be read",
            path=path,
            entries=len(entries),
            reason=str(entries[0]),
        )
        told = {digest_of(f"unreadable {path} {entry.received!r}"): entry for entry in entries}
        entered = await self._spool.entered(told.keys())
        rows = [
            unreadable(
                f"unreadable/{digest.hex()}", f"an entry of {path} can't be read: {entry}", entry.received
            )
            for digest, entry in told.items()
            if digest not in entered
        ]
        if entered:
            await self._spool.shown(entered, listing)
        for portion in portions_of(rows):
            await self._append(portion, None)
