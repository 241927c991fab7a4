"""Files and directories as the namespace shows them, read with care: an answer may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bridge.sources.dcache.rest.answers import mapping
from bridge.telemetry.logging import excerpt

MOST_ENTRY_BYTES = 4096
"""Longest entry of a listing. A name of 255 characters takes 1,530 if each of them is escaped."""
_MOST_CHARACTERS = 1024
"""Longest name. dCache takes 255 (Chimera's `t_dirs`)."""


class Unreadable(Exception):  # noqa: N818 - it is what was received
    """The answer about one file or directory lacks what every entry has, or is no such answer."""

    def __init__(self, reason: str, received: bytes) -> None:
        super().__init__(reason)
        self.received = received
        """That part of the answer."""


class Entry(NamedTuple):
    """One file or directory."""

    name: str
    kind: str
    """`REGULAR`, `DIR`, `LINK` or `SPECIAL`."""
    pnfsid: str
    size: int | None
    """None while it is being written."""
    mtime: int
    """Milliseconds since 1970 UTC."""


class Page(NamedTuple):
    """A part of what is in a directory."""

    pnfsid: str
    """The directory's own."""
    entries: Sequence[Entry]
    unreadable: Sequence[Unreadable]

    @property
    def size(self) -> int:
        """The number of entries, whether they can be read or not."""
        return len(self.entries) + len(self.unreadable)


def page_of(content: Mapping[str, Any]) -> Page:
    """Read the answer about a directory with its children."""
    entries: list[Entry] = []
    unreadable: list[Unreadable] = []
    children = content.get("children")
    for child in children if isinstance(children, list) else ():
        try:
            entries.append(entry_of(child))
        except Unreadable as error:
            unreadable.append(error)
    return Page(str(content.get("pnfsId")), entries, unreadable)


def entry_of(content: Any) -> Entry:
    """Read the answer about one file or directory. Raise Unreadable."""
    known = mapping(content)
    name, kind, pnfsid = (known.get(key) for key in ("fileName", "fileType", "pnfsId"))
    if not (isinstance(name, str) and is_name(name) and isinstance(kind, str)):
        raise _unreadable("an entry has no name or no type", content)
    if not (isinstance(pnfsid, str) and pnfsid):
        raise _unreadable(f"an entry has no PNFS-ID: {name}", content)
    try:
        f"{name}{kind}{pnfsid}".encode()
    except UnicodeEncodeError:  # half of a surrogate pair can be neither kept nor sent
        raise _unreadable("the name of an entry is no text", content) from None
    size, mtime = known.get("size"), known.get("mtime", 0)
    if kind == "REGULAR" and not (_is_whole(mtime) and (size is None or (_is_whole(size) and size >= 0))):
        raise _unreadable(f"an entry has a size or a time that is no number: {name}", content)
    return Entry(name, kind, pnfsid, size if _is_whole(size) else None, mtime if _is_whole(mtime) else 0)


def is_name(text: str) -> bool:
    """Return whether it can be the name of something in a directory."""
    return text not in ("", ".", "..") and "/" not in text and len(text) <= _MOST_CHARACTERS


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _unreadable(reason: str, content: Any) -> Unreadable:
    try:
        received = json.dumps(content)
    except RecursionError:
        received = ""
    # A name may be what is wrong with it.
    reason = excerpt(reason.encode(errors="backslashreplace").decode())
    return Unreadable(reason, received.encode()[:MOST_ENTRY_BYTES])
