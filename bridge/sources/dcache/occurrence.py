"""What is kept in the store of an event, or of a file that a listing found; and the Event it becomes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from bridge.core.event import Event
from bridge.core.ports import Spooled
from bridge.sources.dcache.rest.namespace import Entry
from bridge.sources.dcache.scope import Scope, joined

_SHORT = {
    "directory": "d",
    "name": "n",
    "mask": "m",
    "cookie": "k",
    "subscription": "s",
    "channel": "c",
    "event": "i",
    "is_new": "f",
    "entry": "e",
}
"""What the fields of an occurrence are called in the store."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BrokenOccurrenceError(Exception):
    """What is kept of an occurrence can't be read; the text says why."""

    def __init__(self, reason: str, received: bytes) -> None:
        super().__init__(reason)
        self.received = received
        """What dCache sent."""


def unreadable(key: str, reason: str, received: bytes) -> Spooled:
    """Return what is kept of something that can't be read: its reading raises BrokenOccurrenceError."""
    kept = {"u": reason, "r": received.decode(errors="replace")}
    return Spooled(key=key, data=json.dumps(kept, ensure_ascii=False).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """What is kept of one event of the stream, or of one file that a listing found."""

    directory: str | None
    """None where the subscription is not known yet: a watch that is being made."""
    name: str
    mask: Sequence[str]
    cookie: str | None = None
    subscription: str = ""
    channel: str = ""
    event: str = ""
    """Its SSE id."""
    is_new: bool = False
    """The stream told of it while the first listing was under way: it enters, though that listing may have
    seen its file and marked it as one that was there before."""
    entry: Entry | None = None
    """What a listing showed."""
    found: str = "event"
    """Or `listing`."""

    @property
    def action(self) -> str:
        """The flag that says what happened."""
        return next(flag for flag in self.mask if flag != "IN_ISDIR")

    @property
    def path(self) -> str | None:
        """The file's path, None while the directory is not known."""
        return None if self.directory is None else joined(self.directory, self.name)

    def spooled(self, key: str) -> Spooled:
        """Write it for the store."""
        kept = {short: value for name, short in _SHORT.items() if (value := getattr(self, name))}
        return Spooled(key=key, data=json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode())

    @classmethod
    def of(cls, spooled: Spooled) -> Occurrence:
        """Read what `spooled` wrote. Raise BrokenOccurrenceError for anything else."""
        try:
            kept = json.loads(spooled.data)
            if "u" in kept:
                raise BrokenOccurrenceError(str(kept["u"]), str(kept["r"]).encode())
            values = {name: kept[short] for name, short in _SHORT.items() if short in kept}
            found = cls(**{"directory": None, **values})
            if found.entry is not None:
                found = replace(found, entry=Entry(*found.entry), found="listing")
            assert found.action  # noqa: S101 - StopIteration where there is none
            return found
        except (StopIteration, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BrokenOccurrenceError(
                f"what is kept of it is broken: {type(error).__name__}", spooled.data
            ) from None


def version_of(path: str, entry: Entry, *, with_path: bool) -> str:
    """Name the version of a file: which one, how big, as of when; and where, if a rename makes a new one."""
    version = f"{entry.pnfsid}:{entry.size}:{entry.mtime}"
    return f"{version}:{path}" if with_path else version


def digest_of(version: str) -> bytes:
    """Return the mark of a version (`core.ports.Spool`)."""
    return blake2b(version.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def broken_event(key: str, broken: BrokenOccurrenceError, identity: str) -> Event:
    """Return what becomes a dead letter: what dCache sent, as it was received."""
    return Event(id=key, source=identity, type="org.dcache.unreadable", data=broken.received)


def time_of(mtime: int) -> datetime | None:
    """Return the time of so many milliseconds since 1970; None where no calendar has it."""
    try:
        return _EPOCH + timedelta(milliseconds=mtime)
    except OverflowError:  # before the year 1, or after 9999
        return None


def event_of(
    occurrence: Occurrence, path: str, entry: Entry | None, *, event_id: str, identity: str, scope: Scope
) -> Event:
    """Make the Event. Its data are what OSCAR's supervisor reads of dCache, `name` being the path below the
    watched one (faas-supervisor, storage/events): a service's input path is the watched one."""
    relative = scope.relative(path)
    content: dict[str, Any] = {"name": relative, "mask": list(occurrence.mask)}
    attributes = {
        "path": path,
        "name": relative,
        "mask": occurrence.action,
        "found": occurrence.found,
    }
    if occurrence.cookie is not None:
        content["cookie"] = attributes["cookie"] = occurrence.cookie
    if occurrence.event:
        attributes |= {"channel": occurrence.channel, "event": occurrence.event}
    time = None
    if entry is not None:
        attributes |= {"pnfsid": entry.pnfsid, "size": str(entry.size), "mtime": str(entry.mtime)}
        time = time_of(entry.mtime)
    return Event(
        id=event_id,
        source=identity,
        type=f"org.dcache.inotify.{occurrence.action}",
        subject=path,
        time=time,
        data=json.dumps(
            {"event": content, "subscription": occurrence.subscription}, ensure_ascii=False
        ).encode(),
        attributes=attributes,
    )
