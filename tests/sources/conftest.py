"""A broker of Rucio's behind a proxy, for the tests of its links."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bridge.core import steady
from tests.support.beds import RUCIO_KINDS, RucioBed, made


@pytest.fixture
def told_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem that is over is told no longer, for tests that wait for its end (not for 30 s)."""
    monkeypatch.setattr(steady, "HELD_SECONDS", 0.0)


@pytest.fixture(params=RUCIO_KINDS)
async def bed(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[RucioBed]:
    async with made(request.param, unique, request) as bed:
        assert isinstance(bed, RucioBed)
        yield bed
