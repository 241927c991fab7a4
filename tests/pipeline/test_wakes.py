"""What waits goes on when the cause is gone, not when some time is over."""

from __future__ import annotations

import asyncio

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreFullError
from bridge.core.event import Event
from bridge.core.ports import Answer, DeadLetter
from bridge.pipeline.intake import Intake
from bridge.pipeline.limits.concurrency import Fixed
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import now
from tests.pipeline.scripted import (
    ACCEPTED,
    REJECTED,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
    settled,
)


def _router(**benches: Bench) -> Router:
    """Route by the events' ids, with slots for more than comes."""
    source = Metrics().source("uploads")
    route = RouteConfig.model_validate({"from": "uploads", "to": "attributes.to", "allow": list(benches)})
    lanes = {key: bench.lane for key, bench in benches.items()}
    return Router([route], lanes, MemoryKeeper(), source, Intake(10_000, 2**30, source))


def _to(key: str, number: int) -> Delivery:
    return Delivery(event(f"{key}{number}", attributes={"to": key}))


async def _feed(router: Router, key: str, count: int, prefix: str = "") -> list[Delivery]:
    given = [_to(key, number) for number in range(count)]
    for delivery in given:
        await router.route(delivery)
    return given


async def test_what_waits_for_room_is_parked_when_a_sibling_starves_though_another_put_has_ended() -> None:
    """What is routed again comes beside what the source gives."""
    slow = Bench(ScriptedDestination(seconds=1000), concurrency=1, queue=10, park=True)
    other = Bench(ScriptedDestination(seconds=0.1), concurrency=1, queue=300, park=True)
    router = _router(slow=slow, other=other)
    async with slow.running(), other.running():
        await asyncio.sleep(0.001)  # now they run
        busy = await _feed(router, "other", 100)
        await _feed(router, "slow", 11)
        held = _to("slow", 11)
        putting = asyncio.create_task(router.route(held))
        await asyncio.sleep(0)
        assert not putting.done(), "no other lane starves"
        await router.route(_to("other", 101))  # it comes in, and is done with
        await settled(busy, within=11)
        assert await settled([held], within=0.1) == [Outcome.PARKED], "the other lane has begun to starve"
        await putting


async def test_what_comes_to_a_full_lane_is_parked_for_a_sibling_in_a_cluster_without_a_free_place() -> None:
    """Who has no event does not stand in the ring, and would get no turn when a place is free."""
    ring = Ring([Fixed(2)])
    third = Bench(ScriptedDestination(seconds=30), concurrency=1, ring=ring)
    slow = Bench(ScriptedDestination(seconds=10_000), concurrency=1, queue=10, park=True, ring=ring)
    quick = Bench(ScriptedDestination(), park=True, ring=ring)
    router = _router(slow=slow, quick=quick)
    async with third.running(), slow.running(), quick.running():
        await asyncio.sleep(0.001)  # now they run
        await third.put(deliveries(1))
        await _feed(router, "slow", 11)
        held = _to("slow", 11)
        await asyncio.wait_for(router.route(held), 1)
        assert await settled([held], within=1) == [Outcome.PARKED]


async def test_what_is_never_parked_waits_for_room_though_a_sibling_starves() -> None:
    slow = Bench(ScriptedDestination(seconds=100), concurrency=1, queue=10)
    quick = Bench(ScriptedDestination())
    router = _router(slow=slow, quick=quick)
    async with slow.running(), quick.running():
        await asyncio.sleep(0.001)
        given = await _feed(router, "slow", 11)
        putting = asyncio.create_task(router.route(_to("slow", 11)))
        await asyncio.sleep(99)
        assert not putting.done()
        await settled(given[:4], within=400)
        await putting


async def test_a_dead_letter_too_large_for_the_store_holds_up_no_other_of_its_lane() -> None:
    class Nearly(MemoryKeeper):
        async def bury(self, letter: DeadLetter) -> None:
            if len(letter.event.data) > 1000:
                raise StoreFullError("at its budget")
            await super().bury(letter)

    bench = Bench(ScriptedDestination(REJECTED), keeper=Nearly())
    large = Delivery(event("large", data=b"x" * 2000))
    async with bench.running():
        await bench.put([large])
        await asyncio.sleep(600)
        for number in range(20):
            await bench.put(some := deliveries(5, f"small{number}-"))
            assert await settled(some, within=16) == [Outcome.DEAD_LETTERED] * 5
            await asyncio.sleep(7)
        assert large.outcome is None
        large.settle(Outcome.RELEASED)
        before = now()
        await bench.lane.finished()
        assert now() == before
        bench.assert_nothing_is_remembered()


async def test_a_dead_letter_waits_for_none_that_was_released_while_the_store_failed() -> None:
    def script(given: Event) -> Answer:
        return ACCEPTED if given.id.startswith("good") else REJECTED

    bench = Bench(ScriptedDestination(script))
    bench.keeper.broken = True
    older = deliveries(150)
    async with bench.running():
        await bench.put(older)
        await asyncio.sleep(120)
        for delivery in older:
            delivery.settle(Outcome.RELEASED)
        bench.keeper.broken = False
        await bench.put(newer := deliveries(1, "newer"))
        assert await settled(newer, within=16) == [Outcome.DEAD_LETTERED]
        bench.assert_nothing_is_remembered()
