"""Finds out which file an event was about."""

from __future__ import annotations

import math
import time

from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.ports import Spooled
from bridge.sources.dcache.backlog.resolution import Dropped, Found, Later, Trouble
from bridge.sources.dcache.inotify import ARRIVALS, MOVED_IN
from bridge.sources.dcache.moves import PAIR_SECONDS, Moves
from bridge.sources.dcache.occurrence import (
    BrokenOccurrenceError,
    Occurrence,
    broken_event,
    digest_of,
    event_of,
    version_of,
)
from bridge.sources.dcache.progress import Progress
from bridge.sources.dcache.rest.answers import Denied, Failing, Missing, Unanswered
from bridge.sources.dcache.rest.namespace import Entry, Unreadable
from bridge.sources.dcache.scope import joined
from bridge.sources.dcache.settling import Settling
from bridge.sources.dcache.site import Site
from bridge.sources.dcache.waits import Waits
from bridge.sources.dcache.watches import Watches

_RETRY_KNOWN_SOON = 0.25
"""Seconds until the next look at what will be known in a moment."""
_RETRY = 1.0
"""Seconds until the second look-up; the pause grows from there."""
UNKNOWN_SECONDS = 10.0
"""Seconds for which an event waits for the path of its watch, once all directories were watched."""
UNFINISHED_SECONDS = 10.0
"""Seconds for which a file whose event says that it was closed is looked up again while it has no size. Then
another upload of it is under way, and an event will say that that one was closed."""
UPLOAD_SECONDS = 86400.0
"""Seconds for which a file that was moved, or found by a listing, is looked up again without a size: the
event of the end of its upload gives the name it had at the beginning."""
_MOST_UPLOADS = 1000
"""Files waited for so long at once, as they take room in the backlog's hand."""
GIVE_UP_SECONDS = 86400.0
"""Seconds from the first look-up of a file, if dCache refuses or fails to answer each, until it is a dead
letter."""
_LOG_SECONDS = 60.0
"""Least time between two log lines about look-ups that fail."""


