"""What all parts of a session work with: the dCache, this machine's store, and how far both have come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bridge.core.ports import Spool
from bridge.sources.dcache.channel import Channel
from bridge.sources.dcache.config import DcacheConfig
from bridge.sources.dcache.rest.connection import Connection
from bridge.sources.dcache.scope import Scope
from bridge.sources.dcache.state import OwnFile, Position
from bridge.telemetry.metrics import SourceMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One dCache as one opening of the source has it. What the parts know of one another is not in it."""

    config: DcacheConfig
    identity: str
    """The source's; invocation identities are made of it."""
    scope: Scope
    connection: Connection
    channel: Channel
    spool: Spool
    position: Position
    own: OwnFile
    metrics: SourceMetrics
    log: Any
