"""The dCache source, over real sockets against the sandbox site and on a real store."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from tests.sources.dcache import Bridge


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site


async def test_an_upload_becomes_an_event_the_supervisor_can_read(
    site: SandboxDcache, tmp_path: Path
) -> None:
    bridge = Bridge(site, tmp_path)
    async with bridge.running() as running:
        await running.healed()
        version = await site.upload("/data/in/a.nc", b"climate")
        (event,) = await running.accept(1)
        assert event.subject == "/data/in/a.nc"
        assert event.type == "org.dcache.inotify.IN_CLOSE_WRITE"
        assert event.source == "arrivals"
        assert event.attributes["pnfsid"] == version.pnfs_id
        assert event.attributes["size"] == "7"
        told = json.loads(event.data)
        assert told["event"] == {"name": "a.nc", "mask": ["IN_CLOSE_WRITE"]}
        assert "/subscriptions/inotify/" in told["subscription"]
        await running.nothing_more()
