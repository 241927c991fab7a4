"""What CEL sees of an event: its variables, converted once for all expressions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from math import inf
from typing import Any, NoReturn

from bridge.core.event import Event
from bridge.pipeline.library import Context, functions

VARIABLES = ("id", "source", "type", "subject", "time", "attributes", "data")
"""What an expression can name: the event's CloudEvents attributes, what else came with it, its data."""

_DEEPEST = 500
"""Nesting of `data` shown to CEL: the evaluator converts it recursively on the C stack."""
_MOST_COUNTED = 10_000
_LARGEST = 2**1023
"""CEL's numbers are 64 bits long: larger integers are shown as doubles, these as infinity."""


class Shape(Enum):
    """What an event's data is."""

    OBJECT = auto()
    """A JSON object; also said of data that no expression names."""
    LIST = auto()
    """A JSON array."""
    OTHER = auto()
    """A JSON value without members, or no data at all (a tombstone of Kafka)."""
    RAW = auto()
    """Not JSON (or nested deeper than CEL is shown): shown as text if it is UTF-8, as bytes if not."""


class View:
    """One event as expressions see it."""

    __slots__ = ("_values", "context", "shape", "variables")

    def __init__(
        self, event: Event, names: frozenset[str], keys: frozenset[str] | None, matches: bool
    ) -> None:
        """Show of `event` the variables `names`, and of its data the members `keys` only; all if None.

        Converting costs most of an evaluation's time, so what no expression reads is left out, and so is the
        function for patterns unless an expression `matches`.
        """
        self.shape = Shape.OBJECT
        variables: dict[str, Any] = {}
        self.variables = variables
        for name in names:
            if name == "data":
                variables[name], self.shape = _data(event.data, keys)
            elif name == "subject":
                variables[name] = event.subject or ""
            else:
                variables[name] = getattr(event, name)
        self._values: int | None = None
        with_functions = functions if matches else None
        try:
            self.context = Context(variables, with_functions)
        except ValueError:
            self._make_convertible()
            self.context = Context(variables, with_functions)

    @property
    def values(self) -> int:
        """How many values its lists and maps hold, nested ones too; up to about 10,000."""
        if self._values is None:
            self._values = self._count()
        return self._values

    def _count(self) -> int:
        seen = 0
        left: list[Any] = [self.variables]
        while left:
            item = left.pop()
            inner = item.values() if isinstance(item, Mapping) else item
            seen += len(inner)
            if seen > _MOST_COUNTED:
                break
            left.extend(each for each in inner if isinstance(each, (Mapping, list)))
        return seen

    def _make_convertible(self) -> None:
        """Replace what CEL has no value for: half surrogate pairs (by U+FFFD), integers beyond a double."""
        if "attributes" in self.variables:
            self.variables["attributes"] = dict(self.variables["attributes"])
        left: list[Any] = [self.variables]
        while left:
            holder = left.pop()
            if isinstance(holder, dict):
                for key in list(holder):
                    holder[_convertible(key)] = holder.pop(key)
            for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
                if isinstance(value, (dict, list)):
                    left.append(value)
                else:
                    holder[key] = _convertible(value)


def _convertible(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return inf if value > 0 else -inf
    return value


class _NotJsonError(ValueError):
    """Python's JSON takes it, RFC 8259 does not."""


def _refuse(constant: str) -> NoReturn:
    raise _NotJsonError(f"{constant} is not JSON")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 300 else float(digits)


_SPACE = " \t\n\r"
_JSON = json.JSONDecoder(parse_constant=_refuse)
_JSON_OF_ANY_LENGTH = json.JSONDecoder(parse_constant=_refuse, parse_int=_integer)
"""For integers of more digits than Python reads (4,300). A function for each integer costs time."""


def _data(raw: bytes, keys: frozenset[str] | None) -> tuple[Any, Shape]:
    """Return JSON as its value (an object with `keys` only), other UTF-8 as text, anything else as bytes."""
    if not raw:
        return "", Shape.OTHER
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw, Shape.RAW
    try:
        value = parse(text)
    except (ValueError, RecursionError):
        return text, Shape.RAW
    if isinstance(value, dict):
        shape = Shape.OBJECT
        if keys is not None:
            value = {key: value[key] for key in keys if key in value}
    else:
        shape = Shape.LIST if isinstance(value, list) else Shape.OTHER
    if len(text) > _DEEPEST and text.count("[") + text.count("{") > _DEEPEST and _too_deep(value):
        return text, Shape.RAW
    return value, shape


def parse(text: str) -> Any:
    """Read RFC 8259 JSON with integers of any length. Raise ValueError, RecursionError."""
    text = text.strip(_SPACE)
    try:
        value, end = _JSON.raw_decode(text)
    except (json.JSONDecodeError, _NotJsonError):
        raise
    except ValueError:
        value, end = _JSON_OF_ANY_LENGTH.raw_decode(text)
    if end != len(text):
        raise _NotJsonError("more than one value")
    return value


def _too_deep(value: Any) -> bool:
    level: Sequence[Any] = [value]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        level = inner
    return True
