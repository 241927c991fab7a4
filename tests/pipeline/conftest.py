"""All of the pipeline's tests run in virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.core import steady
from tests.pipeline import clock


def pytest_asyncio_loop_factories() -> Mapping[str, Any]:
    return {"virtual-time": clock.VirtualLoop}


@pytest.fixture(autouse=True, scope="module")
def _virtual_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch, capture_logs():
        clock.patch(monkeypatch)
        yield


@pytest.fixture
def told_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem that is over is told no more, in place of half a minute later."""
    monkeypatch.setattr(steady, "HELD_SECONDS", 0.0)
