"""What every source promises, on its own server and through a proxy that can cut."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import Any

import pytest

from bridge.core.delivery import Outcome
from tests.conformance.beds import Bed, number
from tests.conformance.world import BedWorld
from tests.promises.world import until
from tests.sources.reading import opened, settle

COUNT = 30


async def test_what_is_settled_never_comes_again(bed: Bed) -> None:
    await bed.put(COUNT)
    async with opened(bed.source()) as hands:
        taken = await hands.take(COUNT)
        assert sorted(number(delivery.event) for delivery in taken) == list(range(COUNT))
        committed = partial(
            bed.metrics.registry.get_sample_value,
            "bridge_last_committed_timestamp_seconds",
            {"source": "uploads"},
        )
        before = time.time()
        settle(taken)
    assert before <= (committed() or 0) <= time.time()
    await bed.leaves(0)
    async with opened(bed.source()) as hands:
        await hands.takes_nothing(0.5)
    assert not hands.source.problems()


async def test_the_same_event_has_the_same_id_when_it_comes_again(bed: Bed) -> None:
    await bed.put(5)
    ids = []
    for _ in range(2):
        async with opened(bed.source()) as hands:
            ids.append({number(delivery.event): delivery.event.id for delivery in await hands.take(5)})
    assert ids[0] == ids[1]
    assert len(set(ids[0].values())) == 5


@pytest.mark.parametrize("seed", range(2))
async def test_settling_in_any_order_answers_all(bed: Bed, seed: int) -> None:
    dice = random.Random(seed)
    await bed.put(COUNT)
    async with opened(bed.source()) as hands:
        taken = await hands.take(COUNT)
        dice.shuffle(taken)
        for at, delivery in enumerate(taken):
            delivery.settle(dice.choice((Outcome.ACCEPTED, Outcome.FILTERED, Outcome.DEAD_LETTERED)))
            if at % 7 == 0:
                await asyncio.sleep(0.02)  # so that answers go in several rounds
    await bed.leaves(0)


async def test_no_more_is_in_hand_than_there_are_slots(bed: Bed) -> None:
    await bed.put(COUNT)
    async with opened(bed.source(max_in_flight=5), limit=5) as hands:
        open_ones = list(await hands.take(5))
        await hands.takes_nothing(0.3)
        while len(hands.seen) < COUNT:
            settle([open_ones.pop(0), open_ones.pop()])
            open_ones += await hands.take(min(2, COUNT - len(hands.seen)))  # `Room.take` counts
        settle(open_ones)
    await bed.leaves(0)


async def test_what_is_not_settled_at_the_end_is_given_back(bed: Bed) -> None:
    await bed.put(10)
    async with opened(bed.source()) as hands:
        taken = sorted(await hands.take(10), key=lambda delivery: number(delivery.event))
        settle(taken[:4])
    assert [delivery.outcome for delivery in taken[4:]] == [Outcome.RELEASED] * 6
    settle(taken[4:])  # too late, and harmless
    await bed.leaves(6)
    async with opened(bed.source()) as hands:
        again = await hands.take(6, timeout=5)
        assert {number(delivery.event) for delivery in again} == set(range(4, 10))
        settle(again)
    await bed.leaves(0)


@pytest.mark.parametrize(
    "bed", ["amqp", "rabbitmq", "stomp-rabbitmq", "stomp-activemq", "kafka", "dcache"], indirect=True
)
async def test_what_can_not_be_read_is_a_fault_and_what_is_beside_it_is_read(bed: Bed) -> None:
    await bed.put(3)
    await bed.poison()
    await bed.put(3, first=3)
    async with opened(bed.source()) as hands:
        taken = await hands.take(7)
        settle(taken)
        assert not hands.source.problems()
    assert [bool(delivery.fault) for delivery in taken].count(True) == 1
    assert sorted(number(each.event) for each in taken if each.fault is None) == list(range(6))
    await bed.leaves(0)


async def test_an_idle_source_does_nothing(bed: Bed) -> None:
    async with opened(bed.source()) as hands:
        await hands.takes_nothing(0.5)
        begun = time.process_time()
        await hands.takes_nothing(1.5)
        assert time.process_time() - begun < 0.3


def slowly(world: BedWorld) -> dict[str, Any]:
    """A configuration that takes some seconds for some hundred events."""
    return world.configuration(
        sources={"uploads": world.source(max_in_flight=20)},
        services={"plants": {"retry": {"max_backoff": "100ms"}, "limits": {"rate": "40/s"}}},
    )


async def test_kills_and_cuts_lose_no_event_and_double_none(world: BedWorld) -> None:
    count = 100
    await world.bed.put(count)
    daemon = world.daemon(slowly(world))
    jobs = world.oscar.ledger
    daemon.start()
    await until(lambda: jobs.total >= 10, what="10 jobs")
    world.bed.proxy.cut()
    await until(lambda: jobs.total >= 25, what="25 jobs, after a cut")
    daemon.kill()
    daemon.start()
    await until(lambda: jobs.total >= 40, what="40 jobs, after a kill")
    world.bed.proxy.refuse()
    await asyncio.sleep(1)  # an outage: long enough for attempts to fail
    world.bed.proxy.refuse(False)
    await world.one_job_each(count)
    assert await daemon.stop() == 0
    await world.bed.leaves(0, seconds=20)


async def test_a_pause_loses_no_event_and_doubles_none_and_leaves_upstream_what_is_not_in_hand(
    world: BedWorld,
) -> None:
    count = 100
    await world.bed.put(count)
    daemon = world.daemon(slowly(world))
    jobs = world.oscar.ledger
    daemon.start()
    await until(lambda: jobs.total >= 10, what="10 jobs")
    assert daemon.command("pause", "source", "uploads").returncode == 0
    quiet = 0
    while quiet < 10:  # what it has goes on
        before = jobs.total
        await asyncio.sleep(0.2)
        quiet = quiet + 1 if jobs.total == before else 0
    assert 10 <= jobs.total <= 70, "nothing more is read"
    is_left = world.bed.settings()["type"] in ("amqp", "rucio", "sqs")
    if is_left:  # once it has settled what it had
        await daemon.says("source left for its pause")
    assert len(daemon.said("source left for its pause")) == is_left
    assert await daemon.metric("bridge_source_up", source="uploads") == (not is_left)
    assert (await daemon.ready() or {})["ready"]
    daemon.kill()
    daemon.start()
    await daemon.becomes_ready()
    before = jobs.total
    await asyncio.sleep(2)
    assert jobs.total == before, "a start ends no pause"
    assert daemon.command("resume", "source", "uploads").returncode == 0
    await world.one_job_each(count)
    assert await daemon.stop() == 0
    await world.bed.leaves(0, seconds=20)


@pytest.mark.ends_its_server
@pytest.mark.parametrize(
    "bed",
    [
        "amqp",
        pytest.param("rabbitmq", marks=pytest.mark.prove),  # by the same links as the one before
        "stomp-rabbitmq",
        "stomp-activemq",
        "dcache",
    ],
    indirect=True,
)
async def test_a_broker_that_is_killed_and_started_again_loses_no_event_and_doubles_none(
    world: BedWorld,
) -> None:
    count = 100
    await world.bed.put(count)
    daemon = world.daemon(slowly(world))
    daemon.start()
    await until(lambda: world.oscar.ledger.total >= 10, what="10 jobs")
    await world.bed.restart()
    await world.one_job_each(count)
    assert await daemon.stop() == 0
    await world.bed.leaves(0, seconds=20)
