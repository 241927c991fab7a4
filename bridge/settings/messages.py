"""What pydantic found, as sentences for the one who wrote the file, each at its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bridge.core.errors import Mistake
from bridge.settings.document import Loc, Place, Value, dotted, hide, is_secret, secrets_of
from bridge.settings.references import did_you_mean
from bridge.sources.registry import installed
from bridge.telemetry.logging import REDACTED, redact_text
from bridge.values import NOT_THERE

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is not infinite",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list, as in [a, b]",
    "tuple_type": "a list, as in [a, b]",
    "set_type": "a list, as in [a, b]",
    "frozen_set_type": "a list, as in [a, b]",
    "dict_type": "a mapping of `key: value`",
    "model_type": "a mapping of `key: value`",
    "model_attributes_type": "a mapping of `key: value`",
    "path_type": "a path",
    "none_required": "nothing",
    "datetime_type": "a date and time, as in 2026-01-31T12:00:00Z",
    "datetime_parsing": "a date and time, as in 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "a date and time, as in 2026-01-31T12:00:00Z",
    "timezone_aware": "a date and time with its zone, as in 2026-01-31T12:00:00Z",
    "url_type": "a URL",
    "url_parsing": "a URL",
}
_UNITS: dict[type, str] = {dict: "key", list: "item"}
_EXPECTED_WITH = {
    "enum": "{expected}",
    "greater_than": "a value above {gt}",
    "greater_than_equal": "a value of at least {ge}",
    "less_than": "a value below {lt}",
    "less_than_equal": "a value of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_pattern_mismatch": "text that matches `{pattern}`",
    "url_scheme": "a URL that begins with {expected_schemes}",
}


class Translator:
    """Turns the errors of one validation of `root` against `model` into mistakes."""

    def __init__(self, model: type[BaseModel], root: Value) -> None:
        self._model = model
        self._root = root
        self._secrets = sorted(secrets_of(root), key=len, reverse=True)

    def translate(self, error: ValidationError) -> list[Mistake]:
        """Give one mistake for each value that is wrong, whatever number of forms it was tried against."""
        by_place: dict[tuple[Loc, str], list[str]] = {}
        places: dict[tuple[Loc, str], tuple[Place, Value | None]] = {}
        kinds: dict[tuple[Loc, str], set[str]] = {}
        for details in error.errors(include_url=False):
            loc, place, value = self._locate(details)
            if _counts_the_valid_only(details, value):
                continue
            message = self._say(details, loc, value)
            head = message.partition(" ")[0]
            messages = by_place.setdefault((loc, head), [])
            if message not in messages:
                messages.append(message)
            places[loc, head] = place, value
            kinds.setdefault((loc, head), set()).add(details["type"])
        mistakes = []
        for found, messages in by_place.items():
            place, value = places[found]
            message = " or ".join([messages[0], *(each.removeprefix("expected ") for each in messages[1:])])
            if messages[0].startswith("expected ") and value is not None and _adds_to(message, value):
                if message.startswith("expected a mapping") and isinstance(value.content, str):
                    message += ", found text"  # it may be a secret that was put one level too high
                else:
                    message += self._found(found[0], value)
                if message.startswith("expected text,") and isinstance(value.content, (int, float)):
                    message += ": put it in quotes"
            may_pass = kinds[found] == {NOT_THERE}
            mistakes.append(
                Mistake(str(place), dotted(found[0]), self._hidden(message, value), may_pass=may_pass)
            )
        return mistakes

    def switches(self) -> list[Mistake]:
        """Find true and false where a number belongs: pydantic would take them for 1 and 0."""
        return [
            Mistake(
                str(value.place), dotted(loc), f"expected a whole number, found {str(value.content).lower()}"
            )
            for loc, value in self._root.walk()
            if isinstance(value.content, bool)
            and (forms := self._forms_at(loc))
            and int in forms
            and bool not in forms
        ]

    def _locate(self, details: ErrorDetails) -> tuple[Loc, Place, Value | None]:
        """Follow pydantic's way through the tree; what is no key in it names a form that was tried."""
        raw = details["loc"]
        value = self._root
        loc: list[str | int] = []
        for index, part in enumerate(raw):
            last = index == len(raw) - 1
            if last and details["type"] == "missing":
                return (*loc, part), value.place, None
            if not last and value.child("type") is not None and value.text("type") == part:
                continue  # the form of a union that `type` chose
            inner = value.child(part)
            if inner is None and last and part in self._keys_at(raw[:index]):  # a default made of its key
                return (*loc, part), value.place, Value(details["input"], value.place)
            if inner is not None:
                if last and details["type"] == "extra_forbidden" and isinstance(part, str):
                    return (*loc, part), value.key_places[part], inner
                key_place = value.key_places.get(part) if isinstance(part, str) else None
                if raw[index + 1 :] == ("[key]",) and key_place is not None:
                    return (*loc, part), key_place, Value(part, key_place)
                value = inner
                loc.append(part)
        if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
            named = value.child("type")
            return (*loc, "type"), (named or value).place, named
        return tuple(loc), value.place, value

    def _say(self, details: ErrorDetails, loc: Loc, value: Value | None) -> str:
        kind, context = details["type"], details.get("ctx", {})
        if kind in ("missing", "union_tag_not_found"):
            return f"missing; {self._expectation(loc)}"
        if kind == "extra_forbidden":
            return f"unknown key{did_you_mean(str(loc[-1]), self._keys_at(details['loc'][:-1]))}"
        if kind == "union_tag_invalid":
            if loc[0] == "sources" and (why := installed().unusable.get(str(context.get("tag")))):
                return why
            known = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
            shown = value.written or value.content if value is not None else None
            return f"`{shown}` is no type there is{did_you_mean(str(context.get('tag')), known)}"
        if kind in ("value_error", "assertion_error"):
            return str(context["error"])
        if "[key]" in details["loc"]:
            return "expected a key of 1 to 63 letters, digits, `-` or `_` that begins with a letter or digit"
        if kind.endswith(("too_short", "too_long")):
            unit = _UNITS.get(type(value.content), "character") if value is not None else "item"
            amount = context.get("min_length", context.get("max_length"))
            bound = "least" if kind.endswith("too_short") else "most"
            return f"expected at {bound} {amount} {unit}{'' if amount == 1 else 's'}"
        if kind in _EXPECTED:
            return f"expected {_EXPECTED[kind]}"
        if kind == "literal_error":
            return _one_of(re.findall(r"'([^']*)'", str(context["expected"])))
        if kind in _EXPECTED_WITH:
            return "expected " + _EXPECTED_WITH[kind].format_map(context).replace("'", "`")
        message = details["msg"].replace("Input should be ", "expected ")
        return message[:1].lower() + message[1:]

    def _found(self, loc: Loc, value: Value) -> str:
        content = value.content
        if isinstance(content, dict):
            return ", found a mapping" if content else ", found an empty mapping"
        if isinstance(content, list):
            return f", found a list of {len(content)}" if content else ", found an empty list"
        if content is None or content == "":
            return ", found nothing" if content is None else ", found an empty text"
        if is_secret(loc):
            return ", found a value that is not shown here"
        if isinstance(content, bool):
            return f", found {str(content).lower()}"
        if isinstance(content, (int, float)):
            return f", found the number {content}"
        return f", found `{redact_text(_short(value.written or content))}`"

    def _hidden(self, message: str, value: Value | None) -> str:
        if value is not None and value.written is not None and value.content:
            message = hide(message, str(value.content), value.written)
        for secret in self._secrets:
            message = hide(message, secret, REDACTED)
        return message

    def _expectation(self, loc: Loc) -> str:
        kinds = {kind for form in self._forms_at(loc) if (kind := _kind_of(form)) != "nothing"}
        types = sorted(
            {str(form) for model in self._forms_at(loc[:-1]) for form in _types_of(model)}
            if loc[-1] == "type"
            else ()
        )
        if types:
            return _one_of(types)
        return "expected " + (" or ".join(sorted(kinds)) or "a value")

    def _keys_at(self, loc: Loc) -> list[str]:
        return sorted(
            field.alias or name
            for form in self._forms_at(loc)
            if isinstance(form, type) and issubclass(form, BaseModel)
            for name, field in form.model_fields.items()
        )

    def _forms_at(self, loc: Loc) -> list[Any]:
        """Give the types that may stand at pydantic's `loc`."""
        forms = list(_forms(self._model))
        for part in loc:
            tagged = [form for form in forms if part in _types_of(form)]
            if tagged:
                forms = tagged
                continue
            forms = [inner for form in forms for inner in _inner(form, part)]
        return forms


