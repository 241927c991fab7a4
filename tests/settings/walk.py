"""Every key of the configuration, as the documentation writes it."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Give each field by its dotted key: `KEY` for a mapping's own names, `[]` for items, a form's `type`.

    What all forms have alike stands without a form.
    """
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = list(_models(field.annotation, key))
        if not inner or (field.is_required() and len(inner) > 1 and f"{key}.KEY." not in inner[0][0]):
            found[key] = field
        alike = _alike([form for _, form in inner]) if len(inner) > 1 else frozenset()
        for at, each in inner:
            for inside, told in fields(each, f"{at}.").items():
                last = inside.removeprefix(f"{at}.")
                found[f"{at.rpartition('.')[0]}.{last}" if last in alike else inside] = told
    return found


def _alike(forms: list[type[BaseModel]]) -> frozenset[str]:
    return frozenset(
        name
        for name, field in forms[0].model_fields.items()
        if all(repr(form.model_fields.get(name)) == repr(field) for form in forms)
    )


def _models(annotation: Any, key: str) -> list[tuple[str, type[BaseModel]]]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _models(arguments[0], key)
    if origin in (Union, UnionType):
        forms = [each for argument in arguments for each in _models(argument, key)]
        if len(forms) > 1:
            return [(f"{at}.{get_args(form.model_fields['type'].annotation)[0]}", form) for at, form in forms]
        return forms
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(key, annotation)]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _models(arguments[1], f"{key}.KEY")
    if origin in (tuple, list):
        return _models(arguments[0], f"{key}[]")
    return []
