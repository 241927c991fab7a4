"""`oscar-bridge parked`: what can't be meant is refused before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.cli import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["move", "--to", "plants"], "say which events are meant"),
        (["move", "--all", "--service", "old", "--to", "plants"], "by number, by one option, or --all"),
        (["move", "--all", "--to", "plant"], "did you mean `plants`"),
        (["bury"], "say which events are meant"),
        (["bury", "7", "--source", "old"], "by number, by one option, or --all"),
        (["list", "--service", "a", "--source", "b"], "leave out --service"),
    ],
)
def test_a_command_that_does_not_say_which_events_exits_with_2(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["parked", *arguments, "-c", str(file)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["list"], ["bury", "--all"], ["move", "7", "--to", "plants"]])
def test_a_command_makes_no_store(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["parked", *arguments, "-c", str(file)]) == 1
    assert "there is no store in" in capsys.readouterr().err
    assert not state_dir.exists()
