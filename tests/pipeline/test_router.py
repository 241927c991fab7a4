"""The router: which lanes an event goes to, and what becomes of it when it goes to none or to several."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import pytest
import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.pipeline import router as router_module
from bridge.pipeline.context import View
from bridge.pipeline.expression import Expression
from bridge.pipeline.intake import Intake
from bridge.pipeline.router import Router
from bridge.telemetry.metrics import Metrics
from tests.pipeline.routing import House, route
from tests.pipeline.scripted import (
    ACCEPTED,
    REJECTED,
    MemoryKeeper,
    event,
)


async def test_without_when_every_event_goes() -> None:
    house = House(route(), plants=ACCEPTED)
    for data in (b"", b"\xff\x00", b"not json", b'{"a": 1}', b"[" * 100_000):
        assert await house.send(event("a", data)) is Outcome.ACCEPTED
    assert house.invoked("plants") == 5


async def test_routing_gives_way_to_the_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluation takes 2 ms here: after three of them the others have their turn."""
    clock = itertools.count(step=0.002)
    monkeypatch.setattr(router_module, "perf_counter", lambda: next(clock))
    house = House(route(when="false"), plants=ACCEPTED)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(100):
        await house.router.route(Delivery(event("a")))
    task.cancel()
    assert turns >= 30
    assert house.filtered("no_match") == 100


async def test_saying_why_no_route_wanted_an_event_gives_way_to_the_other_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What each route says takes 2 ms here; its parts are compiled before the first event comes."""
    now, turns = 0.0, 0

    def part_not_true(_self: Expression, _view: View) -> str:
        nonlocal now
        now += 0.002
        return "no"

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(router_module, "perf_counter", lambda: now)
    house = House(*(route(when=f"subject == 'a' && id == '{each}'") for each in range(50)), plants=ACCEPTED)
    assert all("_parts" in one.__dict__ for each in house.router._routes.routes for one in each.expressions)
    monkeypatch.setattr(Expression, "part_not_true", part_not_true)
    task = asyncio.create_task(other())
    await house.router.route(Delivery(event("a")))
    task.cancel()
    assert turns >= 15
    assert house.filtered("no_match") == 1


@pytest.mark.parametrize(
    ("level", "told"), [(logging.INFO, ""), (logging.DEBUG, "plants: `false` does not hold")]
)
async def test_without_a_journal_why_no_route_wanted_an_event_is_asked_for_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, level: int, told: str
) -> None:
    wrapper = structlog.make_filtering_bound_logger(level)
    monkeypatch.setattr(router_module, "_log", structlog.wrap_logger(None, wrapper_class=wrapper))
    source = Metrics().source("uploads")
    given: list[str] = []
    monkeypatch.setattr(Router, "_filter", lambda _self, _delivery, _reason, detail: given.append(detail))
    lanes = House(plants=ACCEPTED).benches
    router = Router(
        [route(when="false")], {"plants": lanes["plants"].lane}, MemoryKeeper(), source, Intake(1, 1, source)
    )
    await router.route(Delivery(event("a")))
    assert given == [told]


async def test_a_slow_expression_leaves_the_others_as_long_as_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They need several turns to answer one request. How long the source was idle before does not count."""
    now = 0.0
    pauses: list[float] = []

    def evaluate(_self: Expression, view: View) -> Any:
        nonlocal now
        now += 0.25 if view.variables["subject"] == "slow" else 0.01
        return False

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(router_module, "perf_counter", lambda: now)
    monkeypatch.setattr(Expression, "evaluate", evaluate)
    monkeypatch.setattr(router_module.asyncio, "sleep", sleep)
    house = House(route(when="subject == ''"), plants=ACCEPTED)
    for subject in ("slow", "quick", "slow"):
        now += 3600
        await house.router.route(Delivery(event("a", subject=subject)))
    assert pauses == [0.25, 0, 0.25]


async def test_an_event_released_while_others_have_their_turn_goes_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count(step=0.01)
    monkeypatch.setattr(router_module, "perf_counter", lambda: next(clock))
    house = House(route(when="false"), route(when="subject > 0"), plants=ACCEPTED)
    delivery = Delivery(event("a"))
    asyncio.get_running_loop().call_soon(delivery.settle, Outcome.RELEASED)
    await house.router.route(delivery)
    assert delivery.outcome is Outcome.RELEASED
    assert house.filtered("no_match") == 0
    assert not house.dead.letters


