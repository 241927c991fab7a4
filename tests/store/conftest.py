"""A state directory and metrics for one test."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.telemetry.metrics import Metrics


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())
