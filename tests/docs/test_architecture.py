"""docs/architecture.md, held against the tree: a page with a name that is gone leads astray."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PICTURE = re.search(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def rows(section: str) -> list[list[str]]:
    """Return the cells of the table in a section, without its head."""
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def defined(path: Path) -> set[str]:
    """Return the names of all functions and classes in a file."""
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def test_every_file_that_is_named_is_there() -> None:
    """In the picture a bare name is beside one with a path, or in a folder below that."""
    names = set(re.findall(r"[\w./-]*\w\.(?:py|toml|md|yaml)\b", TEXT))
    bare = {name for name in names if "/" not in name}
    places = [ROOT / "bridge", ROOT, ROOT / "docs"]
    lost = {name for name in names - bare if not any((place / name).is_file() for place in places)}
    assert lost == set()
    assert len(names - bare) > 40
    folders = {(ROOT / "bridge" / name).parent for name in names - bare} | {*places}
    assert {name for name in bare if not any((folder / name).is_file() for folder in folders)} == set()


def test_the_picture_names_a_file_of_every_room_on_the_way() -> None:
    assert PICTURE is not None
    rooms = {name.partition("/")[0] for name in re.findall(r"\w+/[\w/]+\.py", PICTURE[1])}
    assert rooms == {"sources", "pipeline", "destinations", "store"}


def test_the_rooms_are_those_of_the_tree_and_import_what_is_told() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (house,) = [one["layers"] for one in contracts if one.get("containers") == ["bridge"]]
    layers = [[room for room in re.split(r" [|:] ", layer) if room != "__main__"] for layer in house]
    barred = {
        (source.removeprefix("bridge."), other.removeprefix("bridge."))
        for one in contracts
        if one["type"] == "forbidden"
        for source in one["source_modules"]
        for other in one["forbidden_modules"]
    }
    told = re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", SECTIONS["The rooms"], re.MULTILINE | re.DOTALL)
    rooms = [room for names, _ in told for room in names.split(", ")]
    at = {room: number for number, layer in enumerate(layers) for room in layer}
    assert sorted(rooms) == sorted(at)
    assert [at[room] for room in rooms] == sorted(at.values())
    for names, text in told:
        room = names.split(", ")[-1]
        below = [each for layer in layers[at[room] + 1 :] for each in layer]
        may = [each for each in below if (room, each) not in barred]
        (says,) = re.findall(r"^May import (.+)\.$|^Imports nothing of the bridge\.$", text, re.MULTILINE)
        named = re.findall(r"`(\w+)`", says)
        if says.startswith("all below"):
            assert named == [each for each in below if each not in may], names
        else:
            assert named == may, names
        assert "**Begin with**" in text, names


def test_each_promise_has_its_test() -> None:
    for promise, where in rows("What is promised, and where it is held"):
        tests = re.findall(r"`([^`]+)`", where)
        assert tests, promise
        for each in tests:
            file, _, name = each.partition("::")
            assert (ROOT / file).is_file(), each
            assert not name or name in defined(ROOT / file), each


@pytest.mark.parametrize(("what", "where", "name"), rows("Where is …?"))
def test_what_is_looked_for_is_where_the_page_says(what: str, where: str, name: str) -> None:
    files = re.findall(r"`([^`]+\.py)`", where)
    named = re.findall(r"`(\w+)`", name)
    beside = re.findall(r"`([\w/]+\.py)`", name)
    there = [ROOT / "bridge" / file for file in (*files, *beside)]
    assert all(path.is_file() for path in there), what
    names = {one for path in there for one in defined(path)}
    assert set(named) <= names, what


def members(node: ast.ClassDef) -> set[str]:
    """Return the names of a class's methods, and of what its instances have."""
    methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    own = {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    }
    return methods | own


def test_who_calls_whom_names_what_there_is() -> None:
    classes: dict[str, set[str]] = {}
    for path in (ROOT / "bridge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, set()).update(members(node))
    calls = [call for row in rows("Who calls whom") for call in re.findall(r"`(\w+)\.(\w+)`", row[1])]
    assert len(calls) >= 10
    assert [call for call in calls if call[1] not in classes.get(call[0], set())] == []
