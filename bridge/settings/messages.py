"""What pydantic found, as sentences for the one who wrote the file, each at its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bridge.core.errors import Mistake
from bridge.settings.forms import Forms, Way
from bridge.settings.names import did_you_mean
from bridge.settings.tree import Loc, Value, dotted, hide, is_secret, secrets_of
from bridge.sources.registry import installed
from bridge.telemetry.logging import REDACTED, redact_text
from bridge.values import NOT_THERE

_Model = TypeVar("_Model", bound=BaseModel)

_EXPECTED = {
    "int_parsing_size": "a smaller whole number",
    "timezone_aware": "a date and time with its zone, as in 2026-01-31T12:00:00Z",
    "greater_than": "a value above {gt}",
    "greater_than_equal": "a value of at least {ge}",
    "less_than": "a value below {lt}",
    "less_than_equal": "a value of at most {le}",
    "string_pattern_mismatch": "text that matches `{pattern}`",
    # The others by their first word: of `int_type`, `int_parsing` and so on.
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list, as in [a, b]",
    "tuple": "a list, as in [a, b]",
    "dict": "a mapping of `key: value`",
    "model": "a mapping of `key: value`",
    "path": "a path",
    "datetime": "a date and time, as in 2026-01-31T12:00:00Z",
}
"""What was expected, by pydantic's type of the error."""
_UNITS: dict[type, str] = {dict: "key", list: "item"}
_MISSING: Mapping[str, Sequence[str]] = {"missing": (), "union_tag_not_found": ("type",)}
"""Errors about what is not there, with the rest of the way to it."""
_NOTHING: Any = object()
"""Stands where a key is missing: pydantic says of it what would be taken, as of any other value."""


def validated(
    model: type[_Model], tree: Value, make: Callable[[], _Model]
) -> tuple[_Model | None, list[Mistake]]:
    """Have `make` validate the tree against `model`; return what it makes, or None, and the mistakes."""
    translator = _Translator(model, tree)
    switches = translator.switches()
    try:
        return make(), switches
    except ValidationError as error:
        found = error.errors(include_url=False)
    if translator.fill(found):
        try:
            make()
        except ValidationError as error:
            found = error.errors(include_url=False)
    mistakes = translator.translate(found)
    told = {mistake.key for mistake in mistakes}
    return None, [*(each for each in switches if each.key not in told), *mistakes]


