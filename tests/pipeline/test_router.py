"""The router: which lanes an event goes to, and what becomes of it when it goes to none or to several."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline import router as module
from bridge.pipeline.expression import most_values
from bridge.pipeline.router import RouteConfig, Router
from bridge.telemetry.metrics import Metrics
from tests.pipeline.scripted import (
    ACCEPTED,
    REJECTED,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    event,
    settled,
)

_DEEPEST = module._DEEPEST


def _route(to: str = "plants", when: str | None = None, allow: list[str] | None = None) -> RouteConfig:
    return RouteConfig.model_validate({"from": "uploads", "to": to, "when": when, "allow": allow})


class _House:
    """A router with lanes that run, one for each key of `answers`."""

    def __init__(self, *routes: RouteConfig, **answers: Answer) -> None:
        self.destinations = {key: ScriptedDestination(answer) for key, answer in answers.items()}
        self.benches = {key: Bench(destination) for key, destination in self.destinations.items()}
        self.dead = MemoryKeeper()
        self.metrics = Metrics()
        lanes = {key: bench.lane for key, bench in self.benches.items()}
        self.router = Router(routes, lanes, self.dead, self.metrics.source("uploads"), slots=1000)

    async def send(self, given: Event, *, fault: str | None = None) -> Outcome:
        delivery = Delivery(given, fault=fault)
        async with AsyncExitStack() as stack:
            for bench in self.benches.values():
                await stack.enter_async_context(bench.running())
            await self.router.route(delivery)
            (outcome,) = await settled([delivery])
        for bench in self.benches.values():
            bench.assert_nothing_is_remembered()
        return outcome

    def invoked(self, service: str) -> int:
        return len(self.destinations[service].began)

    def filtered(self, reason: str) -> float:
        labels = {"source": "uploads", "reason": reason}
        return self.metrics.registry.get_sample_value("bridge_events_filtered_total", labels) or 0.0


async def _one(when: str, data: bytes = b"{}", **others: Any) -> tuple[str, str]:
    """What one event comes to at one route: `accepted`, a reason of a filter, or `route` with its detail."""
    house = _House(_route(when=when), plants=ACCEPTED)
    outcome = await house.send(event("a", data, **others))
    if outcome is Outcome.FILTERED:
        assert not house.invoked("plants")
        assert not house.dead.letters
        (reason,) = [
            reason for reason in ("no_match", "missing_key", "not_allowed") if house.filtered(reason)
        ]
        return reason, ""
    if outcome is Outcome.DEAD_LETTERED:
        assert not house.invoked("plants")
        (letter,) = house.dead.letters
        assert (letter.service, letter.attempts) == ("plants", 0)
        return letter.cause, letter.detail
    assert house.invoked("plants") == 1
    return outcome.name.lower(), ""


# --- one route --------------------------------------------------------------------------------


async def test_without_when_every_event_goes() -> None:
    house = _House(_route(), plants=ACCEPTED)
    for data in (b"", b"\xff\x00", b"not json", b'{"a": 1}', b"[" * 100_000):
        assert await house.send(event("a", data)) is Outcome.ACCEPTED
    assert house.invoked("plants") == 5


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
        ("data.a > 1", b"not json", "route"),
        ("data.a > 1", b'{"a": "text"}', "route"),
        ("data.a > 1", b'{"a": NaN}', "route"),
        ("data.a > 1", b'{"a": Infinity}', "route"),
        ("data.a > 1", b"", "route"),
        ("data.a > 1", b"\xff", "route"),
        ("data.a", b'{"a": 1}', "route"),
        ("data.a / data.b > 1", b'{"a": 1, "b": 0}', "route"),
        ("data.a + 1 > 1", b'{"a": 9223372036854775807}', "route"),
        ("data.a == 'x'", b'{"a": "\\ud800"}', "route"),  # no text in UTF-8 can hold a lone surrogate
        ("data.b == 'x'", b'{"a": "\\ud800", "b": "x"}', "accepted"),  # not looked at
        ("data.a > 1", b'{"a": 1' + b"0" * 400 + b"}", "route"),
        ("data.b == 1", b'{"b": 1, "a": 1' + b"0" * 400 + b"}", "accepted"),
        ("data.a > 1", b'{"a": 1' + b"0" * 5000 + b"}", "route"),
        ("data[9] == 1", b"[1]", "route"),
        ("subject.matches(data.a)", b'{"a": "["}', "route"),
    ],
)
async def test_what_an_expression_makes_of_data(when: str, data: bytes, found: str) -> None:
    assert (await _one(when, data, subject="b"))[0] == found


async def test_a_dead_letter_of_a_route_says_which_expression_and_why() -> None:
    cause, detail = await _one("data.a > 1", b"not json")
    assert cause == "route"
    assert detail.startswith("`data.a > 1`: ")
    assert "data is not a JSON document but str of 8 long" in detail
    _, detail = await _one("data.a", b'{"a": 1}')
    assert detail == "`when` gave int, expected true or false"


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
        ("attributes.a == 'x'", {"attributes": {"a": "\ud800"}}, "route"),
    ],
)
async def test_what_an_expression_makes_of_the_attributes(
    when: str, others: dict[str, Any], found: str
) -> None:
    assert (await _one(when, **others))[0] == found


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
    assert (await _one("size(data) == 1", data))[0] == ("accepted" if is_json else "no_match")
    assert (await _one("data == data", data))[0] == "accepted"
    assert (await _one("data", data))[0] == "route"
    cause, _ = await _one("data[subject] == 1", data, subject="other")
    assert cause == ("missing_key" if is_json and pair[0] != "[" else "route")


async def test_depth_beside_what_is_asked_for_does_not_matter() -> None:
    deep = '{"size": 1, "deep": ' + "[" * 700 + "]" * 700 + "}"
    assert (await _one("data.size == 1", deep.encode()))[0] == "accepted"


async def test_many_flat_values_are_not_taken_for_deep_ones() -> None:
    data = json.dumps([{"n": [number]} for number in range(5000)]).encode()
    assert (await _one("data[4999].n[0] == 4999", data))[0] == "accepted"


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
        ("data.a.map(x, data.b.map(y, data.c.map(z, z)))", 200),
    ],
)
def test_how_much_an_expression_may_go_through(when: str, most: int | None) -> None:
    assert most_values(when) == most


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
    began = monotonic()
    cause, detail = await _one(when, data)
    assert monotonic() - began < 5
    assert cause == found
    assert ("are too many for it" in detail) is (found == "route")


async def test_long_attributes_are_counted_too() -> None:
    attributes = {str(number): "x" for number in range(10_001)}
    assert (await _one("attributes.all(k, k != '')", attributes=attributes))[0] == "route"
    assert (await _one("attributes['7'] == 'x'", attributes=attributes))[0] == "accepted"


async def test_data_is_converted_only_when_an_expression_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr(module, "_data", never)
    assert (await _one("subject == 'data' || type == 'test'"))[0] == "accepted"
    house = _House(_route(when="data.a == 1"), plants=ACCEPTED)
    assert await house.send(event("a")) is Outcome.DEAD_LETTERED
    assert "converted" in house.dead.letters[0].detail


async def test_data_is_converted_once_for_all_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[bytes] = []
    real = module._data

    def counted(raw: bytes, keys: frozenset[str] | None) -> Any:
        converted.append(raw)
        return real(raw, keys)

    monkeypatch.setattr(module, "_data", counted)
    house = _House(
        _route(when="data.a == 1"), _route("flood", "data.b == 2"), plants=ACCEPTED, flood=ACCEPTED
    )
    assert await house.send(event("a", b'{"a": 1, "b": 2}')) is Outcome.ACCEPTED
    assert converted == [b'{"a": 1, "b": 2}']


@pytest.mark.parametrize(
    ("expression", "keys"),
    [
        ('data.size > 0 && data.Key.endsWith(".nc")', {"size", "Key"}),
        ("data[\"a-b\"].x == data['c'].y", {"a-b", "c"}),
        ("has(data.x)", {"x"}),
        ('data.payload.custom_metadata["oscar-service"]', {"payload"}),
        ("subject == 'x'", set()),
        ("metadata == 1", set()),
        ("data.size() > 0", None),
        ("data.size () > 0", None),
        ("size(data) > 0", None),
        ("data[subject] == 1", None),
        ('data["a" + "b"] == 1', None),
        ('data["\\u0041"] == 1', None),
        ('data[r"a"] == 1', None),
        ("data.?x == 1", None),
        ("data.size// what\n() > 0", None),
        ("data.exists(k, k == 'a')", None),
        ("[1].all(data, data > 0)", None),
        ("subject == 'data'", None),
    ],
)
def test_the_keys_of_data_that_an_expression_can_read(expression: str, keys: set[str] | None) -> None:
    assert module._keys_of_data(expression) == keys


_JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_WHENS = ["data.a == data.b", "has(data.a.b)", "data['c'][0] > 1", "data.a.exists(x, x == data.c)"]


@settings(max_examples=150)
@given(value=_JSON_VALUES, when=st.sampled_from(_WHENS))
def test_showing_some_keys_only_never_changes_what_an_expression_gives(value: Any, when: str) -> None:
    raw = json.dumps(value).encode()
    keys = module._keys_of_data(when)
    assert keys
    expression = module._Expression(when)

    def given(context: dict[str, Any]) -> object:
        try:
            return expression.evaluate(context)
        except (module._NoMatch, module._Unroutable) as finding:
            return type(finding), str(finding)

    assert given({"data": module._data(raw, keys)}) == given({"data": module._data(raw, None)})


@settings(max_examples=150)
@given(
    raw=st.binary(max_size=40) | st.text('{}[]":,0123456789eE+-.ntfru\\ \ufeff', max_size=40).map(str.encode)
)
async def test_no_data_stops_the_router(raw: bytes) -> None:
    house = _House(_route(when="data.a == 1 || size(data) > 3"), plants=ACCEPTED)
    assert await house.send(event("a", raw)) in set(Outcome) - {Outcome.RELEASED, Outcome.PARKED}


# --- several routes ---------------------------------------------------------------------------


async def test_the_reason_of_a_filter_is_the_one_that_tells_most() -> None:
    house = _House(
        _route(when="false"), _route("data.to", allow=["plants"]), _route(when="data.x == 1"), plants=ACCEPTED
    )
    assert await house.send(event("a", b'{"to": "other"}')) is Outcome.FILTERED
    assert house.filtered("not_allowed") == 1
    assert await house.send(event("b")) is Outcome.FILTERED
    assert house.filtered("missing_key") == 1
    assert house.filtered("no_match") == 0


async def test_without_routes_everything_is_filtered() -> None:
    house = _House()
    assert await house.send(event("a")) is Outcome.FILTERED
    assert house.filtered("no_match") == 1


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b'{"to": "plants"}', "plants"),
        (b'{"to": "flood"}', "flood"),
        (b'{"to": "secret"}', "not_allowed"),
        (b'{"to": "PLANTS"}', "not_allowed"),
        (b"{}", "missing_key"),
        (b'{"to": 1}', "route"),
        (b'{"to": null}', "route"),
        (b"text", "route"),
    ],
)
async def test_a_service_chosen_by_the_event_must_be_allowed(data: bytes, found: str) -> None:
    house = _House(
        _route("data.to", allow=["plants", "flood"]), plants=ACCEPTED, flood=ACCEPTED, secret=ACCEPTED
    )
    outcome = await house.send(event("a", data))
    invoked = [key for key in house.destinations if house.invoked(key)]
    if outcome is Outcome.ACCEPTED:
        assert invoked == [found]
    elif outcome is Outcome.FILTERED:
        assert invoked == []
        assert house.filtered(found) == 1
    else:
        assert invoked == []
        (letter,) = house.dead.letters
        assert (letter.cause, letter.service) == (found, "")


async def test_several_routes_to_one_lane_are_one_invocation() -> None:
    house = _House(_route(), _route(when="true"), _route("data.to", allow=["plants"]), plants=ACCEPTED)
    assert await house.send(event("a", b'{"to": "plants"}')) is Outcome.ACCEPTED
    assert house.invoked("plants") == 1


async def test_an_event_for_several_lanes_settles_with_the_worst_of_them() -> None:
    house = _House(_route(), _route("flood"), _route("fire"), plants=ACCEPTED, flood=REJECTED, fire=ACCEPTED)
    assert await house.send(event("a")) is Outcome.DEAD_LETTERED
    assert [house.invoked(key) for key in ("plants", "flood", "fire")] == [1, 1, 1]
    assert house.benches["flood"].dead.causes == {"a": "http_413"}


async def test_a_route_that_cannot_be_evaluated_does_not_stop_the_others() -> None:
    house = _House(_route("flood", when="data.a"), _route(), plants=ACCEPTED, flood=ACCEPTED)
    assert await house.send(event("a", b'{"a": 1}')) is Outcome.DEAD_LETTERED
    assert house.invoked("plants") == 1
    assert house.invoked("flood") == 0
    assert [(letter.service, letter.cause) for letter in house.dead.letters] == [("flood", "route")]


async def test_a_delivery_released_from_above_leaves_every_lane() -> None:
    house = _House(_route(), _route("flood"), plants=ACCEPTED, flood=ACCEPTED)
    delivery = Delivery(event("a"))
    await house.router.route(delivery)
    queued = [bench.value("bridge_lane_queued") for bench in house.benches.values()]
    assert queued == [1, 1]
    delivery.settle(Outcome.RELEASED)
    for bench in house.benches.values():
        bench.assert_nothing_is_remembered()


async def test_a_released_delivery_is_not_routed() -> None:
    house = _House(_route(when="data.a"), plants=ACCEPTED)
    delivery = Delivery(event("a", b'{"a": 1}'))
    delivery.settle(Outcome.RELEASED)
    await house.router.route(delivery)
    assert not house.dead.letters


async def test_a_dead_letter_of_a_route_waits_for_the_store() -> None:
    house = _House(_route(when="data.a"), plants=ACCEPTED)
    house.dead.broken = True
    delivery = Delivery(event("a", b'{"a": 1}'))
    routing = asyncio.create_task(house.router.route(delivery))
    await asyncio.sleep(3600)
    assert not routing.done()
    assert delivery.outcome is None
    house.dead.broken = False
    await asyncio.wait_for(routing, 16)
    assert delivery.outcome is Outcome.DEAD_LETTERED


async def test_what_its_source_can_t_read_is_a_dead_letter_whatever_the_routes_say() -> None:
    house = _House(_route(), plants=ACCEPTED)
    assert await house.send(event("x"), fault="not JSON") is Outcome.DEAD_LETTERED
    (letter,) = house.dead.letters
    assert (letter.cause, letter.detail, letter.service) == ("unreadable", "not JSON", "")
    assert not house.destinations["plants"].began


async def test_an_event_that_fails_in_a_way_nobody_foresaw_is_a_dead_letter_and_stops_none_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Panic(BaseException):
        """As the CEL evaluator, which is Rust's, raises it."""

    context = module._context

    def fails(event: Event, *more: Any) -> dict[str, Any]:
        if event.id == "odd":
            raise Panic("index out of bounds")
        return context(event, *more)

    monkeypatch.setattr(module, "_context", fails)
    house = _House(_route(when="data.size > 0"), plants=ACCEPTED)
    assert await house.send(event("odd", b'{"size": 1}')) is Outcome.DEAD_LETTERED
    assert await house.send(event("good", b'{"size": 1}')) is Outcome.ACCEPTED
    (letter,) = house.dead.letters
    assert (letter.event.id, letter.cause) == ("odd", "route")
    assert letter.detail == "defect in routing: Panic: index out of bounds"
