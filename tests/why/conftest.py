"""What the tests of `why` have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar
from bridge.sandbox.oscar import Settings as Sandbox
from tests.why.place import Place


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Sandbox(simulate=True, jobs_a_page=5)) as cluster:
        cluster.add_service("plants")
        yield cluster


@pytest.fixture
def place(tmp_path: Path, oscar: SandboxOscar) -> Place:
    return Place(tmp_path, oscar)


@pytest.fixture
async def site() -> AsyncIterator[SandboxDcache]:
    async with SandboxDcache() as site:
        await site.mkdir("/data/in")
        yield site