class _Translator:
    """Turns the errors of a validation of `tree` against `model` into mistakes."""

    def __init__(self, model: type[BaseModel], tree: Value) -> None:
        self._forms = Forms(model)
        self._tree = tree
        self._secrets = sorted(secrets_of(tree), key=len, reverse=True)

    def fill(self, errors: Sequence[ErrorDetails]) -> bool:
        """Put a value that nothing takes wherever one is missing; return whether one is."""
        filled = False
        for details in errors:
            if (more := _MISSING.get(details["type"])) is not None:
                way = [*details["loc"], *more]
                key = str(way.pop())
                _, holder = self._find(way)
                content = holder.content if isinstance(holder.content, dict) else {}  # `plants:`
                holder.content = {**content, key: Value(_NOTHING, holder.place)}
                filled = True
        return filled

    def translate(self, errors: Sequence[ErrorDetails]) -> list[Mistake]:
        """Return one mistake for each value that is wrong, whatever number of forms it was tried against."""
        told: dict[tuple[Loc, str], tuple[Value, dict[str, str]]] = {}
        for details in errors:
            loc, value = self._about(details)
            if not _counts_the_valid_only(details, value):
                message = self._say(details, loc, value)
                _, messages = told.setdefault((loc, message.partition(" ")[0]), (value, {}))
                messages[message] = details["type"]
        return [self._mistake(loc, value, messages) for (loc, _), (value, messages) in told.items()]

    def switches(self) -> list[Mistake]:
        """Find true and false where a number belongs: pydantic would take them for 1 and 0."""
        return [
            Mistake(str(value.place), dotted(loc), f"expected a whole number{self._found(loc, value)}")
            for loc, value in self._tree.walk()
            if isinstance(value.content, bool)
            and (forms := self._forms.at(loc))
            and int in forms
            and bool not in forms
        ]

    def _about(self, details: ErrorDetails) -> tuple[Loc, Value]:
        """Return what an error is about, at the place where it is to be mended."""
        kind, way = details["type"], details["loc"]
        is_key = way[-1:] == ("[key]",)
        if is_key or kind == "extra_forbidden":
            *above, key = way[:-1] if is_key else way
            loc, holder = self._find(above)
            value, place = holder.mapping()[str(key)], holder.key_places[str(key)]
            return (*loc, key), replace(value, content=str(key) if is_key else value.content, place=place)
        loc, value = self._find(way, details["input"])
        if kind == "union_tag_invalid":
            return (*loc, "type"), value.child("type") or value
        return loc, value

    def _find(self, way: Way, given: Any = None) -> tuple[Loc, Value]:
        """Follow `way` through the tree, where forms that were tried are no keys.

        `given` is what pydantic found there: if it was made of a key, it is not in the tree.
        """
        loc, value = list[str | int](), self._tree
        for index, part in enumerate(way):
            inner = None if value.text("type") == part else value.child(part)
            if inner is None and index == len(way) - 1 and part in self._forms.keys_at(way[:index]):
                inner = Value(given, value.place)
            if inner is not None:
                loc.append(part)
                value = inner
        return tuple(loc), value

    def _say(self, details: ErrorDetails, loc: Loc, value: Value) -> str:
        kind, context, content = details["type"], details.get("ctx", {}), value.content
        if kind == "extra_forbidden":
            return f"unknown key{did_you_mean(str(loc[-1]), self._forms.keys_at(details['loc'][:-1]))}"
        if isinstance(context.get("error"), Exception):
            return str(context["error"])
        if "[key]" in details["loc"]:
            return "expected a key of 1 to 63 letters, digits, `-` or `_` that begins with a letter or digit"
        if kind == "literal_error":
            return _one_of(re.findall(r"'([^']*)'", str(context["expected"])))
        if kind == "union_tag_invalid":
            if loc[0] == "sources" and (why := installed().unusable.get(str(context["tag"]))):
                return why
            known = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            if content is _NOTHING:
                return _one_of(sorted(known))
            shown = value.written or content
            return f"`{shown}` is no type there is{did_you_mean(str(content), known)}"
        if kind.endswith(("too_short", "too_long")):
            amount = context.get("min_length", context.get("max_length"))
            unit = _UNITS.get(type(content), "character")
            bound = "least" if kind.endswith("too_short") else "most"
            return f"expected at {bound} {amount} {unit}{'' if amount == 1 else 's'}"
        if expected := _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0]):
            return "expected " + expected.format_map(context).replace("'", "`")
        message = details["msg"].replace("Input should be ", "expected ")
        return message[:1].lower() + message[1:]

    def _mistake(self, loc: Loc, value: Value, messages: Mapping[str, str]) -> Mistake:
        first, *others = messages
        message = " or ".join([first, *(each.removeprefix("expected ") for each in others)])
        if value.content is _NOTHING:
            message = f"missing; {message}"
        elif _adds_to(message, value.content):
            if message.startswith("expected a mapping") and isinstance(value.content, str):
                message += ", found text"  # it may be a secret that was put one level too high
            else:
                message += self._found(loc, value)
            if message.startswith("expected text,") and isinstance(value.content, (int, float)):
                message += ": put it in quotes"
        may_pass = set(messages.values()) == {NOT_THERE}
        return Mistake(str(value.place), dotted(loc), self._hidden(message, value), may_pass=may_pass)

    def _found(self, loc: Loc, value: Value) -> str:
        content = value.content
        if isinstance(content, dict):
            found = "a mapping" if content else "an empty mapping"
        elif isinstance(content, list):
            found = f"a list of {len(content)}" if content else "an empty list"
        elif content is None or content == "":
            found = "nothing" if content is None else "an empty text"
        elif is_secret(loc):
            found = "a value that is not shown here"
        elif isinstance(content, bool):
            found = str(content).lower()
        elif isinstance(content, (int, float)):
            found = f"the number {content}"
        else:
            found = f"`{redact_text(_short(value.written or content))}`"
        return f", found {found}"

    def _hidden(self, message: str, value: Value) -> str:
        if value.written is not None and value.content:
            message = hide(message, str(value.content), value.written)
        for secret in self._secrets:
            message = hide(message, secret, REDACTED)
        return message


def _counts_the_valid_only(details: ErrorDetails, value: Value) -> bool:
    """Tell of a complaint that comes from others: a list is `too_short` without its invalid items."""
    if details["type"] != "too_short" or not isinstance(value.content, (dict, list)):
        return False
    return len(value.content) >= int(details["ctx"]["min_length"])


def _adds_to(message: str, content: Any) -> bool:
    """Tell whether what was found is news: a rule about several keys names them itself."""
    if not message.startswith("expected ") or " but " in message or ", found " in message:
        return False
    shapes = ("expected a mapping", "expected a list", "expected at ", "expected text")
    return message.startswith(shapes) or not isinstance(content, dict)


def _one_of(choices: Sequence[str]) -> str:
    return f"expected {'one of ' if len(choices) > 1 else ''}" + ", ".join(f"`{each}`" for each in choices)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"
