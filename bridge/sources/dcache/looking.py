"""Looks in dCache's namespace for a file that the bridge knows nothing of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from bridge.core.event import Event
from bridge.core.ports import Spooled
from bridge.sources import Entered, GoneError, Upstream, Whereabouts
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.inotify import CLOSED
from bridge.sources.dcache.occurrence import (
    BrokenOccurrenceError,
    Occurrence,
    digest_of,
    event_of,
    time_of,
    version_of,
)
from bridge.sources.dcache.rest.answers import Denied, Missing, Unanswered
from bridge.sources.dcache.rest.connection import Connection
from bridge.sources.dcache.rest.namespace import Entry, Unreadable, is_name
from bridge.sources.dcache.scope import Scope, joined

_SECONDS = 5.0


def subject_of(spooled: Spooled) -> str | None:
    """Return the path of the file that `spooled` is about, or its name if its directory is not known yet."""
    try:
        occurrence = Occurrence.of(spooled)
    except BrokenOccurrenceError:
        return None
    return occurrence.path or occurrence.name


async def look_for(config: DcacheConfig, name: str, entered: Entered) -> Upstream:
    """Look up a path; a name, or the end of a path, right below each of the watched ones."""
    if await asyncio.to_thread(entered, [digest_of(name)]):
        return Upstream(Whereabouts.PAST, "this version of a file has entered")
    scope = Scope(config)
    paths = list(_paths(scope, name))
    if not paths:
        return Upstream(Whereabouts.ABSENT, f"it does not watch {name}")
    try:
        async with asyncio.timeout(_SECONDS), Connection(config) as connection:
            for path in paths:
                try:
                    entry = await connection.look_up(path)
                except Missing:
                    continue
                return await _found(config, scope, path, entry, entered)
    except TimeoutError:
        return Upstream(Whereabouts.UNKNOWN, f"dCache gave no answer within {_SECONDS:g} s")
    except (Denied, Unanswered, Unreadable) as error:
        return Upstream(Whereabouts.UNKNOWN, f"dCache can't be asked: {error}")
    where = paths[0] if len(paths) == 1 else f"{name} right below {', '.join(scope.roots)}"
    deeper = "" if name.startswith("/") else "; one that is deeper is found by its whole path"
    return Upstream(Whereabouts.ABSENT, f"dCache has no {where}{deeper}")


async def read_again(config: DcacheConfig, event_id: str, subject: str | None) -> Event:
    """Make the event of a file's version once more. Raises GoneError where that is not there any more."""
    if subject is None:
        raise GoneError("where its file was is not known any more")
    try:
        async with asyncio.timeout(_SECONDS), Connection(config) as connection:
            entry = await connection.look_up(subject)
    except Missing:
        raise GoneError(f"dCache has no {subject} any more") from None
    except TimeoutError:
        raise GoneError(f"dCache gave no answer within {_SECONDS:g} s") from None
    except (Denied, Unanswered, Unreadable) as error:
        raise GoneError(f"dCache can't be asked: {error}") from error
    version = version_of(subject, entry, with_path=config.renames == "arrival")
    if version != event_id:
        raise GoneError(f"{subject} is another version by now, which is an event of its own: {version}")
    directory, _, name = subject.rpartition("/")
    occurrence = Occurrence(directory=directory or "/", name=name, mask=[CLOSED], entry=entry)
    return event_of(
        occurrence, subject, entry, event_id=event_id, identity=config.identity or "", scope=Scope(config)
    )


def _paths(scope: Scope, name: str) -> Iterator[str]:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    if not all(is_name(part) for part in name.removeprefix("/").split("/")):
        return
    if not name.startswith("/"):
        yield from (joined(root, name) for root in scope.roots)
    elif scope.root_of(name) is not None:
        yield name


async def _found(config: DcacheConfig, scope: Scope, path: str, entry: Entry, entered: Entered) -> Upstream:
    if entry.kind != "REGULAR":
        return Upstream(Whereabouts.ABSENT, f"{path} is no file")
    if not scope.has_file(path) or not scope.has_directory(path.rpartition("/")[0] or "/"):
        left_out = f"{path} is there, and `include`, `exclude` or `depth` leave it out"
        return Upstream(Whereabouts.ABSENT, left_out)
    if entry.size is None:
        return Upstream(Whereabouts.THERE, f"{path} is being written: it enters when it is closed")
    time = time_of(entry.mtime)
    named = path if time is None else f"{path}, written {time.isoformat(' ', 'seconds')},"
    version = digest_of(version_of(path, entry, with_path=config.renames == "arrival"))
    if await asyncio.to_thread(entered, [version]):
        return Upstream(
            Whereabouts.PAST,
            f"{named} has entered, or was there before the first start and is left out",
        )
    return Upstream(Whereabouts.THERE, f"{named} has not entered: the stream or a listing will bring it")
