"""A draft as the text of a configuration file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from bridge.core.errors import ConfigurationError
from bridge.dcnios.draft import Draft, Entry, Line, Setting
from bridge.settings.document import parse

_COMMENT_AT = 39
"""Column where comments begin, as in the examples of `config/`."""
_LONGEST = 110
_PLAIN = re.compile(r"[A-Za-z0-9/._][A-Za-z0-9/._:@%+=-]*")
_OTHERWISE_1_1 = re.compile(r"(?i)y|n|yes|no|on|off")
"""Text to YAML 1.2, and no text to many an editor."""
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON writes as it is and YAML does not take so, or takes for a line's end."""
_HEAD = """\
# yaml-language-server: $schema=bridge.schema.json
# Made by `oscar-bridge import-dcnios` of {name}. Every key: docs/configuration.md.
# Try it before it runs: oscar-bridge check -c bridge.yaml
# So that an editor completes and checks it: oscar-bridge schema > bridge.schema.json

# Parked events and dead letters are kept here. On a disk of this machine, not on a network file system.
state_dir: /var/lib/oscar-bridge
"""


def written(draft: Draft, name: str) -> str:
    """Return the text of `draft`, made of the file called `name`."""
    parts = [_HEAD.format(name=on_one_line(name))]
    for room in ("clusters", "services", "sources"):
        parts += [f"\n{room}:\n", *_separated(_entry(entry) for entry in getattr(draft, room))]
    parts += ["\nroutes:\n", *(_route(entry) for entry in draft.routes)]
    return "".join(parts)


def _separated(entries: Iterable[str]) -> Iterator[str]:
    for number, entry in enumerate(entries):
        yield f"\n{entry}" if number else entry


def _entry(entry: Entry) -> str:
    return f"  {_scalar(entry.key, flow=False)}:\n" + "".join(_line(line, 4) for line in entry.lines)


def _route(entry: Entry) -> str:
    if [line.key for line in entry.lines] == ["from", "to"]:
        inner = ", ".join(f"{line.key}: {_inside(line.value)}" for line in entry.lines)
        return f"  - {{{inner}}}\n"
    text = "".join(_line(line, 4) for line in entry.lines)
    return f"  - {text.removeprefix('    ')}"


def _line(line: Line, indent: int) -> str:
    begin = f"{' ' * indent}{line.key}:"
    text = f"{begin} {value_of(line.value)}"
    comment = f"# {on_one_line(line.comment)}" if line.comment else ""
    above = f"{' ' * indent}{comment}\n" if comment else ""
    if len(text) > _LONGEST and isinstance(line.value, dict):
        inner = (f"{' ' * indent}  {key}: {value_of(value)}\n" for key, value in line.value.items())
        return f"{above}{begin}\n{''.join(inner)}"
    if not comment:
        return f"{text}\n"
    beside = f"{text:<{_COMMENT_AT}}{'' if len(text) < _COMMENT_AT else '  '}{comment}"
    return f"{beside}\n" if len(beside) <= _LONGEST else f"{above}{text}\n"


def value_of(setting: Setting) -> str:
    """Return a value as it is written behind its key."""
    if isinstance(setting, dict):
        return "{" + ", ".join(f"{key}: {_inside(inner)}" for key, inner in setting.items()) + "}"
    if isinstance(setting, list):
        return "[" + ", ".join(_inside(inner) for inner in setting) + "]"
    return _scalar(setting, flow=False)


def _inside(setting: Setting) -> str:
    return _scalar(setting, flow=True) if isinstance(setting, (str, bool, int)) else value_of(setting)


def _scalar(value: str | int | bool, *, flow: bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if _is_plain(value) and not (flow and re.search(r":(?!//)", value)):
        return value
    text = value.replace("${", "$${")
    if '"' in text and "'" not in text and text.isprintable():
        return f"'{text}'"
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _is_plain(value: str) -> bool:
    if not _PLAIN.fullmatch(value) or _OTHERWISE_1_1.fullmatch(value):
        return False
    try:
        read = parse(f"value: {value}", "", []).text("value")
    except ConfigurationError:
        return False
    return read == value


def on_one_line(text: str) -> str:
    """Return a text of somebody else's as a part of a comment or of a line on a screen."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
