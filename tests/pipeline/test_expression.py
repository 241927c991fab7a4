"""What expressions make of events: data of every kind, attributes, patterns, long lists."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.delivery import Outcome
from bridge.pipeline import analysis, library
from bridge.pipeline import context as context_module
from bridge.pipeline.analysis import Tokens
from bridge.pipeline.context import Reads, View
from bridge.pipeline.expression import Expression, NoMatch, Unroutable
from tests.pipeline.routing import House, one, route
from tests.pipeline.scripted import (
    ACCEPTED,
    event,
)

_DEEPEST = context_module._DEEPEST


@pytest.mark.parametrize(
    ("when", "data", "found"),
    [
        ("data.size > 0", b'{"size": 1}', "accepted"),
        ("data.size > 0", b'{"size": 0}', "no_match"),
        ("data.size > 0", b"{}", "missing_key"),
        ("data.a.b == 1", b'{"a": {}}', "missing_key"),
        ('data["a-b"] == 1', b'{"a-b": 1}', "accepted"),
        ('data["a-b"] == 1', b"{}", "missing_key"),
        ("has(data.size) && data.size > 0", b"{}", "no_match"),
        ("data.a == 2", b'{"a": 1, "a": 2}', "accepted"),  # the last of two equal keys, as everywhere
        ("data.a > 1e308", b'{"a": 1e400}', "accepted"),
        ("data.a > 1", b'{"a": 1000000000000000000000000000000}', "accepted"),
        ("data.a == 9223372036854775807", b'{"a": 9223372036854775807}', "accepted"),
        ("data == 1", b"1", "accepted"),
        ("data == null", b"null", "accepted"),
        ("data == 'text'", b"text", "accepted"),
        ("data == 'text'", b'"text"', "accepted"),
        ("data == ''", b"", "accepted"),
        ("data == b'\\xff\\x00'", b"\xff\x00", "accepted"),
        ("size(data) == 3", b'{"a": 1, "b": 2, "c": 3}', "accepted"),
        ("data.size() == 3", b'{"a": 1, "size": 2, "c": 3}', "accepted"),
        ("'b' in data && data.a == 1", b'{"a": 1, "b": 2}', "accepted"),
        ("data.exists(key, key == 'b')", b'{"a": 1, "b": 2}', "accepted"),
        ("data[subject] == 1", b'{"a": 0, "b": 1}', "accepted"),
        ("data.a == 'NaN'", b'{"a": "NaN"}', "accepted"),
        ("data == '{\"a\": NaN}'", b'{"a": NaN}', "accepted"),  # NaN is not JSON (RFC 8259, 6): text
        ("data.Records[0].s3.object.key.endsWith('.nc')", b'{"Records": []}', "route"),
        ("data.a > 1", b"not json", "not_json"),
        ("data.a > 1", b'{"a": "text"}', "route"),
        ("data.a > 1", b'{"a": NaN}', "not_json"),
        ("data.a > 1", b'{"a": Infinity}', "not_json"),
        ("data.a > 1", b"", "missing_key"),
        ("data.a > 1", b"\xff", "not_json"),
        ("data.a", b'{"a": 1}', "route"),
        ("data.a / data.b > 1", b'{"a": 1, "b": 0}', "route"),
        ("data.a + 1 > 1", b'{"a": 9223372036854775807}', "route"),
        # No text in UTF-8 can hold half a surrogate pair: it is shown as U+FFFD.
        ("data.a == 'x'", b'{"a": "\\ud800"}', "no_match"),
        ("data.a.startsWith('cut') && data.a == 'cut\ufffd'", b'{"a": "cut\\ud83d"}', "accepted"),
        ("data.meta.size > 0", b'{"meta": {"size": 5, "title": "cut \\ud83d"}}', "accepted"),
        ("data.meta.size > 0", b'{"meta": {"size": 5, "\\ud83d": [["\\ude00"]]}}', "accepted"),
        ("data.b == 'x'", b'{"a": "\\ud800", "b": "x"}', "accepted"),  # not looked at
        ("data.a > 1", b'{"a": 1' + b"0" * 400 + b"}", "accepted"),  # as 1e400
        ("data.a < -1 && data.b[0] == 2", b'{"a": -1' + b"0" * 5000 + b', "b": [2]}', "accepted"),
        ("data.meta.size > 0", b'{"meta": {"size": 5, "n": 1' + b"0" * 400 + b"}}", "accepted"),
        ("data.b == 1", b'{"b": 1, "a": 1' + b"0" * 400 + b"}", "accepted"),
        ("data[9] == 1", b"[1]", "route"),
        ("subject.matches(data.a)", b'{"a": "["}', "route"),
    ],
)
async def test_what_an_expression_makes_of_data(when: str, data: bytes, found: str) -> None:
    assert (await one(when, data, subject="b"))[0] == found


async def test_a_dead_letter_of_a_route_says_which_expression_and_why() -> None:
    cause, detail = await one("data.a > 1", b"not json")
    assert cause == "not_json"
    assert detail.startswith("`data.a > 1`: ")
    assert "data is not JSON but text, 8 long; ask first: `type(data) == map`" in detail
    _, detail = await one("data.a > 1", b"\xff")
    assert "data is not JSON but bytes, 1 long" in detail
    _, detail = await one("data.a", b'{"a": 1}')
    assert detail == "`when` gave int, expected true or false"


@pytest.mark.parametrize(
    ("when", "hint"),
    [
        ("data.size > 0", "(`data.size` is text: use `double(data.size)`)"),
        ('data["size"] > 0', '(`data["size"]` is text: use `double(data["size"])`)'),
        ("data.meta.n + 1 > 0", "(`data.meta.n` is text: use `double(data.meta.n)`)"),
        ("data.absent.x == 1 || data.name > 0", "(`data.name` is text)"),
        ("data.none.x > 0", "(what `data.none.x` would be in is no object)"),
        ("data.size.x.y > 0", "(what `data.size.x.y` would be in is no object)"),
        ("attributes.size > 0", "(`attributes.size` is text: use `double(attributes.size)`)"),
    ],
)
async def test_a_number_that_came_as_text_is_told_with_what_makes_a_number_of_it(
    when: str, hint: str
) -> None:
    data = b'{"size": "10", "meta": {"n": "-1.5e3"}, "name": "a", "none": null}'
    cause, detail = await one(when, data, attributes={"size": "10"})
    assert cause == "route"
    assert hint in detail
    if "double" in hint:
        advice = hint.split("use `")[1].removesuffix("`)")
        mended = when.replace(when.split(" ")[0], advice).replace(" + 1 > 0", " < 0.0")
        assert (await one(mended, data, attributes={"size": "10"}))[0] == "accepted"


# --- data that is no JSON object --------------------------------------------------------------

_NO_OBJECTS = [b"", b"null", b"[1, 2]", b"7", b"true", b'"text"', b" null\n"]
_NOT_JSON = [b"plain text", b"\xff\xfe", b'{"x": 1', b'{"x": NaN}', b"[" * 100_000]


@pytest.mark.parametrize("data", _NO_OBJECTS)
@pytest.mark.parametrize(
    ("when", "found"),
    [
        ("data.x > 0", "missing_key"),
        ("data['x'].y == 1", "missing_key"),
        ('data["a.b"] == 1', "missing_key"),
        ("data.x.matches('^a')", "missing_key"),
        ("data.x.exists(y, y > 0)", "missing_key"),
        ("data.x > 0 || true", "accepted"),
        ("has(data.x)", "no_match"),
        ("has(data.x) && data.x > 0", "no_match"),
        ("!has(data.x)", "accepted"),
        ("has(data['x'].y)", "missing_key"),
        ("type(data) == map && data.x > 0", "no_match"),
        ("type(data) != map || has(data.x)", "accepted"),
        ("subject == 'data.x' && 'data.x' == subject", "no_match"),
    ],
)
async def test_of_json_that_is_no_object_every_member_is_missing(data: bytes, when: str, found: str) -> None:
    assert (await one(when, data))[0] == found


@pytest.mark.parametrize(
    ("when", "data", "found"),
    [
        ("'x' in data", b"", "no_match"),
        ("'x' in data", b"null", "no_match"),
        ("'x' in data", b'["x"]', "accepted"),
        ("data[0] == 'x'", b'["x"]', "accepted"),
        ("data[0] == 'x'", b"", "missing_key"),
        ("data[subject] == 'x'", b"null", "missing_key"),
        ("data == null || has(data.x)", b"null", "accepted"),
        ("data == null || has(data.x)", b"[1]", "no_match"),
        ("type(data) == list ? data[0] > 5 : data.x > 0", b'["a"]', "route"),
        ("type(data) == list ? data[0] > 5 : data.x > 0", b"7", "missing_key"),
        ("[{'x': 1}].exists(data, data.x == 1)", b"null", "accepted"),  # another `data`
        ("[{'data': {'x': 1}}][0].data.x == 1", b"null", "accepted"),  # likewise
        ("type(data) == string && data.startsWith('plain')", b"plain text", "accepted"),
        ("type(data) == null_type", b"null", "accepted"),
        ("type(data) == bytes", b"\xff", "accepted"),
    ],
)
async def test_data_as_a_whole_is_what_it_is(when: str, data: bytes, found: str) -> None:
    assert (await one(when, data))[0] == found


@pytest.mark.parametrize("data", _NOT_JSON)
@pytest.mark.parametrize(
    ("when", "found"),
    [
        ("data.x > 0", "not_json"),
        ("data[0] > 0", "not_json"),
        ("data.x > 0 || subject == 'b'", "accepted"),
        ("has(data.x)", "no_match"),
        ("has(data.x) && data.x > 0", "no_match"),
        ("!has(data.x)", "accepted"),
        ("type(data) == map && data.x > 0", "no_match"),
        ("'x' in data", "no_match"),
        ("attributes.a > 0", "missing_key"),
        ("subject > 0", "route"),
    ],
)
async def test_what_is_not_json_is_a_dead_letter_unless_the_route_asks_first(
    data: bytes, when: str, found: str
) -> None:
    assert (await one(when, data, subject="b"))[0] == found


# --- patterns and time ------------------------------------------------------------------------


def _builtin(text: str, pattern: str) -> bool:
    program = library.compile("text.matches(pattern)")
    return bool(program.execute({"text": text, "pattern": pattern}))


@settings(max_examples=200, deadline=None)
@given(
    pattern=st.lists(
        st.sampled_from(
            ["a", "\\w", "^", "$", ".", "[a-é]", "(?i)", "(a|b)", "*", "+?", "{1,3}", "\\b", "\n", "("]
        )
    ).map("".join),
    text=st.text("aAbé\n _1", max_size=8),
)
def test_a_pattern_written_out_means_what_it_means_to_cel(pattern: str, text: str) -> None:
    written = f"subject.matches({json.dumps(pattern)})"
    try:
        expected: object = _builtin(text, pattern)
    except RuntimeError:
        with pytest.raises(ValueError):
            Expression(written)
        return
    expression = Expression(written)
    assert expression.matches
    view = View(event("a", subject=text), expression.names, expression.reads, True)
    assert expression.evaluate(view) is expected


@pytest.mark.parametrize(
    "when",
    [
        r"subject.matches('^b\\w{1,64}$')",
        r"subject . matches ( r'^b\w+$' ) // a comment",
        "subject.matches('^b' + '[a-z]+')",
        "['x', subject].exists(each, each.matches('ba'))",
        "!(subject + '.nc').matches('^.*[.](tif|jpg)$')",
        "[subject.matches('^b'), true][0]",
    ],
)
async def test_patterns_written_out_are_compiled_once(when: str) -> None:
    expression = Expression(when)
    assert expression.matches
    library.pattern.cache_clear()
    for _ in range(3):
        assert (await one(when, subject="bar"))[0] == "accepted"
    assert library.pattern.cache_info().misses == 1


async def test_a_pattern_that_the_event_gives_is_compiled_for_it_alone() -> None:
    library.pattern.cache_clear()
    for pattern in ("^b", "x", "["):
        found = await one("subject.matches(data.p)", json.dumps({"p": pattern}).encode(), subject="bar")
        assert found[0] == {"^b": "accepted", "x": "no_match", "[": "route"}[pattern]
    assert library.pattern.cache_info().currsize == 0


async def test_matching_what_is_no_text_is_a_dead_letter_and_logs_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cause, detail = await one("data.n.matches('^1')", b'{"n": 1}')
    assert cause == "route"
    assert "`matches` is for text, not for int" in detail
    assert "constant" not in detail
    assert not [record for record in caplog.records if record.name.startswith("cel")]


_WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("when", "others", "found"),
    [
        ("id == 'a' && source == 'uploads' && type == 'test'", {}, "accepted"),
        ("subject == ''", {}, "accepted"),
        ("subject.endsWith('.nc')", {}, "no_match"),
        ("subject.endsWith('.nc')", {"subject": "x.nc"}, "accepted"),
        ("time == null", {}, "accepted"),
        ("time > timestamp('2026-01-01T00:00:00Z')", {"time": _WHEN}, "accepted"),
        ("time > timestamp('2027-01-01T00:00:00Z')", {"time": _WHEN}, "no_match"),
        ("time > timestamp('2026-01-01T00:00:00Z')", {}, "route"),
        ("attributes.partition == '3'", {"attributes": {"partition": "3"}}, "accepted"),
        ("attributes['ce-type'] == 'x'", {"attributes": {"ce-type": "x"}}, "accepted"),
        ("attributes.partition == '3'", {}, "missing_key"),
        ("attributes.a == 'x'", {"attributes": {"a": "\ud800"}}, "no_match"),
    ],
)
async def test_what_an_expression_makes_of_the_attributes(
    when: str, others: dict[str, Any], found: str
) -> None:
    assert (await one(when, **others))[0] == found


@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}")], ids=["arrays", "objects"])
@pytest.mark.parametrize(
    ("depth", "is_json"),
    [(_DEEPEST - 1, True), (_DEEPEST, True), (_DEEPEST + 1, False), (5_000, False), (100_000, False)],
)
async def test_deep_json_is_shown_as_text_and_never_harms_the_process(
    pair: tuple[str, str], depth: int, is_json: bool
) -> None:
    inside = "[]" if pair[0] == "[" else "{}"
    data = (pair[0] * (depth - 1) + inside + pair[1] * (depth - 1)).encode()
    # Each of these makes the extension convert the whole value, compare it, and give it back.
    assert (await one("size(data) == 1", data))[0] == ("accepted" if is_json else "no_match")
    assert (await one("data == data", data))[0] == "accepted"
    assert (await one("data", data))[0] == "route"
    cause, _ = await one("data[subject] == 1", data, subject="other")
    assert cause == ("not_json" if not is_json else "route" if pair[0] == "[" else "missing_key")


async def test_depth_beside_what_is_asked_for_does_not_matter() -> None:
    deep = '{"size": 1, "deep": ' + "[" * 700 + "]" * 700 + "}"
    assert (await one("data.size == 1", deep.encode()))[0] == "accepted"


async def test_many_flat_values_are_not_taken_for_deep_ones() -> None:
    data = json.dumps([{"n": [number]} for number in range(5000)]).encode()
    assert (await one("data[4999].n[0] == 4999", data))[0] == "accepted"


@pytest.mark.parametrize(
    ("when", "most"),
    [
        ("data.size > 0 && subject.endsWith('.nc')", None),
        ("(data.size + 1) > 0 && has(data.all)", None),
        ('subject == \'x.all(y, z)\' || subject == "\\".map("', None),
        ("data.files.all(f, f.size > 0)", 10_000),
        ("data.a.exists(x, x > 0) && (data.b).exists_one(x, x > 0)", 10_000),
        ("data.files . filter (f, f.size > 0).size() > 3", 2_000),
        ("data.a.all(x, data.b.exists(y, x == y))", 2_000),
        ("data.files.filter(f, f.tags.exists(t, t == 'x')).size() > 0", 2_000),
        ("data.a.all(x, data.b.map(y, (y + 1)).size() > x)", 200),
        ("data.a.all(x, data.b.all(y, data.c.all(z, z)))", 200),
        ("data.a.map(x, data.b.map(y, data.c.map(z, z)))", 30),  # 200 values would take five minutes
    ],
)
def test_how_much_an_expression_may_go_through(when: str, most: int | None) -> None:
    assert analysis.most_values(Tokens(when)) == most


@pytest.mark.parametrize(
    ("when", "values", "found"),
    [
        ("data.files.exists(f, f == 7)", 9_000, "accepted"),
        ("data.files.exists(f, f == 7)", 11_000, "route"),
        ("data.files.filter(f, f == 7).size() == 1", 1_900, "accepted"),
        ("data.files.filter(f, f == 7).size() == 1", 100_000, "route"),  # would take minutes
        ("data.files[7] == 7 && size(data.files) > 1", 100_000, "accepted"),
        ("data.size == 1 && data.tags.all(t, t != 7)", 100_000, "accepted"),  # the long list is not looked at
    ],
)
async def test_a_long_list_never_keeps_the_process_from_turning(when: str, values: int, found: str) -> None:
    data = json.dumps({"size": 1, "tags": [1], "files": list(range(values))}).encode()
    began = process_time()
    cause, detail = await one(when, data)
    assert process_time() - began < 5
    assert cause == found
    assert ("are too many for it" in detail) is (found == "route")


async def test_long_attributes_are_counted_too() -> None:
    attributes = {str(number): "x" for number in range(10_001)}
    assert (await one("attributes.all(k, k != '')", attributes=attributes))[0] == "route"
    assert (await one("attributes['7'] == 'x'", attributes=attributes))[0] == "accepted"


async def test_data_is_converted_only_when_an_expression_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(context_module, "_data", never)
    assert (await one("subject == 'data' || type == 'test'"))[0] == "accepted"
    house = House(route(when="data.a == 1"), plants=ACCEPTED)
    assert await house.send(event("a")) is Outcome.DEAD_LETTERED
    assert "converted" in house.dead.letters[0].detail


async def test_data_is_converted_once_for_all_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[bytes] = []
    real = context_module._data

    def counted(raw: bytes, reads: Reads | None) -> Any:
        converted.append(raw)
        return real(raw, reads)

    monkeypatch.setattr(context_module, "_data", counted)
    house = House(route(when="data.a == 1"), route("flood", "data.b == 2"), plants=ACCEPTED, flood=ACCEPTED)
    assert await house.send(event("a", b'{"a": 1, "b": 2}')) is Outcome.ACCEPTED
    assert converted == [b'{"a": 1, "b": 2}']


@pytest.mark.parametrize(
    ("expression", "reads"),
    [
        ('data.size > 0 && data.Key.endsWith(".nc")', {"size", "Key"}),
        ("data[\"a-b\"].x == data['c'].y", {"a-b x", "c y"}),
        ("has(data.x)", {"x"}),
        ('data.payload.custom_metadata["oscar-service"]', {"payload custom_metadata oscar-service"}),
        ("data.a.b.size() > data.a[0] && has(data.a.c.d)", {"a b", "a", "a c d"}),
        ("data.a.exists(x, x.b == data.c[x].d)", {"a", "c"}),
        ('data.a["\\u0041"].b == 1', {"a"}),
        ("data." + ".".join("abcdefghij") + " == 1", {"a b c d e f g h"}),
        ("subject == 'x'", set()),
        ("metadata == 1", set()),
        ("data.size() > 0", None),
        ("data.size () > 0", None),
        ("size(data) > 0", None),
        ("data[subject] == 1", None),
        ('data["a" + "b"] == 1', None),
        ('data["\\u0041"] == 1', None),
        ('data[r"a"] == 1', None),
        ("data.size// what\n() > 0", None),
        ("data.exists(k, k == 'a')", None),
        ("[1].all(data, data > 0)", None),
        ("subject == 'data'", set()),
        ("subject == r'\\' + data.a // data.b", {"a"}),
        ("has(data.x) || data . y == 1", {"x", "y"}),
    ],
)
def test_the_members_of_data_that_an_expression_can_read(expression: str, reads: set[str] | None) -> None:
    found = analysis.read_of_data(Tokens(expression))
    assert (None if found is None else {" ".join(way) for way in found}) == reads


_JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_WHENS = [
    "data.a == data.b",
    "has(data.a.b)",
    "data.a.b.c == data.a['c']",
    "data.a.b == 1 || has(data.a)",
    "data['c'][0] > 1",
    "data.a.exists(x, x == data.c)",
]


@settings(max_examples=150)
@given(value=_JSON_VALUES, when=st.sampled_from(_WHENS))
def test_showing_some_keys_only_never_changes_what_an_expression_gives(value: Any, when: str) -> None:
    expression = Expression(when)
    assert expression.reads

    def given(reads: Reads | None) -> object:
        try:
            return expression.evaluate(
                View(event("a", json.dumps(value).encode()), expression.names, reads, False)
            )
        except (NoMatch, Unroutable) as finding:
            return type(finding), str(finding)

    assert given(expression.reads) == given(None)


@settings(max_examples=150)
@given(
    raw=st.binary(max_size=40) | st.text('{}[]":,0123456789eE+-.ntfru\\ \ufeff', max_size=40).map(str.encode)
)
async def test_no_data_stops_the_router(raw: bytes) -> None:
    house = House(route(when="data.a == 1 || size(data) > 3"), plants=ACCEPTED)
    assert await house.send(event("a", raw)) in set(Outcome) - {Outcome.RELEASED, Outcome.PARKED}
