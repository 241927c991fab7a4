"""The Kafka source: a consumer group's member that commits only what is settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from bridge.core.delivery import Delivery
from bridge.core.errors import CredentialError, SourceLost
from bridge.core.ports import Slots
from bridge.sources.kafka.aiokafka_private import close_consumer, make_consumer
from bridge.sources.kafka.beginnings import Beginnings
from bridge.sources.kafka.config import KafkaConfig, whole
from bridge.sources.kafka.connection import client_options, complaints, reason_of
from bridge.sources.kafka.health import Health
from bridge.sources.kafka.reader import Reader
from bridge.sources.reading import reading
from bridge.telemetry.metrics import SourceMetrics

_CONNECT_SECONDS = 30.0
_MARGIN_SECONDS = 5.0
"""In which the client itself says that it could not connect."""
_REQUEST_SECONDS = 40.0
"""One request; above the time a broker may hold back the answer to a join."""
_RETRY_SECONDS = 0.5
"""Between two tries of what a broker refused or did not answer."""
_REBALANCE_SECONDS = 30.0
"""How long the group waits for a member that drains."""
_PARTITION_BYTES = 512 * 1024
_FETCH_BYTES = 2**20
"""What aiokafka keeps of records not handed over yet: so much a fetch, and the former a partition. (Some
brokers, tansu for one, heed the latter alone: with 8 MiB here a backlog took 22 MiB, and was no faster.)"""


class KafkaSource:
    """One `type: kafka` of the configuration."""

    def __init__(
        self, config: KafkaConfig, key: str, metrics: SourceMetrics, lost: Callable[[str, int], None]
    ) -> None:
        self._config = config
        self._identity = config.identity or key
        self._metrics = metrics
        self._log = structlog.get_logger(__name__).bind(source=key)
        if config.tls is not None and not config.tls.verify:
            self._log.warning(
                "kafka: whoever answers is believed, and gets the credentials (tls.verify: false)"
            )
        self._lost = lost
        self._health = Health(self._log)
        self._beginnings = Beginnings(config)
        self._consumer: AIOKafkaConsumer | None = None
        self._reader: Reader | None = None

    @asynccontextmanager
    async def open(self, slots: Slots) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """Connect, join the group and read.

        Raises SourceLost when no broker can be reached, or the group's coordinator gives no assignment (of no
        partition, perhaps).
        """
        consumer = await self._connect()
        reader = Reader(
            consumer,
            self._config,
            identity=self._identity,
            slots=slots,
            metrics=self._metrics,
            lost=self._count_lost,
            beginnings=self._beginnings,
            health=self._health,
            log=self._log,
        )
        # Subscribed only now: before, `start()` would wait without end for topics and for the group.
        if self._config.topic_pattern is not None:
            consumer.subscribe(pattern=whole(self._config.topic_pattern), listener=reader)
        else:
            consumer.subscribe(list(self._config.topics), listener=reader)
        self._consumer, self._reader = consumer, reader
        try:
            async with reading(reader, "kafka reader", reader.joined()) as batches:
                yield batches
        finally:
            self._consumer = self._reader = None
            await reader.close()

    def problems(self) -> Sequence[str]:
        """Tell what is not there, does not answer or can't be read."""
        return self._health.problems()

    def _count_lost(self, place: TopicPartition, missing: int, offset: int, begin: int) -> None:
        self._metrics.lost.inc(missing)
        self._lost(f"{place.topic}/{place.partition}", missing)
        self._log.error(
            "kafka: offset out of range, records are lost",
            topic=place.topic,
            partition=place.partition,
            missing=missing,
            asked_for=offset,
            reading_on_from=begin,
        )

    async def _connect(self) -> AIOKafkaConsumer:
        try:
            consumer = make_consumer(_CONNECT_SECONDS, **self._options())
        except CredentialError as error:
            raise SourceLost(str(error)) from error
        with complaints() as told:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS + _MARGIN_SECONDS):
                    await consumer.start()
            except BaseException as error:
                await close_consumer(consumer)
                if isinstance(error, TimeoutError):
                    told.append(f"no answer in {_CONNECT_SECONDS:g} s")
                elif isinstance(error, (KafkaError, OSError, ValueError)):
                    if not told:
                        told.append(reason_of(error))
                else:
                    raise
                raise SourceLost("; ".join(told)) from error
        return consumer

    def _options(self) -> dict[str, Any]:
        config = self._config
        return {
            **client_options(config),
            "group_id": config.group_id,
            "group_instance_id": config.group_instance_id,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",  # never silently: the reader seeks
            "isolation_level": config.isolation_level,
            "session_timeout_ms": int(config.session_timeout * 1000),
            "heartbeat_interval_ms": int(min(3.0, config.session_timeout / 3) * 1000),
            "max_poll_interval_ms": int(config.max_poll_interval * 1000),
            "rebalance_timeout_ms": int(_REBALANCE_SECONDS * 1000),
            "request_timeout_ms": int(_REQUEST_SECONDS * 1000),
            "retry_backoff_ms": int(_RETRY_SECONDS * 1000),
            "max_partition_fetch_bytes": _PARTITION_BYTES,
            "fetch_max_bytes": _FETCH_BYTES,
            "consumer_timeout_ms": 1000,  # of the fetcher's own loop, which is woken by all that matters
        }
