"""docs/write-a-source.md builds examples/plug, to the letter."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUG = ROOT / "examples" / "plug"
TEXT = (ROOT / "docs" / "write-a-source.md").read_text(encoding="utf-8")
FILES = sorted(path for path in PLUG.rglob("*") if path.suffix in (".py", ".toml"))


def blocks(name: str) -> list[str]:
    """Return what the guide shows of a file, in its order: each block belongs to the file named last."""
    found: list[str] = []
    named = ""
    for line, _, block in re.findall(
        r"^`([\w./]+\.(?:py|toml))`|^```(python|toml)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL
    ):
        if line:
            named = line
        elif named == name:
            found.append(block)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_guide_shows_all_of_a_file_and_nothing_else(path: Path) -> None:
    shown = "\n".join(blocks(str(path.relative_to(PLUG))))
    assert [line for line in shown.splitlines() if line] == [
        line for line in path.read_text(encoding="utf-8").splitlines() if line
    ]


def test_the_source_is_something_to_read_at_a_sitting() -> None:
    """120 lines of code: not blank, no comment, no docstring."""
    text = (PLUG / "oscar_bridge_folder" / "source.py").read_text(encoding="utf-8")
    said = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    code = [
        line
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in said
    ]
    assert len(code) <= 120
