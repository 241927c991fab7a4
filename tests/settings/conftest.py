"""A configuration that loads, to be changed by a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bridge.settings import Settings, load

MINIMAL = """\
state_dir: /var/lib/oscar-bridge
clusters:
  main: {endpoint: https://oscar.example.org, auth: {type: basic, username: oscar, password: "hunter2"}}
services: {plants: {}}
sources: {uploads: {type: kafka, bootstrap_servers: "kafka:9092", topics: [uploads], group_id: oscar}}
routes: [{from: uploads, to: plants}]
"""

Loader = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path) -> Loader:
    """Load a text, the minimal one when not given, with what is added to it."""

    def loaded(text: str = MINIMAL, environ: Mapping[str, str] | None = None, *, more: str = "") -> Settings:
        path = tmp_path / "bridge.yaml"
        path.write_text(text + more, encoding="utf-8")
        return load(path, environ or {})

    return loaded
