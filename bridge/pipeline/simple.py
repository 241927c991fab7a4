"""Simple CEL expressions as Python functions, which answer where there is no doubt what CEL says.

The evaluator has first to be shown an event, each value of it made one of Rust's, which takes ten times as
long as what most routes ask. Answered here are: comparisons with a text, a number, true, false or null
written out; `in` a list of texts; `has`, `startsWith`, `endsWith` and `contains`; what `!`, `&&` and `||`
make of them; and the value of a member by itself.

Nothing written in an expression becomes code: its tokens choose among the functions below, and its texts and
numbers are what these compare with. A function raises one of DOUBTS for an event of which it can't be sure (a
member is missing, or has another type than is asked for); then the evaluator is asked, and its value or its
error counts. `tests/pipeline/test_simple.py` holds the two against each other.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import reduce
from typing import Any, Final

from bridge.pipeline.analysis import Operator, Tokens, member, operators, parts, unwrapped
from bridge.pipeline.context import View

DOUBTS: Final = (AttributeError, LookupError, TypeError)
"""What a function raises where the evaluator must be asked; among them is what Python raises by itself for
the member of a list, or for the beginning of a number."""

_Value = Callable[[View], Any]
_Test = Callable[[View], bool]

_MOST_TOKENS = 1_000
_DEEPEST = 50
"""Of brackets and negations: the function of an expression calls those of its parts."""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(?P<fraction>\.\d+)?", re.ASCII)
_EXACT = 2**53
"""CEL compares an integer with a double as two doubles. Below this, Python, which compares them exactly, says
the same, whatever the other number is."""
_NUMBERS = frozenset({int, float})
_REPLACED = "\N{REPLACEMENT CHARACTER}"
"""CEL is shown it in place of half a surrogate pair, of which Python's texts know."""
_WORDS = {"true": True, "false": False, "null": None}
_ROOTS: dict[str, _Value] = {
    "id": lambda view: view.event.id,
    "source": lambda view: view.event.source,
    "type": lambda view: view.event.type,
    "subject": lambda view: view.event.subject or "",
    "attributes": lambda view: view.event.attributes,
    "data": lambda view: view.data,
}
_METHODS: dict[str, Callable[[_Value, str], _Test]] = {
    "startsWith": lambda value, text: lambda view: value(view).startswith(text),
    "endsWith": lambda value, text: lambda view: value(view).endswith(text),
    "contains": lambda value, text: lambda view: value(view).find(text) >= 0,  # Python's `in` takes lists too
}
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


class _NotSimpleError(Exception):
    """The evaluator must be asked for each event."""


def function(tokens: Tokens) -> _Value | None:
    """Return what gives the value of an expression, which must be one; None if it is not simple."""
    if len(tokens) > _MOST_TOKENS:
        return None
    try:
        if (keys := _keys(tokens, *unwrapped(tokens, 0, len(tokens)))) is not None:
            return _given(_value(keys))
        return _condition(tokens, 0, len(tokens), 0)
    except _NotSimpleError:
        return None


def _condition(tokens: Tokens, first: int, end: int, depth: int) -> _Test:
    if depth > _DEEPEST:
        raise _NotSimpleError
    first, end = unwrapped(tokens, first, end)
    found = operators(tokens, first, end)
    for word, join in (("||", _either), ("&&", _both)):  # `&&` binds more closely
        spans = parts(found, word, first, end)
        if len(spans) > 1:
            return reduce(join, [_condition(tokens, *span, depth + 1) for span in spans])
    if found:
        return _relation(tokens, first, found, end)
    if tokens[first].text == "!":
        return _not(_condition(tokens, first + 1, end, depth + 1))
    if tokens[first].text == "has" and tokens.closing(first + 1) == end - 1 and tokens[end - 3].text == ".":
        return _has(_path(tokens, first + 2, end - 1))
    if tokens.is_member(end - 4) and tokens.calls(end - 4) and tokens[end - 1].text == ")":
        return _method(tokens, first, end)
    return _flag(_value(_path(tokens, first, end)))


def _both(left: _Test, right: _Test) -> _Test:
    return lambda view: left(view) and right(view)


def _either(left: _Test, right: _Test) -> _Test:
    return lambda view: left(view) or right(view)


def _not(test: _Test) -> _Test:
    return lambda view: not test(view)


def _relation(tokens: Tokens, first: int, found: list[Operator], end: int) -> _Test:
    """Return the comparison of a value with what is written out on the other side."""
    behind, before, word = found[0]
    # With another one, what stands behind the first is neither a path nor a value that is written out.
    if word == "in":
        return _in(_value(_path(tokens, first, behind)), _texts(tokens, before, end))
    if word not in _MIRRORED:
        raise _NotSimpleError
    if (keys := _keys(tokens, first, behind)) is not None:
        return _compared(_value(keys), word, _written(tokens, before, end))
    return _compared(_value(_path(tokens, before, end)), _MIRRORED[word], _written(tokens, first, behind))


