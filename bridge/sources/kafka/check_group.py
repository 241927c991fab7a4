"""What `check` finds out about a consumer group, its commits and what it reads next, without joining it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError, for_code

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.core.ports import Findings, Patience
from bridge.sources.kafka.batches import OldFormatError, UnreadableError, first_batch
from bridge.sources.kafka.config import KafkaConfig

ASK_SECONDS = 4.0
_ASSIGNOR = "roundrobin"
"""What the source offers a group to share partitions by: aiokafka's default, and its only one."""
_MOST_NAMES = 5
_MOST_READS = 64
"""Partitions in which it is tried to read."""
_READS_AT_ONCE = 8

TROUBLE = (KafkaError, OSError, TimeoutError, ValueError, TypeError)
"""What aiokafka raises, or stumbles over, when a broker answers oddly."""


class GroupLook:
    """One look at the source's group."""

    def __init__(
        self,
        findings: Findings,
        key: str,
        config: KafkaConfig,
        admin: AIOKafkaAdminClient,
        consumer: AIOKafkaConsumer,
        remedy: Callable[[str], str],
        patience: Patience,
    ) -> None:
        self._findings = findings
        self._key = key
        self._config = config
        self._admin = admin
        self._consumer = consumer
        self._remedy = remedy
        """Gives the remedy of what may come of brokers out of reach."""
        self._patience = patience

    async def all(self, places: list[TopicPartition]) -> None:
        """Look at the coordinator, the members and the commits for `places`."""
        if await self._has_coordinator():
            await asyncio.gather(self._group(len(places)), self._offsets(places))

    async def _has_coordinator(self) -> bool:
        trouble = await aiokafka_private.coordinator_trouble(
            self._admin, self._config.group_id, ASK_SECONDS / 2
        )
        if trouble is None:
            return True
        if GroupAuthorizationFailedError.__name__ in trouble:
            self._may_not_use_group()
        else:
            self._findings.problem(
                trouble,
                self._remedy(
                    "without it the source can't be opened: bring that broker back, and see that "
                    "`__consumer_offsets` has leaders"
                ),
            )
        return False

    async def _group(self, partitions: int) -> None:
        group = self._config.group_id
        try:
            async with asyncio.timeout(ASK_SECONDS):
                (answer,) = await self._admin.describe_consumer_groups([group])
            code, _, state, kind, protocol, members, *_ = answer.groups[0]
            if code:
                raise for_code(code)
        except GroupAuthorizationFailedError:
            self._may_not_use_group()
            return
        except TROUBLE as error:
            self._findings.note(f"group {group} could not be described: {text_of(error)}")
            return
        if kind not in ("", "consumer"):
            self._findings.problem(
                f"group {group} is no consumer group but one of type `{kind}`, such as Kafka Connect's",
                f"choose another `sources.{self._key}.group_id`",
            )
        elif members and protocol not in ("", _ASSIGNOR):
            self._findings.problem(
                f"group {group} has {len(members)} members that share partitions by `{protocol}`, and the "
                f"bridge knows `{_ASSIGNOR}` only: it could not join (INCONSISTENT_GROUP_PROTOCOL)",
                f"choose a `sources.{self._key}.group_id` that no other application uses",
            )
        elif members:
            names = sorted({f"{client or identity}{host}" for identity, client, host, *_ in members})
            self._findings.note(
                f"another member is connected to group {group} ({state}): {some(names)}. Partitions are "
                "shared with it: right for this bridge's own daemon and its replicas, and for nothing else",
                f"if it is another application, choose another `sources.{self._key}.group_id`",
            )
            if len(members) > 1:
                self._patience.tell_of_company(
                    self._findings, f"{len(members)} members are connected to group {group}"
                )
            if len(members) > partitions > 0:
                self._findings.warning(
                    f"{len(members)} members, and {partitions} partitions to share: some have nothing to do",
                    "run as many bridges as there are partitions, at most, or give the topics more of them",
                )
        else:
            self._findings.ok(f"group {group} may be used; no member is connected now")

    def _may_not_use_group(self) -> None:
        self._findings.problem(
            f"group {self._config.group_id} may not be used: GroupAuthorizationFailed",
            f"grant the principal Read and Describe on the group {self._config.group_id}",
        )

    async def _offsets(self, places: list[TopicPartition]) -> None:
        """Compare the group's commits with what the broker has."""
        if not places:
            return
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await self._consumer.start()
                committed, begins, ends = await asyncio.gather(
                    self._admin.list_consumer_group_offsets(self._config.group_id, partitions=places),
                    self._consumer.beginning_offsets(places),
                    self._consumer.end_offsets(places),
                )
        except GroupAuthorizationFailedError:
            self._may_not_use_group()
            return
        except TopicAuthorizationFailedError as error:
            self._findings.problem(
                f"topics may not be read: {text_of(error)}", "grant the principal Read on them"
            )
            return
        except TROUBLE as error:
            self._findings.warning(
                f"the group's offsets could not be read: {text_of(error)}",
                self._remedy(
                    f"grant the principal Read on the topics and on the group {self._config.group_id}"
                ),
            )
            return
        offsets = {place: committed[place].offset for place in places if place in committed}
        offsets = {place: at for place, at in offsets.items() if at >= 0}
        self._compare(offsets, begins, ends)
        await self._read_next({at: offsets.get(at, begins[at]) for at in places}, begins, ends)

    def _compare(
        self,
        committed: Mapping[TopicPartition, int],
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        config, findings = self._config, self._findings
        gone = {place: begins[place] - at for place, at in committed.items() if at < begins[place]}
        beyond = [place for place, at in committed.items() if at > ends[place]]
        fresh = [place for place in begins if place not in committed]
        if gone:
            findings.warning(
                f"{sum(gone.values())} records that the group has not read are gone from {places_of(gone)}: "
                "reading will go on from the earliest there is, and the loss be counted",
                "raise the topic's retention (`retention.ms`, `retention.bytes`) above the longest downtime",
            )
        if beyond:
            findings.warning(
                f"the group's commits for {places_of(beyond)} are beyond the end: the topic was made anew, "
                "or lost records. Reading will begin with the earliest there is",
                "if that is not meant, set the group's offsets with kafka-consumer-groups --reset-offsets",
            )
        lag = sum(max(0, ends[place] - max(at, begins[place])) for place, at in committed.items())
        if committed:
            findings.ok(f"group {config.group_id}: {lag} records behind the newest")
        if fresh:
            there = sum(ends[place] - begins[place] for place in fresh)
            if config.start_at is not None:
                where = f"reading begins with the first record at or after {config.start_at.isoformat()}"
            elif config.auto_offset_reset == "earliest" or committed:  # what is new to a group is all read
                where = (
                    f"reading begins with the earliest record, so {there} records that are there come first"
                )
            else:
                where = f"reading begins with what comes next, so {there} records that are there are not read"
            findings.note(
                f"group {config.group_id} has no commit for {places_of(fresh)}: {where}",
                f"if that is not meant: `sources.{self._key}.auto_offset_reset` or `start_at`",
            )

    async def _read_next(
        self,
        offsets: Mapping[TopicPartition, int],
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        """Try to read what comes next in each partition: what can't be read holds it up."""

        async def one(place: TopicPartition, offset: int) -> None:
            try:
                async with asyncio.timeout(ASK_SECONDS), few:
                    raw = await aiokafka_private.fetch_batches(
                        self._consumer, place, offset, isolation_level=self._config.isolation_level
                    )
                if raw:
                    first_batch(raw, place.topic, place.partition, offset)
            except OldFormatError:
                pass  # which aiokafka reads
            except UnreadableError as error:
                self._findings.problem(
                    f"{place.topic}/{place.partition} can't be read at offset {offset}: {error}",
                    "restore the broker's copy, or pass it: docs/configuration.md tells how",
                )
            except TROUBLE:
                pass  # told where it is asked for

        few = asyncio.Semaphore(_READS_AT_ONCE)
        waiting = {place: max(at, begins[place]) for place, at in offsets.items() if at < ends[place]}
        await asyncio.gather(*(one(place, at) for place, at in list(waiting.items())[:_MOST_READS]))


def text_of(error: BaseException) -> str:
    return str(error) or type(error).__name__


def some(items: Sequence[Any]) -> str:
    shown = ", ".join(str(item) for item in items[:_MOST_NAMES])
    return shown if len(items) <= _MOST_NAMES else f"{shown} and {len(items) - _MOST_NAMES} more"


def places_of(places: Mapping[TopicPartition, int] | Sequence[TopicPartition]) -> str:
    return some([f"{place.topic}/{place.partition}" for place in places])
