"""`order_by` through kills: a real topic, a real store, and the order in which OSCAR accepted the jobs."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict

import pytest

from bridge.sandbox.oscar import Fault
from tests.promises.test_kill import Assassin, seed_of_the_day
from tests.promises.world import World

KEYS = "abcdefgh"
MOMENTS = ("request arrived", "job made", "soon after", "store written")


@pytest.mark.timeout(240)
async def test_events_of_a_key_are_accepted_in_their_order_through_kills(world: World) -> None:
    dice = random.Random(seed_of_the_day())
    daemon = world.daemon(
        world.configuration(
            services={"plants": {"retry": {"max_backoff": "200ms"}, "park_after": "200ms", "queue": 50}},
            routes=[{"from": "uploads", "to": "plants", "order_by": "attributes.key"}],
        )
    )
    assassin = Assassin(world.oscar.ledger, daemon, dice)
    daemon.start()
    keys: dict[int, str] = {}
    for _ in range(6):
        numbers = range(len(world.ids), len(world.ids) + 150)
        keys |= {n: dice.choice(KEYS) for n in numbers}
        values = [json.dumps({"n": n}).encode() for n in numbers]
        ids = await world.produce(values, keys=[keys[n].encode() for n in numbers])
        world.ids.update(zip(numbers, ids, strict=True))
        world.oscar.faults.set(
            dice.choice((Fault(statuses={503: 1.0}), Fault(statuses={500: 0.3}, lost_answers=0.1), Fault()))
        )
        assassin.arm(dice.choice(MOMENTS), dice.randint(1, 30))
        await assassin.struck(3)
        daemon.kill()
        daemon.start()
    world.oscar.faults.clear()
    await world.all_jobs(seconds=60)
    async with asyncio.timeout(30):
        while daemon.kept():
            await asyncio.sleep(0.05)
    assert await daemon.stop() == 0
    world.assert_one_job_an_event()
    number_of = {world.job_of(n): n for n in world.ids}
    accepted = defaultdict(list)
    for name in world.oscar.ledger.created:  # in the order in which they were made
        accepted[keys[number_of[name]]].append(number_of[name])
    assert accepted.keys() == set(KEYS)
    for key, order in accepted.items():
        assert order == sorted(order), key
