"""A broker of Rucio's behind a proxy, for the tests of its links."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bridge.core import steady
from tests.conformance.beds import RucioBed, make
from tests.servers.proxy import Proxy
from tests.sources.rucio import KINDS


@pytest.fixture
def told_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem that is over is told no longer, for tests that wait for its end (not for 30 s)."""
    monkeypatch.setattr(steady, "HELD_SECONDS", 0.0)


@pytest.fixture(params=KINDS)
async def bed(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[RucioBed]:
    bed, target = await make(request.param, unique, request)
    assert isinstance(bed, RucioBed)
    async with Proxy(target) as proxy:
        bed.proxy = proxy
        yield bed
