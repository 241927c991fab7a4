"""A dead service starves no other, waits in the store, and is caught up with once it lives again."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from bridge.pipeline.waiting import PROBERS
from bridge.sandbox.oscar import Fault
from bridge.testing import until
from tests.support.beds import SqsBed
from tests.support.daemon import Daemon
from tests.support.world import World

KEEPS = 0.75
"""Of its rate, at least, whatever becomes of its neighbour, in the long runs, which have the machine alone;
0.95 is held to in virtual time (tests/pipeline/test_apart.py). A rate says nothing on a machine that is busy
with something else, so the short runs hold that it goes on to its last event while the other has none."""


def two_services(world: World, *, in_flight: int, park_after: str, **plants: Any) -> dict[str, Any]:
    """Every event is for both; `flood` takes one at a time, so that its order is seen.

    A lane has half of the source's slots, as with the defaults: one that is full parks as soon as the other
    has little to do, and lets it go on.
    """
    quick = {"retry": {"max_backoff": "500ms"}, "park_after": park_after, "queue": in_flight // 2}
    return world.configuration(
        services={
            "plants": {**quick, **plants},
            "flood": {**quick, "limits": {"concurrency": 1}, "timeout_seconds": "300ms"},
        },
        sources={"uploads": world.source(max_in_flight=in_flight)},
        routes=[{"from": "uploads", "to": "plants"}, {"from": "uploads", "to": "flood"}],
    )


def break_flood(world: World, how: str) -> None:
    """Have the service answer 404, or never within its timeout."""
    if how == "silent":
        world.oscar.add_service("flood")
        world.oscar.faults.set(Fault(delay_seconds=3600), service="flood")


def mend_flood(world: World, how: str) -> None:
    world.oscar.faults.clear()
    if how == "missing":
        world.oscar.add_service("flood")


def jobs_a_second(world: World, service: str) -> float:
    """The rate at which the cluster made the jobs of a service, from the first to the last."""
    created = sorted(job.created for job in world.oscar.jobs.all() if job.service == service)
    return (len(created) - 1) / (created[-1] - created[0])


def numbers_of(world: World, ids: Iterable[str]) -> list[int]:
    numbers = {event_id: number for number, event_id in world.ids.items()}
    return [numbers[event_id] for event_id in ids]


async def outlive_a_dead_service(
    world: World,
    death: str,
    *,
    in_flight: int,
    rate: int,
    keeps: float = 0.0,
    park_after: str = "1s",
    prelude: str = "",
) -> None:
    """20 × `in_flight` events pass for a dead service, some more with a SIGKILL among them; it lives again.

    The other keeps `keeps` of its rate, which is its limit, so that what is measured is the bridge and not
    the machine.
    """
    count, more = 20 * in_flight, 5 * in_flight
    break_flood(world, death)
    configuration = two_services(
        world, in_flight=in_flight, park_after=park_after, limits={"rate": f"{rate}/s"}
    )
    daemon = world.daemon(configuration, prelude)
    made = world.oscar.ledger.bodies
    await world.produce_numbers(count)
    daemon.start()
    await until(lambda: len(made("plants")) >= count, seconds=60 + 5 * count / rate, what="plants goes on")
    reached = jobs_a_second(world, "plants")
    print(f"{reached:.1f} of {rate} jobs a second")
    assert reached >= keeps * rate
    await world.bed.leaves(0)
    await until_parked(daemon, count)
    if isinstance(world.bed, SqsBed):
        assert {row.attributes["receive_count"] for row in daemon.kept()} == {"1"}
        await world.bed.redrive_after(3)  # a kill costs one, and what moto gives to a dead connection another

    await world.produce_numbers(more)
    goal = count + random.randrange(1, more)
    await until(lambda: len(made("plants")) >= goal, what="the middle of the parking")
    daemon.kill()
    daemon.start()
    await until(lambda: len(made("plants")) >= count + more, seconds=60, what="plants goes on")
    await world.bed.leaves(0)
    await until_parked(daemon, count + more)
    assert not made("flood")

    waiting = numbers_of(world, [row.id for row in daemon.kept() if row.service == "flood"])
    mend_flood(world, death)
    await world.all_jobs(service="flood")
    await until(
        lambda: len(daemon.noted("accepted", "duplicate", service="flood")) >= count + more,
        what="all of the journal",
    )
    # What was tried, to see whether the service lives, has a pause of its own before it is tried again.
    tried = numbers_of(world, {line.id for line in daemon.noted("failed", service="flood")})
    assert len(tried) <= PROBERS + 10
    order = [json.loads(body)["n"] for body in made("flood")]
    assert [n for n in order if n not in tried] == [n for n in waiting if n not in tried], "oldest first"
    world.assert_one_job_an_event("plants")
    world.assert_one_job_an_event("flood")
    await until_parked(daemon, 0)
    await until_parked(daemon, 0, "plants")  # what had its job before the kill, and came again
    await daemon.becomes_ready()
    assert await daemon.stop() == 0
    assert not daemon.kept()


async def until_parked(daemon: Daemon, count: int, service: str = "flood") -> None:
    """Return once so many events wait for it in the store."""
    deadline = time.monotonic() + 60
    while (waiting := await daemon.parked(service)) != count:
        assert time.monotonic() < deadline, f"{waiting} in place of {count}"
        await asyncio.sleep(0.05)


SQS_IN_SECONDS = "from bridge.sources.sqs import held; held.LONGEST_HOLD = 8.0"
"""Instead of 12 hours: their service is dead for longer. The visibility timeout is 2 s."""


@pytest.mark.parametrize("death", ["missing", "silent"])
async def test_a_dead_service_takes_nothing_from_the_other_of_its_topic(world: World, death: str) -> None:
    await outlive_a_dead_service(world, death, in_flight=24, rate=100)


async def test_a_missing_service_takes_nothing_from_the_other_of_its_queue(queue_world: World) -> None:
    """Neither its rate, nor a message's few receipts, though 12 hours pass."""
    dead = await queue_world.bed.redrive_after(1)
    await outlive_a_dead_service(
        queue_world, "missing", in_flight=5, rate=10, park_after="150ms", prelude=SQS_IN_SECONDS
    )
    assert await dead.is_empty()


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.parametrize("death", ["missing", "silent"])
async def test_a_dead_service_takes_nothing_from_the_other_of_its_topic_for_long(
    world: World, death: str
) -> None:
    await outlive_a_dead_service(world, death, in_flight=300, rate=200, keeps=KEEPS)


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.parametrize("death", ["missing", "silent"])
async def test_a_dead_service_takes_nothing_from_the_other_of_its_queue_for_long(
    queue_world: World, death: str
) -> None:
    dead = await queue_world.bed.redrive_after(1)
    await outlive_a_dead_service(
        queue_world,
        death,
        in_flight=25,
        rate=10,
        keeps=KEEPS,
        park_after="150ms",
        prelude=SQS_IN_SECONDS,
    )
    assert await dead.is_empty()


