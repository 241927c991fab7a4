"""A plug for the OSCAR Event Bridge: files that come into a directory are events."""

import asyncio
from collections.abc import Sequence

from bridge.core.ports import Finding, Patience, Source
from bridge.sources import Keeping, SourceKind
from bridge.telemetry.metrics import SourceMetrics
from oscar_bridge_folder.check import check
from oscar_bridge_folder.config import FolderConfig


def _build(config: FolderConfig, key: str, metrics: SourceMetrics, _keeping: Keeping) -> Source:
    from oscar_bridge_folder.source import Folder  # only who has a folder loads the client of inotify

    return Folder(config, key, metrics)


async def _check(config: FolderConfig, key: str, _patience: Patience) -> Sequence[Finding]:
    return await asyncio.to_thread(check, config, key)


KIND = SourceKind(config=FolderConfig, build=_build, check=_check)
