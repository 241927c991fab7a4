"""Every file in `config/` loads, and every example's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trustme

from bridge.settings import Settings, load
from tests.settings.walk import fields

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
ALL = sorted([*CONFIG.glob("*.yaml"), *ROOT.glob("examples/*/bridge.yaml")])
_FILE = re.compile(r"(?<=[\s{,])(?P<key>\w+_(?:file|path)): (?P<path>/[^\s,}]+)")
_VARIABLE = re.compile(r"(?P<key>\w+): [\"\[]*\$\{(?P<name>\w+)\}")


def with_its_files(text: str, root: Path) -> str:
    """Make each file that `text` names below `root`, and name it there."""
    authority = trustme.CA().cert_pem.bytes()

    def made(found: re.Match[str]) -> str:
        path = root / found["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if found["key"].endswith("_path"):
            path.mkdir(exist_ok=True)
            (path / "ca.pem").write_bytes(authority)
        elif path.suffix in (".pem", ".key", ".p12"):
            path.write_bytes(authority)
        else:
            path.write_text("swordfish\n")
        return f"{found['key']}: {path}"

    return _FILE.sub(made, text)


@pytest.mark.parametrize("path", ALL, ids=lambda path: "-".join(path.parts[-2:]))
def test_an_example_loads_without_a_warning(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    here = tmp_path / path.name
    here.write_text(with_its_files(text, tmp_path / "root"), encoding="utf-8")
    variables = {
        name: "http://127.0.0.1:9" if key in ("endpoint", "endpoint_url") else "127.0.0.1:9"
        for key, name in _VARIABLE.findall(text)
    }
    loaded = load(here, variables)
    if path.name != "full.yaml":
        assert loaded.warnings == ()


def test_there_are_the_three_that_the_documentation_names() -> None:
    assert {"minimal.yaml", "kafka.yaml", "full.yaml"} <= {path.name for path in CONFIG.glob("*.yaml")}


def test_the_full_example_has_every_key() -> None:
    text = (CONFIG / "full.yaml").read_text(encoding="utf-8")
    names = {key.rpartition(".")[2] for key in fields(Settings)}
    missing = {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}\b(?=:|\b)", text)}
    assert not missing
