"""Finds out which file an event was about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bridge.core.errors import StoreError
from bridge.core.ports import Spool, Spooled
from bridge.sources.dcache.arrivals import (
    ARRIVALS,
    MOVED_IN,
    Occurrence,
    digest_of,
    event_of,
    version_of,
)
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.connection import Connection, Entry
from bridge.sources.dcache.http import Denied, Missing, Unanswered
from bridge.sources.dcache.scope import Scope, joined
from bridge.sources.dcache.watches import PAIR_SECONDS, Moves, Watches
from bridge.sources.spool import Dropped, Found, Later

_SOON = 0.25
"""Seconds until the next look at what will be known in a moment."""
_AGAIN = 1.0
"""Seconds until the second look-up; the pause grows from there."""
UNFINISHED_SECONDS = 10.0
"""For which a file told closed is looked up again while it has no size: then another upload is under way, and
tells its end."""
UPLOAD_SECONDS = 86400.0
"""Likewise of a file that was moved, or found unfinished by a listing: its end is told under the name it had
when it was opened."""
_MOST_UNFINISHED = 1000
"""Files waited for so long at once: they take room in the hands of `SpoolReader`."""
UNKNOWN_SECONDS = 10.0
"""For which an event waits for the path of its watch, once all directories were walked."""
_MOST_WAITING = 30_000
"""More than `SpoolReader` holds: those that would be left out would begin to wait anew."""


class Lookups:
    """Makes of each occurrence an event, or tells why it makes none (`sources.spool.Resolve`)."""

    def __init__(
        self,
        config: DcacheConfig,
        identity: str,
        connection: Connection,
        spool: Spool,
        *,
        scope: Scope,
        watches: Watches,
        moves: Moves,
        has_walked: Callable[[], bool],
        listing: Callable[[], int],
        log: Any,
    ) -> None:
        self._identity = identity
        self._flags = frozenset(config.flags)
        self._with_path = config.renames == "arrival"
        self._connection = connection
        self._spool = spool
        self._scope = scope
        self._watches = watches
        self._moves = moves
        self._has_walked = has_walked
        self._listing = listing
        self._log = log
        self._waiting: dict[str, float] = {}
        """Since when an occurrence waits here for something that should come soon, by its place."""
        self._uploads: dict[str, float] = {}
        """Since when the end of an upload is waited for, by its place."""
        self.trouble: str | None = None
        """Why look-ups fail at present."""

    async def resolve(self, spooled: Spooled) -> Found | Dropped | Later:
        """Look up what `spooled` is about."""
        found = await self._resolve(spooled)
        if not isinstance(found, Later):
            for what in ("", " unknown", " half", " gone"):
                self._waiting.pop(f"{spooled.key}{what}", None)
            self._uploads.pop(spooled.key, None)
        return found

    async def _resolve(self, spooled: Spooled) -> Found | Dropped | Later:
        occurrence = Occurrence.of(spooled)
        path = self._path(occurrence)
        if path is None:
            # Its watch is being made, or was made before this process: the listing that follows shows the
            # file too. What stays unknown after all were made is of a directory that has left.
            known = self._has_walked() and not self._waits(f"{spooled.key} unknown", UNKNOWN_SECONDS)
            return Dropped("unwatched") if known else Later(_SOON)
        if not self._scope.has_file(path):
            return Dropped("excluded")
        if occurrence.action not in ARRIVALS:
            event_id = f"{occurrence.action}:{occurrence.channel}:{occurrence.event}"
            return self._found(occurrence, path, None, event_id, None)
        if occurrence.entry is not None:
            return await self._arrived(occurrence, path, occurrence.entry)
        if occurrence.action == MOVED_IN and self._may_be_half(spooled.key, occurrence):
            return Later(_SOON)
        return await self._look_up(spooled.key, occurrence, path)

    async def _look_up(self, key: str, occurrence: Occurrence, path: str) -> Found | Dropped | Later:
        try:
            path, entry = await self._entry(occurrence, path)
        except Missing:
            self.trouble = None
            if occurrence.action == MOVED_IN and self._waits(f"{key} gone", PAIR_SECONDS):
                return Later(_AGAIN)  # its directory may have been moved, which is told in a moment
            return Dropped("gone")
        except (Denied, Unanswered) as error:
            if self.trouble is None:
                self._log.warning("dcache: a file can't be looked up", path=path, reason=str(error))
            self.trouble = str(error)
            return Later(_AGAIN)
        self.trouble = None
        self._waiting.pop(f"{key} gone", None)
        if entry.kind != "REGULAR":
            return Dropped("directory" if entry.kind == "DIR" else "no_file")
        if entry.size is None:
            told_closed = occurrence.action != MOVED_IN and occurrence.event
            waits = self._waits(key, UNFINISHED_SECONDS) if told_closed else self._waits_for_end(key)
            return Later(_AGAIN) if waits else Dropped("unfinished")
        return await self._arrived(occurrence, path, entry)

    def _path(self, occurrence: Occurrence) -> str | None:
        if occurrence.directory is not None:
            return occurrence.path
        directory = self._watches.path_of(occurrence.subscription)
        return None if directory is None else joined(directory, occurrence.name)

    async def _entry(self, occurrence: Occurrence, path: str) -> tuple[str, Entry]:
        """Look it up where it was told, then where its directory is by now; give where it was found."""
        try:
            return path, await self._connection.look_up(path)
        except Missing:
            directory = self._watches.path_of(occurrence.subscription) if occurrence.subscription else None
            moved = None if directory is None else joined(directory, occurrence.name)
            if moved is None or moved == path:
                raise
            return moved, await self._connection.look_up(moved)

    async def _arrived(self, occurrence: Occurrence, path: str, entry: Entry) -> Found | Dropped | Later:
        version = version_of(path, entry, with_path=self._with_path)
        digest = digest_of(version)
        try:
            if occurrence.action == MOVED_IN and occurrence.entry is None:
                # A listing under way may have been where the file is by now before the file was.
                await self._spool.shown([digest], self._listing())
                if MOVED_IN not in self._flags and not self._was_within(occurrence):
                    await self._spool.mark([digest], self._listing())
                    return Dropped("moved_in")
            if occurrence.is_new and not (self._was_within(occurrence) and not self._with_path):
                await self._spool.mark([digest], self._listing())
                digest = digest_of(f"new {version}")
        except StoreError as error:
            self.trouble = str(error)
            return Later(_AGAIN)
        return self._found(occurrence, path, entry, version, digest)

    def _found(
        self, occurrence: Occurrence, path: str, entry: Entry | None, event_id: str, digest: bytes | None
    ) -> Found:
        event = event_of(
            occurrence, path, entry, event_id=event_id, identity=self._identity, scope=self._scope
        )
        return Found(event, digest)

    # Waiting

    def _waits_for_end(self, key: str) -> bool:
        """Tell whether the end of an upload whose file was moved, or listed, is still waited for."""
        since = self._uploads.get(key)
        now = time.monotonic()
        if since is None and len(self._uploads) < _MOST_UNFINISHED:
            since = self._uploads[key] = now
        if since is not None and now - since < UPLOAD_SECONDS:
            return True
        self._uploads.pop(key, None)
        return False

    # Renames

    def _was_within(self, occurrence: Occurrence) -> bool:
        return occurrence.cookie is not None and self._moves.was_within(occurrence.cookie)

    def _may_be_half(self, key: str, occurrence: Occurrence) -> bool:
        """Tell whether it matters where a file came from, and is not known yet."""
        if occurrence.cookie is None or self._was_within(occurrence):
            return False
        matters = MOVED_IN not in self._flags or (occurrence.is_new and not self._with_path)
        return matters and self._waits(f"{key} half", PAIR_SECONDS)

    def _waits(self, key: str, seconds: float) -> bool:
        """Tell whether `key` has waited for less than `seconds`."""
        now = time.monotonic()
        since = self._waiting.setdefault(key, now)
        if now - since < seconds:
            while len(self._waiting) > _MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            return True
        del self._waiting[key]
        return False
