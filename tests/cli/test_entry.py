"""Exit statuses and single lines, whatever is given to a command, and whatever its output leads to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.cli import main
from bridge.store import Store
from bridge.store.directory import claim
from bridge.telemetry.metrics import Metrics
from tests.store.events import letter

HUGE = "9" * 23


@pytest.fixture
async def kept(state_dir: Path) -> None:
    """Two dead letters."""
    async with Store.open(state_dir, Metrics()) as store:
        await store.bury(letter("1"))
        await store.bury(letter("2"))


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["show", HUGE], 1, f"there is no dead letter {HUGE}"),
        (["show", "-1"], 1, "there is no dead letter -1"),
        (["list", "--limit", HUGE], 0, ""),
        (["discard", HUGE], 1, "1 of the 1 numbers given: no such dead letter"),
    ],
)
def test_a_number_beyond_all_bounds_is_a_clear_line(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, told: str
) -> None:
    assert main(["dead-letters", *arguments, "-c", str(file)]) == status
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("redirected", "arguments", "status", "told"),
    [
        ("2>&-", ["list"], 0, ""),
        ("2>/dev/full", ["list"], 0, ""),
        ("2>&-", ["show", "7"], 1, ""),
        ("2>/dev/full", ["show", "7"], 1, ""),
        ("2>&-", ["discard"], 2, ""),
        ("1>&-", ["list"], 1, "Bad file descriptor"),
        ("1>/dev/full", ["list"], 1, "No space left on device"),
        ("1>&-", ["show", "7"], 1, "there is no dead letter 7"),
        ("0<&- 1>&- 2>&-", ["list"], 1, ""),
    ],
)
def test_a_standard_descriptor_that_is_closed_or_full_changes_no_more_than_it_must(
    file: Path, redirected: str, arguments: list[str], status: int, told: str
) -> None:
    command = [sys.executable, "-m", "bridge", "dead-letters", *arguments, "-c", str(file)]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirected}', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if redirected == "2>&-" and status:
        assert done.stdout == "", "what goes wrong is no output"


@pytest.mark.usefixtures("kept")
def test_a_bridge_that_starts_or_stops_is_told_as_such_to_a_command(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = claim(state_dir)
    try:
        for arguments in (["dead-letters", "replay", "--all"], ["parked", "bury", "--all"]):
            assert main([*arguments, "-c", str(file)]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert f"process {os.getpid()}, which takes no command now" in line
    finally:
        os.close(lock)


def test_what_was_closed_is_not_given_to_a_file(file: Path) -> None:
    """Else a line meant for a person would go into what was opened, such as the store."""
    code = (
        "import os, sys\n"
        "from bridge.cli import main\n"
        "main(['check', '--offline', '-c', sys.argv[1]])\n"
        "descriptor = os.open(os.devnull, os.O_RDONLY)\n"
        "sys.exit(100 + descriptor)"
    )
    done = subprocess.run(
        ["sh", "-c", '"$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", code, str(file)],
        timeout=60,
        check=False,
    )
    assert done.returncode >= 103


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("", 75),
        ("htp: {}\n", 2),
        ("http: {port: many}\n", 2),
    ],
)
@pytest.mark.parametrize("command", [["run"], ["check"], ["dead-letters", "list"]])
def test_a_file_that_is_not_there_yet_is_no_mistake_to_be_given_up_for(
    file: Path, capsys: pytest.CaptureFixture[str], command: list[str], more: str, status: int
) -> None:
    text = file.read_text().replace('password: "hunter2"', "password_file: late/password")
    file.write_text(text + more)
    assert main([*command, "-c", str(file)]) == status
    told = capsys.readouterr().err
    assert f"{file}:3:" in told
    assert "late/password: No such file or directory" in told


@pytest.mark.parametrize("command", [["run"], ["check"]])
def test_a_secret_s_file_that_is_empty_is_like_one_that_is_not_there_yet(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "password").write_text("\n")
    file.write_text(file.read_text().replace('password: "hunter2"', "password_file: password"))
    assert main([*command, "-c", str(file)]) == 75
    told = capsys.readouterr().err
    assert f"{file}:3:" in told
    assert f"password_file: expected a secret, but {tmp_path / 'password'} is empty" in told


def test_a_file_that_may_not_be_read_and_one_that_is_no_directory_are_mistakes(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "password").mkdir()
    file.write_text(file.read_text().replace('password: "hunter2"', "password_file: password"))
    assert main(["check", "-c", str(file)]) == 2
    assert "password: Is a directory" in capsys.readouterr().err


def test_nothing_that_others_wrote_moves_the_cursor_as_a_mistake(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_options: object) -> int:
        raise ValueError("dCache has no /données/\x1b[2J\u202e\r→.nc\nany more")

    monkeypatch.setattr("bridge.cli.checking._again", fail)
    assert main(["again", "1", "-c", "none"]) == 1
    assert capsys.readouterr().err == (
        "oscar-bridge: dCache has no /données/\\x1b[2J\\u202e\\r→.nc\nany more\n"
    )
