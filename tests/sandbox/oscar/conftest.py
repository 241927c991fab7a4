"""A client of the cluster, and a clock to move; each file of tests makes its own `oscar`."""

import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from bridge.sandbox.oscar import SandboxOscar
from tests.servers.oscar import Clock


@pytest.fixture
async def http(oscar: SandboxOscar) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(oscar.url) as session:
        yield session


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock
