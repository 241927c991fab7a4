"""What a broker and the way to it do to a reader."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import trustme
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.kafka import aiokafka_private, reader, watch
from bridge.telemetry.metrics import Metrics
from bridge.testing import Proxy, opened, settle, until
from tests.servers.mock_kafka import MockKafka
from tests.servers.tansu import Tansu
from tests.sources.reading import source


async def produce(mock_kafka: MockKafka, topic: str, values: list[bytes], partition: int = 0) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=mock_kafka.bootstrap_servers)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, partition=partition)
    finally:
        await producer.stop()


async def commit(mock_kafka: MockKafka, topic: str, offsets: dict[int, int]) -> None:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=mock_kafka.bootstrap_servers, group_id=topic, enable_auto_commit=False
    )
    await consumer.start()
    try:
        places = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}
        consumer.assign(list(places))
        await consumer.commit(places)
    finally:
        await consumer.stop()


def lost(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("bridge_events_lost_total", {"source": "uploads"})


async def test_offsets_out_of_range_are_a_loss_and_reading_goes_on_from_the_earliest(
    mock_kafka: MockKafka, unique: str
) -> None:
    metrics = Metrics()
    await produce(mock_kafka, unique, [b"0", b"1", b"2"], partition=0)
    # The mock cluster keeps a few MB of a partition: the first records of this one are gone.
    await produce(mock_kafka, unique, [b"x" * 900_000] * 12, partition=1)
    await commit(mock_kafka, unique, {0: 500, 1: 1})
    told: dict[str, int] = {}
    torn = source(mock_kafka, unique, metrics=metrics, lost=told, session_timeout=6)
    async with opened(torn) as hands:
        seen: dict[str, list[int]] = {"0": [], "1": []}
        while len(seen["0"]) < 3 or not seen["1"]:
            for delivery in await hands.take(1):
                attributes = delivery.event.attributes
                seen[attributes["partition"]].append(int(attributes["offset"]))
        assert seen["0"] == [0, 1, 2]
        earliest = seen["1"][0]
        assert earliest > 1
        # Of partition 0 nobody can tell how much: at least one. Of partition 1 it is known.
        assert lost(metrics) == 1 + earliest - 1
    assert told == {f"{unique}/0": 1, f"{unique}/1": earliest - 1}


async def test_what_retention_removes_before_it_is_read_is_counted(
    mock_kafka: MockKafka, unique: str
) -> None:
    metrics = Metrics()
    await produce(mock_kafka, unique, [b"x" * 400_000] * 3)
    async with opened(source(mock_kafka, unique, metrics=metrics, session_timeout=6), limit=1) as hands:
        await hands.take(1)
        await produce(mock_kafka, unique, [b"x" * 900_000] * 12)
        offsets = []
        while not lost(metrics):
            settle(hands.seen)
            await hands.take(1)
        offsets = [int(delivery.event.attributes["offset"]) for delivery in hands.seen]
        assert lost(metrics) == offsets[-1] - offsets[-2] - 1


async def test_cut_and_stalled_connections_lose_nothing(unique: str) -> None:
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique)
            values = [b"%d" % number for number in range(50)]
            await broker.produce(unique, values[:25])
            async with opened(source(broker, unique, session_timeout=6), limit=5) as hands:
                while len(hands.seen) < 25:
                    settle(await hands.take(1))
                    proxy.cut()
                await broker.produce(unique, values[25:])
                proxy.stall()
                asyncio.get_running_loop().call_later(0.5, proxy.stall, False)
                while len(hands.seen) < 50:
                    settle(await hands.take(1))
            assert hands.data == values
            assert await broker.committed(unique, unique) == {0: 50}


async def test_an_answer_too_long_for_memory_is_not_read_and_loses_nothing(
    tansu: Tansu, unique: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await tansu.create_topic(unique)
    async with opened(source(tansu, unique, session_timeout=6)) as hands:
        await until(lambda: hands.source._reader is not None and hands.source._reader.is_assigned)
        with monkeypatch.context() as patch:
            patch.setattr(aiokafka_private, "_MOST_FRAME", 10_000)
            await tansu.produce(unique, [b"x" * 100_000])
            await until(lambda: "more than 10000, is not read" in caplog.text)
            assert not hands.seen
        settle(await hands.take(1))


async def test_a_silent_broker_is_a_lost_source(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(watch, "CALL_SECONDS", 2.0)  # the broker needs some of it, before it is silent
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(aiokafka_private, "CLOSE_SECONDS", 0.2)
    async with Proxy(0) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            await broker.create_topic(unique)
            async with opened(source(broker, unique)) as hands:
                await until(lambda: hands.source._reader is not None and hands.source._reader.is_assigned)
                proxy.stall()
                with pytest.raises(SourceLost, match="no answer"):
                    await hands.take(1)


async def test_a_client_that_has_stopped_reading_is_a_lost_source(
    tansu: Tansu, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an answer of a broker that it does not expect makes it."""
    await tansu.create_topic(unique)
    async with opened(source(tansu, unique)) as hands:
        assert hands.source._consumer is not None
        monkeypatch.setattr(hands.source._consumer._fetcher, "_get_actions_per_node", None)
        with pytest.raises(SourceLost, match="Unexpected error during data retrieval"):
            await hands.take(1)


