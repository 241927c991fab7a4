"""Looks for records in Kafka that the bridge knows nothing of, without joining the group."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.core.errors import CredentialError
from bridge.core.event import Event
from bridge.sources import GoneError, Upstream, Whereabouts
from bridge.sources.kafka.batches import Batch, Record, UnreadableError, first_batch
from bridge.sources.kafka.check_group import ASK_SECONDS, TROUBLE, text_of
from bridge.sources.kafka.config import KafkaConfig, whole
from bridge.sources.kafka.connection import client_options
from bridge.sources.kafka.records import to_event
from bridge.sources.opening import events_of

_ID = re.compile(r"(?P<topic>[^/@]+)/(?P<partition>\d{1,9})/(?P<offset>\d{1,18})(@-?\d+)?(#\d+)?(\+\d+)?")
_CONNECT_SECONDS = 3.0
_SEARCH_SECONDS = 3.0
"""For reading what the group has not read."""


class _Clients(NamedTuple):
    admin: AIOKafkaAdminClient
    consumer: AIOKafkaConsumer


class _Partition(NamedTuple):
    """What the broker has of a partition, and how far the group is."""

    begin: int
    end: int
    committed: int | None


async def look_for(config: KafkaConfig, name: str, fits: Callable[[str], bool]) -> Upstream:
    """Look for the record of an id; for another name, among what the group has still to read."""
    place = place_of(name)
    if place is not None and not _reads(config, place[0].topic):
        return Upstream(Whereabouts.ABSENT, f"it does not read the topic {place[0].topic}")
    try:
        async with _connected(config) as clients:
            if place is not None:
                return await _at(clients, config, *place)
            return await _search(clients, config, fits)
    except (CredentialError, *TROUBLE) as error:
        return Upstream(Whereabouts.UNKNOWN, f"Kafka can't be asked: {text_of(error)}")


async def read_again(config: KafkaConfig, event_id: str) -> Event:
    """Read the record of an event once more. Raises GoneError where it is not there, or not read yet."""
    place = place_of(event_id)
    if place is None:
        raise GoneError("its id does not tell where in Kafka it is: produce it once more")
    try:
        async with _connected(config) as clients:
            found = await _at(clients, config, *place)
            if found.whereabouts is not Whereabouts.PAST:
                raise GoneError(found.detail)
            async with asyncio.timeout(ASK_SECONDS):
                batch = await _batch(clients, config, *place)
    except (CredentialError, UnreadableError, *TROUBLE) as error:
        raise GoneError(f"Kafka does not give it: {text_of(error)}") from error
    for record in batch.records:
        if record.offset == place[1]:
            for event in _events(config, record):
                if event.id == event_id:
                    return event
            raise GoneError("another record is in its place: the topic was made anew, or `open` was changed")
    raise GoneError("Kafka has it no more, though it has what came after it: the topic is compacted")


def place_of(event_id: str) -> tuple[TopicPartition, int] | None:
    """Return where the record of an event is; None where its id does not tell."""
    found = _ID.fullmatch(event_id)
    if found is None:
        return None
    return TopicPartition(found["topic"], int(found["partition"])), int(found["offset"])


def _reads(config: KafkaConfig, topic: str) -> bool:
    if config.topic_pattern is not None:
        return re.match(whole(config.topic_pattern), topic) is not None
    return topic in config.topics


@asynccontextmanager
async def _connected(config: KafkaConfig) -> AsyncIterator[_Clients]:
    options = {**client_options(config), "request_timeout_ms": int(ASK_SECONDS * 1000)}
    admin = aiokafka_private.make_admin(_CONNECT_SECONDS, **options)
    consumer = aiokafka_private.make_consumer(_CONNECT_SECONDS, **options, group_id=None)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            await admin.start()
            await consumer.start()
        yield _Clients(admin, consumer)
    finally:
        await asyncio.gather(admin.close(), aiokafka_private.close_consumer(consumer), return_exceptions=True)


async def _partitions(
    clients: _Clients, config: KafkaConfig, places: Iterable[TopicPartition] | None = None
) -> dict[TopicPartition, _Partition]:
    """Ask for `places`, as far as they are there, or for all that the source reads.

    All topics are listed, since asking for one by name may create it.
    """
    async with asyncio.timeout(ASK_SECONDS):
        there = [
            TopicPartition(topic["topic"], partition["partition"])
            for topic in await clients.admin.describe_topics()
            if not topic["error_code"] and _reads(config, topic["topic"])
            for partition in topic["partitions"]
        ]
        wanted = there if places is None else [place for place in places if place in there]
        if not wanted:
            return {}
        committed, begins, ends = await asyncio.gather(
            clients.admin.list_consumer_group_offsets(config.group_id, partitions=wanted),
            clients.consumer.beginning_offsets(wanted),
            clients.consumer.end_offsets(wanted),
        )
    offsets = {place: at.offset for place, at in committed.items() if at.offset >= 0}
    return {place: _Partition(begins[place], ends[place], offsets.get(place)) for place in wanted}


async def _at(clients: _Clients, config: KafkaConfig, place: TopicPartition, offset: int) -> Upstream:
    named = f"{place.topic}/{place.partition}"
    partition = (await _partitions(clients, config, [place])).get(place)
    if partition is None:
        return Upstream(Whereabouts.ABSENT, f"Kafka has no {named}")
    begin, end, committed = partition
    group = f"the group {config.group_id}"
    if committed is not None and offset < committed:
        gone = "" if offset >= begin else f", and Kafka has it no more: {named} begins with {begin}"
        return Upstream(Whereabouts.PAST, f"{group} has read {named} up to {committed}{gone}")
    if offset >= end:
        return Upstream(Whereabouts.ABSENT, f"{named} has no record {offset} yet: the next one is {end}")
    if offset < begin:
        return Upstream(
            Whereabouts.ABSENT,
            f"Kafka has it no more: {named} begins with {begin}; {group} never read it",
        )
    read = "has read nothing of it yet" if committed is None else f"has read it up to {committed}"
    return Upstream(Whereabouts.THERE, f"it is record {offset} of {named}, and {group} {read}")


async def _search(clients: _Clients, config: KafkaConfig, fits: Callable[[str], bool]) -> Upstream:
    """Read what the group has not read, as far as the time goes."""
    group = f"the group {config.group_id}"
    ahead: dict[TopicPartition, tuple[int, int]] = {}
    for place, (begin, end, committed) in (await _partitions(clients, config)).items():
        if (first := max(begin, committed or 0)) < end:
            ahead[place] = first, end
    if not ahead:
        return Upstream(Whereabouts.ABSENT, f"{group} has read all that Kafka has")
    count = sum(end - first for first, end in ahead.values())
    searched = 0
    try:
        async with asyncio.timeout(_SEARCH_SECONDS):
            for place, (at, end) in ahead.items():
                while at < end:
                    batch = await _batch(clients, config, place, at)
                    for record in batch.records:
                        if any(_goes_by(each, fits) for each in _events(config, record)):
                            named = f"{place.topic}/{place.partition}/{record.offset}@{record.timestamp}"
                            read = f"it is record {named}, and {group} has not read it yet"
                            return Upstream(Whereabouts.THERE, read)
                    searched += batch.next_offset - at
                    at = batch.next_offset
    except (TimeoutError, UnreadableError):
        unsaid = (
            f"of {count} records that {group} has still to read, {searched} were searched, and none is of it"
        )
        return Upstream(Whereabouts.UNKNOWN, unsaid)
    return Upstream(
        Whereabouts.ABSENT, f"none of the {count} records that {group} has still to read is of it"
    )


async def _batch(clients: _Clients, config: KafkaConfig, place: TopicPartition, offset: int) -> Batch:
    """Read the batch that holds `offset`, from there on."""
    raw = await aiokafka_private.fetch_batches(
        clients.consumer, place, offset, isolation_level=config.isolation_level
    )
    return first_batch(raw, place.topic, place.partition, offset)


def _events(config: KafkaConfig, record: Record) -> list[Event]:
    """Make the events of a record that can be read."""
    if record.fault is not None:
        return []
    event = to_event(record, TopicPartition(record.topic, record.partition), config.identity or "")
    return [each for each in events_of(config, event) if isinstance(each, Event)]


def _goes_by(event: Event, fits: Callable[[str], bool]) -> bool:
    names = (event.id, event.subject, event.attributes.get("key"))
    return any(name is not None and fits(name) for name in names)
