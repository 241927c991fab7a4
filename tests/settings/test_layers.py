"""The two layers of the configuration, as pydantic-settings gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic_settings import BaseSettings

from bridge.settings import Settings
from bridge.settings.layers import EnvironmentLayer, FileLayer
from tests.settings.conftest import MINIMAL, Loader


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bridge.yaml"
    path.write_text("http: {port: 1, host: a}\nlog:\nstate_dir: ${PLACE}\n", encoding="utf-8")
    return path


def test_each_layer_gives_what_is_its_own(file: Path) -> None:
    environ = {"BRIDGE__HTTP__PORT": "2", "BRIDGE__LOG__LEVEL": "debug", "PLACE": "here"}
    below = FileLayer(file, environ)
    above = EnvironmentLayer(below, environ)
    assert above() == {"http": {"port": "2"}, "log": {"level": "debug"}}
    assert below() == {"http": {"host": "a"}, "log": {}, "state_dir": "here"}
    places = {way: str(value.place) for way, value in above.tree.walk()}
    assert places["http", "port"] == "environment variable BRIDGE__HTTP__PORT"
    assert places["http", "host"] == f"{file}:1:23"


def test_a_variable_stands_for_the_whole_value_that_it_names(file: Path) -> None:
    environ = {"BRIDGE__HTTP": "{host: b}", "PLACE": "here"}
    below = FileLayer(file, environ)
    above = EnvironmentLayer(below, environ)
    assert above() == {"http": {"host": "b"}}
    assert "http" not in below()


def test_nothing_else_is_read(load_text: Loader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By itself a BaseSettings takes variables called like its fields, and a file `.env`."""
    assert issubclass(Settings, BaseSettings)
    for name in ("DRAIN_SECONDS", "drain_seconds", "BRIDGE__DRAIN_SECONDS"):
        monkeypatch.setenv(name, "7")
    (tmp_path / ".env").write_text("DRAIN_SECONDS=7\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_text().drain_seconds == 25
    given = yaml.safe_load(MINIMAL) | {"services": {"plants": {"cluster": "main"}}}
    assert Settings.model_validate(given).drain_seconds == 25
