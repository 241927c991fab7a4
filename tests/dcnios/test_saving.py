"""Files that are there are not replaced unasked, and what can't be written leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.cli import main
from tests.dcnios.conftest import FILES

FILE = str(FILES / "layout-a.yaml")


def content(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text("utf-8")
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_what_is_there_is_kept_unless_force_replaces_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "secrets" / "main-password"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main(["import-dcnios", FILE, "-o", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert told.err == f"{mine}: is there already, and nothing was written; --force replaces it\n"
    assert told.out == ""
    assert content(tmp_path) == {"secrets/main-password": "mine"}
    assert main(["import-dcnios", FILE, "-o", str(tmp_path), "--force"]) == 0
    assert content(tmp_path)["secrets/main-password"] == "swordfish-oscar\n"
    assert mine.stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    made = tmp_path / "made"
    made.mkdir()
    (made / "bridge.yaml").symlink_to(elsewhere)
    assert main(["import-dcnios", FILE, "-o", str(made)]) == 2
    assert main(["import-dcnios", FILE, "-o", str(made), "--force"]) == 0
    assert elsewhere.read_text() == "mine"
    assert not (made / "bridge.yaml").is_symlink()


def test_secrets_are_for_their_owner_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert main(["import-dcnios", FILE, "-o", str(tmp_path / "made")]) == 0
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "secrets").stat().st_mode & 0o777 == 0o700
    for file in (tmp_path / "made" / "secrets").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600


def test_no_secret_goes_where_a_link_leads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = tmp_path / "made"
    made.mkdir()
    (made / "secrets").symlink_to(elsewhere)
    for force in ([], ["--force"]):
        assert main(["import-dcnios", FILE, "-o", str(made), *force]) == 2
        assert "secrets: is a link, and nothing was written" in capsys.readouterr().err
    assert content(tmp_path) == {}


def test_force_that_fails_has_replaced_nothing(tmp_path: Path) -> None:
    assert main(["import-dcnios", FILE, "-o", str(tmp_path)]) == 0
    (tmp_path / "bridge.yaml").unlink()
    (tmp_path / "secrets" / "main-password").write_text("mine")
    before = content(tmp_path)
    (tmp_path / "bridge.yaml").mkdir()
    assert main(["import-dcnios", FILE, "-o", str(tmp_path), "--force"]) == 2
    assert content(tmp_path) == before


def test_what_can_not_be_written_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secrets").write_text("")
    assert main(["import-dcnios", FILE, "-o", str(tmp_path), "--force"]) == 1
    told = capsys.readouterr()
    assert "secrets" in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    assert content(tmp_path) == {"secrets": ""}
    assert list(tmp_path.iterdir()) == [tmp_path / "secrets"]


@pytest.mark.parametrize("command", [["check"], ["check", "--offline"], ["run"], ["dead-letters", "list"]])
def test_a_file_of_dcnios_given_to_another_command_names_this_one(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "-c", FILE]) == 2
    assert capsys.readouterr().err == (
        f"{FILE}:2:1: nifi: this is a file of DCNiOS; `oscar-bridge import-dcnios {FILE}` makes a "
        "configuration of the bridge of it\n"
    )
