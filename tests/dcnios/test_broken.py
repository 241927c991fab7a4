"""Every file in `broken/` gives what its `.expected` says, exit status 2, and nothing on the disk."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from bridge.cli import main

BROKEN = Path(__file__).parent / "broken"
FILES = sorted(path.stem for path in BROKEN.glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_gives_its_golden_messages(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(BROKEN)
    assert main(["import-dcnios", f"{name}.yaml", "-o", str(tmp_path / "made")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert not (tmp_path / "made").exists()
    expected = BROKEN / f"{name}.expected"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(told.err, encoding="utf-8")
    assert told.err == expected.read_text(encoding="utf-8")
    assert "hunter2" not in told.err
    for line in told.err.splitlines():
        assert re.match(rf"{name}\.yaml:\d+:\d+: \S", line), line


def test_there_is_one_of_each_kind_of_mistake() -> None:
    assert {path.stem for path in BROKEN.glob("*.expected")} == set(FILES)
    assert len(FILES) >= 15


def test_a_file_may_be_a_pipe(tmp_path: Path) -> None:
    path, made = tmp_path / "pipe", tmp_path / "made"
    os.mkfifo(path)
    text = (BROKEN.parent / "files" / "odd-kafka.yaml").read_bytes()
    writer = threading.Thread(target=path.write_bytes, args=(text,))
    writer.start()
    assert main(["import-dcnios", str(path), "-o", str(made)]) == 0
    writer.join()
    assert (made / "bridge.yaml").exists()


def test_a_file_that_is_not_there_is_a_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-dcnios", str(tmp_path / "no.yaml"), "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path / 'no.yaml'}: can't read the configuration file: No such file or directory\n"
    )
