"""What is not well with Kafka is told in every look at the daemon, and stops nothing beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.testing import Proxy, until
from tests.servers.tansu import Tansu, free_port
from tests.support.beds import KafkaBed
from tests.support.world import World

LOOKS = 20


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        yield oscar


def body(number: int) -> bytes:
    return json.dumps({"n": number}).encode()


async def test_a_damaged_record_is_told_in_every_look_and_events_of_other_partitions_become_jobs(
    tmp_path: Path, oscar: SandboxOscar, unique: str
) -> None:
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, 2)
            await broker.produce(unique, [b'{"n": "needle"}', body(-1)])
            await broker.produce(unique, [body(0)], partition=1)
            proxy.garbled = (b"needle", b"noodle")
            world = World(tmp_path, oscar, KafkaBed(unique, broker))
            daemon = world.daemon()
            try:
                daemon.start()
                await daemon.is_up()
                jobs = oscar.ledger
                await until(lambda: jobs.total == 1, what="the job of the other partition")
                place = f"{unique}/0 is held at offset 0"
                async with asyncio.timeout(30):
                    while place not in str(await daemon.ready()):
                        await asyncio.sleep(0.05)
                for number in range(1, LOOKS):
                    await broker.produce(unique, [body(number)], partition=1)
                    assert place in str(await daemon.ready())
                    assert await daemon.metric("bridge_ready") == 0
                    assert await daemon.metric("bridge_source_up", source="uploads") == 1
                await until(lambda: jobs.total == LOOKS, what="the jobs of the other partition")
                assert len(await daemon.says("kafka: not well")) == 1
                assert await daemon.stop() == 0
            finally:
                world.close()


async def test_an_advertised_address_out_of_reach_is_never_taken_for_well(
    tmp_path: Path, oscar: SandboxOscar, unique: str
) -> None:
    dead = free_port()
    with Tansu(advertised_port=dead) as broker:
        world = World(tmp_path, oscar, KafkaBed(unique, broker))
        front = f"127.0.0.1:{broker.port}"
        daemon = world.daemon(world.configuration(sources={"uploads": world.source(bootstrap_servers=front)}))
        try:
            daemon.start()
            await daemon.is_up()
            for _ in range(LOOKS):
                ready = await daemon.ready()
                assert ready is not None
                assert [problem["part"] for problem in ready["problems"]] == ["source uploads"]
                metrics = await daemon.metrics()
                assert metrics["bridge_source_up", (("source", "uploads"),)] == 0
                assert ("bridge_source_lag", (("source", "uploads"),)) not in metrics
                await asyncio.sleep(0.05)
            assert await daemon.stop() == 0
        finally:
            world.close()
