"""The configuration as a JSON Schema for editors: shapes from the models, words from the documentation.

It is made here, where the documentation is, and `bridge/settings/schema.json` is what comes of it. It refuses
nothing that the bridge takes: a number may be written as text, since `${NAME}` is text, and what can only be
judged by two keys together, or by a file, is left to `oscar-bridge check`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from bridge import values
from bridge.pipeline import codings
from bridge.settings import Settings

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "configuration.md"
_ROW = re.compile(r"^\| `([^`|]+)` \| ([^|]+) \| ([^|]+) \| ([^|]*) ?\|", re.MULTILINE)

_VARIABLE = r"\$\{"
"""A text with this in it can be anything, once the environment is put in."""
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_ABOVE_0 = r"(?=.*[1-9])"


def _text(pattern: str, expected: str) -> dict[str, Any]:
    """A text of this form; `patternErrorMessage` is what VS Code and the YAML language server then say."""
    return {"pattern": f"^(?:{pattern})$|{_VARIABLE}", "patternErrorMessage": f"expected {expected}"}


_DURATION = {
    "type": ["number", "string"],
    "exclusiveMinimum": 0,
    **_text(
        rf"{_ABOVE_0}\s*{_NUMBER}\s*(?:ms|s|m|h|d|)\s*",
        "seconds or a duration such as 500ms, 30s, 5m, 24h or 90d",
    ),
}
_SIZE = {
    "type": ["integer", "string"],
    "exclusiveMinimum": 0,
    **_text(rf"{_ABOVE_0}\s*{_NUMBER}\s*(?:[KMG]i?B|B|)\s*", "bytes or a size such as 131065, 64KiB or 2GiB"),
}
_SIZE_OR_NONE = {
    "anyOf": [
        {"const": 0},
        {"type": "string", "pattern": r"^\s*0\s*$"},
        _SIZE,
    ]
}
_RATE = {
    "type": "string",
    **_text(rf"{_ABOVE_0}\s*{_NUMBER}\s*/\s*[smh]\s*", "a rate such as 10/s, 600/m or 1000/h"),
}
_PATH = {"type": "string", **_text(r"[^~][^\0]*", "a path that is written out: no `~` is replaced")}
_URL = {
    "type": "string",
    **_text(r"\s*[hH][tT][tT][pP][sS]?://.*", "a URL such as https://oscar.example.org"),
}
_WRITTEN = {
    "duration": "seconds, or 500ms, 30s, 5m, 24h, 90d",
    "size": "bytes, or 64KiB, 10MB, 2GiB",
    "rate": "10/s, 600/m or 1000/h",
    "secret": "best kept in a file, or as ${NAME}",
    "path": "a relative one begins at this file",
}
"""What the documentation calls a type, and how it is written."""
_SWITCHES = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n")
_MAY_BE_NULL = ("services.KEY", "services.KEY.cluster", "services.KEY.service", "sources.KEY.identity")
"""What has a default that another key gives, and so may be left empty."""


_ROOMS = {
    "clusters": "OSCAR clusters, each by a name of yours.",
    "services": "Services of OSCAR, each by a name of yours; `service` tells OSCAR's, if it is another.",
    "sources": "Where events come from, each by a name of yours.",
    "routes": "Which events go to which service.",
}
_LEFT_OUT = ("title", "default", "ge", "le")
"""What pydantic adds; the bounds among it are those of a value as it was read."""


class _Generator(GenerateJsonSchema):
    """Says of each value what the bridge takes for it in YAML."""

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        function = schema["function"]["function"]
        inner = self.generate_inner(schema["schema"])
        known = {
            values.duration: _DURATION,
            values._size: _SIZE,
            values._size_or_none: _SIZE_OR_NONE,
            values._rate: _RATE,
            values._written_out: _PATH,
            codings._listed: {"anyOf": [inner.get("items"), inner]},
            values.addresses: {"anyOf": [{"type": "string"}, inner]},
        }
        if getattr(function, "__func__", None) is Settings._keys_are_defaults.__func__:
            return inner
        return dict(known[function])  # a new one has to say here how it is written

    def function_after_schema(self, schema: Any) -> JsonSchemaValue:
        function = schema["function"]["function"]
        return dict(_URL) if function is values._http_url else super().function_after_schema(schema)

    def int_schema(self, schema: Any) -> JsonSchemaValue:
        written = _text(r"\s*[-+]?[0-9_]+(?:\.0*)?\s*", "a whole number")
        return {**super().int_schema(schema), "type": ["integer", "string"], **written}

    def bool_schema(self, schema: Any) -> JsonSchemaValue:
        words = "|".join("".join(f"[{letter}{letter.upper()}]" for letter in word) for word in _SWITCHES)
        written = _text(f"{words}|[01]", "true or false")
        return {"type": ["boolean", "string", "integer"], "minimum": 0, "maximum": 1, **written}

    def str_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().str_schema(schema)
        made.pop("format", None)
        if "pattern" in made:
            made["pattern"] = f"{made['pattern']}|{_VARIABLE}"
        if "maxLength" in made:
            length = made.pop("maxLength")
            made = {"allOf": [made, {"pattern": f"^.{{0,{length}}}$|{_VARIABLE}"}], "type": "string"}
        return made

    def literal_schema(self, schema: Any) -> JsonSchemaValue:
        return {"anyOf": [{"enum": schema["expected"]}, {"type": "string", "pattern": _VARIABLE}]}

    def datetime_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": ["string", "number"]}

    def tagged_union_schema(self, schema: Any) -> JsonSchemaValue:
        return {"forms": {tag: self.generate_inner(form) for tag, form in schema["choices"].items()}}


def schema() -> dict[str, Any]:
    """Make the schema."""
    made = Settings.model_json_schema(schema_generator=_Generator)
    rows = {row[0]: row[1:] for row in _ROW.findall(DOCUMENTATION.read_text(encoding="utf-8"))}
    whole = _Writer(made["$defs"], rows).written(made, ())
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Configuration of the OSCAR Event Bridge",
        **whole,
    }


class _Writer:
    """Puts every part in its place, with what the documentation says of a key there."""

    def __init__(self, parts: Mapping[str, Any], rows: Mapping[str, tuple[str, str, str]]) -> None:
        self._parts = parts
        self._rows = rows

    def written(self, part: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        if "$ref" in part:
            part = self._parts[part["$ref"].rpartition("/")[2]]
        if "forms" in part:
            made = self._one_of(part["forms"], path)
        elif "properties" in part:
            made = self._object(part, path)
        else:
            made = {key: value for key, value in part.items() if key not in _LEFT_OUT}
            if "additionalProperties" in part:
                made["additionalProperties"] = self.written(part["additionalProperties"], (*path, "KEY"))
            if "items" in part:
                made["items"] = self.written(part["items"], (*path[:-1], f"{path[-1]}[]"))
            if "anyOf" in part:
                made["anyOf"] = [self.written(each, path) for each in part["anyOf"]]
        return made

    def _object(self, part: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        properties = {}
        for key, value in part["properties"].items():
            at = (*path, key)
            made = self.written(value, at)
            if ".".join(at) in _MAY_BE_NULL:
                made = {"anyOf": [made, {"type": "null"}]}
            inner = {"description": _ROOMS[key]} if at == (key,) and key in _ROOMS else self._within(made)
            properties[key] = inner | made | dict(self._told(at))
        required = [key for key in part.get("required", ()) if ".".join((*path, key)) not in _MAY_BE_NULL]
        made = {
            "type": "object",
            "description": part["description"],
            "properties": properties,
            "additionalProperties": False,
        }
        if required:
            made["required"] = required
        return {"anyOf": [made, {"type": "null"}]} if ".".join(path) in _MAY_BE_NULL else made

    def _within(self, made: dict[str, Any]) -> dict[str, Any]:
        """Give the description of what may be null too."""
        told = [each["description"] for each in made.get("anyOf", ()) if "description" in each]
        return {"description": told[0]} if told else {}

    def _one_of(self, forms: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        """Let `type` choose: an editor then complains of the keys of the form that is meant, and no other."""
        chosen = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": self.written(form, (*path, name)),
            }
            for name, form in forms.items()
        ]
        kind = {"anyOf": [{"enum": list(forms)}, {"type": "string", "pattern": _VARIABLE}]}
        return {"type": "object", "properties": {"type": kind}, "required": ["type"], "allOf": chosen}

    def _told(self, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Give the description and default of a key; what all forms have stands there without a form."""
        for known in (path, (*path[:-2], path[-1])):
            if row := self._rows.get(".".join(known)):
                kind, default, meaning = map(str.strip, row)
                if how := _WRITTEN.get(kind):
                    meaning = f"{meaning} ({kind}: {how})"
                if meaning:
                    yield "description", meaning
                if default not in ("required", "none", "computed"):
                    yield "default", yaml.safe_load(default.strip("`"))
                return
