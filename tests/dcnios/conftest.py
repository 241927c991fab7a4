"""Files of DCNiOS, and what a person brings beside what is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from bridge.cli import main
from bridge.settings.tree import Value, dotted

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


def untold(tree: Value, said: str) -> list[str]:
    """The keys of a file of which nothing is said, or not in their line."""
    told: dict[str, set[str]] = {}
    places: dict[str, int] = {}
    for line, key, what in re.findall(r"^\S+\.yaml:(\d+):\d+: (\S+): ([\w ]+): ", said, re.MULTILINE):
        told.setdefault(key, set()).add(what)
        places[key] = int(line)

    def covers(key: str) -> bool:
        """Whether what is said at `key` is said of all in it."""
        as_one = re.search(r"\.(components|alterations|connection)\[\d+\]$", key)
        nothing_below = not any(other.startswith((f"{key}.", f"{key}[")) for other in told)
        return bool(as_one) or ("left out" in told[key] and nothing_below)

    found = []
    for loc, value in tree.walk():
        if isinstance(value.content, (dict, list)) and value.content:
            continue
        own = dotted(loc)
        above = [dotted(loc[:length]) for length in range(1, len(loc))]
        if own not in told and not any(key in told and covers(key) for key in above):
            found.append(own)
        elif places.get(own, value.place.line) != value.place.line:
            found.append(f"{own} in line {value.place.line}")
    return found


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
