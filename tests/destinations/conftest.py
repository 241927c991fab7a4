"""These tests run in the loop that the bridge runs in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.net.loop import Loop


def pytest_asyncio_loop_factories() -> Mapping[str, Any]:
    return {"bridge": Loop}
