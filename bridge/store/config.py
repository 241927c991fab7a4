"""The settings of the store."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from bridge.values import Bytes, Model, Seconds


class StoreConfig(Model):
    """How much is kept, and for how long."""

    max_bytes: Annotated[Bytes, Field(ge=2**20)] = 2 * 2**30
    """What kept events may take on the disk, SQLite's write-ahead log included. At 15/16 of it nothing more
    is spooled or parked and the sources are held back; the rest is for dead letters alone. Room that deleted
    events leave is used again; the file itself does not shrink. SQLite's log may go above it by up to 20 MiB
    while events come, 64 MiB while many leave."""
    keep_dead_for: Seconds = 90 * 86400.0
    """Seconds after which a dead letter is deleted."""