async def test_a_dead_service_that_could_fill_all_slots_takes_nothing_from_the_other(world: World) -> None:
    """`max_in_flight` is not greater than `queue`: the lane is never full, and the source is held."""
    configuration = two_services(world, in_flight=50, park_after="3s", limits={"rate": "10/s"})
    for service in configuration["services"].values():
        del service["queue"]
    daemon = world.daemon(configuration)
    await world.produce_numbers(100)
    daemon.start()
    await until(lambda: len(world.oscar.ledger.bodies("plants")) == 100, what="plants goes on")
    assert not world.oscar.ledger.bodies("flood")


async def test_what_waits_for_a_dead_service_comes_back_in_the_order_it_came(queue_world: World) -> None:
    world = queue_world
    daemon = world.daemon(two_services(world, in_flight=10, park_after="1s"))
    await world.produce_numbers(30)
    daemon.start()
    await world.bed.leaves(0)
    await until_parked(daemon, 30)
    world.oscar.add_service("flood")
    await world.all_jobs(service="flood")
    order = [json.loads(body)["n"] for body in world.oscar.ledger.bodies("flood")]
    # One was under way when the others were parked, and one probed when the service was back.
    assert sorted(order) == list(range(30))
    assert sum(later < earlier for earlier, later in pairwise(order)) <= 2, order


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
    assert await world.bed.committed() < 600
    await world.oscar.end_outage()
    await world.all_jobs()
    await world.bed.leaves(0)
    await daemon.becomes_ready()
    world.assert_one_job_an_event()
