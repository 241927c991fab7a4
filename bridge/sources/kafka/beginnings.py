"""Where a partition begins that the group has no commit for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.sources.kafka.config import KafkaConfig


class Beginnings:
    """Decides by the configuration, and for `latest` by what there was when the group began.

    `latest` is for what exists while the group has no commit for any of its topics. A topic or a partition
    that appears later begins with its earliest record: it is all new. What existed is remembered as long as
    the process lives; across restarts the group's commits tell. Members that begin at the same time know each
    other's first commits by the group's generation, which these carry as metadata (`mark`).
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._existed: frozenset[TopicPartition] | None = None
        """What there was as the group began; empty when it began before this process; None: not asked yet."""
        self._generation = -1
        """The generation in which the group began."""

    def mark(self, consumer: AIOKafkaConsumer) -> str:
        """Return the metadata of a commit made now."""
        generation = aiokafka_private.generation(consumer)
        return _mark(generation) if self._existed and generation == self._generation else ""

    async def learn(
        self, consumer: AIOKafkaConsumer, topics: Iterable[str], places: Collection[TopicPartition]
    ) -> None:
        """Find out, at the first assignment, whether the group begins only now. Raises KafkaError."""
        if self._existed is not None or self._config.auto_offset_reset != "latest":
            return
        there = {
            TopicPartition(topic, number)
            for topic in topics
            for number in consumer.partitions_for_topic(topic) or ()
        } | set(places)
        generation = aiokafka_private.generation(consumer)
        commits = await aiokafka_private.committed(consumer, there)
        is_new = all(at.metadata == _mark(generation) for at in commits.values())
        self._existed, self._generation = frozenset(there if is_new else ()), generation

    async def of(
        self,
        consumer: AIOKafkaConsumer,
        places: Collection[TopicPartition],
        begins: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        """Return the first offset to read of each of `places`, whose earliest offsets are `begins`."""
        if not places:
            return {}
        if self._config.start_at is not None:
            return await self._at_time(consumer, places, int(self._config.start_at.timestamp() * 1000))
        begin = {place: begins[place] for place in places}
        if existed := [place for place in places if place in (self._existed or ())]:
            begin |= await consumer.end_offsets(existed)
        return begin

    async def _at_time(
        self, consumer: AIOKafkaConsumer, places: Collection[TopicPartition], moment: int
    ) -> dict[TopicPartition, int]:
        found = await consumer.offsets_for_times(dict.fromkeys(places, moment))
        ends = await consumer.end_offsets(list(places))
        return {
            # No record that late yet: what comes next is the first. (Some brokers say so by -1.)
            place: ends[place] if at is None or at.timestamp < 0 else at.offset
            for place, at in found.items()
        }


def _mark(generation: int) -> str:
    return f"oscar-event-bridge began in generation {generation}"
