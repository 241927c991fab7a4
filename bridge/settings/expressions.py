"""What is wrong with a CEL expression over an event, as far as it can be told without one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bridge.pipeline import library
from bridge.pipeline.analysis import Tokens, bound_names
from bridge.pipeline.context import VARIABLES
from bridge.pipeline.expression import patterns
from bridge.settings.names import did_you_mean

# cel-spec, "List of Standard Definitions", as far as common-expression-language 0.10 has them (a test
# asks it). With any other function, or one called in the other way, an expression compiles, and then fails
# for each event on its own.
FUNCTIONS = frozenset(
    {"bytes", "double", "duration", "dyn", "int", "size", "string", "timestamp", "type", "uint"}
)
"""Called as `int(text)`."""
METHODS = frozenset(
    {"contains", "endsWith", "matches", "size", "startsWith"}
    | {"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours"}
    | {"getMilliseconds", "getMinutes", "getMonth", "getSeconds"}
)
"""Called as `text.contains(other)`."""
TYPES = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
"""Names of types, to compare with what `type()` gives (a test asks the library)."""
_CEL_ERROR = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?(.*)")


def mistakes_in(expression: str) -> list[str]:
    """Say what is wrong with a CEL expression over an event; nothing when it can be evaluated."""
    try:
        program = library.compile(expression)
    except ValueError as error:
        return [_explain(str(error), expression)]
    tokens = Tokens(expression)
    known = frozenset(VARIABLES) | TYPES | bound_names(tokens)
    messages = [
        f"`{name}` is not known to an expression{did_you_mean(name, VARIABLES)}"
        for name in program.variables()
        if name not in known
    ]
    messages += [
        f"there is no function `{name}`{did_you_mean(name, FUNCTIONS | METHODS)}"
        for name in program.functions()
        if name.isidentifier() and not name.startswith("_") and name not in FUNCTIONS | METHODS
    ]
    messages += _wrongly_called(tokens)
    for called, written in patterns(expression, tokens):
        try:
            library.pattern(written)
        except ValueError as error:
            where = _where(expression, *_line_and_column(expression, called.start))
            messages.append(f"`{written}` is no regular expression: {error} (`matches` at {where})")
    return messages


def _wrongly_called(tokens: Tokens) -> Iterator[str]:
    for at in range(len(tokens)):
        if tokens.calls(at):
            name = tokens[at].text
            if tokens.is_member(at) and name in FUNCTIONS - METHODS:
                yield f"`.{name}(…)` is called as `{name}(…)`, with the value in the brackets"
            elif not tokens.is_member(at) and name in METHODS - FUNCTIONS:
                yield f"`{name}(…)` is called as `value.{name}(…)`"


def _line_and_column(expression: str, at: int) -> tuple[int, int]:
    return expression.count("\n", 0, at) + 1, at - expression.rfind("\n", 0, at)


def _where(expression: str, line: int, column: int) -> str:
    where = f"column {column}" if "\n" not in expression.rstrip("\n") else f"line {line}, column {column}"
    return f"{where} of the expression"


def _explain(error: str, expression: str) -> str:
    found = _CEL_ERROR.search(error)
    if found is None:
        return "not a CEL expression: it is nested too deeply, or can't be understood"
    line, column, problem = int(found[1]), int(found[2]), found[3]
    if "'<EOF>'" in problem:
        meaning = "it ends too early" if expression.strip() else "it is empty"
    elif quoted := re.search(r"(?:input|at:) ('.*?')(?: expecting|$)", problem):
        meaning = f"{quoted[1]} is not understood there"
    else:
        meaning = problem
    return f"not a CEL expression: {meaning} ({_where(expression, line, column)})"
