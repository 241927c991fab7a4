"""A state directory and metrics for one test; and how often it made its writes durable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.store import schema
from bridge.telemetry.metrics import Metrics


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each transaction: what costs time where many rows are written, on any machine."""
    made: list[None] = []
    transaction = schema.transaction

    @contextmanager
    def counted(connection: sqlite3.Connection) -> Iterator[None]:
        made.append(None)
        with transaction(connection):
            yield

    monkeypatch.setattr(schema, "transaction", counted)
    return made
