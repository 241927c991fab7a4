"""A coordinator, a leader, an address or a topic that is not there is told, and stops nothing else."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.coordination import FindCoordinatorResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v1

from bridge.core import steady
from bridge.core.errors import SourceLost
from bridge.net.loop import Loop
from bridge.sources.kafka import aiokafka_private, positions, reader, watch
from bridge.telemetry.metrics import Metrics
from bridge.testing import Proxy, opened, settle, until
from tests.check.stubs import broker_that_answers
from tests.servers.black_hole import black_hole
from tests.servers.mock_kafka import MockKafka
from tests.servers.tansu import Tansu, free_port
from tests.sources.reading import source


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.5)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over is told no more."""
    monkeypatch.setattr(steady, "HELD_SECONDS", 0.0)


def lag(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("bridge_source_lag", {"source": "uploads"})


async def test_a_source_without_its_groups_coordinator_is_not_open(unique: str) -> None:
    metrics = Metrics()
    dead = free_port()
    async with broker_that_answers(
        lambda port: MetadataResponse_v1(
            brokers=[(1, "127.0.0.1", port, None), (2, "127.0.0.1", dead, None)],
            controller_id=1,
            topics=[(0, unique, False, [(0, 0, 1, [1], [1])])],
        ),
        FindCoordinatorResponse_v0(error_code=0, coordinator_id=2, host="127.0.0.1", port=dead),
    ) as servers:

        class Half:
            bootstrap_servers = servers

        with pytest.raises(
            SourceLost, match=f"coordinator of group {unique}, broker 2 at 127.0.0.1:{dead}, can't"
        ):
            async with opened(source(Half(), unique, metrics=metrics)):
                pass
    assert lag(metrics) is None


async def test_a_group_whose_coordinator_nobody_tells_is_not_open(unique: str) -> None:
    async with broker_that_answers(
        lambda port: MetadataResponse_v1(
            brokers=[(1, "127.0.0.1", port, None)],
            controller_id=1,
            topics=[(0, unique, False, [(0, 0, 1, [1], [1])])],
        ),
        FindCoordinatorResponse_v0(error_code=15, coordinator_id=-1, host="", port=-1),
    ) as servers:

        class Half:
            bootstrap_servers = servers

        with pytest.raises(SourceLost, match=f"no broker tells who coordinates group {unique}"):
            async with opened(source(Half(), unique)):
                pass


async def test_an_advertised_address_out_of_reach_is_named(unique: str) -> None:
    with Tansu(advertised_port=free_port()) as broker:

        class ByTheFrontDoor:
            bootstrap_servers = f"127.0.0.1:{broker.port}"

        with pytest.raises(SourceLost, match=broker.bootstrap_servers):
            async with opened(source(ByTheFrontDoor(), unique)):
                pass


NO_LEADER = (struct.pack(">ii", 2, 111), struct.pack(">ii", 2, -1))
"""Of partition 2, in the broker's metadata."""


async def test_a_partition_without_a_leader_at_the_start_begins_late_and_holds_up_no_other(
    unique: str, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    metrics = Metrics()
    monkeypatch.setattr(positions, "LEADER_SECONDS", 0.5)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, partitions=3)
            for partition in range(3):
                await broker.produce(unique, [b"%d" % partition], partition=partition)
            proxy.garbled = NO_LEADER
            async with opened(source(broker, unique, metrics=metrics, metadata_max_age=0.5)) as hands:
                settle(await hands.take(2))
                assert sorted(hands.data) == [b"0", b"1"]
                await until(lambda: f"{unique}/2 can't be begun" in "".join(hands.source.problems()))
                assert lag(metrics) is None
                proxy.garbled = None
                settle(await hands.take(1))
                assert hands.data[2] == b"2"
                await until(lambda: not hands.source.problems())
                await until(lambda: lag(metrics) == 0)
            assert await broker.committed(unique, unique) == {0: 1, 1: 1, 2: 1}


async def test_a_partition_that_loses_its_leader_is_told_and_holds_up_no_other(
    unique: str, at_once: None
) -> None:
    metrics = Metrics()
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, partitions=3)
            async with opened(source(broker, unique, metrics=metrics, metadata_max_age=0.5)) as hands:
                await until(lambda: lag(metrics) == 0)
                proxy.garbled = NO_LEADER
                await until(
                    lambda: f"no records of {unique}/2 come: no broker leads" in str(hands.source.problems())
                )
                await broker.produce(unique, [b"other"])
                settle(await hands.take(1))
                await until(lambda: lag(metrics) is None)
                proxy.garbled = None
                await broker.produce(unique, [b"2"], partition=2)
                settle(await hands.take(1))
                await until(lambda: not hands.source.problems())