async def test_no_broker_is_a_lost_source_with_the_reason(unique: str) -> None:
    with socket.socket() as bound:  # nobody else gets the port, and nobody listens on it
        bound.bind(("127.0.0.1", 0))

        class Nobody:
            bootstrap_servers = f"127.0.0.1:{bound.getsockname()[1]}"

        with pytest.raises(SourceLost, match="Connect call failed"):
            async with opened(source(Nobody(), unique)):
                pass


async def test_a_silent_broker_at_the_start_is_a_lost_source_unless_another_answers(
    tansu: Tansu, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.sources.kafka.source._CONNECT_SECONDS", 0.3)
    async with Proxy(tansu.port) as proxy:
        proxy.stall()

        class Silent:
            bootstrap_servers = f"127.0.0.1:{proxy.port}"

        with pytest.raises(SourceLost, match=f'"127.0.0.1:{proxy.port}": no answer in time'):
            async with opened(source(Silent(), unique)):
                pass

        class OneOfTwo:
            bootstrap_servers = f"{Silent.bootstrap_servers},{tansu.bootstrap_servers}"

        await tansu.create_topic(unique)
        monkeypatch.setattr("bridge.sources.kafka.source._CONNECT_SECONDS", 2.0)
        async with opened(source(OneOfTwo(), unique)):
            pass


async def test_a_broker_behind_tls_is_checked_and_read(unique: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with Proxy(0, tls=server) as proxy:
        with Tansu(advertised_port=proxy.port) as broker:
            proxy.target_port = broker.port
            plainly = source(broker, unique)
            trusting = source(broker, unique, security_protocol="SSL", tls={"ca_file": str(ca_file)})
            distrusting = source(broker, unique, security_protocol="SSL")
            with pytest.raises(SourceLost, match="certificate verify failed"):
                async with opened(distrusting):
                    pass
            with pytest.raises(SourceLost):
                async with opened(plainly):
                    pass
            async with opened(trusting) as hands:
                await until(lambda: hands.source._reader is not None and hands.source._reader.is_assigned)


async def test_a_broker_that_is_gone_is_a_lost_source(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.5)
    with Tansu() as broker:
        await broker.create_topic(unique)
        await broker.produce(unique, [b"0", b"1"])
        async with opened(source(broker, unique)) as hands:
            taken = await hands.take(2)
            broker.stop()
            with pytest.raises(SourceLost):
                await hands.take(1)
            assert {delivery.outcome for delivery in taken} == {Outcome.RELEASED}
