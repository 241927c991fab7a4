"""The beds of our own sources: each one's server, a way through a proxy, and events to put."""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bridge.core.event import Event
from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.servers import free_port
from bridge.sources import SourceKind
from bridge.sources.amqp import KIND as AMQP
from bridge.sources.dcache import KIND as DCACHE
from bridge.sources.kafka import KIND as KAFKA
from bridge.sources.rucio import KIND as RUCIO
from bridge.sources.sqs import KIND as SQS
from bridge.store import Store
from bridge.store.config import StoreConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import ProxiedBed, Proxy, keeping, opened
from tests.servers import activemq, hermes, rabbitmq
from tests.servers.activemq import ActiveMQ
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Moto, MotoQueue
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.tansu import Tansu
from tests.sources.kafka_batches import batch


def number(event: Event | bytes) -> int:
    """Return the number of an event as hermes tells it, or of an invocation's body."""
    told = json.loads(event.data if isinstance(event, Event) else event)
    return int(told["payload"]["n"] if "payload" in told else told["n"])


class KafkaBed(ProxiedBed):
    """One topic of `kafka`, and a group of the same name."""

    kind = KAFKA

    def __init__(self, name: str, kafka: Tansu) -> None:
        self.name = name
        self.kafka = kafka
        self.port = int(kafka.bootstrap_servers.rpartition(":")[2])
        self._count = 0

    def settings(self) -> dict[str, Any]:
        return {
            "type": "kafka",
            "bootstrap_servers": f"127.0.0.1:{self.port}",
            "topics": [self.name],
            "group_id": self.name,
            "session_timeout": 1,
        }

    async def put(self, count: int, first: int = 0) -> None:
        self._count += count
        await self.kafka.produce(
            self.name, [json.dumps({"n": n}).encode() for n in range(first, first + count)]
        )

    async def produce(
        self, values: Sequence[bytes | None], *, keys: Sequence[bytes] | None = None
    ) -> list[str]:
        """Put values into the topic; return the ids of their events."""
        self._count += len(values)
        producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap_servers, linger_ms=5)
        await producer.start()
        try:
            sent = [
                await producer.send(self.name, value, key=keys[at] if keys else None)
                for at, value in enumerate(values)
            ]
            places = [((told := await one).partition, told.offset) for one in sent]
        finally:
            await producer.stop()
        # What the producer is told of a record's timestamp is not always what the broker keeps.
        kept = await self._timestamps(set(places))
        return [f"{self.name}/{partition}/{offset}@{kept[partition, offset]}" for partition, offset in places]

    async def _timestamps(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka.bootstrap_servers)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.name, part) for part in {part for part, _ in wanted}])
            await consumer.seek_to_beginning()
            async with asyncio.timeout(30):
                while not wanted <= found.keys():
                    for place, records in (await consumer.getmany(timeout_ms=500)).items():
                        found |= {(place.partition, one.offset): one.timestamp for one in records}
        finally:
            await consumer.stop()
        return found

    async def poison(self) -> None:
        # Its number of headers, 0, says 32.
        await self.kafka.produce_batch(self.name, batch(b"poison", replacing=(b"poison\x00", b"poison\x40")))
        self._count += 1

    async def committed(self) -> int:
        """Sum the group's committed offsets."""
        return sum((await self.kafka.committed(self.name, self.name)).values())

    async def left(self) -> int:
        return self._count - await self.committed()


class SqsBed(ProxiedBed):
    kind = SQS

    def __init__(self, queue: MotoQueue) -> None:
        self.name = queue.name
        self.queue = queue
        self.port = queue.moto.port

    def settings(self) -> dict[str, Any]:
        return {
            "type": "sqs",
            "queue": self.name,
            "region": REGION,
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "wait_seconds": 1,
        }

    async def put(self, count: int, first: int = 0) -> None:
        await self.queue.send(*({"n": n} for n in range(first, first + count)))

    async def produce(self, values: Sequence[bytes]) -> list[str]:
        """Send messages; return the ids of their events."""
        return await self.queue.send(*[value.decode() for value in values])

    async def redrive_after(self, receipts: int) -> MotoQueue:
        """Have messages that were received so often move to another queue, which is given.

        Their visibility timeout is 2 s from now on: on a busy machine a heartbeat each half a second is late.
        """
        other = await self.queue.moto.create_queue(f"{self.name}-dead")
        policy = {"deadLetterTargetArn": other.arn, "maxReceiveCount": receipts}
        attributes = {"RedrivePolicy": json.dumps(policy), "VisibilityTimeout": "2"}
        await self.queue.moto.call(
            "sqs", "set_queue_attributes", QueueUrl=self.queue.url, Attributes=attributes
        )
        return other

    async def poison(self) -> None:
        await self.queue.send({"Type": "Notification", "TopicArn": f"arn:aws:sns:{REGION}:1:t"})

    async def left(self) -> int:
        return sum(await self.queue.counts())


