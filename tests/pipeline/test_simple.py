"""Simple expressions answered without CEL's evaluator: what they give is what the evaluator gives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.event import Event
from bridge.pipeline import context as context_module
from bridge.pipeline import simple
from bridge.pipeline.analysis import Tokens
from bridge.pipeline.context import View
from bridge.pipeline.expression import Expression, NoMatch, Unroutable

_EDGE = 2**53
_TEXTS = ["", "a", "b", "a.nc", "0", "true", "é", "\ufffd", "\U00010000", "\U00010000b", "\ue000", "null"]
_HALVES = ["\ud800", "a\udc00", "\ud83da.nc"]
"""Texts that JSON can name, and CEL has no value for."""
_NUMBERS = [0, 1, 5, _EDGE - 1, _EDGE, _EDGE + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**320]
_OTHERS = [
    *("true", "false", "null", "[]", "[1]", '["a", "b"]', "{}", '{"b": 1}', '{"b": {"a": "a"}, "0": 1}'),
    r'{"\ufffd": "a", "\ud800": "b"}',
]
_VALUES = [
    *map(json.dumps, (*_TEXTS, *_HALVES)),
    *(f"{sign}{number}" for number in _NUMBERS for sign in ("", "-")),
    *("0.5", "-0.0", "1.0", "5.0", "1e400", "-1e400", "9007199254740993.0", "1E0"),
    *_OTHERS,
]
"""Of a member `a`, as JSON."""
_LITERALS = [
    *(json.dumps(text, ensure_ascii=False) for text in _TEXTS),
    *("0", "1", "-1", "- 5", "1.0", "0.5", "-0.0", "5u", "1e0", f"{_EDGE - 1}", f"-{_EDGE}", f"{_EDGE + 1}"),
    *(f"{_EDGE}.0", f"{2**63 - 1}", "true", "false", "null", "'a'", "r'a'", "b'a'", "'\\x61'", "[1]", "{}"),
]
_COMPARISONS = ["==", "!=", "<", "<=", ">", ">="]
_METHODS = ["startsWith", "endsWith", "contains"]


def _made_of(expression: Expression, given: Event) -> object:
    """The value with its type, or the finding with its words."""
    try:
        value = expression.evaluate(View(given, expression.names, expression.reads, expression.matches))
    except (NoMatch, Unroutable) as finding:
        return type(finding), str(finding), vars(finding)
    return type(value), value if isinstance(value, dict | list) else repr(value)


def _assert_alike(written: str, events: Iterable[Event]) -> None:
    try:
        expression, asked = Expression(written), Expression(written)
    except ValueError:  # it is none: `data.a < 9223372036854775808`
        return
    asked._simple = None
    for each in events:
        assert _made_of(expression, each) == _made_of(asked, each), (written, each)


def _event(data: str = "{}", subject: str | None = None) -> Event:
    attributes = {} if subject is None else {"a": subject}
    return Event(id="a", source="s", type="t", data=data.encode(), subject=subject, attributes=attributes)


def test_each_comparison_of_each_value_is_the_evaluators() -> None:
    events = [_event(f'{{"a": {value}}}') for value in _VALUES] + [_event()]
    for literal in _LITERALS:
        for word in _COMPARISONS:
            _assert_alike(f"data.a {word} {literal}", events)
            _assert_alike(f"{literal} {word} data.a", events)
        for method in _METHODS:
            _assert_alike(f"data.a.{method}({literal})", events)
        _assert_alike(f"data.a in [{literal}]", events)
        _assert_alike(f"data.a in ['b', {literal}]", events)


def test_each_member_of_each_value_is_the_evaluators() -> None:
    events = [_event(f'{{"a": {value}}}') for value in _VALUES]
    events += [_event(f'{{"a": {{"b": {value}}}}}') for value in _VALUES]
    events += [_event(value) for value in (*_VALUES, "", "text", '{"a": NaN}', '{"a": 1')]
    for path in (
        *(
            "data",
            "data.a",
            "data.a.b",
            "data.a['b']",
            "data.a[0]",
            "data.a[1]",
            "data.a[-1]",
            "data['a'].b.a",
        ),
        *("data[0]", "data.a.b[0]", "data.a['0']", "data.a['\ufffd']", "attributes.a", "data.a[0u]"),
    ):
        for written in ("{}", "!{}", "!!{}", "{} == 'a'", "{} != 1", "{} > 0", "has({}.b)", "has({}['b'])"):
            _assert_alike(written.format(path), events)


def test_what_stands_beside_the_data_is_the_evaluators() -> None:
    events = [_event(subject=text) for text in (None, *_TEXTS, *_HALVES)]
    for root in ("subject", "attributes.a", "attributes['a']", "id", "source", "type", "attributes"):
        for literal in _LITERALS if root in ("subject", "attributes.a") else ("'a'", "'t'", "null", "5"):
            for word in _COMPARISONS:
                _assert_alike(f"{root} {word} {literal}", events)
            _assert_alike(f"{root}.endsWith({literal})", events)
        for written in ("{}", "has({}.a)", "has({}.b)", "{}.a == ''", "{}[0] == ''", "{} in ['a', '', 's']"):
            _assert_alike(written.format(root), events)


_BRACKETS = [
    "{0}data.p {3} {1}data.q {4} {2}data.r",
    "({0}data.p {3} {1}data.q) {4} {2}data.r",
    "{0}data.p {3} {1}(data.q {4} {2}data.r)",
]


def test_what_binds_more_closely_is_as_in_cel() -> None:
    """Three flags, joined in each way and denied or not, with and without brackets; one may be missing."""
    states = product(["true", "false", None], repeat=3)
    flags = [
        [f'"{key}": {value}' for key, value in zip("pqr", each, strict=True) if value] for each in states
    ]
    events = [_event(f"{{{', '.join(each)}}}") for each in flags]
    for form, first, second in product(_BRACKETS, ["&&", "||"], ["&&", "||"]):
        for denied in product(["", "!"], repeat=3):
            written = form.format(*denied, first, second)
            assert simple.function(Tokens(written)) is not None
            _assert_alike(written, events)


_flags = st.sampled_from(["data.p", "data.q", "data.r", "has(data.a)", "subject == 'a'"])
_atoms = st.sampled_from(
    [
        *("data.a == 1", "data.a > 0", "data.a == 'a'", "'a' != data.b", "data.a", "data.b", "has(data.a.b)"),
        *(
            "data.a.startsWith('a')",
            "data.b in ['a', 'b']",
            "attributes.a != 'b'",
            "data.a < '&& ||'",
            "true",
        ),
        *("data.a + 1 > 1", "data.a == data.b", "data.b ? data.a : true", "data.a.all(x, x > 0)"),
        "data . a [ 0 ] < 5 // first\n",
    ]
)
_expressions = st.recursive(
    _flags | _flags | _atoms,
    lambda inner: (
        st.builds("{} {} {}".format, inner, st.sampled_from(["&&", "||", "&& // and\n", "=="]), inner)
        | st.builds("({})".format, inner)
        | st.builds("!{}".format, inner)
        | st.builds("!({})".format, inner)
        | st.builds("({} ? {} : {})".format, inner, inner, inner)
    ),
    max_leaves=6,
)
_values = st.sampled_from(
    ["1", "0", "true", "false", "true", "false", '"a"', '"b"', "null", '{"b": 1}', "[1]"]
)
_events = st.builds(
    lambda flags, members, subject: _event(
        "{"
        + ",".join(f'"{key}": {value}' for key, value in (*zip("pqr", flags, strict=True), *members))
        + "}",
        subject,
    ),
    st.tuples(*[st.sampled_from(["true", "false"])] * 3),
    st.lists(st.tuples(st.sampled_from("aab"), _values), max_size=3),
    st.sampled_from([None, "a", "b"]),
)


@settings(max_examples=100)
@given(_expressions, st.lists(_events, min_size=8, max_size=8))
def test_what_conditions_are_joined_to_is_the_evaluators(written: str, events: list[Event]) -> None:
    _assert_alike(written, events)


@pytest.mark.prove
@settings(max_examples=3_000)
@given(_expressions, st.lists(_events, min_size=8, max_size=8))
def test_what_conditions_are_joined_to_is_the_evaluators_at_length(written: str, events: list[Event]) -> None:
    _assert_alike(written, events)


_EXAMPLES = {
    route["when"]
    for path in (Path(__file__).parents[2] / "config").glob("*.yaml")
    for route in yaml.safe_load(path.read_text(encoding="utf-8")).get("routes", ())
    if route.get("when") is not None and "double(" not in route["when"]
}


@pytest.mark.parametrize(
    "written",
    [
        *sorted(_EXAMPLES),
        "data.size > 0 || (!has(data.size) && data.name.startsWith('a'))",
        "data.payload.scope in ['intertwin', 'atlas'] && data.files[0].size >= 1.5",
        "-5 < data.size && data.final && !(data.draft) && data.name.contains('/')",
        "data['a-b'] != null && data.taken < '2026' && data.level == - 2",
        "data.payload.custom_metadata['oscar-service']",
        "((subject)) // the key",
    ],
)
def test_what_routes_ask_is_simple(written: str) -> None:
    assert simple.function(Tokens(written)) is not None


@pytest.mark.parametrize(
    "written",
    [
        "double(data.level) > 2.5",
        "data.a == data.b",
        "data.a + 1 > 2",
        "data.a ? true : data.b",
        "data[subject] == 'x'",
        "data.all(x, x > 0)",
        "time == null",
        "subject == 'a\\x62'",
        f"data.n == {_EDGE}",
        f"data.n < -{_EDGE}.0",
        "data.n == 1e3",
        "data.n == 1u",
        "subject == '\ufffd'",
        "data.a in [1, 2]",
        "!" * 60 + "data.a",
        "(" * 60 + "data.a" + " || data.b)" * 60,
        " || ".join(["data.a == 1"] * 200),
    ],
)
def test_what_is_not_simple_is_left_to_the_evaluator(written: str) -> None:
    Expression(written)
    assert simple.function(Tokens(written)) is None


def test_an_event_that_leaves_no_doubt_costs_no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.pipeline.library.Context", None)
    expression = Expression("data.size > 0 && subject.endsWith('.nc')")
    for data, found in (('{"size": 1}', True), ('{"size": 0.5}', True), ('{"size": -1}', False)):
        view = View(_event(data, "x.nc"), expression.names, expression.reads, False)
        assert expression.evaluate(view) is found


_members = st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.sampled_from(_VALUES)), max_size=12)


@settings(max_examples=100)
@given(_members, st.sampled_from(["", " ", "x", "NaN", "-Infinity", ",", "\0", "[" * 250 + "]" * 250]))
def test_reading_some_members_gives_what_reading_all_gives(members: list[tuple[str, str]], odd: str) -> None:
    """Also where a name comes twice, or a member that nobody asks for is no JSON."""
    reads = frozenset({("a",), ("b", "b"), ("b", "0")})
    written = ", ".join(f'"{name}": {value}' for name, value in members)
    for text in (f"{{{written}}}{odd}", f'{{"c": {odd or 0}, {written}}}', f'{{"c": "NaN{odd}", {written}}}'):
        raw = text.encode()
        assert repr(context_module._data(raw, reads)) == repr(context_module._data_of_any_kind(raw, reads))
