"""Partitions in which something can't be read: each is held alone, and read on as soon as it can be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.sources.kafka.batches import Batch, UnreadableError, first_batch
from bridge.sources.kafka.connection import reason_of
from bridge.sources.kafka.health import Health
from bridge.sources.kafka.ledger import Ledger

RETRY_SECONDS = 30.0
"""Between two tries to read a held partition on: the broker's copy may be mended, or another lead."""
SOON_SECONDS = 1.0
"""Likewise, after a try that met no answer."""
_ASK_SECONDS = 5.0


@dataclass(slots=True)
class _Held:
    """One partition that is held."""

    reason: str
    offset: int
    """Of what can't be read; what is before it, and was not handed over, was passed over with reason: records
    of a transaction that was aborted, and marks of its end."""
    due: float
    """When to try again, as `monotonic`."""
    batch: Batch | None = None
    """Taken apart, and not handed over yet."""


class Unreadable:
    """Tries what aiokafka could not read record by record, and holds the partition where that fails too.

    Nothing is ever skipped: a record that can't be understood is handed over as received.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        ledgers: Mapping[TopicPartition, Ledger],
        health: Health,
        *,
        isolation_level: str,
        resume: Callable[[TopicPartition], None],
    ) -> None:
        self._consumer = consumer
        self._ledgers = ledgers
        self._health = health
        self._isolation_level = isolation_level
        self._resume = resume
        self._held: dict[TopicPartition, _Held] = {}
        self._due = asyncio.Event()

    def __contains__(self, place: TopicPartition) -> bool:
        return place in self._held

    @property
    def places(self) -> set[TopicPartition]:
        """The partitions that are held."""
        return set(self._held)

    def hold(self, place: TopicPartition, error: Exception, offset: int = 0) -> None:
        """Read nothing more of `place`, because of `error` at `offset`, until it was taken apart.

        Where it does not tell an offset, it is about what would be handed over next.
        """
        self._consumer.pause(place)
        if place in self._held:
            return
        self._held[place] = _Held(reason_of(error), offset, due=monotonic())
        self._due.set()

    def take(self, most: int) -> dict[TopicPartition, list[Any]]:
        """Return the next records that were taken apart, `most` at most.

        Reading of a partition goes on as before once all of its batch was taken.
        """
        taken: dict[TopicPartition, list[Any]] = {}
        for place, held in list(self._held.items()):
            if held.batch is None or most == 0 or place not in self._consumer.assignment():
                continue
            at = self._ledgers[place].position
            records = [record for record in held.batch.records if record.offset >= at]
            if len(records) <= most:
                del self._held[place]
                self._consumer.seek(place, held.batch.next_offset)
                self._resume(place)
            taken[place] = records[:most]
            most -= len(taken[place])
        return taken

    def clear(self) -> None:
        """Forget all: the partitions are not ours any more."""
        self._held.clear()

    async def run(self) -> None:
        """Take apart what is due, again and again."""
        while True:
            waiting = [held.due for held in self._held.values() if held.batch is None]
            try:
                async with asyncio.timeout(max(0.0, min(waiting) - monotonic()) if waiting else None):
                    await self._due.wait()
            except TimeoutError:
                pass
            self._due.clear()
            now = monotonic()
            async with asyncio.TaskGroup() as tasks:
                for place, held in self._held.items():
                    if held.batch is None and held.due <= now:
                        tasks.create_task(self._take_apart(place, held))

    async def _take_apart(self, place: TopicPartition, held: _Held) -> None:
        if self._held.get(place) is not held:
            return  # revoked meanwhile
        offset = max(held.offset, self._ledgers[place].position)
        held.due = monotonic() + RETRY_SECONDS
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                raw = await aiokafka_private.fetch_batches(
                    self._consumer, place, offset, isolation_level=self._isolation_level
                )
            batch = None
            if raw:  # in a thread: a batch may be long
                batch = await asyncio.to_thread(first_batch, raw, place.topic, place.partition, offset)
        except OffsetOutOfRangeError:
            batch = None  # the reader counts what is gone
        except UnreadableError as error:
            held.reason = str(error)
            self._tell(place, held, offset)
            return
        except (KafkaError, TimeoutError) as error:
            if isinstance(error, KafkaError) and not error.retriable:
                self._tell(place, held, offset)
            else:
                held.due = monotonic() + SOON_SECONDS
            return
        if self._held.get(place) is not held:
            return
        self._health.recovered(place)
        if batch is None:
            del self._held[place]
            self._resume(place)
        held.batch = batch

    def _tell(self, place: TopicPartition, held: _Held, offset: int) -> None:
        if self._held.get(place) is held:
            self._health.failed(
                place,
                f"{place.topic}/{place.partition} is held at offset {offset}: {held.reason} (the others are "
                "read on; how to pass it: docs/configuration.md)",
            )