@pytest.mark.parametrize(("slow", "warnings"), [(10, 0), (11, 1), (500, 1)])
async def test_a_slow_route_is_warned_of_once(
    slow: int, warnings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One evaluation in a hundred above 1 ms is told, whatever else the source has for routes."""
    now = 0.0
    evaluations = 0
    real = Expression.evaluate

    def evaluate(self: Expression, view: View) -> Any:
        nonlocal now, evaluations
        if self.source == "subject == 'slow'":
            evaluations += 1
            now += 0.0011 if evaluations <= slow else 0.0001
        return real(self, view)

    monkeypatch.setattr(router_module, "perf_counter", lambda: now)
    monkeypatch.setattr(Expression, "evaluate", evaluate)
    house = House(route(when="subject == 'slow'"), route(when="false"), plants=ACCEPTED)
    with structlog.testing.capture_logs() as logs:
        for _ in range(2_000):
            await house.router.route(Delivery(event("a")))
    told = [entry for entry in logs if entry["log_level"] == "warning"]
    assert len(told) == warnings
    for entry in told:
        assert (entry["source"], entry["when"], entry["milliseconds"]) == (
            "uploads",
            "subject == 'slow'",
            1.1,
        )


async def test_the_reason_of_a_filter_is_the_one_that_tells_most() -> None:
    house = House(
        route(when="false"), route("data.to", allow=["plants"]), route(when="data.x == 1"), plants=ACCEPTED
    )
    assert await house.send(event("a", b'{"to": "other"}')) is Outcome.FILTERED
    assert house.filtered("not_allowed") == 1
    assert await house.send(event("b")) is Outcome.FILTERED
    assert house.filtered("missing_key") == 1
    assert house.filtered("no_match") == 0


async def test_without_routes_everything_is_filtered() -> None:
    house = House()
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
        (b"text", "not_json"),
        (b"", "missing_key"),
    ],
)
async def test_a_service_chosen_by_the_event_must_be_allowed(data: bytes, found: str) -> None:
    house = House(
        route("data.to", allow=["plants", "flood"]), plants=ACCEPTED, flood=ACCEPTED, secret=ACCEPTED
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
    house = House(route(), route(when="true"), route("data.to", allow=["plants"]), plants=ACCEPTED)
    assert await house.send(event("a", b'{"to": "plants"}')) is Outcome.ACCEPTED
    assert house.invoked("plants") == 1


async def test_an_event_for_several_lanes_settles_with_the_worst_of_them() -> None:
    house = House(route(), route("flood"), route("fire"), plants=ACCEPTED, flood=REJECTED, fire=ACCEPTED)
    assert await house.send(event("a")) is Outcome.DEAD_LETTERED
    assert [house.invoked(key) for key in ("plants", "flood", "fire")] == [1, 1, 1]
    assert house.benches["flood"].dead.causes == {"a": "http_413"}


async def test_a_route_that_cannot_be_evaluated_does_not_stop_the_others() -> None:
    house = House(route("flood", when="data.a"), route(), plants=ACCEPTED, flood=ACCEPTED)
    assert await house.send(event("a", b'{"a": 1}')) is Outcome.DEAD_LETTERED
    assert house.invoked("plants") == 1
    assert house.invoked("flood") == 0
    assert [(letter.service, letter.cause) for letter in house.dead.letters] == [("flood", "route")]


async def test_a_delivery_released_from_above_leaves_every_lane() -> None:
    house = House(route(), route("flood"), plants=ACCEPTED, flood=ACCEPTED)
    delivery = Delivery(event("a"))
    await house.router.route(delivery)
    queued = [bench.value("bridge_lane_queued") for bench in house.benches.values()]
    assert queued == [1, 1]
    delivery.settle(Outcome.RELEASED)
    for bench in house.benches.values():
        bench.assert_nothing_is_remembered()


async def test_a_released_delivery_is_not_routed() -> None:
    house = House(route(when="data.a"), plants=ACCEPTED)
    delivery = Delivery(event("a", b'{"a": 1}'))
    delivery.settle(Outcome.RELEASED)
    await house.router.route(delivery)
    assert not house.dead.letters


async def test_a_dead_letter_of_a_route_waits_for_the_store() -> None:
    house = House(route(when="data.a"), plants=ACCEPTED)
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
    house = House(route(), plants=ACCEPTED)
    assert await house.send(event("x"), fault="not JSON") is Outcome.DEAD_LETTERED
    (letter,) = house.dead.letters
    assert (letter.cause, letter.detail, letter.service) == ("unreadable", "not JSON", "")
    assert not house.destinations["plants"].began


async def test_an_event_that_fails_in_a_way_nobody_foresaw_is_a_dead_letter_and_stops_none_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Panic(BaseException):
        """As the CEL evaluator, which is Rust's, raises it."""

    def fails(given: Event, *more: Any) -> View:
        if given.id == "odd":
            raise Panic("index out of bounds")
        return View(given, *more)

    monkeypatch.setattr("bridge.pipeline.routes.View", fails)
    house = House(route(when="data.size > 0"), plants=ACCEPTED)
    assert await house.send(event("odd", b'{"size": 1}')) is Outcome.DEAD_LETTERED
    assert await house.send(event("good", b'{"size": 1}')) is Outcome.ACCEPTED
    (letter,) = house.dead.letters
    assert (letter.event.id, letter.cause) == ("odd", "route")
    assert letter.detail == "defect in routing: Panic: index out of bounds"
