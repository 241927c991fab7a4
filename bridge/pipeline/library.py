"""CEL (https://cel.dev) by PyPI `common-expression-language`, with regular expressions compiled once."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic_core import SchemaError, SchemaValidator, core_schema

# The package's __init__ imports its own command line, and with it a terminal library: 27 MiB and 0.2 s
# that a daemon has no use for.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))

if TYPE_CHECKING:
    from cel import Context, Program, compile  # noqa: A004 - the library's word

__all__ = ["MATCHES", "Context", "Program", "compile", "functions", "pattern"]

# It logs each error of a function that is not its own; the dead letter tells that better.
logging.getLogger("cel").setLevel(logging.ERROR)

MATCHES = "matches_a_constant"
"""The function that expressions call instead of CEL's `matches`, where the pattern is written out."""


@cache
def pattern(source: str) -> Callable[[str], bool]:
    r"""Return a test of texts by a regular expression. Raise ValueError when it is none.

    CEL's own `matches` compiles its pattern at each evaluation, which takes 16 ms for `\w{1,64}`. pydantic
    brings the same engine (Rust's `regex`: the time is linear in the text, whatever the pattern), and lets
    it be compiled once. The cache is bounded by the configuration: only what is written there comes here.
    """
    try:
        return SchemaValidator(core_schema.str_schema(pattern=source, strict=True)).isinstance_python
    except SchemaError as error:
        raise ValueError(_reason(str(error))) from None


def _reason(error: str) -> str:
    said = re.search(r"(?:error|SchemaError): (?!regex parse error)([^\n]+)", error)
    return (said[1] if said else error.splitlines()[-1]).rstrip(".")


def _matches(text: Any, source: str) -> bool:
    if not isinstance(text, str):
        raise TypeError(f"`matches` is for text, not for {type(text).__name__}")
    return pattern(source)(text)


def __getattr__(name: str) -> Any:
    """Give what is the package's own. Who asks first loads it: a bridge may have no expression."""
    if name not in ("Context", "Program", "compile"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import cel

    globals()[name] = given = getattr(cel, name)
    return given


functions: dict[str, Callable[..., Any]] = {MATCHES: _matches}
"""What a context has beside CEL's own functions."""
