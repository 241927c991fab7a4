"""Files of DCNiOS, and what a person brings beside what is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from bridge.cli import main

FILES = Path(__file__).parent / "files"
NODES = {"rates": "3"}
"""Name of a file → how many nodes its NiFi has, where it is not one."""


@pytest.fixture
def imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[str, Path]]:
    """Import one of `files`: what is printed, and the directory that is written."""

    def made(name: str) -> tuple[str, Path]:
        monkeypatch.chdir(FILES)
        directory = tmp_path / "made"
        assert (
            main(["import-dcnios", f"{name}.yaml", "-o", str(directory), "--nodes", NODES.get(name, "1")])
            == 0
        )
        told = capsys.readouterr()
        assert told.err == ""
        return told.out.replace(str(directory), "DIR"), directory

    return made


def bring(directory: Path) -> None:
    """Put the files that the report asks for beside a configuration that was made, or where it names them."""
    authority = trustme.CA()
    configuration = directory / "bridge.yaml"

    def brought(found: re.Match[str]) -> str:
        given = found["path"].strip('"')
        path = directory / given.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if found["key"] == "ca_path":
            path.mkdir(parents=True)
            (path / "ca.pem").write_bytes(authority.cert_pem.bytes())
        elif found["key"] == "cert_file":
            authority.issue_cert("proxy.example.org").private_key_and_cert_chain_pem.write_to_path(path)
        elif found["key"] == "token_file" and not path.exists():
            path.write_text("a-token-of-an-agent\n")
        elif not path.exists():
            path.write_bytes(authority.cert_pem.bytes())
        return f'{found["key"]}: "{path}"'

    keys = "ca_path|ca_file|cert_file|token_file|truststore_file|pkcs12_file"
    text = re.sub(
        rf'(?P<key>\b(?:{keys})): (?P<path>"[^"]*"|[^\s,}}]+)', brought, configuration.read_text("utf-8")
    )
    configuration.write_text(text, encoding="utf-8")
