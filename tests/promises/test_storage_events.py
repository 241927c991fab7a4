"""A store's notifications by Kafka: one job an object's event, through a kill, however often it is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

from bridge.testing import until
from tests.sources.storage import from_ceph, from_minio, record
from tests.support.world import World

COUNT = 40


async def test_a_kill_amid_notifications_told_twice_makes_one_job_an_event_and_one_dead_letter(
    world: World,
) -> None:
    bodies = []
    for at in range(COUNT):
        told = [make(f"in/{at} {kind}")["Records"][0] for kind, make in (("m", from_minio), ("c", from_ceph))]
        bodies += [json.dumps({"Records": told}).encode()] * 2
    bodies.insert(COUNT, json.dumps({"Records": [record("in/beside"), record("in/poisoned", s3=7)]}).encode())
    for partition in range(4):
        await world.bed.kafka.produce(world.bed.name, bodies[partition::4], partition=partition)
    daemon = world.daemon(
        world.configuration(
            sources={"uploads": world.source(open="auto", max_in_flight=20)},
            services={"plants": {"retry": {"max_backoff": "100ms"}, "limits": {"rate": "60/s"}}},
        )
    )
    jobs = world.oscar.ledger
    daemon.start()
    await until(lambda: jobs.total >= 20, what="20 jobs")
    daemon.kill()
    daemon.start()
    await until(lambda: jobs.total == 2 * COUNT + 1, what="a job of each object")
    async with asyncio.timeout(30):
        while await world.bed.committed() != len(bodies):
            await asyncio.sleep(0.1)
    assert await daemon.metric("bridge_dead_letters", service="", cause="unreadable") == 1
    assert await daemon.metric("bridge_invocations_total", service="plants", outcome="duplicate") > 0
    assert await daemon.stop() == 0
    seen = Counter(json.loads(body)["Records"][0]["s3"]["object"]["key"] for body in jobs.bodies("plants"))
    assert seen == Counter(
        {f"in/{at}+{kind}" if kind == "c" else f"in%2F{at}+{kind}": 1 for at in range(COUNT) for kind in "mc"}
        | {"in/beside": 1}
    )
    assert set(jobs.created.values()) == {1}
