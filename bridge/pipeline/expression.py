"""A compiled CEL expression over an event."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from bridge.pipeline import analysis, library, simple
from bridge.pipeline.analysis import Use
from bridge.pipeline.context import VARIABLES, Shape, View

_NOTHING: dict[Shape, frozenset[Use]] = {
    Shape.OBJECT: frozenset(),
    Shape.LIST: frozenset({Use.MEMBER, Use.ASKED}),
    Shape.OTHER: frozenset({Use.MEMBER, Use.ASKED, Use.ITEM, Use.IN}),
    Shape.RAW: frozenset({Use.ASKED, Use.IN}),
}
"""Where data that is no object is taken for an empty one, by its shape: JSON without a member lacks it, and
so says `has()` of whatever came. To read a member of what is not JSON is an error."""

_OBJECT = Shape.OBJECT  # looking it up costs a tenth of an evaluation
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)


class NoMatch(Exception):  # noqa: N818 - a finding about one event, not an error
    """The route does not want this event; carries the bounded reason."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail
        """For a person."""


class Unroutable(Exception):  # noqa: N818 - likewise
    """An expression can't be evaluated for this event."""

    def __init__(self, detail: str, cause: str = "route") -> None:
        super().__init__(detail)
        self.cause = cause
        """Of the dead letter: `not_json` where the data is not JSON, else `route`."""


class Expression:
    """A CEL expression, compiled."""

    def __init__(self, source: str) -> None:
        """Compile `source`. Raise ValueError when it is no expression, or a pattern in it none."""
        self.source = source
        self._tokens = tokens = analysis.Tokens(source)
        self.names = frozenset(library.compile(source).variables()) & frozenset(VARIABLES)
        """The variables that it reads, at most."""
        self.reads = analysis.read_of_data(tokens)
        """The members of `data` that it reads, at most, each by the keys to it; None when it may read any."""
        self._patterns = patterns(source, tokens)
        for _, written in self._patterns:
            library.pattern(written)
        self._most = analysis.most_values(tokens)
        self.matches = bool(self._patterns)
        """Whether it calls the function for patterns written out."""
        self._simple = simple.function(tokens)
        """What answers for most events in the evaluator's place; None where it is asked for each."""
        self._program = self._compile(Shape.OBJECT)
        self._others: dict[Shape, library.Program] = {}

    def _compile(self, shape: Shape) -> library.Program:
        changes = [(name.start, name.end, library.MATCHES) for name, _ in self._patterns]
        if "data" not in analysis.bound_names(self._tokens):
            changes += [
                (use.start, use.end, "{}")
                for use in analysis.uses_of_data(self._tokens)
                if use.use in _NOTHING[shape]
            ]
        return library.compile(analysis.replaced(self.source, changes))

    def evaluate(self, view: View) -> Any:
        """Return its value for the event in `view`. Raise NoMatch or Unroutable."""
        if self._simple is not None:
            try:
                return self._simple(view)
            except simple.DOUBTS:
                pass
        return self._asked(view)

    def _asked(self, view: View) -> Any:
        """Ask the evaluator."""
        if self._most is not None and view.values > self._most:
            raise Unroutable(f"`{self.source}`: more than {self._most} values are too many for it")
        shape = view.shape
        if shape is _OBJECT:
            program = self._program
        elif shape in self._others:
            program = self._others[shape]
        else:
            program = self._others[shape] = self._compile(shape)
        context = view.context
        try:
            return program.execute(context)
        except KeyError as error:
            missing = error.args[0] if error.args else ""
            raise NoMatch("missing_key", f"`{self.source}`: there is no `{missing}`") from None
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise self._unroutable(view, error) from None

    def compile_parts(self) -> None:
        """Compile now what `part_not_true` looks at, and not at the first event that it is asked about."""
        _ = self._parts

    def part_not_true(self, view: View) -> str:
        """Say which part of `a && b && …`, which is not true for the event in `view`, is not.

        Nothing where it is no such condition.
        """
        missing = ""
        for part in self._parts:
            try:
                if part.evaluate(view) is False:
                    return part.does_not_hold
            except NoMatch as finding:
                missing = missing or finding.detail
            except Unroutable:  # then another part is false, or it would be a dead letter
                pass
        return missing

    @cached_property
    def does_not_hold(self) -> str:
        """Say that it does not hold."""
        return f"`{self.source}` does not hold"

    @cached_property
    def _parts(self) -> list[Expression]:
        """What is joined by `&&`, compiled once somebody asks."""
        spans = analysis.conjuncts(self._tokens)
        return [Expression(self.source[begin:end]) for begin, end in spans] if len(spans) > 1 else []

    def _unroutable(self, view: View, error: Exception) -> Unroutable:
        text = f"`{self.source}`: " + str(error).split(". ", 1)[0].replace(library.MATCHES, "matches")
        if view.shape is Shape.RAW and "data" in self.names:
            data = view.variables["data"]
            kind = "text" if isinstance(data, str) else "bytes"
            advice = "ask first: `type(data) == map`, or `has()` of the member"
            return Unroutable(f"{text} (data is not JSON but {kind}, {len(data)} long; {advice})", "not_json")
        if isinstance(error, TypeError) and (hints := self._hints(view)):
            text += f" ({'; '.join(hints)})"
        return Unroutable(text)

    def _hints(self, view: View) -> list[str]:
        """Say of what it reads which is text, with what makes a number of it, and which is in no object."""
        hints = []
        for written, (root, *keys) in self._paths.items():
            value: Any = view.variables[root] if view.shape is _OBJECT or root != "data" else {}
            for key in keys:
                if not isinstance(value, Mapping):
                    hints.append(f"what `{written}` would be in is no object")
                    break
                if key not in value:
                    break
                value = value[key]
            else:
                if isinstance(value, str):
                    advice = f": use `double({written})`" if _NUMBER.fullmatch(value) else ""
                    hints.append(f"`{written}` is text{advice}")
        return hints

    @cached_property
    def _paths(self) -> dict[str, tuple[str, ...]]:
        return analysis.paths(self._tokens, ("attributes", "data"))


def patterns(source: str, tokens: analysis.Tokens) -> list[tuple[analysis.Token, str]]:
    """Return each `matches` of an expression whose pattern is the same for every event, with the pattern."""
    found = []
    for name, start, end in analysis.arguments_of_matches(tokens):
        try:
            program = library.compile(source[start:end])
            value = None if program.variables() else program.execute()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            continue  # it depends on the event, or has no value
        if isinstance(value, str):
            found.append((name, value))
    return found
