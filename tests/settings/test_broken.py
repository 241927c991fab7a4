"""Every file in `broken/` gives what its `.expected` says, as the command line prints it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bridge.core.errors import ConfigurationError
from bridge.settings import load

BROKEN = Path(__file__).parent / "broken"
FILES = sorted(path.stem for path in BROKEN.glob("*.yaml"))


def messages(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Load a broken file with the variables that its first lines give."""
    monkeypatch.chdir(BROKEN)
    path = Path(f"{name}.yaml")
    variables = re.findall(r"^# environment: (\w+)=(.*)$", path.read_text("utf-8", "replace"), re.MULTILINE)
    with pytest.raises(ConfigurationError) as raised:
        load(path, dict(variables))
    return f"{raised.value}\n"


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_gives_its_golden_messages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = messages(name, monkeypatch)
    expected = BROKEN / f"{name}.expected"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(said, encoding="utf-8")
    assert said == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_every_message_has_a_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in messages(name, monkeypatch).splitlines():
        assert re.match(rf"({re.escape(name)}\.yaml:\d+:\d+|environment variable \w+): \S", line), line


@pytest.mark.parametrize("name", FILES)
def test_no_message_shows_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = messages(name, monkeypatch)
    for secret in ("hunter2", "424242", "correct horse"):
        assert secret not in said


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 15
    assert {path.stem for path in BROKEN.glob("*.expected")} == set(FILES)