async def test_a_leader_that_answers_again_once_the_source_was_opened_anew_is_told_no_more(
    unique: str, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(aiokafka_private, "CLOSE_SECONDS", 0.1)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique)
            kafka = source(broker, unique)
            async with opened(kafka) as hands:
                await broker.produce(unique, [b"0"])  # a reading that has begun, and is not about to end
                settle(await hands.take(1))
                proxy.stall()
                await until(lambda: "is silent" in str(kafka.problems()))
                proxy.cut()
            proxy.stall(False)
            assert "is silent" in str(kafka.problems())
            async with opened(kafka) as hands:
                await until(lambda: not kafka.problems())
                await broker.produce(unique, [b"1"])
                settle(await hands.take(1))


async def test_a_partition_that_its_broker_refuses_is_told_with_the_reason_and_asked_for_with_pauses(
    unique: str, at_once: None
) -> None:
    asked = 0

    def count(data: bytes) -> bool:
        nonlocal asked
        asked += struct.unpack_from(">h", data, 4)[0] == FETCH
        return True

    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique, partitions=2)
            await broker.produce(unique, [b"0"] * 7)
            await broker.produce(unique, [b"1"] * 9, partition=1)
            proxy.garbled = (struct.pack(">ihq", 1, 0, 9), struct.pack(">ihq", 1, STORAGE_ERROR, 9))
            proxy.asked = count
            async with opened(source(broker, unique)) as hands:
                settle(await hands.take(7))
                await until(lambda: f"no records of {unique}/1 come" in str(hands.source.problems()))
                assert "which leads them, says KafkaStorageError" in str(hands.source.problems())
                begun, before = time.monotonic(), asked
                await hands.takes_nothing(1)
                assert asked - before < 8 * (time.monotonic() - begun), "it is asked as fast as it answers"
                proxy.garbled = None
                settle(await hands.take(9))
                await until(lambda: not hands.source.problems())


FETCH = 1
STORAGE_ERROR = 56
"""Of the Kafka protocol guide: an API key, an error code."""
JOIN_GROUP = 11
COORDINATION = (8, 9, 11, 12)
"""Commits, their fetching, joining and heartbeats (Kafka protocol guide, api keys)."""


async def test_a_coordinator_that_goes_away_is_told_while_reading_goes_on(
    unique: str, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    monkeypatch.setattr(watch, "CALL_SECONDS", 1.0)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique)
            async with opened(source(broker, unique, session_timeout=6)) as hands:
                proxy.asked = lambda data: struct.unpack_from(">h", data, 4)[0] not in COORDINATION
                told = f"the coordinator of group {unique} gave no answer"
                await until(lambda: told in str(hands.source.problems()))
                await broker.produce(unique, [b"0"])
                [delivery] = await hands.take(1)
                assert told in str(hands.source.problems())
                proxy.asked = lambda _data: True
                await until(lambda: not hands.source.problems())
                settle([delivery])
            assert await broker.committed(unique, unique) == {0: 1}


async def test_a_rebalance_that_does_not_end_is_told(
    unique: str, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    metrics = Metrics()
    monkeypatch.setattr(watch, "REBALANCE_SECONDS", 1.0)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique)
            async with opened(source(broker, unique, metrics=metrics)) as hands:
                await until(lambda: lag(metrics) == 0)
                assert hands.source._consumer is not None
                proxy.asked = lambda data: struct.unpack_from(">h", data, 4)[0] != JOIN_GROUP
                hands.source._consumer._coordinator.request_rejoin()
                await until(lambda: f"group {unique} has given no partitions" in str(hands.source.problems()))
                assert lag(metrics) is None
                proxy.asked = lambda _data: True
                await until(lambda: not hands.source.problems())
                await broker.produce(unique, [b"on"])
                settle(await hands.take(1))