class Lookups:
    """Makes an event of each occurrence, or says why it makes none (`SpoolReader` calls `resolve`)."""

    def __init__(self, site: Site, watches: Watches, moves: Moves, progress: Progress) -> None:
        self._site = site
        self._spool = site.spool
        self._flags = frozenset(site.config.flags)
        self._with_path = site.config.renames == "arrival"
        self._watches = watches
        self._moves = moves
        self._progress = progress
        self._for_path = Waits(UNKNOWN_SECONDS)
        self._for_half = Waits(PAIR_SECONDS)
        """For the other half of a rename."""
        self._for_move = Waits(PAIR_SECONDS)
        """For the event that the file's directory was moved."""
        self._for_size = Waits(UNFINISHED_SECONDS)
        self._for_upload = Waits(UPLOAD_SECONDS)
        self.waits = (self._for_path, self._for_half, self._for_move, self._for_size, self._for_upload)
        self.settling = Settling(site)
        self._logged_at = -math.inf

    async def resolve(self, spooled: Spooled) -> Found | Dropped | Later:
        """Look up what `spooled` is about."""
        found = await self._resolve(spooled)
        if not isinstance(found, Later):
            for waits in self.waits:
                waits.end(spooled.key)
        return found

    async def _resolve(self, spooled: Spooled) -> Found | Dropped | Later:
        try:
            occurrence = Occurrence.of(spooled)
        except BrokenOccurrenceError as error:
            return self._broken(spooled, error)
        key, path = spooled.key, self._path(occurrence)
        if path is None:
            # Its watch is being made, or was made before this process: the listing that follows shows the
            # file too. What stays unknown after all watches were made is of a directory that has left.
            has_time = not self._progress.has_watched_all or self._for_path.goes_on(key)
            return Later(_RETRY_KNOWN_SOON) if has_time else Dropped("unwatched")
        if not self._site.scope.has_file(path):
            return Dropped("excluded")
        if occurrence.action not in ARRIVALS:
            event_id = f"{occurrence.action}:{occurrence.channel}:{occurrence.event}"
            return Found(self._event(occurrence, path, None, event_id))
        if self.settling.is_awaited(path, key):
            return Dropped("repeated")  # The one that waits looks at what is there by then.
        if self.settling.is_looked_up(path):
            return Later(_RETRY_KNOWN_SOON)
        entry = occurrence.entry
        if entry is not None and self.settling.seconds_left(path, entry, key) is None:
            return await self._arrived(occurrence, path, entry)
        if occurrence.action == MOVED_IN and self._may_be_half(key, occurrence):
            return Later(_RETRY_KNOWN_SOON)
        with self.settling.looking_up(path):
            found = await self._look_up(spooled, occurrence, path)
        if not isinstance(found, Later):
            self.settling.forget(path)
        return found

    async def _look_up(self, spooled: Spooled, occurrence: Occurrence, path: str) -> Found | Dropped | Later:
        key = spooled.key
        try:
            path, entry = await self._entry(occurrence, path)
        except Missing:
            if occurrence.action == MOVED_IN and self._for_move.goes_on(key):
                return Later(_RETRY)  # The event that its directory was moved may be about to come.
            return Dropped("gone")
        except Unreadable as error:
            event = self._event(occurrence, path, None, key)
            return Found(
                event, fault=f"what dCache tells of {path} can't be read: {error}; {error.received!r}"
            )
        except (Denied, Unanswered) as error:
            return self._failed(spooled, occurrence, path, error)
        self._for_move.end(key)
        if entry.kind != "REGULAR":
            return Dropped("directory" if entry.kind == "DIR" else "no_file")
        if entry.size is None:
            return Later(_RETRY) if self._waits_for_size(key, occurrence) else Dropped("unfinished")
        seconds = self.settling.seconds_left(path, entry, key)
        if seconds is not None:
            return Later(seconds, doubles=False, aside=path not in self.settling)
        return await self._arrived(occurrence, path, entry)

    def _failed(self, spooled: Spooled, occurrence: Occurrence, path: str, error: Exception) -> Found | Later:
        """Try again what can't be looked up; give up in the end what fails by itself."""
        by_itself = isinstance(error, Denied | Failing)
        first = spooled.first_attempt
        if by_itself and first is not None and self._spool.now() - first >= GIVE_UP_SECONDS:
            fault = f"{path} could not be looked up for {GIVE_UP_SECONDS / 3600:.0f} h: {error}"
            return Found(self._event(occurrence, path, None, spooled.key), fault=fault)
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            self._site.log.warning("dcache: a file can't be looked up", path=path, reason=str(error))
        cause = "denied" if isinstance(error, Denied) else "failing" if by_itself else "unanswered"
        return Later(_RETRY, trouble=Trouble(cause, str(error), by_itself=by_itself))

    def _broken(self, spooled: Spooled, error: BrokenOccurrenceError) -> Found:
        event = broken_event(spooled.key, error, self._site.identity)
        kind, _, digest = spooled.key.partition("/")
        version = bytes.fromhex(digest) if kind == "unreadable" else None
        return Found(event, version, fault=str(error))

    def _path(self, occurrence: Occurrence) -> str | None:
        return occurrence.path or self._path_by_watch(occurrence)

    def _path_by_watch(self, occurrence: Occurrence) -> str | None:
        """Return where the file is if it is still in the directory of its watch, wherever that is by now."""
        directory = self._watches.path_of(occurrence.subscription)
        return None if directory is None else joined(directory, occurrence.name)

    async def _entry(self, occurrence: Occurrence, path: str) -> tuple[str, Entry]:
        """Look up the file where it was, then where its directory is by now; return where it was found."""
        try:
            return path, await self._site.connection.look_up(path)
        except Missing:
            moved = self._path_by_watch(occurrence)
            if moved is None or moved == path:
                raise
            return moved, await self._site.connection.look_up(moved)

    async def _arrived(self, occurrence: Occurrence, path: str, entry: Entry) -> Found | Later | Dropped:
        """Let the version of the file enter, unless it is one that is to be left out."""
        version = version_of(path, entry, with_path=self._with_path)
        digest = digest_of(version)
        try:
            if occurrence.action == MOVED_IN and occurrence.entry is None:
                # A listing under way may have been where the file is by now before the file was.
                await self._spool.shown([digest], self._progress.newest)
                if MOVED_IN not in self._flags and not self._was_within(occurrence):
                    await self._spool.mark([digest], self._progress.newest)
                    return Dropped("moved_in")
            if occurrence.is_new and not (self._was_within(occurrence) and not self._with_path):
                await self._spool.mark([digest], self._progress.newest)
                digest = digest_of(f"new {version}")
        except StoreError as error:
            return Later(_RETRY, trouble=Trouble("store", str(error)))
        return Found(self._event(occurrence, path, entry, version), digest)

    def _event(self, occurrence: Occurrence, path: str, entry: Entry | None, event_id: str) -> Event:
        identity, scope = self._site.identity, self._site.scope
        return event_of(occurrence, path, entry, event_id=event_id, identity=identity, scope=scope)

    def _waits_for_size(self, key: str, occurrence: Occurrence) -> bool:
        """Return whether it is still waited for the end of the upload of a file that is being written."""
        if occurrence.action != MOVED_IN and occurrence.event:
            return self._for_size.goes_on(key)
        has_room = key in self._for_upload or len(self._for_upload) < _MOST_UPLOADS
        return has_room and self._for_upload.goes_on(key)

    def _was_within(self, occurrence: Occurrence) -> bool:
        """Return whether the file was renamed within what is watched."""
        return occurrence.cookie is not None and self._moves.was_within(occurrence.cookie)

    def _may_be_half(self, key: str, occurrence: Occurrence) -> bool:
        """Return whether it matters where a file came from, and is not known yet."""
        if occurrence.cookie is None or self._was_within(occurrence):
            return False
        matters = MOVED_IN not in self._flags or (occurrence.is_new and not self._with_path)
        return matters and self._for_half.goes_on(key)
