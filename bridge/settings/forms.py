"""Which types the models of the configuration have at a place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

Way = Sequence[str | int]
"""The way of pydantic to a value: keys, indexes, and the `type` that chose among several forms."""


class Forms:
    """The types in a model and what is in it."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def at(self, way: Way) -> list[Any]:
        """Return the types that may stand at the end of `way`."""
        forms: list[Any] = [self._model]
        for part in way:
            chosen = [form for form in forms if part in _types_of(form)]
            forms = chosen or [inner for form in forms for inner in _inner(form, part)]
        return forms

    def keys_at(self, way: Way) -> list[str]:
        """Return the keys that may stand there."""
        return sorted(key for form in self.at(way) for key in _fields(form))


def _forms(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _forms(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _forms(each)
    else:
        yield annotation


def _fields(form: Any) -> Mapping[str, Any]:
    """Return what a model has by key; nothing of what is no model."""
    if not (isinstance(form, type) and issubclass(form, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in form.model_fields.items()}


def _types_of(form: Any) -> tuple[Any, ...]:
    return get_args(_fields(form).get("type"))


def _inner(form: Any, part: str | int) -> Iterator[Any]:
    origin, arguments = get_origin(form), [each for each in get_args(form) if each is not ...]
    if part in (fields := _fields(form)):
        yield from _forms(fields[str(part)])
    elif isinstance(origin, type) and arguments and (isinstance(part, int) or issubclass(origin, Mapping)):
        yield from _forms(arguments[-1])
