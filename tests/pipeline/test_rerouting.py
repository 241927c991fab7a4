"""Dead letters without a service go round the routes of their source again."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bridge.core.event import Event
from bridge.core.ports import NO_LANE, Answer
from bridge.pipeline.intake import Intake
from bridge.pipeline.rerouting import Rerouting
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.telemetry.metrics import Metrics
from tests.pipeline.scripted import ACCEPTED, REFUSED, Bench, MemoryKeeper, ScriptedDestination, event, stop


class House:
    """Two lanes, and a source `uploads` whose routes choose one by the event."""

    def __init__(self, plants: Answer = ACCEPTED, *, park: bool = False, **more: Any) -> None:
        self.keeper = MemoryKeeper()
        self.plants, self.flood = ScriptedDestination(plants), ScriptedDestination()
        self.benches = {
            "plants": Bench(self.plants, keeper=self.keeper, park=park),
            "flood": Bench(self.flood),
        }
        chosen = RouteConfig.model_validate(
            {"from": "uploads", "to": "data.to", "allow": ["plants", "flood"], **more}
        )
        source = Metrics().source("uploads")
        router = Router(
            [chosen],
            {key: bench.lane for key, bench in self.benches.items()},
            self.keeper,
            source,
            Intake(1000, 2**30, source),
        )
        self.rerouting = Rerouting({"uploads": router}, self.keeper)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.rerouting.run())
        async with AsyncExitStack() as stack:
            for bench in self.benches.values():
                await stack.enter_async_context(bench.running())
            try:
                yield
            finally:
                await stop(task)

    async def replayed(self, *events: Event) -> None:
        """Return when all of them have left the place of those that are to go round."""
        await self.keeper.replay(*events, service=NO_LANE)
        await self.none_left()

    async def none_left(self) -> None:
        async with asyncio.timeout(3600):
            while self.keeper.waiting(NO_LANE):
                await asyncio.sleep(0.1)


async def test_each_goes_where_its_routes_lead_now() -> None:
    house = House()
    async with house.running():
        await house.replayed(
            event("a", b'{"to": "plants"}'),
            event("b", b'{"to": "flood"}'),
            event("c", b'{"to": 7}'),
            event("d", b'{"to": "nowhere"}'),
        )
    assert (house.plants.ids, house.flood.ids) == (["a"], ["b"])
    assert house.keeper.causes == {"c": "route"}
    assert not house.keeper.rows


async def test_what_could_not_be_decoded_is_decoded_once_its_route_is_mended() -> None:
    """What is then parked for its service is the decoded one: no route will look at it again."""
    house = House(REFUSED, park=True, decode="base64")
    async with house.running():
        await house.replayed(
            event("a", b64encode(b'{"to": "plants"}')),
            event("b", b64encode(b'{"to": "flood"}')),
            event("c", b'{"to": "flood"}'),
        )
    assert house.flood.ids == ["b"]
    assert house.keeper.causes == {"c": "undecodable"}
    (row,) = house.keeper.rows.values()
    assert (row.event.id, row.event.data) == ("a", b'{"to": "plants"}')


async def test_what_was_marked_while_no_bridge_ran_goes_round_at_the_start() -> None:
    house = House()
    for number in range(250):
        await house.keeper.park(event(number, b'{"to": "plants"}'), NO_LANE)
    async with house.running():
        await house.none_left()
    assert sorted(house.plants.ids, key=int) == [str(number) for number in range(250)]


async def test_one_of_a_source_that_is_gone_is_a_dead_letter_again() -> None:
    house = House()
    async with house.running():
        await house.replayed(Event(id="x", source="other", type="t", data=b"{}"))
    (letter,) = house.keeper.letters
    assert (letter.service, letter.cause) == (NO_LANE, "route")
    assert letter.detail == "its source is not in the configuration any more"


async def test_a_dead_service_holds_none_of_the_others_for_longer_than_it_takes_to_park() -> None:
    house = House(REFUSED, park=True)
    async with house.running():
        await house.replayed(
            *(event(number, b'{"to": "plants"}') for number in range(300)), event("b", b'{"to": "flood"}')
        )
        assert house.flood.ids == ["b"]
        assert house.keeper.waiting("plants") == 300


async def test_a_store_that_can_not_be_read_is_asked_again() -> None:
    house = House()
    await house.keeper.park(event("a", b'{"to": "plants"}'), NO_LANE)
    house.keeper.broken = True
    async with house.running():
        await asyncio.sleep(60)
        assert house.keeper.refusals > 1
        house.keeper.broken = False
        await house.none_left()
    assert house.plants.ids == ["a"]
