"""Each promise is held by every bed, or by those that its class names."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bridge.testing import Bed
from tests.support.beds import KINDS, made


@pytest.fixture(params=KINDS)
async def bed(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[Bed]:
    """One upstream with nothing in it."""
    async with made(request.param, unique, request) as bed:
        yield bed
