"""A client of the site, and a channel of it; each file of tests makes its own `site`."""

from collections.abc import AsyncIterator

import httpx
import pytest

from bridge.sandbox.dcache import SandboxDcache
from tests.servers.dcache import PLAIN, new_channel, watch


@pytest.fixture
async def http(site: SandboxDcache) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(verify=PLAIN, base_url=site.base, auth=("bridge", "bridge")) as client:
        yield client


@pytest.fixture
async def channel(http: httpx.AsyncClient) -> str:
    """One that watches /data for what is made in it."""
    channel = await new_channel(http)
    await watch(http, channel, "/data", "IN_CREATE")
    return channel
