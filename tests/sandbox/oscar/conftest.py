"""A client of the cluster; each file of tests makes its own `oscar`."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from bridge.sandbox.oscar import SandboxOscar


@pytest.fixture
async def http(oscar: SandboxOscar) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(oscar.url) as session:
        yield session
