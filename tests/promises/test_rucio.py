"""Rucio's events become jobs, one each, whatever happens to brokers and bridge on the way."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiormq.exceptions import AMQPError

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.sandbox.servers import free_port
from bridge.testing import until
from tests.servers import hermes
from tests.servers import rabbitmq as rabbit
from tests.servers.activemq import ActiveMQ
from tests.servers.rabbitmq import RabbitMQ
from tests.support.beds import RUCIO_BEDS, RUCIO_KINDS
from tests.support.daemon import Daemon
from tests.support.world import World

DCNIOS = yaml.safe_load((Path(__file__).parents[2] / "config" / "rucio.yaml").read_text())


def lively(world: World, *, rate: str = "100/s", **source: Any) -> dict[str, Any]:
    return world.configuration(
        sources={"uploads": world.source(max_in_flight=30, **source)},
        services={"plants": {"retry": {"max_backoff": "100ms"}, "limits": {"rate": rate}}},
    )


@pytest.fixture
async def oscar() -> AsyncIterator[SandboxOscar]:
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        yield oscar


@pytest.fixture(params=RUCIO_KINDS)
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, oscar: SandboxOscar, unique: str
) -> AsyncIterator[World]:
    server = "activemq" if request.param == "stomp-activemq" else "rabbitmq"
    world = World(tmp_path, oscar, RUCIO_BEDS[request.param](unique, request.getfixturevalue(server)))
    await world.bed.declare()
    try:
        yield world
    finally:
        world.close()


@pytest.mark.parametrize("world", ["amqp", "stomp-activemq"], indirect=True)
async def test_a_closed_dataset_runs_the_service_that_it_names_if_it_is_allowed(world: World) -> None:
    """The routes of config/rucio.yaml: what users of DCNiOS had."""

    def closed(n: int, service: str, **more: Any) -> dict[str, Any]:
        return hermes.message(number=n, custom_metadata={"oscar-service": service, **more})

    world.oscar.add_service("flood")
    (key,) = DCNIOS["sources"]
    (route,) = DCNIOS["routes"]
    daemon = world.daemon(
        world.configuration(
            services={"plants": {}, "flood": {}},
            sources={key: world.source(event_types=DCNIOS["sources"][key]["event_types"])},
            routes=[route],
        )
    )
    daemon.start()
    sent = closed(0, "plants", **{"oscar-endpoint": "https://oscar.example.org"})
    await world.bed.send(
        sent,
        sent,  # hermes died before it had deleted it
        closed(1, "flood"),
        closed(2, "secret-service"),
        hermes.message(number=3),
        hermes.message("open", number=4, custom_metadata={"oscar-service": "plants"}),
        hermes.message("email", number=5, subject="Hello", body="…", to=["jdoe@example.org"]),
        b"nonsense",
        {"event_type": "close", "created_at": "2026-01-02 03:04:05"},
        {"event_type": "", "payload": {}},
        closed(6, "plants"),
    )
    await world.jobs(2)
    await world.jobs(1, "flood")
    source = {"source": key}
    # Of what was sent to the broker, all is answered, and nothing a second time.
    await until(lambda: len(daemon.said("dead letter")) >= 3, what="three dead letters")
    assert await daemon.metric("bridge_events_filtered_total", **source, reason="not_allowed") == 1
    assert await daemon.metric("bridge_events_filtered_total", **source, reason="missing_key") == 1
    assert await daemon.metric("bridge_events_filtered_total", **source, reason="event_type") == 1
    assert await daemon.metric("bridge_events_filtered_total", **source, reason="email") == 1
    assert await daemon.metric("bridge_dead_letters", service="", cause="unreadable") == 3
    assert sorted(world.numbers()) == [0, 6]
    assert sorted(world.numbers("flood")) == [1]
    assert json.loads(world.oscar.ledger.bodies("plants")[0]) == sent
    listed = daemon.command("dead-letters", "list").stdout
    assert listed.count("unreadable") == 3
    for reason in ("not JSON", "no payload", "no event_type"):
        assert reason in daemon.log.read_text()
    assert await daemon.stop() == 0
    assert await world.bed.left() == 0
    for daemon in world.daemons:
        assert "odd%" not in daemon.log.read_text()


async def kill(world: World, kills: int, seed: int) -> None:
    """Kill one bridge `kills` times while it works through a faulty day; then let it finish."""
    dice = random.Random(seed)
    world.oscar.settings.seed = seed
    world.oscar.faults.set(Fault(statuses={500: 0.05, 503: 0.05}, lost_answers=0.05))
    daemon = world.daemon(lively(world, rate="150/s"))
    count = 0
    for _ in range(kills):
        await world.bed.send(*hermes.numbered(60, count))
        count += 60
        daemon.start()
        goal = world.oscar.ledger.total + dice.randint(1, 50)
        await until(lambda goal=goal: world.oscar.ledger.total >= goal, what=f"{goal} jobs")  # type: ignore[misc] # bound
        await asyncio.sleep(dice.choice((0, dice.uniform(0, 0.05))))  # any moment will do: that is the point
        daemon.kill()
    world.oscar.faults.clear()
    daemon.start()
    await world.one_job_each(count, seconds=60 + count / 50)
    assert await daemon.stop() == 0
    assert await world.bed.left() == 0


@pytest.mark.parametrize("world", ["amqp", "stomp-activemq"], indirect=True)
async def test_a_kill_loses_no_event_and_doubles_none(world: World) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")
    await kill(world, 1, seed)


@pytest.mark.prove
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("world", ["amqp", "stomp-activemq"], indirect=True)
async def test_two_hundred_kills_over_the_two_protocols(world: World, seed: int) -> None:
    await kill(world, 50, seed)


def behind_one_name(name: str, *addresses: str) -> str:
    """What has a daemon find `addresses` behind `name`."""
    return (
        "from bridge.sources.broker import link, reader\n"
        "real = link.resolve\n"
        "async def resolve(broker):\n"
        f"    if broker.rpartition(':')[0] != {name!r}:\n"
        "        return await real(broker)\n"
        "    port = int(broker.rpartition(':')[2])\n"
        f"    return [link.Place(broker, {name!r}, address, port) for address in {addresses!r}]\n"
        "reader.resolve = resolve\n"
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "protocol",
    [pytest.param("amqp", marks=pytest.mark.prove), "stomp-activemq"],  # RabbitMQ starts slowly
)
async def test_of_two_brokers_behind_one_name_one_is_killed_and_revived(
    protocol: str, tmp_path: Path, oscar: SandboxOscar, unique: str
) -> None:
    port = free_port()
    kind: Any = RabbitMQ if protocol == "amqp" else ActiveMQ
    dns = behind_one_name("mq.test", "127.0.0.1", "127.0.0.2")
    with kind(host="127.0.0.1", port=port) as one, kind(host="127.0.0.2", port=port) as two:
        beds = [RUCIO_BEDS[protocol](unique, broker) for broker in (one, two)]
        world = World(tmp_path, oscar, beds[0])
        for bed in beds:
            await bed.declare()
        daemon = world.daemon(lively(world, rate="40/s", brokers=f"mq.test:{port}"), dns)
        try:
            daemon.start()
            await daemon.becomes_ready()
            for at, bed in enumerate(beds):
                await bed.send(*hermes.numbered(50, 50 * at))
            await world.jobs(20)
            two.stop()
            await beds[0].send(*hermes.numbered(30, 100))
            ready = await told_unready(daemon)
            assert f"mq.test:{port} (127.0.0.2)" in json.dumps(ready)
            assert f"mq.test:{port} (127.0.0.1)" not in json.dumps(ready)
            await asyncio.to_thread(two.start)
            await beds[1].send(*hermes.numbered(30, 130))
            await world.one_job_each(160)
            await daemon.becomes_ready()
            assert await daemon.stop() == 0
            assert [await bed.left() for bed in beds] == [0, 0]
        finally:
            world.close()


async def told_unready(daemon: Daemon) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while (ready := await daemon.ready()) is None or ready["ready"]:
            await asyncio.sleep(0.05)
    return ready


async def hold_until_closed(broker: RabbitMQ, queue: str) -> None:
    """Take a message, and keep it until RabbitMQ closes the channel for that."""
    await broker.declare(queue)
    channel = await broker.channel()
    try:
        await channel.basic_publish(b"held", routing_key=queue)
        assert (await channel.basic_get(queue)).body == b"held"
        with pytest.raises(AMQPError, match="timed out"):
            async with asyncio.timeout(20):
                await channel.closing
    finally:
        await channel.connection.close()


async def test_a_shut_gate_meets_neither_consumer_timeout_nor_delivery_limit(
    tmp_path: Path, oscar: SandboxOscar, unique: str
) -> None:
    """RabbitMQ would close the channel after 3 s, and drop what is delivered a third time."""
    with RabbitMQ(consumer_timeout_ms=3000) as broker:
        world = World(tmp_path, oscar, RUCIO_BEDS["amqp"](unique, broker))
        await world.bed.declare(x_queue_type="quorum", x_delivery_limit=2)
        daemon = world.daemon(
            world.configuration(
                sources={"uploads": world.source(max_in_flight=20)},
                services={"plants": {"retry": {"max_backoff": "500ms"}, "park_after": "1s"}},
            )
        )
        try:
            await oscar.outage()
            await world.bed.send(*hermes.numbered(60))
            daemon.start()
            await until(lambda: daemon.said("gate shut"), what="the gate shuts")
            for _ in range(2):  # so long that somebody who only holds a message has lost his channel twice
                await hold_until_closed(broker, f"{unique}-held")
            assert await daemon.metric("bridge_kept_events", service="plants", reason="parked") == 60
            assert not daemon.said("rucio: not reading"), "a channel was closed"
            assert await broker.ready(unique) == 0
            await oscar.end_outage()
            await world.one_job_each(60)
            assert await daemon.stop() == 0
            assert not daemon.said("rucio: not reading")
        finally:
            world.close()


async def end_again_and_again(world: World, times: int, *, kill: bool) -> None:
    """With OSCAR down, end a bridge `times` times as soon as it reads; then let OSCAR and the bridge work."""
    daemon = world.daemon(world.configuration(drain_seconds=1))
    await world.oscar.outage()
    await world.bed.send(*hermes.numbered(30))
    for end in range(1, times + 1):
        daemon.start()
        await until(lambda end=end: len(daemon.said("rucio: reading")) >= end, what="it reads")  # type: ignore[misc] # bound
        if kill:
            daemon.kill()
        else:
            assert await daemon.stop() == 0
    await world.oscar.end_outage()
    daemon.start()
    await world.one_job_each(30)
    async with asyncio.timeout(60):  # what was kept and not acknowledged comes once more, a few at a time
        while await world.bed.left():
            await asyncio.sleep(0.05)
    assert await daemon.stop() == 0
    assert await world.bed.left() == 0
    await world.one_job_each(30)


@pytest.mark.parametrize("world", ["amqp", "stomp-rabbitmq"], indirect=True)
async def test_what_came_back_twice_is_kept_before_its_broker_drops_it(world: World) -> None:
    """After two more returns it would, and the gate would be shut for a minute before anything is parked."""
    world.bed.name += "-limited"
    await world.bed.declare(x_queue_type="quorum", x_delivery_limit=4)
    daemon = world.daemon()
    await world.oscar.outage()
    await world.bed.send(*hermes.numbered(30))

    async def are_left(count: int) -> None:
        async with asyncio.timeout(30):
            while await world.bed.left() != count:
                await asyncio.sleep(0.05)

    for _ in range(2):
        daemon.start()
        await are_left(0)
        daemon.kill()
        await are_left(30)
    daemon.start()
    await daemon.is_up()
    async with asyncio.timeout(30):
        while await daemon.parked("plants") < 30:
            await asyncio.sleep(0.05)
    assert await daemon.stop() == 0
    await world.oscar.end_outage()
    assert await world.bed.left() == 0
    daemon.start()
    await world.one_job_each(30)
    assert await daemon.stop() == 0


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
@pytest.mark.parametrize("world", ["amqp", "stomp-rabbitmq"], indirect=True)
async def test_twenty_two_ends_while_oscar_is_down_lose_no_event(world: World, kill: bool) -> None:
    """RabbitMQ from 4.0 drops what comes back more than 20 times, where nobody says otherwise."""
    world.bed.name += "-limited"
    await world.bed.declare(x_queue_type="quorum", x_delivery_limit=20)
    await end_again_and_again(world, 22, kill=kill)


@pytest.mark.parametrize("world", ["amqp", "stomp-rabbitmq", "stomp-activemq"], indirect=True)
async def test_a_message_that_can_not_be_read_is_a_dead_letter_and_its_neighbours_are_jobs(
    world: World,
) -> None:
    broker = world.bed.broker
    if isinstance(broker, RabbitMQ):
        world.bed.name += "-limited"
        await world.bed.declare(x_queue_type="quorum", x_delivery_limit=2)
        await broker.publish(world.bed.name, rabbit.Foreign(properties=b"\x04\x00\x02\xe9\x9f"))
    else:
        await world.bed.send(b"\xe9\x9f")
    await world.bed.send(*hermes.numbered(5))
    daemon = world.daemon()
    daemon.start()
    await world.one_job_each(5)
    await until(lambda: daemon.said("dead letter", cause="unreadable"), what="a dead letter")
    assert len(await daemon.says("rucio: reading")) == 1
    assert await daemon.metric("bridge_dead_letters", service="", cause="unreadable") == 1
    assert await daemon.stop() == 0
    assert await world.bed.left() == 0