def _compared(value: _Value, word: str, written: str | float | bool | None) -> _Test:
    if word == "!=":
        return _not(_compared(value, "==", written))
    if word == "==":
        if isinstance(written, str):
            return lambda view: value(view) == written
        if written is None or isinstance(written, bool):
            return lambda view: value(view) is written
        return lambda view: (found := value(view)) == written and type(found) is not bool
    if written is None or isinstance(written, bool):
        raise _NotSimpleError
    compare: Callable[[Any, Any], bool] = _ORDERS[word]
    return (
        _text_order(value, compare, written) if isinstance(written, str) else _order(value, compare, written)
    )


def _order(value: _Value, compare: Callable[[Any, Any], bool], written: float) -> _Test:
    def test(view: View) -> bool:
        found = value(view)
        if type(found) in _NUMBERS:
            return compare(found, written)
        raise TypeError

    return test


def _text_order(value: _Value, compare: Callable[[Any, Any], bool], written: str) -> _Test:
    def test(view: View) -> bool:
        found = value(view)
        if type(found) is str and found.isascii():  # half a surrogate pair has another place than U+FFFD
            return compare(found, written)
        raise TypeError

    return test


def _in(value: _Value, texts: frozenset[str]) -> _Test:
    return lambda view: value(view) in texts


def _has(keys: tuple[str | int, ...]) -> _Test:
    *way, key = keys
    if way == ["attributes"]:
        return lambda view: key in view.event.attributes
    holder = _value(tuple(way))

    def test(view: View) -> bool:
        found = holder(view)
        if type(found) is dict:
            return key in found
        raise TypeError

    return test


def _method(tokens: Tokens, first: int, end: int) -> _Test:
    text = tokens[end - 2].plain
    if text is None or _REPLACED in text or (method := _METHODS.get(tokens[end - 4].text)) is None:
        raise _NotSimpleError
    return method(_value(_path(tokens, first, end - 5)), text)


def _flag(value: _Value) -> _Test:
    """Return the test of what must be true or false."""

    def test(view: View) -> bool:
        found = value(view)
        if found is True or found is False:
            return found
        raise TypeError

    return test


def _given(value: _Value) -> _Value:
    """Return what gives a value itself, as CEL gives it back."""

    def given(view: View) -> Any:
        found = value(view)
        kind = type(found)
        if kind is bool or (kind is str and found.isascii()) or (kind is int and -_EXACT < found < _EXACT):
            return found
        raise TypeError

    return given


def _value(keys: tuple[str | int, ...]) -> _Value:
    """Return what follows `keys` into an event."""
    root, *way = keys
    get = _ROOTS.get(str(root))
    if get is None or any(isinstance(key, str) and _REPLACED in key for key in way):
        raise _NotSimpleError
    return reduce(_inside, way, get)


def _inside(holder: _Value, key: str | int) -> _Value:
    if isinstance(key, str):
        return lambda view: holder(view)[key]

    def item(view: View) -> Any:
        found = holder(view)
        if type(found) is list:  # Python's texts have items, CEL's have none
            return found[key]
        raise TypeError

    return item


def _path(tokens: Tokens, first: int, end: int) -> tuple[str | int, ...]:
    keys = _keys(tokens, first, end)
    if keys is None:
        raise _NotSimpleError
    return keys


def _keys(tokens: Tokens, first: int, end: int) -> tuple[str | int, ...] | None:
    """Return `("data", "x", 0)` for `data.x[0]`; None for what is no such path."""
    if first >= end or tokens[first].text not in _ROOTS or tokens[first].kind != "name":
        return None
    keys: list[str | int] = [tokens[first].text]
    at = first + 1
    while at < end:
        if (found := member(tokens, at)) is not None:
            key, _, at = found
            keys.append(key)
        elif tokens[at].text == "[" and tokens[at + 2].text == "]" and tokens[at + 1].text.isdecimal():
            keys.append(int(tokens[at + 1].text))
            at += 3
        else:
            return None
    return tuple(keys)


def _texts(tokens: Tokens, first: int, end: int) -> frozenset[str]:
    """Return what is in a list of texts."""
    if tokens[first].text != "[" or tokens[end - 1].text != "]":
        raise _NotSimpleError
    texts = [tokens[at].plain for at in range(first + 1, end - 1, 2)]
    commas = {tokens[at].text for at in range(first + 2, end - 1, 2)}
    if not commas <= {","} or any(text is None or _REPLACED in text for text in texts):
        raise _NotSimpleError
    return frozenset(text for text in texts if text is not None)


def _written(tokens: Tokens, first: int, end: int) -> str | float | bool | None:
    """Return the value that is written out there."""
    token = tokens[first]
    if end - first == 1:
        if token.kind == "text" and token.plain is not None and _REPLACED not in token.plain:
            return token.plain
        if token.kind == "name" and token.text in _WORDS:
            return _WORDS[token.text]
    text = "".join(tokens[at].text for at in range(first, min(end, first + 3)))
    if (number := _NUMBER.fullmatch(text)) is None:
        raise _NotSimpleError
    value = float(text) if number["fraction"] else int(text)
    if not -_EXACT < value < _EXACT:
        raise _NotSimpleError
    return value
