"""Who imports whom: a tree in every room, and our own modules loaded late in two places alone."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from textwrap import dedent

import grimp
import pytest

import bridge

ROOT = Path(bridge.__file__).parent
MAY_LOAD_LATE = {
    "sources/*/__init__.py": "the face of a plug: a client library is loaded only where it is configured",
    "cli/*.py": "a command loads what it does, and `--help` nothing",
}


def circle_in(package: str) -> list[str] | None:
    """Give the modules of one circle, each imported by the one before it; None where there is none.

    An import inside a function is one like any other, and so is one for type checkers alone.
    """
    graph = grimp.build_graph(package, cache_dir=None)
    needs = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def late_imports(files: Mapping[str, str], package: str) -> Iterator[str]:
    """Give the imports of the package's own modules that stand inside of functions, of files by path."""
    for path, text in files.items():
        for function in ast.walk(ast.parse(text)):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                named = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else [each.name for each in node.names]
                    if isinstance(node, ast.Import)
                    else []
                )
                if any(name.partition(".")[0] == package for name in named):
                    yield f"{path}:{node.lineno}"


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle_in("bridge") is None


def test_the_linter_holds_the_layers_of_every_folder() -> None:
    """Exhaustively, so a new module has to say where it belongs."""
    contracts = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    held = {
        container
        for contract in contracts["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and contract["exhaustive"]
        for container in contract["containers"]
    }
    folders = {
        ".".join(["bridge", *folder.relative_to(ROOT).parts])
        for folder in [ROOT, *(path.parent for path in ROOT.rglob("__init__.py"))]
        if len([*folder.glob("[!_]*.py"), *folder.glob("[!_]*/__init__.py")]) > 1
    }
    assert held == folders


def test_our_own_modules_are_loaded_late_in_the_faces_of_plugs_and_of_commands_alone() -> None:
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    for allowed in MAY_LOAD_LATE:
        faces = [name for name in files if fnmatch(name, allowed)]
        assert list(late_imports({name: files.pop(name) for name in faces}, "bridge"))
    assert list(late_imports(files, "bridge")) == []


@pytest.mark.parametrize(
    "late",
    [
        "import in_a_circle.one",
        """
        def late():
            from in_a_circle import one
            return one
        """,
        """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from in_a_circle.one import Thing
        """,
    ],
)
def test_a_circle_would_be_found(late: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "in_a_circle"
    package.mkdir()
    for name, text in {"__init__": "", "one": "from in_a_circle import two", "two": "", "three": ""}.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert circle_in("in_a_circle") is None
    (package / "two.py").write_text("import in_a_circle.three")
    (package / "three.py").write_text(dedent(late))
    found = circle_in("in_a_circle")
    sys.modules.pop("in_a_circle", None)
    assert found is not None
    assert set(found) == {"in_a_circle.one", "in_a_circle.two", "in_a_circle.three"}


def test_a_late_import_would_be_found() -> None:
    text = "import bridge.core\nasync def build():\n    import json\n    from bridge.store import Store\n"
    assert list(late_imports({"app.py": text}, "bridge")) == ["app.py:4"]
