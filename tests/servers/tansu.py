"""A real Kafka-protocol broker (tansu) on a free loopback port, in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from bridge.sandbox.kafka import command
from bridge.sandbox.servers import free_port
from tests.servers.process import Server

Message = bytes | tuple[bytes | None, bytes | None]
"""A value, or a key and a value; None as the value is a tombstone."""


async def produce_batch(bootstrap_servers: str, topic: str, batch: bytes, partition: int = 0) -> None:
    """Put a batch as it is, such as one that no producer would make, into a topic; perhaps make the topic."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    await client.bootstrap()
    try:
        await client._wait_on_metadata(topic)
        leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
        request = ProduceRequest(
            transactional_id=None, required_acks=1, timeout=5000, topics=[(topic, [(partition, batch)])]
        )
        answer = await client.send(leader, request)
        assert answer.topics[0][1][0][1] == 0, answer
    finally:
        await client.close()


class Tansu(Server):
    """One broker process. Topics and commits live in its memory: a restart empties it.

    `advertised_port` makes clients come back by another door, such as a proxy's.
    """

    def __init__(self, *, port: int | None = None, advertised_port: int | None = None) -> None:
        super().__init__()
        self.port = port or free_port()
        self._advertised = advertised_port or self.port

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self._advertised}"

    def start(self) -> None:
        self.run(
            command(self.port, self._advertised),
            [self.port],
            {"HOME": str(self.home), "PATH": os.environ["PATH"]},
        )

    async def create_topic(self, name: str, partitions: int = 1) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.port}")
        await admin.start()
        try:
            answer = await admin.create_topics([NewTopic(name, partitions, 1)])
            assert all(code == 0 for _, code, *_ in answer.topic_errors), answer
        finally:
            await admin.close()

    async def delete_topic(self, name: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.port}")
        await admin.start()
        try:
            answer = await admin.delete_topics([name])
            assert all(code == 0 for _, code in answer.topic_error_codes), answer
        finally:
            await admin.close()

    async def produce(
        self,
        topic: str,
        messages: Sequence[Message],
        *,
        partition: int | None = 0,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Put `messages` into one partition, in order; `partition=None` spreads them."""
        producer = AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{self.port}", linger_ms=2)
        await producer.start()
        try:
            sent = []
            for message in messages:
                key, value = message if isinstance(message, tuple) else (None, message)
                sent.append(
                    await producer.send(
                        topic,
                        value,
                        key=key,
                        partition=partition,
                        headers=list(headers),
                        timestamp_ms=timestamp_ms,
                    )
                )
            for one in sent:
                await one
        finally:
            await producer.stop()

    async def produce_batch(self, topic: str, batch: bytes, *, partition: int = 0) -> None:
        """Put a batch as it is, such as one that no producer would make."""
        await produce_batch(f"127.0.0.1:{self.port}", topic, batch, partition)

    async def prepare_group(self, group: str, topic: str) -> None:
        """Bring `group` past its generation 0, in which aiokafka's members do not leave it when they stop.

        Kafka begins with 1. Without this, the second member of a test waits for the first one's session.
        (tansu also holds back the first join of a generation for half the session timeout, at least 1 s.)
        """
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=f"127.0.0.1:{self.port}",
            group_id=group,
            enable_auto_commit=False,
            session_timeout_ms=2000,
            heartbeat_interval_ms=500,
        )
        await consumer.start()
        consumer._coordinator.generation = 1  # only decides whether it leaves; it is not sent
        await consumer.stop()

    async def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit for `group`, of which no member may be connected."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=f"127.0.0.1:{self.port}", group_id=group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            consumer.assign(list(offsets))
            await consumer.commit(dict(offsets))
        finally:
            await consumer.stop()

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Give the committed offsets of `group`, by partition."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=f"127.0.0.1:{self.port}", group_id=group, enable_auto_commit=False
        )
        await consumer.start()
        try:
            await consumer.topics()
            places = [TopicPartition(topic, part) for part in (consumer.partitions_for_topic(topic) or ())]
            stored = {place.partition: await consumer.committed(place) for place in places}
        finally:
            await consumer.stop()
        return {partition: offset for partition, offset in stored.items() if offset is not None}
