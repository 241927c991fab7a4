"""Finds out which file an event was about."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.ports import Spool, Spooled
from bridge.sources.dcache.arrivals import (
    ARRIVALS,
    MOVED_IN,
    BrokenOccurrenceError,
    Occurrence,
    broken_event,
    digest_of,
    event_of,
    version_of,
)
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.connection import Connection, Entry, Unreadable
from bridge.sources.dcache.http import Denied, Failing, Missing, Unanswered
from bridge.sources.dcache.scope import Scope, joined
from bridge.sources.dcache.watches import PAIR_SECONDS, Moves, Watches
from bridge.sources.spool import Dropped, Found, Later, Trouble

_RETRY_KNOWN_SOON = 0.25
"""Seconds until the next look at what will be known in a moment."""
_AGAIN = 1.0
"""Seconds until the second look-up; the pause grows from there."""
UNFINISHED_SECONDS = 10.0
"""For which a file told closed is looked up again while it has no size: then another upload is under way, and
tells its end."""
UPLOAD_SECONDS = 86400.0
"""Likewise of a file that was moved, or found unfinished by a listing: its end is told under the name it had
when it was opened."""
GIVE_UP_SECONDS = 86400.0
"""From the first look-up of a file that dCache refuses to tell of, or fails to, until it is a dead letter."""
_TELL_SECONDS = 60.0
"""Between two lines of the log about look-ups that fail."""
MOST_SETTLING = 5000
"""Files waited for in memory at once until they are quiet; more are laid aside in the store meanwhile."""
_MOST_UNFINISHED = 1000
"""Files waited for so long at once: they take room in the hands of `SpoolReader`."""
UNKNOWN_SECONDS = 10.0
"""For which an event waits for the path of its watch, once all directories were walked."""
_MOST_WAITING = 30_000
"""More than `SpoolReader` holds: those that would be left out would begin to wait anew."""


@dataclass(slots=True)
class _Settling:
    """A file that is not quiet yet."""

    key: str
    """Of the occurrence that waits for it."""
    version: tuple[str, int | None, int]
    since: float
    """When this version was seen first (monotonic)."""
    is_waiting: bool = True


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
        self._settle = config.settle or 0.0
        self._settling: dict[str, _Settling] = {}
        """Files that are waited for until they are quiet, by path."""
        self._looked_at: set[str] = set()
        """Paths that are being looked up, to see whether they are quiet."""
        self._told_at = -math.inf

    async def resolve(self, spooled: Spooled) -> Found | Dropped | Later:
        """Look up what `spooled` is about."""
        found = await self._resolve(spooled)
        if not isinstance(found, Later):
            for what in ("", " unknown", " half", " gone"):
                self._waiting.pop(f"{spooled.key}{what}", None)
            self._uploads.pop(spooled.key, None)
        return found

    async def _resolve(self, spooled: Spooled) -> Found | Dropped | Later:
        try:
            occurrence = Occurrence.of(spooled)
        except BrokenOccurrenceError as error:
            return self._broken(spooled, error)
        path = self._path(occurrence)
        if path is None:
            # Its watch is being made, or was made before this process: the listing that follows shows the
            # file too. What stays unknown after all were made is of a directory that has left.
            known = self._has_walked() and not self._waits(f"{spooled.key} unknown", UNKNOWN_SECONDS)
            return Dropped("unwatched") if known else Later(_RETRY_KNOWN_SOON)
        if not self._scope.has_file(path):
            return Dropped("excluded")
        if occurrence.action not in ARRIVALS:
            event_id = f"{occurrence.action}:{occurrence.channel}:{occurrence.event}"
            return self._found(occurrence, path, None, event_id, None)
        if self._settle and self._is_settling(path, spooled.key):
            return Dropped("repeated")  # the one that waits looks at what is there by then
        if path in self._looked_at:
            return Later(_RETRY_KNOWN_SOON)  # whether it will wait is known then
        if (
            occurrence.entry is not None
            and self._seconds_to_settle(path, occurrence.entry, spooled.key) is None
        ):
            return await self._arrived(occurrence, path, occurrence.entry)
        if occurrence.action == MOVED_IN and self._may_be_half(spooled.key, occurrence):
            return Later(_RETRY_KNOWN_SOON)
        if self._settle:
            self._looked_at.add(path)
        try:
            found = await self._look_up(spooled, occurrence, path)
        finally:
            self._looked_at.discard(path)
        if not isinstance(found, Later):
            self._settling.pop(path, None)
        return found

    async def _look_up(self, spooled: Spooled, occurrence: Occurrence, path: str) -> Found | Dropped | Later:
        key = spooled.key
        try:
            path, entry = await self._entry(occurrence, path)
        except Missing:
            if occurrence.action == MOVED_IN and self._waits(f"{key} gone", PAIR_SECONDS):
                return Later(_AGAIN)  # its directory may have been moved, which is told in a moment
            return Dropped("gone")
        except Unreadable as error:
            event = self._event(occurrence, path, None, key)
            return Found(
                event, fault=f"what dCache tells of {path} can't be read: {error}; {error.received!r}"
            )
        except (Denied, Unanswered) as error:
            return self._failed(spooled, occurrence, path, error)
        self._waiting.pop(f"{key} gone", None)
        if entry.kind != "REGULAR":
            return Dropped("directory" if entry.kind == "DIR" else "no_file")
        if entry.size is None:
            told_closed = occurrence.action != MOVED_IN and occurrence.event
            waits = self._waits(key, UNFINISHED_SECONDS) if told_closed else self._waits_for_end(key)
            return Later(_AGAIN) if waits else Dropped("unfinished")
        seconds = self._seconds_to_settle(path, entry, key)
        if seconds is not None:
            return Later(seconds, doubles=False, aside=path not in self._settling)
        return await self._arrived(occurrence, path, entry)

    def _failed(self, spooled: Spooled, occurrence: Occurrence, path: str, error: Exception) -> Found | Later:
        """Try again what can't be looked up; give up in the end what fails by itself."""
        by_itself = isinstance(error, Denied | Failing)
        first = spooled.first_attempt
        if by_itself and first is not None and self._spool.now() - first >= GIVE_UP_SECONDS:
            fault = f"{path} could not be looked up for {GIVE_UP_SECONDS / 3600:.0f} h: {error}"
            return Found(self._event(occurrence, path, None, spooled.key), fault=fault)
        now = time.monotonic()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            self._log.warning("dcache: a file can't be looked up", path=path, reason=str(error))
        cause = "denied" if isinstance(error, Denied) else "failing" if by_itself else "unanswered"
        return Later(_AGAIN, trouble=Trouble(cause, str(error), by_itself=by_itself))

    def _broken(self, spooled: Spooled, error: BrokenOccurrenceError) -> Found:
        event = broken_event(spooled.key, error, self._identity)
        kind, _, digest = spooled.key.partition("/")
        version = bytes.fromhex(digest) if kind == "unreadable" else None
        return Found(event, version, fault=str(error))

    def _path(self, occurrence: Occurrence) -> str | None:
        if occurrence.directory is not None:
            return occurrence.path
        directory = self._watches.path_of(occurrence.subscription)
        return None if directory is None else joined(directory, occurrence.name)

    async def _entry(self, occurrence: Occurrence, path: str) -> tuple[str, Entry]:
        """Look it up where it was told, then where its directory is by now; return where it was found."""
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
            return Later(_AGAIN, trouble=Trouble("store", str(error)))
        return self._found(occurrence, path, entry, version, digest)

    def _found(
        self, occurrence: Occurrence, path: str, entry: Entry | None, event_id: str, digest: bytes | None
    ) -> Found:
        return Found(self._event(occurrence, path, entry, event_id), digest)

    def _event(self, occurrence: Occurrence, path: str, entry: Entry | None, event_id: str) -> Event:
        return event_of(
            occurrence, path, entry, event_id=event_id, identity=self._identity, scope=self._scope
        )

    # Files that are written again and again

    def _is_settling(self, path: str, key: str) -> bool:
        """Return whether another occurrence waits until `path` is quiet; the one that waits has its turn."""
        waiting = self._settling.get(path)
        if waiting is not None and waiting.is_waiting and waiting.key == key:
            waiting.is_waiting = False
        return waiting is not None and waiting.is_waiting

    def _seconds_to_settle(self, path: str, entry: Entry, key: str) -> float | None:
        """Return for how long `path` is to be left alone, None when it has been quiet for long enough.

        Its time of change is compared with dCache's own clock. A writer may set that time as it likes: what
        is the same after a whole wait is quiet too.
        """
        if not self._settle:
            return None
        now, version = time.monotonic(), (entry.pnfsid, entry.size, entry.mtime)
        age = self._connection.now() - entry.mtime / 1000
        before = self._settling.pop(path, None)
        same = before is not None and before.version == version
        since = before.since if before is not None and same else now
        if age >= self._settle or now - since >= self._settle:
            return None
        if len(self._settling) < MOST_SETTLING:
            self._settling[path] = _Settling(key, version, since)
        return min(max(self._settle - age, 0.0), self._settle - (now - since)) + 0.01

    # Waiting

    def _waits_for_end(self, key: str) -> bool:
        """Return whether the end of an upload whose file was moved, or listed, is still waited for."""
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
        """Return whether it matters where a file came from, and is not known yet."""
        if occurrence.cookie is None or self._was_within(occurrence):
            return False
        matters = MOVED_IN not in self._flags or (occurrence.is_new and not self._with_path)
        return matters and self._waits(f"{key} half", PAIR_SECONDS)

    def _waits(self, key: str, seconds: float) -> bool:
        """Return whether `key` has waited for less than `seconds`."""
        now = time.monotonic()
        since = self._waiting.setdefault(key, now)
        if now - since < seconds:
            while len(self._waiting) > _MOST_WAITING:
                del self._waiting[next(iter(self._waiting))]
            return True
        del self._waiting[key]
        return False
