"""Notices what does not answer: brokers, the group's coordinator, topics that are not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from time import monotonic

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.core.errors import SourceLost
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.connection import complaints, reason_of
from bridge.sources.kafka.health import Health
from bridge.sources.kafka.ledger import Ledger

CALL_SECONDS = 20.0
"""For one exchange with the broker, aiokafka's own retries included."""
SILENCE_SECONDS = 15.0
"""Without an answer this long, a broker is asked whether it is there, and a partition's leader told of."""
LOOK_SECONDS = 1.0
STUCK_SECONDS = 60.0
"""The brokers are there, yet no fetch has been answered this long: the client is stuck."""
REBALANCE_SECONDS = 60.0
"""A rebalance is told of when it takes longer: bridges end theirs in half of it."""
STUCK_REBALANCE_SECONDS = 900.0
"""A rebalance waits for its slowest member, whose own max.poll.interval is 5 minutes by default."""
JOIN_SECONDS = 120.0
"""For the first assignment, from a coordinator that is there."""
_MOST_NAMES = 5
_LEADER = "a leader"
"""With a node's id, the key of a broker; partitions are keys too, and no topic has a name with a space."""


class Watch:
    """Tells the runner and the operator: aiokafka tries again for ever, and says nothing but in its log."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        config: KafkaConfig,
        health: Health,
        ledgers: Mapping[TopicPartition, Ledger],
        *,
        assigned: asyncio.Event,
        waits: Callable[[TopicPartition], bool],
    ) -> None:
        self._consumer = consumer
        self._config = config
        self._health = health
        self._ledgers = ledgers
        self._assigned = assigned
        self._waits = waits
        """Whether a partition is not asked for records now."""
        self._joined = False
        self._begun = self._heard = monotonic()
        self._answers: dict[TopicPartition, tuple[int | None, float]] = {}
        """By partition: the time the client gives its last answer, and when we saw that change."""
        self.silent: list[TopicPartition] = []
        """Partitions whose leader does not answer."""

    def joined(self) -> None:
        """Note that an assignment has come."""
        self._joined = True
        self._heard = monotonic()
        self._answers.clear()

    async def run(self) -> None:
        """Look until cancelled. Raises SourceLost when there is no reading on."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_often())
            tasks.create_task(self._ask_after_a_silence())
            tasks.create_task(self._look_after_the_coordinator())

    async def look_for_topics(self) -> None:
        """Tell which topics of the configuration are not there. Raises SourceLost."""
        if any(not self._consumer.partitions_for_topic(topic) for topic in self._config.topics):
            try:
                async with answer("a question for the topics", CALL_SECONDS):
                    await aiokafka_private.refresh_layout(self._consumer)
            except KafkaError as error:
                raise SourceLost(reason_of(error)) from error
        self._tell_topics()

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(_between_looks())
            aiokafka_private.raise_what_ended_reading(self._consumer)
            if self._assigned.is_set():
                self._tell_topics()
                self._tell_leaders()
            self._tell_rebalance(monotonic() - self._heard)

    async def _ask_after_a_silence(self) -> None:
        """Ask whether a broker is there: its answer may take long, and what is seen meanwhile is told."""
        asked = monotonic()
        while True:
            await asyncio.sleep(_between_looks())
            now = monotonic()
            silence = now - self._heard
            if min(silence, now - asked) < SILENCE_SECONDS:
                continue
            async with answer("a question after a silence", CALL_SECONDS):
                await self._consumer.topics()
            asked = monotonic()
            if self._assigned.is_set() and not self._ledgers:
                continue
            if silence > (STUCK_SECONDS if self._assigned.is_set() else STUCK_REBALANCE_SECONDS):
                raise SourceLost(f"the broker is there, but nothing could be read for {silence:.0f} s")

    def _tell_topics(self) -> None:
        for topic in self._config.topics:
            if self._consumer.partitions_for_topic(topic):
                self._health.recovered(("topic", topic))
            else:
                self._health.failed(
                    ("topic", topic), f"topic {topic} does not exist, or may not be described"
                )

    def _tell_rebalance(self, silence: float) -> None:
        if self._assigned.is_set():
            self._health.recovered("rebalance")
        elif self._joined and silence > REBALANCE_SECONDS:
            self._health.failed(
                "rebalance",
                f"group {self._config.group_id} has given no partitions for {REBALANCE_SECONDS:g} s: another "
                "member holds up its rebalance, or its coordinator does not answer",
            )

    def _tell_leaders(self) -> None:
        """Find the partitions without an answer, and tell of the brokers that lead them."""
        now = monotonic()
        ours = self._ledgers.keys() & self._consumer.assignment()  # less, while a pattern's topics turn over
        for place in ours:
            stamp = self._consumer.last_poll_timestamp(place)
            if place not in self._answers or self._answers[place][0] != stamp or self._waits(place):
                self._answers[place] = (stamp, now)
                self._heard = now
        self.silent = [place for place in ours if now - self._answers[place][1] >= SILENCE_SECONDS]
        led = aiokafka_private.by_leader(self._consumer, self.silent)
        for node, places in led.items():
            if node is None or node < 0:
                why = "no broker leads them"
            else:
                refusals = {aiokafka_private.refusal(self._consumer, place) for place in places} - {None}
                broker = aiokafka_private.describe(self._consumer, node)
                said = f"says {', '.join(sorted(map(str, refusals)))}" if refusals else "is silent"
                why = f"{broker}, which leads them, {said}"
            self._health.failed((_LEADER, node), f"no records of {_some(places)} come: {why}")
        for what in self._health.failing - {(_LEADER, node) for node in led}:
            if isinstance(what, tuple) and what[0] == _LEADER:
                self._health.recovered(what)

    async def _look_after_the_coordinator(self) -> None:
        while True:
            await asyncio.sleep(SILENCE_SECONDS)
            trouble = await self._coordinator_trouble()
            if trouble is None:
                self._health.recovered("coordinator")
            elif self._joined:
                self._health.failed("coordinator", f"{trouble}; what is settled can't be committed")
            else:
                raise SourceLost(trouble)
            if not self._joined and monotonic() - self._begun > JOIN_SECONDS:
                group = self._config.group_id
                raise SourceLost(f"the coordinator of group {group} gave no partitions in {JOIN_SECONDS:g} s")

    async def _coordinator_trouble(self) -> str | None:
        group = self._config.group_id
        if not (aiokafka_private.knows_coordinator(self._consumer) and self._ledgers):
            with complaints() as told:
                trouble = await aiokafka_private.coordinator_trouble(self._consumer, group, CALL_SECONDS / 2)
            if trouble is not None:
                return "; ".join([trouble, *told[-1:]])
        if not (self._assigned.is_set() and self._ledgers):
            return None  # it holds back its answers during a rebalance
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await aiokafka_private.committed(self._consumer, list(self._ledgers)[:1])
        except TimeoutError:
            return f"the coordinator of group {group} gave no answer in {CALL_SECONDS:g} s"
        except KafkaError as error:
            return f"the coordinator of group {group} does not tell its commits: {reason_of(error)}"
        return None


@asynccontextmanager
async def answer(what: str, seconds: float) -> AsyncIterator[None]:
    """Bound an exchange with the broker: no answer in time is a lost source."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise SourceLost(f"the broker gave no answer to {what} in {seconds:g} s") from None


def _between_looks() -> float:
    return min(LOOK_SECONDS, SILENCE_SECONDS / 2)


def _some(places: list[TopicPartition]) -> str:
    names = sorted(f"{place.topic}/{place.partition}" for place in places)
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