def _forms(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _forms(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _forms(each)
    else:
        yield annotation


def _inner(form: Any, part: str | int) -> Iterator[Any]:
    if isinstance(form, type) and issubclass(form, BaseModel):
        for name, field in form.model_fields.items():
            if part == (field.alias or name):
                yield from _forms(field.annotation)
        return
    arguments = [each for each in get_args(form) if each is not ...]
    origin = get_origin(form)
    if isinstance(origin, type) and arguments and (isinstance(part, int) or issubclass(origin, Mapping)):
        yield from _forms(arguments[-1])


def _types_of(form: Any) -> tuple[Any, ...]:
    if isinstance(form, type) and issubclass(form, BaseModel) and "type" in form.model_fields:
        return get_args(form.model_fields["type"].annotation)
    return ()


def _kind_of(form: Any) -> str:
    if form is None or form is type(None):
        return "nothing"
    if get_origin(form) is Literal:
        return _one_of(get_args(form)).removeprefix("expected ")
    origin = get_origin(form) or form
    if not isinstance(origin, type):
        return "a value"
    if issubclass(origin, (BaseModel, Mapping)):
        return "a mapping of `key: value`"
    if issubclass(origin, bool):
        return "true or false"
    if issubclass(origin, int):
        return "a whole number"
    if issubclass(origin, float):
        return "a number"
    if issubclass(origin, (list, tuple, set, frozenset)):
        return "a list, as in [a, b]"
    return "a path" if origin.__name__ == "Path" else "text"


def _counts_the_valid_only(details: ErrorDetails, value: Value | None) -> bool:
    """Tell of a complaint that comes from others: a list is `too_short` without its invalid items."""
    if details["type"] != "too_short" or value is None or not isinstance(value.content, (dict, list)):
        return False
    return len(value.content) >= int(details["ctx"]["min_length"])


def _adds_to(message: str, value: Value) -> bool:
    """Tell whether what was found is news: a rule about several keys names them itself."""
    about_shape = message.startswith(
        ("expected a mapping", "expected a list", "expected at ", "expected text")
    )
    said = " but " in message or ", found " in message
    return not said and (not isinstance(value.content, dict) or about_shape)


def _one_of(choices: Sequence[Any]) -> str:
    return f"expected {'one of ' if len(choices) > 1 else ''}" + ", ".join(f"`{each}`" for each in choices)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