class RucioBed(ProxiedBed):
    """A queue of one broker, filled as hermes does."""

    kind: ClassVar[SourceKind[Any]] = RUCIO

    def __init__(self, name: str, broker: RabbitMQ | ActiveMQ) -> None:
        self.name = name
        self.broker = broker
        self.port = self.server_port

    @property
    @abstractmethod
    def server_port(self) -> int:
        """The broker's port for its protocol."""

    async def declare(self, **arguments: Any) -> None:
        """Make the queue, where that does not happen by itself; `arguments` are RabbitMQ's."""

    @abstractmethod
    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Send `messages`; bytes as they are."""

    async def put(self, count: int, first: int = 0) -> None:
        await self.send(*hermes.numbered(count, first))

    def number(self, data: bytes) -> int:
        return number(data)

    async def restart(self) -> None:
        self.broker.stop()
        await asyncio.to_thread(self.broker.start)


class AmqpBed(RucioBed):
    broker: RabbitMQ

    @property
    def server_port(self) -> int:
        return self.broker.port

    async def declare(self, **arguments: Any) -> None:
        await self.broker.declare(self.name, **arguments)

    def settings(self) -> dict[str, Any]:
        return {
            "type": "rucio",
            "protocol": "amqp",
            "brokers": f"127.0.0.1:{self.port}",
            "queue": self.name,
            "virtual_host": rabbitmq.VIRTUAL_HOST,
            "username": rabbitmq.USERNAME,
            "password": rabbitmq.PASSWORD,
            "heartbeat": 2,
        }

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        await hermes.publish(
            (self.broker.host, self.broker.stomp_port),
            f"/amq/queue/{self.name}",
            messages,
            username=rabbitmq.USERNAME,
            password=rabbitmq.PASSWORD,
            virtual_host=rabbitmq.VIRTUAL_HOST,
        )

    async def poison(self) -> None:
        # Of its properties, only a correlation id, which is not UTF-8.
        await self.broker.publish(self.name, rabbitmq.Foreign(properties=b"\x04\x00\x02\xe9\x9f"))

    async def left(self) -> int:
        return await self.broker.ready(self.name)


class RabbitBed(AmqpBed):
    """The same queue, read as what anybody may have sent."""

    kind = AMQP

    def settings(self) -> dict[str, Any]:
        told = super().settings()
        del told["protocol"]
        return {**told, "type": "amqp"}


class StompOnRabbitBed(AmqpBed):
    @property
    def server_port(self) -> int:
        return self.broker.stomp_port

    def settings(self) -> dict[str, Any]:
        told = super().settings()
        del told["queue"]
        return {**told, "protocol": "stomp", "destination": f"/amq/queue/{self.name}"}


class StompOnActiveBed(RucioBed):
    broker: ActiveMQ

    @property
    def server_port(self) -> int:
        return self.broker.stomp_port

    def settings(self) -> dict[str, Any]:
        return {
            "type": "rucio",
            "protocol": "stomp",
            "brokers": f"127.0.0.1:{self.port}",
            "destination": f"/queue/{self.name}",
            "username": activemq.USERNAME,
            "password": activemq.PASSWORD,
            "heartbeat": 2,
        }

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        await hermes.publish(
            (self.broker.host, self.broker.stomp_port),
            f"/queue/{self.name}",
            messages,
            username=activemq.USERNAME,
            password=activemq.PASSWORD,
        )

    async def poison(self) -> None:
        await self.send(b"\xe9\x9f")  # ActiveMQ puts every header right

    async def left(self) -> int:
        return len(await self.broker.browse(f"/queue/{self.name}"))


class DcacheBed(ProxiedBed):
    """The sandbox site. The bridge keeps its events: what is left is in the store of the source made here."""

    kind = DCACHE

    def __init__(self, name: str, site: SandboxDcache, store: Store, state_dir: Path) -> None:
        self.name = name
        self.site = site
        self.port = urlsplit(site.url).port or 0
        self._store = store
        self.keeping = replace(keeping(), spool=lambda: store.spool("uploads"), state_dir=state_dir)

    def settings(self) -> dict[str, Any]:
        return {
            "type": "dcache",
            "endpoint": f"http://127.0.0.1:{self.port}/api/v1",
            "auth": {"type": "basic", "username": "bridge", "password": "bridge"},
            "paths": ["/data/in"],
            "first_start": "everything",
            "request_rate": "1000/s",
        }

    async def put(self, count: int, first: int = 0) -> None:
        for n in range(first, first + count):
            await self.site.upload(f"/data/in/{n}", b"leaf")

    async def poison(self) -> None:
        upload = await self.site.begin_upload("/data/in/poison")
        upload.node.pnfs_id = ""
        await self.site.finish_upload(upload, b"leaf")

    def number(self, data: bytes) -> int:
        return int(json.loads(data)["event"]["name"])

    async def left(self) -> int:
        return self._store.spool("uploads").waiting

    async def leaves(self, count: int, *, seconds: float = 30.0) -> None:
        if count or not await self.left():
            await super().leaves(count, seconds=seconds)
            return
        # A listing that is cut off at the end may have found once more what had not entered a moment before:
        # that goes when it is looked at.
        async with opened(self.source()):  # nothing is taken, so what had not entered is left
            await super().leaves(count, seconds=seconds)

    async def restart(self) -> None:
        self.site.trouble.restart()


RUCIO_BEDS: dict[str, type[RucioBed]] = {
    "amqp": AmqpBed,
    "stomp-rabbitmq": StompOnRabbitBed,
    "stomp-activemq": StompOnActiveBed,
}
RUCIO_KINDS = tuple(RUCIO_BEDS)
KINDS = (*RUCIO_KINDS, "rabbitmq", "kafka", "sqs", "dcache")
"""What `made` makes."""


@asynccontextmanager
async def made(kind: str, name: str, request: pytest.FixtureRequest) -> AsyncIterator[ProxiedBed]:
    """Make a bed of a kind with its server, reached through a proxy.

    A test marked `ends_its_server` gets a broker of its own, where others share one.
    """
    async with AsyncExitStack() as stack:
        port = 0
        bed: KafkaBed | SqsBed | RucioBed | DcacheBed
        if kind == "kafka":
            # By whichever port it is asked, it sends its clients on to the advertised one.
            port = free_port()
            bed = KafkaBed(name, stack.enter_context(Tansu(advertised_port=port)))
        elif kind == "dcache":
            site = await stack.enter_async_context(SandboxDcache())
            state = request.getfixturevalue("tmp_path") / "state"
            store = await stack.enter_async_context(Store.open(state, Metrics(), StoreConfig()))
            bed = DcacheBed(name, site, store, state)
        elif kind == "sqs":
            moto: Moto = request.getfixturevalue("moto")
            bed = SqsBed(await moto.create_queue(name, VisibilityTimeout=2))
        else:
            own = "own_" if request.node.get_closest_marker("ends_its_server") else ""
            server = "activemq" if kind == "stomp-activemq" else "rabbitmq"
            bed = {**RUCIO_BEDS, "rabbitmq": RabbitBed}[kind](name, request.getfixturevalue(own + server))
        target = bed.kafka.port if isinstance(bed, KafkaBed) else bed.port
        bed.proxy = await stack.enter_async_context(Proxy(target, port=port))
        bed.port = bed.proxy.port
        if isinstance(bed, KafkaBed):
            await bed.kafka.create_topic(name)
            await bed.kafka.prepare_group(name, name)
        elif isinstance(bed, RucioBed):
            await bed.declare()
        elif isinstance(bed, DcacheBed):
            await bed.site.mkdir("/data/in")
        yield bed
