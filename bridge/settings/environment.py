"""What the environment adds to the file: whole values (`BRIDGE__HTTP__PORT=9000`) and parts (`${NAME}`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bridge.core.errors import ConfigurationError, Mistake
from bridge.settings.document import DEEPEST, Loc, Place, Value, dotted, is_secret, parse

PREFIX = "BRIDGE__"
_DELIMITER = "__"
_LAST = 2**31
_LONGEST = 120
"""Letters shown of a name that is deeper than any key."""
_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


def substitute(root: Value, environ: Mapping[str, str], mistakes: list[Mistake]) -> None:
    """Replace `${NAME}` in every text of the tree; `$${` stands for `${`. What is replaced stays text."""
    for loc, value in root.walk():
        if isinstance(value.content, str) and "${" in value.content:
            _substitute_in(value, loc, environ, mistakes)


def _substitute_in(value: Value, loc: Loc, environ: Mapping[str, str], mistakes: list[Mistake]) -> None:
    def replaced(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        name = found[1]
        if name is None:
            message = (
                "expected ${NAME} with the name of an environment variable; for the two characters write $${"
            )
        elif name not in environ:
            message = f"the environment variable {name} is not set; for a literal ${{ write $${{"
        else:
            value.written = written
            return environ[name]
        mistakes.append(Mistake(str(value.place), dotted(loc), message))
        return found[0]

    written = str(value.content)
    value.content = _REFERENCE.sub(replaced, written)


def overlay(root: Value, environ: Mapping[str, str], mistakes: list[Mistake]) -> None:
    """Put every `BRIDGE__…` variable into the tree, over what the file says there.

    A part of the name stands for a key, without regard to case; a new key is written in lower case.
    A value that begins with `[` or `{` is read as YAML, so that a list or mapping can be given; any
    other is text, and so is every secret.
    """
    found: dict[Loc, str] = {}
    # Outer values first: BRIDGE__HTTP__PORT goes into what BRIDGE__HTTP gives.
    for name in sorted(environ, key=lambda name: (name.count(_DELIMITER), name)):
        if not name.startswith(PREFIX):
            continue
        place = Place(_LAST, 0, f"environment variable {name}")
        parts = name.removeprefix(PREFIX).split(_DELIMITER)
        if not all(parts):
            message = f"expected {PREFIX}KEY or {PREFIX}KEY{_DELIMITER}KEY…"
            mistakes.append(Mistake(str(place), "", message))
            continue
        if len(parts) > DEEPEST:
            message = f"names a key {len(parts)} levels deep, and none is deeper than {DEEPEST}"
            mistakes.append(Mistake(str(place)[:_LONGEST], "", message))
            continue
        loc = tuple(part.lower() for part in parts)
        if loc in found:
            message = f"given twice: {found[loc]} is the same key; unset one of the two"
            mistakes.append(Mistake(str(place), dotted(loc), message))
            continue
        found[loc] = name
        _put(root, parts, environ[name], place, mistakes)


def _put(root: Value, parts: list[str], text: str, place: Place, mistakes: list[Mistake]) -> None:
    parent = root
    loc: Loc = ()
    for part in parts:
        if parent.content is None:
            parent.content = {}
        if not isinstance(parent.content, dict):
            message = f"`{dotted(loc)}` has no keys, so this variable can't set one; set the whole value"
            mistakes.append(Mistake(str(place), dotted((*loc, part.lower())), message))
            return
        key = _key_in(parent.content, part)
        loc = (*loc, key)
        if len(loc) == len(parts):
            _yield_to(key, parent)
            parent.content[key] = _read(text, loc, place, mistakes)
            parent.key_places[key] = place
        elif key not in parent.content:
            parent.content[key] = Value({}, place)
            parent.key_places[key] = place
        parent = parent.content[key]


def _yield_to(key: str, parent: Value) -> None:
    """A secret from the environment replaces the one that the file gives, be it in place or in a file."""
    rival = key.removesuffix("_file") if key.endswith("_file") else f"{key}_file"
    if isinstance(parent.content, dict) and (is_secret((key,)) or is_secret((rival,))):
        value = parent.content.get(rival)
        if value is not None and value.place.line != _LAST:
            del parent.content[rival]


def _key_in(content: Mapping[str, Value], part: str) -> str:
    wanted = part.lower()
    return next((key for key in content if key.lower() == wanted), wanted)


def _read(text: str, loc: Loc, place: Place, mistakes: list[Mistake]) -> Value:
    if is_secret(loc) or not text.lstrip().startswith(("[", "{")):
        return Value(text, place)
    try:
        wrapped = parse(f"value: {text}", "", [])
    except ConfigurationError:
        mistakes.append(Mistake(str(place), dotted(loc), "begins like a list or mapping, but is not YAML"))
        return Value(None, place)
    value = wrapped.mapping()["value"]
    for _, inner in value.walk():
        inner.place = place
        inner.key_places = dict.fromkeys(inner.key_places, place)
    return value