async def test_a_topic_that_does_not_exist_is_told_and_not_made(own_tansu: Tansu) -> None:
    mistyped = source(own_tansu, "uploads", topics=["uplaods"], metadata_max_age=0.3)
    async with opened(mistyped) as hands:
        assert mistyped.problems() == ["topic uplaods does not exist, or may not be described"]
        await hands.takes_nothing(1)
        consumer = AIOKafkaConsumer(bootstrap_servers=own_tansu.bootstrap_servers)
        await consumer.start()
        assert await consumer.topics() == set()
        await consumer.stop()


async def test_a_topic_that_appears_is_read_from_its_first_record(
    mock_kafka: MockKafka, unique: str, at_once: None
) -> None:
    later = source(mock_kafka, unique, auto_offset_reset="latest", metadata_max_age=0.3, session_timeout=6)
    async with opened(later) as hands:
        assert "does not exist" in str(later.problems())
        producer = AIOKafkaProducer(bootstrap_servers=mock_kafka.bootstrap_servers)
        await producer.start()
        await producer.send_and_wait(unique, b"first", partition=0)
        await producer.stop()
        settle(await hands.take(1, timeout=30))
        assert hands.data == [b"first"]
        await until(lambda: not later.problems())


def test_a_first_address_that_never_answers_keeps_nobody_from_the_broker(
    tansu: Tansu, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broken IPv6 before a working IPv4."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *more: Any, **hints: Any) -> Any:
        if host not in ("half", b"half"):
            return real(host, port, *more, **hints)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in ("127.0.0.2", "127.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    class Half:
        bootstrap_servers = f"half:{tansu.port}"

    async def read() -> None:
        await tansu.create_topic(unique)
        await tansu.produce(unique, [b"1"])
        async with opened(source(Half(), unique)) as hands:
            settle(await hands.take(1))

    with black_hole("127.0.0.2", tansu.port), asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(read(), 60))


async def test_a_broker_where_connections_hang_holds_up_no_other(
    unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiokafka_private, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(positions, "LEADER_SECONDS", 0.5)
    with MockKafka(brokers=2) as cluster:
        client = AIOKafkaClient(bootstrap_servers=cluster.bootstrap_servers)
        await client.bootstrap()
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, unique)
        (dead,) = {broker for broker in client.cluster.brokers() if broker.nodeId != coordinator}
        alive: list[int] = []
        numbers: set[int] = set()
        topic = unique
        while not 0 < len(alive) < len(numbers):  # the mock cluster draws the leaders
            topic = f"{topic}-"
            numbers = await client._wait_on_metadata(topic)
            places = {number: TopicPartition(topic, number) for number in numbers}
            leaders = {number: client.cluster.leader_for_partition(place) for number, place in places.items()}
            alive = sorted(number for number, leader in leaders.items() if leader == coordinator)
        await client.close()
        producer = AIOKafkaProducer(bootstrap_servers=cluster.bootstrap_servers)
        await producer.start()
        for number in numbers:
            await producer.send_and_wait(topic, b"%d" % number, partition=number)
        await producer.stop()
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def create_connection(protocol: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
            if port == dead.port:
                await asyncio.sleep(3600)
            return await connect(protocol, host, port, **more)

        monkeypatch.setattr(loop, "create_connection", create_connection)
        async with opened(source(cluster, topic, group_id=unique, session_timeout=6)) as hands:
            settle(await hands.take(len(alive), timeout=30))
            assert sorted(hands.data) == [b"%d" % number for number in alive]
            await until(lambda: "can't be begun" in str(hands.source.problems()), seconds=30)
            monkeypatch.setattr(loop, "create_connection", connect)
            settle(await hands.take(len(numbers) - len(alive), timeout=30))
