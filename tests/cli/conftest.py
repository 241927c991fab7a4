"""A configuration whose upstreams and clusters are never asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.settings.conftest import MINIMAL


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def file(tmp_path: Path, state_dir: Path) -> Path:
    path = tmp_path / "bridge.yaml"
    path.write_text(MINIMAL.replace("/var/lib/oscar-bridge", str(state_dir)))
    return path
