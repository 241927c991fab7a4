"""A dead service starves no other, waits in the store, and is caught up with once it lives again."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from bridge.sandbox.oscar import Fault
from tests.promises.world import World, until

IN_FLIGHT = 50


def two_services(world: World, **more: Any) -> dict[str, Any]:
    quick = {"retry": {"max_backoff": "500ms"}, "park_after": "1s", **more}
    return world.configuration(
        services={"plants": quick, "flood": quick},
        sources={"uploads": world.source(max_in_flight=IN_FLIGHT)},
        routes=[
            {"from": "uploads", "when": "data.to == 'plants'", "to": "plants"},
            {"from": "uploads", "when": "data.to == 'flood'", "to": "flood"},
        ],
    )


async def produce_for_both(world: World, count: int) -> None:
    """Twice `count` events, every second one for the dead service."""
    values = [json.dumps({"n": n, "to": "flood" if n % 2 else "plants"}).encode() for n in range(2 * count)]
    world.ids.update(enumerate(await world.produce(values)))


@pytest.mark.parametrize("death", ["missing", "silent"])
async def test_a_dead_service_is_parked_and_the_other_goes_on(world: World, death: str) -> None:
    """20 × `max_in_flight` events pass for it: a 404, or no answer within the timeout."""
    count = 20 * IN_FLIGHT
    if death == "silent":
        world.oscar.add_service("flood")
        world.oscar.faults.set(Fault(delay_seconds=3600), service="flood")
    daemon = world.daemon(two_services(world, timeout_seconds="500ms"))
    await produce_for_both(world, count)
    daemon.start()
    plants = range(0, 2 * count, 2)
    flood = range(1, 2 * count, 2)
    made = world.oscar.ledger.created
    await until(lambda: all(world.job_of(n) in made for n in plants), seconds=40, what="plants goes on")
    await until_settled(world, daemon)
    kept = await daemon.metric("bridge_kept_events", service="flood", reason="parked")
    assert kept == count, "each is in the store"
    assert not [name for name in made if name.startswith("flood")]
    daemon.kill()  # and it waits through a death of the bridge
    world.oscar.faults.clear()
    if death == "missing":
        world.oscar.add_service("flood")
    daemon.start()
    await until(lambda: all(world.job_of(n, "flood") in made for n in flood), seconds=40, what="caught up")
    await daemon.becomes_ready()
    world.assert_one_job_an_event("plants", plants)
    world.assert_one_job_an_event("flood", flood)
    order = [json.loads(body)["n"] for body in world.oscar.ledger.bodies("flood")]
    # Oldest first: 4 partitions come in any order among themselves, and 16 attempts are under way at once.
    places = {n: at for at, n in enumerate(order)}
    assert sum(places[n] for n in flood[: count // 4]) / (count // 4) < count / 2
    await until_forgotten(daemon)


async def until_settled(world: World, daemon: Any) -> None:
    """Return once everything of the topic is committed, though a service is dead."""
    deadline = time.monotonic() + 30
    while await world.committed() < len(world.ids):
        assert time.monotonic() < deadline, f"committed {await world.committed()} of {len(world.ids)}"
        await asyncio.sleep(0.1)


async def until_forgotten(daemon: Any) -> None:
    deadline = time.monotonic() + 10
    while await daemon.metric("bridge_kept_events", service="flood", reason="parked"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_a_store_at_its_budget_holds_the_source_and_says_so(world: World) -> None:
    configuration = world.configuration(
        services={"plants": {"retry": {"max_backoff": "300ms"}, "park_after": "1s"}},
        sources={"uploads": world.source(max_in_flight=200)},
        store={"max_bytes": "1MiB"},
    )
    daemon = world.daemon(configuration)
    await world.oscar.outage()
    await world.produce_numbers(600, filling="x" * 4000)
    daemon.start()
    await until(lambda: daemon.said("events can't be parked: their source waits"), what="the budget")
    answer = await daemon.ready()
    assert answer is not None
    assert {problem["part"] for problem in answer["problems"]} == {"service plants", "store"}
    assert "max_bytes" in str(answer["problems"])
    assert await world.committed() < 600
    await world.oscar.end_outage()
    await world.all_jobs()
    await world.all_committed()
    await daemon.becomes_ready()
    world.assert_one_job_an_event()
