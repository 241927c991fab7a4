"""Reads a configuration file into a tree.

YAML is read by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), so `on`, `yes`
and `no` are text, `10:30` is not sixty-based and `010` is ten. Merge keys (`<<`) and tags are not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from bridge.core.errors import ConfigurationError, Mistake
from bridge.settings.tree import Loc, Place, Scalar, Value, dotted

_MOST_VALUES = 50_000
DEEPEST = 30
"""Levels of keys and items."""

_YAML = "tag:yaml.org,2002:"
_CORE: Mapping[str, tuple[str, str, Callable[[str], Scalar]]] = {
    f"{_YAML}null": (r"~|null|Null|NULL|", "~nN", lambda _: None),
    f"{_YAML}bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    f"{_YAML}int": (
        r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        "-+0123456789",
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    f"{_YAML}float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
    ),
}
"""Tag → the form of such a text, the characters that it can begin with, and what it stands for."""
# YAML 1.2.2, section 5.1: what a YAML stream can't contain.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc] # the stubs lack the first
    """Knows the types above alone. A PyYAML that was built without libyaml is twenty times slower."""


for _tag, (_form, _first, _) in _CORE.items():
    # null comes first, and the empty scalar is only its own.
    _starts = [*_first, ""] if _tag.endswith("null") else list(_first)
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_form})\Z"), _starts)


_AT_LEAST = "at least `state_dir`, `clusters`, `services`, `sources`, `routes`"


def read(path: Path, mistakes: list[Mistake], *, expected: str = _AT_LEAST) -> Value:
    """Read the file at `path`; add what is wrong but does not stop the reading to `mistakes`.

    Raises ConfigurationError when there is no tree to go on with, with what is `expected` of an empty file.
    """
    name = str(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _fatal(name, f"can't read the configuration file: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise _fatal(repr(name), "can't read the configuration file: not a path") from None
    return parse(_decode(raw, name), name, mistakes, expected=expected)


def parse(text: str, name: str, mistakes: list[Mistake], *, expected: str = _AT_LEAST) -> Value:
    """Make the tree of `text`, the content of the file called `name`. Raises as `read` does."""
    if found := _UNPRINTABLE.search(text):
        place = _place_at(text, found.start(), name)
        message = f"not YAML: the character U+{ord(found[0]):04X} can't stand in a configuration file"
        raise _fatal(place, message)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _fatal(*_explain(error, text, name)) from None
    except (yaml.YAMLError, RecursionError):
        raise _fatal(f"{name}:1:1", "not YAML: nested too deeply, or not text") from None
    finally:
        loader.dispose()
    if node is None or (isinstance(node, ScalarNode) and node.tag.endswith(":null")):
        raise _fatal(f"{name}:1:1", f"the file is empty; expected {expected}")
    if not isinstance(node, MappingNode):
        found_kind = "a list" if isinstance(node, SequenceNode) else "text"
        raise _fatal(_place(node, name), f"expected `key: value` at the top level, found {found_kind}")
    return _Builder(name, mistakes).build(node, ())


class _Builder:
    def __init__(self, name: str, mistakes: list[Mistake]) -> None:
        self._name = name
        self._mistakes = mistakes
        self._built = 0

    def build(self, node: Node, loc: Loc) -> Value:
        place = _place(node, self._name)
        self._built += 1
        if self._built > _MOST_VALUES:  # aliases that multiply, or hold themselves
            raise _fatal(place, "too many values: an alias (`*name`) repeats too much, or holds itself")
        if len(loc) > DEEPEST:
            raise _fatal(place, "nested too deeply, or an alias (`*name`) that holds itself")
        if isinstance(node, MappingNode):
            return self._mapping(node, loc, place)
        if isinstance(node, SequenceNode):
            self._check_tag(node, "seq", loc, place)
            return Value([self.build(inner, (*loc, index)) for index, inner in enumerate(node.value)], place)
        return Value(self._scalar(node, loc, place), place, spelt=str(node.value))

    def _mapping(self, node: MappingNode, loc: Loc, place: Place) -> Value:
        self._check_tag(node, "map", loc, place)
        content: dict[str, Value] = {}
        key_places: dict[str, Place] = {}
        for key_node, value_node in node.value:
            key_place = _place(key_node, self._name)
            if not isinstance(key_node, ScalarNode):
                self._wrong(key_place, loc, "expected text as the key, found a list or a mapping")
                continue
            key = str(key_node.value)
            if key == "<<":
                self._wrong(key_place, loc, "`<<` merges are not understood: write the keys out")
                continue
            value = self.build(value_node, (*loc, key))
            if key in content:
                first = key_places[key]
                self._wrong(
                    key_place, (*loc, key), f"given twice, first in line {first.line}: remove one of the two"
                )
                continue
            if not isinstance(value_node, ScalarNode) and not value_node.flow_style:
                value.place = key_place  # a block begins, for a person, at its key
            content[key] = value
            key_places[key] = key_place
        return Value(content, place, key_places)

    def _scalar(self, node: Node, loc: Loc, place: Place) -> Scalar:
        text = str(node.value)
        if node.tag not in _CORE or not re.fullmatch(_CORE[node.tag][0], text):
            self._check_tag(node, "str", loc, place)
            return text
        try:
            return _CORE[node.tag][2](text)
        except ValueError:  # Python's limit on the digits of a number
            self._wrong(place, loc, "the number is too long")
            return text

    def _check_tag(self, node: Node, expected: str, loc: Loc, place: Place) -> None:
        if node.tag != f"{_YAML}{expected}":
            self._wrong(place, loc, "YAML tags (`!name`) are not understood: remove it")

    def _wrong(self, place: Place, loc: Loc, message: str) -> None:
        self._mistakes.append(Mistake(str(place), dotted(loc), message))


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8", "replace")
        place = _place_at(before, len(before), name)
        message = f"not UTF-8: the byte 0x{raw[error.start]:02X} is no text; save the file as UTF-8"
        raise _fatal(place, message) from None


def _place(node: Node, name: str) -> Place:
    mark = node.start_mark
    return Place(mark.line + 1, mark.column + 1, f"{name}:{mark.line + 1}:{mark.column + 1}")


def _place_at(text: str, index: int, name: str) -> str:
    before = text[:index]
    return f"{name}:{before.count(chr(10)) + 1}:{index - before.rfind(chr(10))}"


def _fatal(place: Place | str, message: str) -> ConfigurationError:
    return ConfigurationError([Mistake(str(place), "", message)])


_NOT_CLOSED = ("expected ',' or", "unexpected end of stream")
"""For these the place is where it was opened, not where it is missed."""

# What libyaml and PyYAML say, with what it means to the one who wrote the file. Neither's words are
# repeated: they quote names (of anchors, tags) that may be a password someone forgot to put in quotes.
_SYNTAX = (
    ("expected <block end>", "wrong indentation: this does not line up with what is above it"),
    (
        "did not find expected '-' indicator",
        "wrong indentation: this does not line up with the list above it",
    ),
    (
        "did not find expected key",
        "wrong indentation, or text after the end of a quoted value: put the whole value in quotes",
    ),
    ("mapping values are not allowed", "`: ` inside a value: put the value in quotes, or break the line"),
    ("could not find expected ':'", "expected `key: value`, found no `:`"),
    ("expected ',' or", "this `[…]` or `{…}` is not closed, or a `,` is missing in it"),
    ("unexpected end of stream", "this quote is not closed"),
    ("alias", "a value that begins with `*` is an alias in YAML: put it in quotes"),
    ("anchor", "a value that begins with `&` is an anchor in YAML: put it in quotes"),
    ("tag", "a value that begins with `!` is a tag in YAML: put it in quotes"),
    ("escape", "an unknown `\\` escape: use 'single quotes', or write `\\\\` inside \"double\" ones"),
    ("nesting depth", "nested too deeply"),
    ("directive", "a line that begins with `%` is a directive in YAML: put it in quotes"),
    ("document", "expected one document: remove what follows `---` or `...`"),
    ("node content", "a value is missing, or a `[…]` or `{…}` is not closed"),
    ("block sequence entries are not allowed", "a list can't begin here: put `-` on a line of its own"),
    ("cannot start any token", "a value can't begin with this character: put it in quotes"),
)


def _explain(error: yaml.MarkedYAMLError, text: str, name: str) -> tuple[str, str]:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    place = f"{name}:{line}:{column}"
    lines = text.splitlines()
    written = lines[line - 1] if line <= len(lines) else ""
    if "\t" in written[: len(written) - len(written.lstrip())] or written[column - 1 : column] == "\t":
        column = written.index("\t") + 1
        return f"{name}:{line}:{column}", "not YAML: a tab can't indent: use spaces"
    problem = error.problem or ""
    if "expected ','" in problem and column > 1 and written[column - 2 : column] == "${":
        place = f"{name}:{line}:{column - 1}"
        return place, 'not YAML: inside `{…}` and `[…]` a `${NAME}` needs quotes: "${NAME}"'
    if any(part in problem for part in _NOT_CLOSED) and error.context_mark is not None:
        place = f"{name}:{error.context_mark.line + 1}:{error.context_mark.column + 1}"
    for part, meaning in _SYNTAX:
        if part in problem:
            return place, f"not YAML: {meaning}"
    return place, "not YAML: can't be understood from here on"
