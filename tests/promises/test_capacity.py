"""Never faster than OSCAR can take: its throttle, its quota, and events that spoil nothing for others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bridge.testing import until
from tests.support.world import World

# The sandbox answers 500 for ever to a Records event whose principal is no label of Kubernetes.
POISON = b'{"Records": [{"requestParameters": {"principalId": "AWS:AIDA%d", "sourceIPAddress": ""}}]}'


def ledger_of(world: World) -> tuple[int, int]:
    """The calls that arrived and the jobs that were made."""
    return world.oscar.ledger.requests, world.oscar.ledger.total


@pytest.mark.prove
@pytest.mark.timeout(400)
async def test_a_quota_of_two_jobs_at_once_makes_no_dead_letter_and_few_useless_calls(world: World) -> None:
    world.oscar.settings.jobs_quota = 2
    world.oscar.settings.simulated_seconds = 1.0
    world.oscar.settings.ttl_job_seconds = 0.0
    daemon = world.daemon(world.configuration(services={"plants": {}}))
    await world.produce_numbers(200)
    daemon.start()
    await world.all_jobs(seconds=300)
    await world.bed.leaves(0)
    calls, jobs = ledger_of(world)
    print(f"{calls} calls for {jobs} jobs")
    assert jobs == 200
    assert not daemon.said("dead letter")
    assert calls <= 1.3 * jobs


@pytest.mark.prove
@pytest.mark.timeout(400)
async def test_five_services_at_the_default_throttle_hang_up_few_calls(world: World) -> None:
    """client-go's 5 calls a second for all of OSCAR, which goes on after its caller has hung up."""
    world.oscar.settings.api_calls_per_second = 5.0
    keys = ["plants", "flood", "birds", "soils", "storms"]
    for key in keys[1:]:
        world.oscar.add_service(key)
    daemon = world.daemon(
        world.configuration(
            services={key: {"cluster": "main", "timeout_seconds": "5s"} for key in keys},
            routes=[
                {"from": "uploads", "when": f"int(data.n) % 5 == {place}", "to": key}
                for place, key in enumerate(keys)
            ],
        )
    )
    await world.produce_numbers(300)
    daemon.start()
    await until(lambda: world.oscar.ledger.total == 300, seconds=300, what="300 jobs")
    await world.bed.leaves(0)
    calls, jobs = ledger_of(world)
    print(f"{calls} calls for {jobs} jobs")
    assert not daemon.said("dead letter")
    assert calls <= 1.3 * jobs


async def test_two_poisoned_events_die_and_hold_up_no_good_one(world: World) -> None:
    """In a lane with little to do, one good event at a time comes between their attempts."""
    poisoned = await world.bed.produce([POISON % 1, POISON % 2])
    quick: dict[str, Any] = {"retry": {"max_backoff": "200ms", "max_attempts": 3}}
    daemon = world.daemon(
        world.configuration(services={"plants": quick}, sources={"uploads": world.source(trusted=True)})
    )
    daemon.start()
    await until(lambda: len(daemon.noted("failed")) > 6, what="both fail again and again")
    assert not daemon.said("gate shut")
    told = await daemon.ready()
    assert told is not None
    assert told["problems"] == [{"part": "service plants", "reason": "failing: http_500"}]
    async with asyncio.timeout(60):
        while len(daemon.said("dead letter")) < 2:
            await world.produce_numbers(1)
            await world.all_jobs(seconds=10)
    assert {line["id"] for line in daemon.said("dead letter", cause="http_500")} == set(poisoned)
    assert not daemon.said("gate shut")
    await daemon.becomes_ready()
