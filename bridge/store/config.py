"""The settings of the store."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from bridge.values import Bytes, BytesOrNone, Model, Seconds

_LEAST = 2**20


class StoreConfig(Model):
    """How much is kept, and for how long."""

    max_bytes: Annotated[Bytes, Field(ge=2**20)] = 2 * 2**30
    """What kept events may take on the disk, SQLite's write-ahead log included. At 15/16 of it nothing more
    is spooled or parked and the sources are held back; the rest is for dead letters alone. Room that deleted
    events leave is used again; the file itself does not shrink. SQLite's log may go above it by up to 20 MiB
    while events come, 64 MiB while many leave."""
    keep_dead_for: Seconds = 90 * 86400.0
    """Seconds after which a dead letter is deleted."""


def _enough(size: int) -> int:
    if 0 < size < _LEAST:
        raise ValueError("expected 1MiB or more, or 0 for no journal")
    return size


class JournalConfig(Model):
    """How much is kept of what happened to events, and for how long."""

    max_bytes: Annotated[BytesOrNone, AfterValidator(_enough)] = 256 * 2**20
    """What the journal may take on the disk; the oldest of it is deleted for the newest. 0: nothing is
    written, and what was stays as it is."""
    keep_for: Seconds = 30 * 86400.0
    """Seconds after which a part of it is deleted, by the age of the newest line in that part."""
