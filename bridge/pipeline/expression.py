"""CEL, the expression language of the routes (https://cel.dev), by PyPI `common-expression-language`."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

# The package's __init__ imports its own command line, and with it a terminal library: 27 MiB and 0.2 s
# that a daemon has no use for.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))

from cel import Program, compile  # noqa: A004, E402 - the library's word; after the line above on purpose

VARIABLES = ("id", "source", "type", "subject", "time", "attributes", "data")
"""What an expression can name: the event's CloudEvents attributes, what else came with it, its data."""

__all__ = ["VARIABLES", "Program", "compile", "has_more_values", "most_values"]

_MACRO = re.compile(
    r"""\.\s*(?:(?P<walk>all|exists|exists_one|existsOne)|(?P<build>filter|map))\s*\(
      | (?P<open>\() | (?P<close>\)) | "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*'""",
    re.VERBOSE | re.DOTALL,
)
_MOST_VALUES = (None, 10_000, 2_000, 200)
"""By the power with which an expression's time grows: a macro copies what it names outside itself at each
step, and `filter` and `map` copy what they have built so far. At these bounds the slowest expressions take
1 to 5 s, in which nothing else in the process goes on."""


def most_values(source: str) -> int | None:
    """Give how many values (of lists and maps, nested ones too) the expression `source` may be shown.

    None: any number, for it goes through no list.
    """
    around: list[bool] = []  # the brackets open, and whether they are a macro's
    power = 0
    for found in _MACRO.finditer(source):
        if found["close"]:
            del around[-1:]
        elif found["walk"] or found["build"] or found["open"]:
            around.append(not found["open"])
            if around[-1]:
                power = max(power, sum(around) + (1 if found["build"] else 0))
    return _MOST_VALUES[min(power, 3)]


def has_more_values(value: Any, most: int) -> bool:
    """Tell whether lists and maps in `value` hold more than `most` values."""
    left, seen = [value], 0
    while left:
        item = left.pop()
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        seen += len(inner)
        if seen > most:
            return True
        left.extend(inner)
    return False
