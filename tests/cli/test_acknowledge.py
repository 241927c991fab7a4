"""`oscar-bridge acknowledge` without a daemon: it edits what is kept, or is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.store import losses
from bridge.store.directory import claim
from bridge.store.losses import Loss


@pytest.fixture
def lost(state_dir: Path) -> Path:
    """A state directory in which a loss of `uploads`, and one of a source that was removed, are kept."""
    state_dir.mkdir()
    there = [Loss("uploads", "uploads/3", 120, 1.8e9, 1.8e9), Loss("old", "old/0", 1, 1.8e9, 1.8e9 + 90)]
    losses.write(state_dir, there)
    return state_dir


def test_what_is_named_is_acknowledged_and_the_rest_told_still(
    file: Path, lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acknowledge", "source", "uploads", "-c", str(file)]) == 0
    told = capsys.readouterr()
    assert told.out == (
        "acknowledged: source uploads: 120 or more events were lost upstream before they were read, "
        "2027-01-15 08:00:00+00:00: uploads/3 (120)\n"
    )
    assert told.err == f"oscar-bridge: no bridge runs in {lost}\n"
    assert [loss.source for loss in losses.read(lost)] == ["old"]
    assert main(["acknowledge", "source uploads", "-c", str(file)]) == 0
    assert capsys.readouterr().out == "nothing of source uploads is to be acknowledged\n"
    assert main(["acknowledge", "source", "old", "-c", str(file)]) == 0
    assert losses.read(lost) == []
    assert main(["acknowledge", "-c", str(file)]) == 0
    assert "nothing is to be acknowledged" in capsys.readouterr().out


@pytest.mark.parametrize("part", ["http", "store", "journal", "bridge"])
def test_a_part_that_loses_nothing_is_known(
    file: Path, lost: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    assert main(["acknowledge", part, "-c", str(file)]) == 0
    assert capsys.readouterr().out == f"nothing of {part} is to be acknowledged\n"
    assert len(losses.read(lost)) == 2


def test_a_part_that_there_is_not_exits_with_2(
    file: Path, lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acknowledge", "source", "upload", "-c", str(file)]) == 2
    assert "PART: there is no `source upload`; did you mean `source uploads`?" in capsys.readouterr().err
    assert len(losses.read(lost)) == 2


def test_a_bridge_that_starts_or_stops_takes_no_acknowledgement(
    file: Path, lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = claim(lost)
    try:
        assert main(["acknowledge", "-c", str(file)]) == 1
        assert f"process {os.getpid()}, which takes no command now" in capsys.readouterr().err
    finally:
        os.close(lock)
    assert len(losses.read(lost)) == 2


def test_without_a_state_directory_there_is_nothing_to_acknowledge(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acknowledge", "-c", str(file)]) == 1
    assert f"there is no {state_dir}" in capsys.readouterr().err
    assert not state_dir.exists()


def test_a_file_that_is_damaged_is_told_with_the_way_out(
    file: Path, lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (lost / "losses.json").write_text("{")
    assert main(["acknowledge", "-c", str(file)]) == 1
    assert "losses.json can't be understood" in capsys.readouterr().err
