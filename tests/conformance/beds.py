"""What the conformance suite needs of each source: its server, a way through a proxy, and events to put."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bridge.core.event import Event
from bridge.core.ports import Source
from bridge.sandbox.dcache import SandboxDcache
from bridge.sources.registry import any_source, kind_of
from bridge.store import Store
from bridge.telemetry.metrics import Metrics
from tests.servers import activemq, hermes, rabbitmq
from tests.servers.activemq import ActiveMQ
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Moto, MotoQueue
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.tansu import Tansu
from tests.sources.kafka_batches import batch
from tests.sources.reading import keeping

_CONFIG: TypeAdapter[Any] = TypeAdapter(any_source())


def number(event: Event | bytes) -> int:
    """Give the number of an event, or of an invocation's body."""
    told = json.loads(event.data if isinstance(event, Event) else event)
    if "event" in told:  # dCache's, with the name of a file
        return int(told["event"]["name"])
    return int(told["payload"]["n"] if "payload" in told else told["n"])


class Bed(ABC):
    """One upstream for one test. The source under test reaches it through `proxy` alone."""

    keeping = keeping()

    def __init__(self, name: str) -> None:
        self.name = name
        self.proxy: Proxy

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Give the source's configuration."""

    @abstractmethod
    async def put(self, count: int, first: int = 0) -> None:
        """Put `count` events, numbered from `first`."""

    async def poison(self) -> None:
        """Put one item that can't be converted as usual."""
        raise NotImplementedError

    @abstractmethod
    async def left(self) -> int:
        """Count what is not answered for good; asked while no source has any of it."""

    def settings_at(self, host: str) -> dict[str, Any]:
        """Give the configuration of a source of its kind on another host."""
        here = f"127.0.0.1:{self.proxy.port}"
        return {
            key: value.replace(here, f"{host}:{self.proxy.port}") if isinstance(value, str) else value
            for key, value in self.settings().items()
        }

    async def restart(self) -> None:
        """End the server in the midst of its work, and start it again with what it keeps on its disk."""
        raise NotImplementedError

    def source(self, **more: Any) -> Source:
        config = _CONFIG.validate_python({**self.settings(), **more})
        self.metrics = Metrics()
        return kind_of(config).build(config, "uploads", self.metrics.source("uploads"), self.keeping)

    async def leaves(self, count: int, *, seconds: float = 30.0) -> None:
        """Return once `count` are left."""
        last = -1
        try:
            async with asyncio.timeout(seconds):
                while (last := await self.left()) != count:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{last} are left, not {count}") from None


class KafkaBed(Bed):
    def __init__(self, name: str, kafka: Tansu) -> None:
        super().__init__(name)
        self._kafka = kafka
        self._count = 0

    def settings(self) -> dict[str, Any]:
        return {
            "type": "kafka",
            "bootstrap_servers": f"127.0.0.1:{self.proxy.port}",
            "topics": [self.name],
            "group_id": self.name,
            "session_timeout": 1,
        }

    async def put(self, count: int, first: int = 0) -> None:
        self._count += count
        await self._kafka.produce(
            self.name, [json.dumps({"n": n}).encode() for n in range(first, first + count)]
        )

    async def poison(self) -> None:
        # Its number of headers, 0, says 32.
        await self._kafka.produce_batch(self.name, batch(b"poison", replacing=(b"poison\x00", b"poison\x40")))
        self._count += 1

    async def left(self) -> int:
        return self._count - sum((await self._kafka.committed(self.name, self.name)).values())


class SqsBed(Bed):
    def __init__(self, queue: MotoQueue) -> None:
        super().__init__(queue.name)
        self._queue = queue

    def settings(self) -> dict[str, Any]:
        return {
            "type": "sqs",
            "queue": self.name,
            "region": REGION,
            "endpoint_url": f"http://127.0.0.1:{self.proxy.port}",
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "wait_seconds": 1,
        }

    async def put(self, count: int, first: int = 0) -> None:
        await self._queue.send(*({"n": n} for n in range(first, first + count)))

    async def poison(self) -> None:
        await self._queue.send({"Type": "Notification", "TopicArn": f"arn:aws:sns:{REGION}:1:t"})

    async def left(self) -> int:
        return sum(await self._queue.counts())


