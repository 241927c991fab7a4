"""`order_by` through kills: a real topic, a real store, and the order in which OSCAR accepted the jobs."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.testing import until
from tests.promises.test_kill import Assassin, seed_of_the_day
from tests.servers.moto import Moto
from tests.servers.tansu import Tansu
from tests.support.beds import SqsBed
from tests.support.world import World

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
        ids = await world.bed.produce(values, keys=[keys[n].encode() for n in numbers])
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
    assert_in_order(world, keys)


@pytest.mark.prove
async def test_groups_of_a_fifo_queue_come_back_from_the_store_in_their_order_after_a_kill(
    tmp_path: Path, tansu: Tansu, moto: Moto, unique: str
) -> None:
    queue = await moto.create_queue(f"{unique}.fifo", VisibilityTimeout=5)
    keys = {n: "abc"[n % 3] for n in range(24)}
    async with SandboxOscar(Settings(simulate=True)) as oscar, AsyncExitStack() as stack:
        oscar.add_service("plants")
        world = World(tmp_path, oscar, SqsBed(queue))
        stack.callback(world.close)
        daemon = world.daemon(
            world.configuration(
                services={"plants": {"park_after": "100ms", "retry": {"max_backoff": "200ms"}}},
                routes=[{"from": "uploads", "to": "plants", "order_by": "attributes.message_group_id"}],
            )
        )
        daemon.start()
        await daemon.becomes_ready()
        oscar.faults.set(Fault(statuses={503: 1.0}))
        for n, group in keys.items():
            await queue.send({"n": n}, group=group)
        await until(lambda: len(daemon.kept()) == len(keys), seconds=60, what="all are parked")
        daemon.kill()
        oscar.faults.clear()
        daemon.start()
        await until(lambda: len(oscar.ledger.created) == len(keys), seconds=60, what="all have jobs")
        assert await daemon.stop() == 0
        assert_in_order(world, keys)


def assert_in_order(world: World, keys: Mapping[int, str]) -> None:
    """Assert that the jobs of each key were made in the order of their numbers."""
    accepted = defaultdict(list)
    for body in world.oscar.ledger.bodies("plants"):
        number = json.loads(body)["n"]
        accepted[keys[number]].append(number)
    assert accepted.keys() == set(keys.values())
    for key, order in accepted.items():
        assert order == sorted(n for n, other in keys.items() if other == key), key
