"""The layers of the configuration: the file, and the environment over it.

pydantic-settings calls them settings sources, but here a source is an upstream. Both are in one tree, in
which each value keeps its place. A variable finds its key there without regard to case, stands for the whole
value that it names, and as a secret for the file's, in whichever way that is given; then each layer gives
what is its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from bridge.core.errors import ConfigurationError, Mistake
from bridge.settings.document import DEEPEST, parse, read
from bridge.settings.models import Settings
from bridge.settings.tree import Loc, Place, Value, dotted, is_secret

_PREFIX = "BRIDGE__"
_DELIMITER = "__"
_LONGEST = 120
"""Letters shown of a name that is deeper than any key."""
_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")


class _Layer(PydanticBaseSettingsSource):
    """One of the two."""

    of_variables: ClassVar[bool]

    def __init__(self, tree: Value, mistakes: list[Mistake]) -> None:
        super().__init__(Settings)
        self.tree = tree
        """The values of both."""
        self.mistakes = mistakes

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of one field, as the abstract class asks; all are given at once."""
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return what is of this layer, as pydantic takes it."""
        values: dict[str, Any] = self.tree.plain(lambda place: place.is_variable is self.of_variables)
        return values

    def _wrong(self, place: Place, loc: Loc, message: str) -> None:
        self.mistakes.append(Mistake(str(place), dotted(loc), message))


class FileLayer(_Layer):
    """What the file says, with variables put in for each `${NAME}` in a text; `$${` stands for `${`."""

    of_variables = False

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        """Read the file at `path`. Raises ConfigurationError when there is no tree to go on with."""
        mistakes: list[Mistake] = []
        super().__init__(read(path, mistakes), mistakes)
        for loc, value in self.tree.walk():
            if isinstance(value.content, str) and "${" in value.content:
                self._put_in(value, loc, value.content, environ)

    def _put_in(self, value: Value, loc: Loc, written: str, environ: Mapping[str, str]) -> None:
        def replaced(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            name = found[1]
            if name in environ:
                value.written = written
                return environ[name]
            if name is None:
                form = "${NAME} with the name of an environment variable"
                message = f"expected {form}; for the two characters write $${{"
            else:
                message = f"the environment variable {name} is not set; for a literal ${{ write $${{"
            self._wrong(value.place, loc, message)
            return found[0]

        value.content = _REFERENCE.sub(replaced, written)


class EnvironmentLayer(_Layer):
    """Every `BRIDGE__…` variable, over what the file says there.

    A part of the name stands for a key, without regard to case; a new key is written in lower case.
    A value that begins with `[` or `{` is read as YAML, so that a list or mapping can be given; any
    other is text, and so is every secret.
    """

    of_variables = True

    def __init__(self, file: FileLayer, environ: Mapping[str, str]) -> None:
        super().__init__(file.tree, file.mistakes)
        found: dict[Loc, str] = {}
        # Outer values first: BRIDGE__HTTP__PORT goes into what BRIDGE__HTTP gives.
        for name in sorted(environ, key=lambda name: (name.count(_DELIMITER), name)):
            if not name.startswith(_PREFIX):
                continue
            place = Place.of_variable(name)
            parts = name.removeprefix(_PREFIX).split(_DELIMITER)
            loc = tuple(part.lower() for part in parts)
            if not all(parts):
                self._wrong(place, (), f"expected {_PREFIX}KEY or {_PREFIX}KEY{_DELIMITER}KEY…")
            elif len(parts) > DEEPEST:
                message = f"names a key {len(parts)} levels deep, and none is deeper than {DEEPEST}"
                self._wrong(place._replace(text=place.text[:_LONGEST]), (), message)
            elif (first := found.setdefault(loc, name)) != name:
                self._wrong(place, loc, f"given twice: {first} is the same key; unset one of the two")
            else:
                self._lay(parts, environ[name], place)

    def _lay(self, parts: list[str], text: str, place: Place) -> None:
        parent = self.tree
        loc: Loc = ()
        for part in parts:
            if parent.content is None:
                parent.content = {}
            if not isinstance(parent.content, dict):
                message = f"`{dotted(loc)}` has no keys, so this variable can't set one; set the whole value"
                self._wrong(place, (*loc, part.lower()), message)
                return
            key = next((key for key in parent.content if key.lower() == part.lower()), part.lower())
            loc = (*loc, key)
            if len(loc) == len(parts):
                _drop_rival(parent.content, key)
                parent.content[key] = self._read(text, loc, place)
                parent.key_places[key] = place
            elif key not in parent.content:
                parent.content[key] = Value({}, place)
                parent.key_places[key] = place
            parent = parent.content[key]

    def _read(self, text: str, loc: Loc, place: Place) -> Value:
        if is_secret(loc) or not text.lstrip().startswith(("[", "{")):
            return Value(text, place)
        try:
            value = parse(f"value: {text}", "", []).mapping()["value"]
        except ConfigurationError:
            self._wrong(place, loc, "begins like a list or mapping, but is not YAML")
            return Value(None, place)
        for _, inner in value.walk():
            inner.place = place
            inner.key_places = dict.fromkeys(inner.key_places, place)
        return value


def _drop_rival(content: dict[str, Value], key: str) -> None:
    """Leave out the secret of the file, in place or in a file of its own, that one of a variable replaces."""
    name = key.removesuffix("_file")
    rival = f"{name}_file" if key == name else name
    if is_secret((name,)) and rival in content and not content[rival].place.is_variable:
        del content[rival]