class RucioBed(Bed):
    """A queue of one broker, filled as hermes does."""

    def __init__(self, name: str, broker: RabbitMQ | ActiveMQ) -> None:
        super().__init__(name)
        self._broker = broker

    @abstractmethod
    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Send `messages`; bytes as they are."""

    async def put(self, count: int, first: int = 0) -> None:
        await self.send(*hermes.numbered(count, first))

    async def restart(self) -> None:
        self._broker.stop()
        await asyncio.to_thread(self._broker.start)


class AmqpBed(RucioBed):
    _broker: RabbitMQ

    def settings(self) -> dict[str, Any]:
        return {
            "type": "rucio",
            "protocol": "amqp",
            "brokers": f"127.0.0.1:{self.proxy.port}",
            "queue": self.name,
            "virtual_host": rabbitmq.VIRTUAL_HOST,
            "username": rabbitmq.USERNAME,
            "password": rabbitmq.PASSWORD,
            "heartbeat": 2,
        }

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        await hermes.publish(
            (self._broker.host, self._broker.stomp_port),
            f"/amq/queue/{self.name}",
            messages,
            username=rabbitmq.USERNAME,
            password=rabbitmq.PASSWORD,
            virtual_host=rabbitmq.VIRTUAL_HOST,
        )

    async def poison(self) -> None:
        # Of its properties, only a correlation id, which is not UTF-8.
        await self._broker.publish(self.name, rabbitmq.Foreign(properties=b"\x04\x00\x02\xe9\x9f"))

    async def left(self) -> int:
        return await self._broker.ready(self.name)


class RabbitBed(AmqpBed):
    """The same queue, read as what anybody may have sent."""

    def settings(self) -> dict[str, Any]:
        told = super().settings()
        del told["protocol"]
        return {**told, "type": "amqp"}


class StompOnRabbitBed(AmqpBed):
    def settings(self) -> dict[str, Any]:
        told = super().settings()
        del told["queue"]
        return {**told, "protocol": "stomp", "destination": f"/amq/queue/{self.name}"}


class StompOnActiveBed(RucioBed):
    _broker: ActiveMQ

    def settings(self) -> dict[str, Any]:
        return {
            "type": "rucio",
            "protocol": "stomp",
            "brokers": f"127.0.0.1:{self.proxy.port}",
            "destination": f"/queue/{self.name}",
            "username": activemq.USERNAME,
            "password": activemq.PASSWORD,
            "heartbeat": 2,
        }

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        await hermes.publish(
            (self._broker.host, self._broker.stomp_port),
            f"/queue/{self.name}",
            messages,
            username=activemq.USERNAME,
            password=activemq.PASSWORD,
        )

    async def poison(self) -> None:
        await self.send(b"\xe9\x9f")  # ActiveMQ puts every header right

    async def left(self) -> int:
        return len(await self._broker.browse(f"/queue/{self.name}"))


class DcacheBed(Bed):
    """The sandbox site. The bridge keeps its events: what is left is in the store of the source made here."""

    def __init__(self, name: str, site: SandboxDcache, store: Store, state_dir: Path) -> None:
        super().__init__(name)
        self._site = site
        self._store = store
        self.keeping = replace(keeping(), spool=lambda: store.spool("uploads"), state_dir=state_dir)

    def settings(self) -> dict[str, Any]:
        return {
            "type": "dcache",
            "endpoint": f"http://127.0.0.1:{self.proxy.port}/api/v1",
            "auth": {"type": "basic", "username": "bridge", "password": "bridge"},
            "paths": ["/data/in"],
            "first_start": "everything",
            "request_rate": "1000/s",
        }

    async def put(self, count: int, first: int = 0) -> None:
        for n in range(first, first + count):
            await self._site.upload(f"/data/in/{n}", b"leaf")

    async def poison(self) -> None:
        upload = await self._site.begin_upload("/data/in/poison")
        upload.node.pnfs_id = ""
        await self._site.finish_upload(upload, b"leaf")

    async def left(self) -> int:
        return self._store.spool("uploads").waiting

    async def restart(self) -> None:
        self._site.trouble.restart()


async def make(kind: str, name: str, request: Any) -> tuple[Bed, int]:
    """Make a bed of a kind with its server; gives the server's port too.

    A test marked `ends_its_server` gets one of its own, where others share one.
    """
    own = "own_" if request.node.get_closest_marker("ends_its_server") else ""
    if kind == "sqs":
        moto: Moto = request.getfixturevalue("moto")
        return SqsBed(await moto.create_queue(name, VisibilityTimeout=2)), moto.port
    if kind == "stomp-activemq":
        active: ActiveMQ = request.getfixturevalue(f"{own}activemq")
        return StompOnActiveBed(name, active), active.stomp_port
    rabbit: RabbitMQ = request.getfixturevalue(f"{own}rabbitmq")
    await rabbit.declare(name)
    if kind in ("amqp", "rabbitmq"):
        return (AmqpBed if kind == "amqp" else RabbitBed)(name, rabbit), rabbit.port
    return StompOnRabbitBed(name, rabbit), rabbit.stomp_port
