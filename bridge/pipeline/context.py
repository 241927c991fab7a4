"""What CEL sees of an event: its variables, converted once for all expressions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import lru_cache
from math import inf
from typing import Any, NoReturn

from pydantic_core import SchemaValidator, core_schema

from bridge.core.event import Event
from bridge.pipeline import library

VARIABLES = ("id", "source", "type", "subject", "time", "attributes", "data")
"""What an expression can name: the event's CloudEvents attributes, what else came with it, its data."""

_DEEPEST = 500
"""Nesting of `data` shown to CEL: the evaluator converts it recursively on the C stack."""
_MOST_COUNTED = 10_000
_LARGEST = 2**1023
"""CEL's numbers are 64 bits long: larger integers are shown as doubles, these as infinity."""


Reads = frozenset[tuple[str, ...]]
"""Members of data, each by the keys to it."""
_Tree = dict[str, "_Tree | None"]
"""By a key, what is read of that member's own; None: all of it."""


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

    __slots__ = (
        "_context",
        "_data",
        "_matches",
        "_names",
        "_reads",
        "_shape",
        "_values",
        "_variables",
        "event",
    )

    def __init__(self, event: Event, names: frozenset[str], reads: Reads | None, matches: bool) -> None:
        """Show of `event` the variables `names`, and of its data what is in `reads` only; all if None.

        Nothing is read or converted before an expression asks for it. Converting costs most of an
        evaluation's time, so what no expression reads is left out, and so is the function for patterns unless
        an expression `matches`.
        """
        self.event = event
        self._names = names
        self._reads = reads
        self._matches = matches
        self._data: Any = None
        self._shape: Shape | None = None
        self._variables: dict[str, Any] | None = None
        self._values: int | None = None
        self._context: library.Context | None = None

    @property
    def data(self) -> Any:
        """The value of `data`, read once. Raise LookupError where it is not shown."""
        if self._shape is None:
            if "data" not in self._names:
                raise LookupError("data")
            self._read()
        return self._data

    @property
    def shape(self) -> Shape:
        """What `data` is."""
        if self._shape is None:
            return self._read() if "data" in self._names else Shape.OBJECT
        return self._shape

    def _read(self) -> Shape:
        self._data, self._shape = _data(self.event.data, self._reads)
        return self._shape

    @property
    def variables(self) -> dict[str, Any]:
        """What is shown, by its name."""
        if self._variables is None:
            self._variables = {name: self._variable(name) for name in self._names}
        return self._variables

    def _variable(self, name: str) -> Any:
        if name == "data":
            return self.data
        return self.event.subject or "" if name == "subject" else getattr(self.event, name)

    @property
    def context(self) -> library.Context:
        """What is shown, as the evaluator takes it; converted once."""
        if self._context is None:
            with_functions = library.functions if self._matches else None
            try:
                self._context = library.Context(self.variables, with_functions)
            except ValueError:
                self._make_convertible()
                self._context = library.Context(self.variables, with_functions)
        return self._context

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


_N, _I = b"NI"
_SPACE = " \t\n\r"
_JSON = json.JSONDecoder(parse_constant=_refuse)
_JSON_OF_ANY_LENGTH = json.JSONDecoder(parse_constant=_refuse, parse_int=_integer)
"""For integers of more digits than Python reads (4,300). A function for each integer costs time."""


def _data(raw: bytes, reads: Reads | None) -> tuple[Any, Shape]:
    """Return JSON as its value (an object with `reads` only), other UTF-8 as text, anything else as bytes."""
    if reads is not None and raw[:1] == b"{" and not _has_constants(raw):
        try:
            return _reader(reads)(raw), Shape.OBJECT
        except ValueError:
            pass
    return _data_of_any_kind(raw, reads)


def _has_constants(raw: bytes) -> bool:
    """Tell whether NaN or Infinity is anywhere in it. To look for one byte takes a tenth of the time."""
    return (_N in raw and raw.find(b"NaN") >= 0) or (_I in raw and raw.find(b"Infinity") >= 0)


@lru_cache(maxsize=1_000)
def _reader(reads: Reads) -> Callable[[bytes], dict[str, Any]]:
    """Return a reader of JSON objects that makes values of the members in `reads` only.

    It takes a sixth of the time of making values of all. It raises ValueError for what is no object, and for
    some of what Python's reader takes (half a surrogate pair, 4,300 digits, a depth of 200); NaN and
    Infinity, which are not JSON, it takes. Of two members of one name the last counts for both.
    """
    configuration = core_schema.CoreConfig(cache_strings="keys")
    return SchemaValidator(_schema(_tree(reads)), configuration).validate_json


def _schema(tree: _Tree) -> core_schema.CoreSchema:
    members = {
        key: core_schema.typed_dict_field(
            core_schema.any_schema() if inside is None else _schema(inside), required=False
        )
        for key, inside in tree.items()
    }
    return core_schema.typed_dict_schema(members, extra_behavior="ignore")


def _tree(reads: Reads) -> _Tree:
    tree: _Tree = {}
    for *way, last in sorted(reads):  # `a` before `a.b`, which is in it
        inside: _Tree | None = tree
        for key in way:
            inside = None if inside is None else inside.setdefault(key, {})
        if inside is not None:
            inside[last] = None
    return tree


def _only(value: Any, tree: _Tree | None) -> Any:
    """Return of `value` what is in `tree`; what is no object is left as it is."""
    if tree is None or not isinstance(value, dict):
        return value
    return {key: _only(value[key], inside) for key, inside in tree.items() if key in value}


def _data_of_any_kind(raw: bytes, reads: Reads | None) -> tuple[Any, Shape]:
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
        if reads is not None:
            value = _only(value, _tree(reads))
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
