"""One browser a file, and a site a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.page.fake import FakeBridge
from tests.page.visiting import Site
from tests.servers.chromium import chromium


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """A site; what its bridge is made with can be its parameter."""
    site = Site(tmp_path, FakeBridge(**getattr(request, "param", {})))
    await site.up()
    yield site
    await site.down()
