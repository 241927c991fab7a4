"""What the text of a CEL expression tells: the names in it, what it reads of `data`, how long it can take.

The library compiles and evaluates, but shows no syntax tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | //[^\n]* )
    | (?P<text> [bB]?[rR] (?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
        | [bB]? (?: \"{3}(?:[^\\]|\\.)*?\"{3} | '{3}(?:[^\\]|\\.)*?'{3}
                  | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' ) )
    | (?P<name> [A-Za-z_]\w* )
    | (?P<mark> \d[\w.]* | . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_WALKING = frozenset({"all", "exists", "exists_one", "existsOne"})
_BUILDING = frozenset({"filter", "map"})
_PLAIN_TEXT = re.compile(r"""(["'])([^\\"']*)\1""")
_OPERATORS = frozenset({"||", "&&", "==", "!=", "<", "<=", ">", ">=", "in", "?"})
Operator = tuple[int, int, str]
"""Its place, the one behind it, and how it is written."""
_LONGEST_WAY = 8
"""Keys to a member that are told apart; what is deeper is read as a whole."""
_MOST_VALUES = (None, 10_000, 2_000, 200, 30)
"""By the power with which an expression's time grows: a macro copies what it names outside itself at each
step, and `filter` and `map` copy what they have built so far. At these bounds the slowest expressions take
1 to 5 s, in which nothing else in the process goes on."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an expression with a meaning: no space, no comment."""

    kind: str
    """`text` (a literal), `name` (an identifier or a word of the language) or `mark` (anything else)."""
    text: str
    start: int
    end: int

    @property
    def plain(self) -> str | None:
        """The value of a text that is written without escapes; None for anything else."""
        found = _PLAIN_TEXT.fullmatch(self.text)
        return found and found[2]


_END = Token("mark", "", 0, 0)


class Tokens:
    """The tokens of one expression; beyond its ends there are empty ones."""

    def __init__(self, source: str) -> None:
        self._all = [
            Token(found.lastgroup, found[0], *found.span())
            for found in _TOKEN.finditer(source)
            if found.lastgroup is not None and found.lastgroup != "space"
        ]

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, at: int) -> Token:
        return self._all[at] if 0 <= at < len(self._all) else _END

    def calls(self, at: int) -> bool:
        """Whether the token at `at` is the name of a function or macro that is called."""
        return self[at].kind == "name" and self[at + 1].text == "("

    def is_member(self, at: int) -> bool:
        """Whether the token at `at` is a name behind a dot."""
        return self[at].kind == "name" and self[at - 1].text == "."

    def closing(self, at: int) -> int:
        """Return the place of the bracket that closes the one at `at`; the end when there is none."""
        depth = 0
        for place in range(at, len(self)):
            text = self[place].text
            depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
            if not depth:
                return place
        return len(self)


class Use(Enum):
    """How an expression names `data`."""

    MEMBER = auto()
    """`data.x`, `data["x"]`"""
    ASKED = auto()
    """`has(data.x)`"""
    ITEM = auto()
    """`data[…]` with anything else than a text written out"""
    IN = auto()
    """`… in data`"""
    WHOLE = auto()
    """anything else"""


@dataclass(frozen=True, slots=True)
class Found:
    """One place where an expression names `data`."""

    use: Use
    start: int
    end: int
    way: tuple[str, ...]
    """The keys to the member that is read, as far as they are written out plainly."""


def bound_names(tokens: Tokens) -> frozenset[str]:
    """Return the names that macros bind, such as `x` in `list.all(x, x > 0)`."""
    return frozenset(
        tokens[at + 2].text
        for at in range(len(tokens))
        if _is_macro(tokens, at) and tokens[at + 2].kind == "name" and tokens[at + 3].text == ","
    )


def _is_macro(tokens: Tokens, at: int) -> bool:
    return tokens[at].text in _WALKING | _BUILDING and tokens.is_member(at) and tokens.calls(at)


def uses_of_data(tokens: Tokens) -> Iterator[Found]:
    """Yield each place that names the event's `data`."""
    for at in range(len(tokens)):
        token = tokens[at]
        if token.kind == "name" and token.text == "data" and not tokens.is_member(at):
            yield Found(_use(tokens, at), token.start, token.end, _way(tokens, at + 1))


def _use(tokens: Tokens, at: int) -> Use:
    after, then = tokens[at + 1], tokens[at + 2]
    asked = tokens[at - 1].text == "(" and tokens[at - 2].text == "has"
    if after.text == "." and then.kind == "name" and not tokens.calls(at + 2):
        return Use.ASKED if asked else Use.MEMBER
    if after.text == "[":
        if then.kind != "text" or tokens[at + 3].text != "]":
            return Use.ITEM
        return Use.ASKED if asked else Use.MEMBER
    return Use.IN if tokens[at - 1].text == "in" else Use.WHOLE


def _way(tokens: Tokens, at: int) -> tuple[str, ...]:
    keys: list[str] = []
    while len(keys) < _LONGEST_WAY and (inside := member(tokens, at)) is not None:
        key, _, at = inside
        keys.append(key)
    return tuple(keys)


def read_of_data(tokens: Tokens) -> frozenset[tuple[str, ...]] | None:
    """Return the members of `data` that an expression can read, by the keys to them; None when it is any."""
    ways = frozenset(found.way for found in uses_of_data(tokens))
    return None if () in ways else ways


def member(tokens: Tokens, at: int) -> tuple[str, str, int] | None:
    """Return the key of the member that is read there, how it is written, and the place behind it.

    None where none is, or its key is not written out plainly.
    """
    if tokens[at].text == "." and tokens[at + 1].kind == "name" and not tokens.calls(at + 1):
        key = tokens[at + 1].text
        return key, f".{key}", at + 2
    if tokens[at].text == "[" and tokens[at + 2].text == "]" and (plain := tokens[at + 1].plain) is not None:
        return plain, f"[{tokens[at + 1].text}]", at + 3
    return None


def paths(tokens: Tokens, roots: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return what an expression reads of `roots`: by how it is written, the keys on the way there."""
    found: dict[str, tuple[str, ...]] = {}
    wanted = frozenset(roots)
    for at in range(len(tokens)):
        if tokens[at].text not in wanted or tokens[at].kind != "name" or tokens.is_member(at):
            continue
        keys, written = [tokens[at].text], tokens[at].text
        at += 1
        while (inside := member(tokens, at)) is not None:
            key, so, at = inside
            keys.append(key)
            written += so
        found[written] = tuple(keys)
    return found


def arguments_of_matches(tokens: Tokens) -> Iterator[tuple[Token, int, int]]:
    """Yield each `matches` that is called as a method, and where its argument begins and ends."""
    for at in range(len(tokens)):
        if tokens[at].text == "matches" and tokens.is_member(at) and tokens.calls(at):
            last = tokens.closing(at + 1)
            if last > at + 2:
                yield tokens[at], tokens[at + 2].start, tokens[last - 1].end


def unwrapped(tokens: Tokens, first: int, end: int) -> tuple[int, int]:
    """Return the part of `first` to before `end` that is inside of brackets around the whole."""
    while end - first > 2 and tokens[first].text == "(" and tokens.closing(first) == end - 1:
        first, end = first + 1, end - 1
    return first, end


def operators(tokens: Tokens, first: int, end: int) -> list[Operator]:
    """Return the operators that join and compare, and `?`, outside of any bracket there."""
    found = []
    depth, at = 0, first
    while at < end:
        token, then = tokens[at], tokens[at + 1]
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        doubled = then.start == token.end and token.text + then.text in _OPERATORS
        word = token.text + then.text if doubled else token.text
        after = at + (2 if doubled else 1)
        if not depth and word in _OPERATORS and not tokens.is_member(at):
            found.append((at, after, word))
        at = after
    return found


def parts(found: Iterable[Operator], word: str, first: int, end: int) -> list[tuple[int, int]]:
    """Return where each part begins and ends of what the operators `word` of those that were found join."""
    joints = [(begin, after) for begin, after, operator in found if operator == word]
    begins, ends = [first, *(after for _, after in joints)], [*(begin for begin, _ in joints), end]
    return list(zip(begins, ends, strict=True))


def conjuncts(tokens: Tokens) -> list[tuple[int, int]]:
    """Return where each part begins and ends of an expression `a && b && …`, which holds if all of them do.

    One part for any other expression.
    """
    first, end = unwrapped(tokens, 0, len(tokens))
    found = operators(tokens, first, end)
    if any(word in ("||", "?") for _, _, word in found):
        found = []
    return [(tokens[a].start, tokens[b - 1].end) for a, b in parts(found, "&&", first, end)]


def most_values(tokens: Tokens) -> int | None:
    """Return how many values (of lists and maps, nested ones too) an expression may be shown.

    None: any number, for it goes through no list.
    """
    around: list[bool] = []  # the brackets open, and whether they are a macro's
    power = 0
    for at in range(len(tokens)):
        if tokens[at].text == "(":
            around.append(_is_macro(tokens, at - 1))
            if around[-1]:
                power = max(power, sum(around) + (tokens[at - 1].text in _BUILDING))
        elif tokens[at].text == ")":
            del around[-1:]
    return _MOST_VALUES[min(power, len(_MOST_VALUES) - 1)]


def replaced(source: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """Return `source` with each of `changes` (start, end, new text) made; they don't overlap."""
    for start, end, text in sorted(changes, reverse=True):
        source = source[:start] + text + source[end:]
    return source
