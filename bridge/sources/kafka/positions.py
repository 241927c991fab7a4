"""The positions of the partitions that the group gave us, as far as their leaders answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from itertools import groupby
from operator import attrgetter

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka.errors import KafkaError

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.sources.kafka.beginnings import Beginnings
from bridge.sources.kafka.connection import reason_of
from bridge.sources.kafka.health import Health
from bridge.sources.kafka.ledger import Ledger

AGAIN_SECONDS = 1.0
"""Between two tries to begin a partition whose leader did not answer."""
LEADER_SECONDS = 5.0
"""For one such try."""

Lost = Callable[[TopicPartition, int, int, int], None]
"""Told of records that the broker no longer has: where, how many, the offset asked for, the next one read."""


class Positions:
    """Begins each partition at its commit, or where the configuration says; gives it a ledger.

    A partition whose leader does not answer begins late, and holds up no other.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        ledgers: dict[TopicPartition, Ledger],
        beginnings: Beginnings,
        health: Health,
        *,
        lost: Lost,
        resume: Callable[[TopicPartition], None],
        changed: asyncio.Event,
    ) -> None:
        self._consumer = consumer
        self._ledgers = ledgers
        self._beginnings = beginnings
        self._health = health
        self._lost = lost
        self._resume = resume
        self._changed = changed
        self.late: dict[TopicPartition, str] = {}
        """Partitions that are ours and have not begun, and why."""
        self._revocations = 0

    async def begin(self, places: Collection[TopicPartition], seconds: float) -> None:
        """Begin `places`, just assigned. Raises KafkaError when the coordinator does not tell the commits."""
        late = dict.fromkeys(places, "")
        await self._begin(late, seconds)
        self.late = late
        for place in self.late.keys() & self._consumer.assignment():
            self._consumer.seek(place, 0)  # without a position aiokafka would ask for one, over and over
            self._consumer.pause(place)

    def clear(self) -> None:
        """Forget what has not begun: it is not ours any more."""
        self.late = {}
        self._revocations += 1

    async def begin_late(self) -> None:
        """Begin what is late as soon as its leader answers, until cancelled. Raises KafkaError."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            late, places = self.late, list(self.late)
            if not late:
                continue
            try:
                async with asyncio.timeout(2 * LEADER_SECONDS):
                    await self._begin(late, LEADER_SECONDS)
            except TimeoutError:
                continue  # the coordinator is silent, and told of
            for place in places:
                if place in late:
                    name = f"{place.topic}/{place.partition}"
                    self._health.failed(place, f"{name} can't be begun: {late[place]}")

    async def _begin(self, late: dict[TopicPartition, str], seconds: float) -> None:
        """Begin those of `late` whose leader answers, and take them out of it."""
        revocations = self._revocations
        committed = await aiokafka_private.committed(self._consumer, late)
        led = aiokafka_private.by_leader(self._consumer, late)
        async with asyncio.TaskGroup() as tasks:
            for places in led.values():
                # One topic at a time: one that may not be described is no reason to wait for the others.
                for _, of_topic in groupby(sorted(places), attrgetter("topic")):
                    tasks.create_task(
                        self._begin_these(list(of_topic), late, committed, seconds, revocations)
                    )

    async def _begin_these(
        self,
        places: list[TopicPartition],
        late: dict[TopicPartition, str],
        committed: Mapping[TopicPartition, OffsetAndMetadata],
        seconds: float,
        revocations: int,
    ) -> None:
        try:
            async with asyncio.timeout(seconds):
                begins = await self._consumer.beginning_offsets(places)
                fresh = [place for place in places if place not in committed]
                starts = await self._beginnings.of(self._consumer, fresh, begins)
        except (KafkaError, TimeoutError) as error:
            why = reason_of(error) if isinstance(error, KafkaError) else "its leader does not answer"
            late.update(dict.fromkeys(places, why))
            return
        if revocations != self._revocations or not self._consumer.assignment().issuperset(places):
            return
        mark = self._beginnings.mark(self._consumer)
        for place in places:
            commit = committed.get(place)
            start = starts[place] if commit is None else max(commit.offset, begins[place])
            self._consumer.seek(place, start)
            # A commit with another mark is made anew.
            is_marked = commit is not None and commit.metadata == mark
            self._ledgers[place] = Ledger(start, committed=commit.offset if commit and is_marked else None)
            del late[place]
            self._resume(place)
            self._health.recovered(place)
            if commit is not None and commit.offset < start:
                self._lost(place, start - commit.offset, commit.offset, start)
        # Also commits where a fresh partition begins: `latest` must not mean a later one after a restart.
        self._changed.set()
