"""The configuration as a tree in which every value knows its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Scalar = str | int | float | bool | None
Loc = tuple[str | int, ...]
"""The way to a value from the top: keys of mappings, indexes of lists."""

_SECRET_KEY = re.compile(r"password|passwd|token|secret|passphrase", re.IGNORECASE)
_NOT_SECRET = re.compile(r"_(file|endpoint|url)$", re.IGNORECASE)
_NAMED_BY_A_PERSON = (("clusters",), ("services",), ("sources",))
"""Mappings whose keys are a person's."""
_PART_OF_A_WORD = 4
_IN_NO_FILE = 2**31


class Place(NamedTuple):
    """Where something was written. Sorts by line; what is not in the file comes last."""

    line: int
    column: int
    text: str

    @classmethod
    def of_variable(cls, name: str) -> Place:
        """Return the place of an environment variable."""
        return cls(_IN_NO_FILE, 0, f"environment variable {name}")

    @property
    def is_variable(self) -> bool:
        """Whether it is an environment variable."""
        return self.line == _IN_NO_FILE

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class Value:
    """One value with its place; inner values are Values again."""

    content: dict[str, Value] | list[Value] | Scalar
    place: Place
    key_places: dict[str, Place] = field(default_factory=dict)
    """Where each key of a mapping stands."""
    written: str | None = None
    """The text with its `${NAME}`, when there is one: what came through it may be a secret wherever it
    stands, so this is shown in its place."""
    spelt: str = ""
    """A number, or any other single value, as it stands in the file: `010` is ten."""

    def plain(self, belongs: Callable[[Place], bool] = lambda _: True) -> Any:
        """Return the value as plain Python data; of mappings what stands at places that `belongs` picks."""
        if isinstance(self.content, dict):
            return {key: value.plain(belongs) for key, value in self.content.items() if value.has(belongs)}
        if isinstance(self.content, list):
            return [value.plain() for value in self.content]
        return self.content

    def has(self, belongs: Callable[[Place], bool]) -> bool:
        """Tell whether this, or anything in it, stands at such a place."""
        inner = self.content.values() if isinstance(self.content, dict) else ()
        return belongs(self.place) or any(value.has(belongs) for value in inner)

    def child(self, *way: str | int) -> Value | None:
        """Return the value at the end of `way`, None when there is none."""
        value = self
        for key in way:
            if isinstance(value.content, dict) and key in value.content:
                value = value.content[str(key)]
            elif isinstance(value.content, list) and isinstance(key, int) and 0 <= key < len(value.content):
                value = value.content[key]
            else:
                return None
        return value

    def given(self, *way: str | int) -> Value | None:
        """Return the value at the end of `way`, None also when it is null."""
        value = self.child(*way)
        return None if value is None or value.content is None else value

    def mapping(self, *way: str | int) -> Mapping[str, Value]:
        """Return the mapping at the end of `way`, an empty one when it is missing or something else."""
        value = self.child(*way)
        return value.content if value is not None and isinstance(value.content, dict) else {}

    def items(self, *way: str | int) -> Sequence[Value]:
        """Return the items of the list at the end of `way`, none when it is missing or something else."""
        value = self.child(*way)
        return value.content if value is not None and isinstance(value.content, list) else ()

    def text(self, *way: str | int) -> str | None:
        """Return the text at the end of `way`, None when it is missing or something else."""
        value = self.child(*way)
        return value.content if value is not None and isinstance(value.content, str) else None

    def walk(self, loc: Loc = ()) -> Iterator[tuple[Loc, Value]]:
        """Yield this and every inner value with the way to it."""
        yield loc, self
        if isinstance(self.content, dict):
            for key, value in self.content.items():
                yield from value.walk((*loc, key))
        elif isinstance(self.content, list):
            for index, value in enumerate(self.content):
                yield from value.walk((*loc, index))


def dotted(loc: Loc) -> str:
    """Write a way as a person does: `routes[0].when`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def is_secret(loc: Loc) -> bool:
    """Tell whether the value at `loc` must never be shown. What a person calls a source decides nothing."""
    ours = (*loc[:1], *loc[2:]) if loc[:1] in _NAMED_BY_A_PERSON else loc
    return any(
        isinstance(part, str) and _SECRET_KEY.search(part) and not _NOT_SECRET.search(part) for part in ours
    )


def secrets_of(root: Value) -> frozenset[str]:
    """Return every value that must not be shown."""
    return frozenset(
        str(value.content)
        for loc, value in root.walk()
        if is_secret(loc) and isinstance(value.content, (str, int, float)) and value.content != ""
    )


def hide(text: str, secret: str, shown: str) -> str:
    """Put `shown` wherever `text` has `secret`; a very short one only where it is a word of its own."""
    if len(secret) >= _PART_OF_A_WORD:
        return text.replace(secret, shown)
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", lambda _: shown, text)
