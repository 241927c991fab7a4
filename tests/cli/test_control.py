"""`oscar-bridge limits`, `pause` and `resume` without a daemon: for its next start, or refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import main
from bridge.store.directory import claim


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["limits", "service", "plant"], "`plant` is not in `services`; did you mean `plants`?"),
        (["limits", "service"], "KEY: is missing: which service is meant?"),
        (["limits", "service", "plants", "rate=fast"], "rate: expected a rate such as 10/s, 600/m or 1000/h"),
        (["limits", "service", "plants", "rate=1/s", "rate=2/s"], "names a limit twice"),
        (["limits", "service", "plants", "concurrency=auto"], "`auto` is for `mode: run`"),
        (["limits", "service", "plants", "queue=2"], "`queue` is no limit of service plants"),
        (["limits", "service", "plants", "active_jobs=4"], "does not know which of its jobs are active"),
        (["limits", "service", "plants", "rate=1/s", "--reset"], "means all limits of it"),
        (["limits", "--for", "2h"], "is of limits that are set"),
        (["pause", "service", "plants", "--for", "1000d"], "expected at most 366d"),
        (["pause", "cluster", "plants"], "`plants` is not in `clusters`"),
        (["resume", "source", "upload"], "did you mean `uploads`"),
    ],
)
def test_what_can_not_be_meant_exits_with_2_and_changes_nothing(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    state_dir.mkdir()
    assert main([*arguments, "-c", str(file)]) == 2
    assert told in capsys.readouterr().err
    assert not list(state_dir.iterdir())


@pytest.mark.parametrize(
    "arguments", [["pause", "bucket", "uploads"], ["pause", "service"], ["limits", "source", "a"]]
)
def test_a_kind_or_key_that_is_not_given_well_is_a_matter_of_usage(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "-c", str(file)])
    assert "usage: oscar-bridge" in capsys.readouterr().err


def rows(file: Path, capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, str], dict[str, Any]]:
    capsys.readouterr()
    assert main(["limits", "--json", "-c", str(file)]) == 0
    found = map(json.loads, capsys.readouterr().out.splitlines())
    return {(row["key"], row["name"]): row for row in found}


def test_without_a_bridge_it_holds_from_the_next_start(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir.mkdir()
    assert main(["limits", "service", "plants", "concurrency=4", "rate=90/m", "-c", str(file)]) == 0
    assert main(["pause", "-c", str(file), "source", "uploads", "--for", "2h"]) == 0
    told = capsys.readouterr()
    assert "source uploads is paused until 20" in told.out
    assert told.err.count(f"no bridge runs in {state_dir}: this holds from its next start") == 2
    shown = rows(file, capsys)
    assert [shown["plants", "concurrency"][name] for name in ("configured", "in_force")] == ["16", "4"]
    assert [shown["plants", "rate"][name] for name in ("configured", "in_force")] == ["none", "1.5/s"]
    assert shown["main", "concurrency"]["in_force"] == "auto"
    assert shown["uploads", "paused"]["until"] - shown["uploads", "paused"]["since"] == 7200
    assert (state_dir / "overrides.json").stat().st_mode & 0o777 == 0o600
    assert main(["resume", "source", "uploads", "-c", str(file)]) == 0
    assert main(["limits", "service", "plants", "--reset", "-c", str(file)]) == 0
    assert all(row["since"] is None for row in rows(file, capsys).values())


def test_a_table_tells_what_is_configured_and_what_is_in_force(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir.mkdir()
    main(["limits", "cluster", "main", "concurrency=8", "-c", str(file)])
    capsys.readouterr()
    assert main(["limits", "-c", str(file)]) == 0
    head, *lines = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert head == ["KIND", "KEY", "LIMIT", "CONFIGURED", "IN FORCE", "FOUND", "SINCE", "UNTIL"]
    (line,) = [line for line in lines if "main" in line and "concurrency" in line]
    assert line[:5] == ["cluster", "main", "concurrency", "auto", "8"]
    assert line[-1] == "it is reset"


def test_without_a_state_directory_limits_are_shown_and_nothing_is_made(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["limits", "-c", str(file)]) == 0
    assert main(["pause", "service", "plants", "-c", str(file)]) == 1
    assert f"there is no {state_dir}: is state_dir right" in capsys.readouterr().err
    assert not state_dir.exists()


def test_a_bridge_that_starts_or_stops_takes_no_order(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = claim(state_dir)
    try:
        assert main(["pause", "service", "plants", "-c", str(file)]) == 1
        assert f"process {os.getpid()}, which takes no command now" in capsys.readouterr().err
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"overrides": [{"kind": "service"}]}', '{"overrides": [1]}', "\udcff"]
)
def test_a_file_that_is_damaged_is_told_with_the_way_out(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    state_dir.mkdir()
    damaged = state_dir / "overrides.json"
    damaged.write_text(text, errors="surrogateescape")
    for arguments in (["limits"], ["pause", "service", "plants"]):
        assert main([*arguments, "-c", str(file)]) == 1
        assert f"{damaged} can't be understood" in capsys.readouterr().err
    damaged.unlink()
    assert main(["pause", "service", "plants", "-c", str(file)]) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("paused", "yes"),
        ("concurrency", 0),
        ("concurrency", "many"),
        ("rate", -1),
        ("active_jobs", "auto"),
        ("rate", True),
        ("rate", "fast"),
    ],
)
def test_so_is_a_value_that_there_is_not(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    state_dir.mkdir()
    override = {
        "kind": "service",
        "key": "plants",
        "name": name,
        "value": value,
        "replaced": None,
        "since": 1.0,
    }
    text = json.dumps({"overrides": [{**override, "until": None}]})
    (state_dir / "overrides.json").write_text(text)
    assert main(["limits", "-c", str(file)]) == 1
    assert "can't be understood" in capsys.readouterr().err
