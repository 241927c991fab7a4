"""Every reach into the private insides of aiokafka 0.14: read this file again at each of its releases.

What aiokafka's public ways can't do: never create a topic, keep brokers and partitions apart, tell who the
coordinator is, and be closed in the middle.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    for_code,
)
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest

from bridge.sources.kafka.connection import reason_of

_aiokafka_log = logging.getLogger("aiokafka")

CONNECT_SECONDS = 10.0
"""For one connection to a broker, TLS and SASL included."""
PAUSE_SECONDS = 0.25
"""Between two rounds of asking for the cluster's layout, and after a fetch that was refused in part."""
OUTAGE_SECONDS = 1.0
"""Between two rounds of asking for the layout, of which the first had no answer."""
CLOSE_SECONDS = 5.0
"""For leaving the group and closing the connections, and once more when that must be cut off."""

_LARGE_FRAME = 2**14
"""Bytes of an answer that is let go of while it is read."""
_MOST_FRAME = 2**28
"""Bytes of one answer. A broker gives the first batch whole, which has 1 MiB by default, and 100 at some."""
_WHOLE_BATCH = 2**20
"""A broker gives the first batch whole, however long it is (KIP-74)."""

Stopped = Callable[[TopicPartition, int, Exception], None]
"""Told where reading stopped: the partition, the offset of what could not be read, and why."""


# The client


class _Connection(AIOKafkaConnection):  # type: ignore[misc] # aiokafka is not typed
    """A connection whose questions about topics create none (KIP-204): a mistyped name must stay missing.

    It keeps no answer until the next one begins, which may be long and has several MiB.
    """

    def send(self, request: Any, expect_response: bool = True) -> Any:
        if isinstance(request, MetadataRequest):
            request._allow_auto_topic_creation = False
        return super().send(request, expect_response)

    def _handle_frame(self, resp: bytes) -> None:
        super()._handle_frame(self._reader.taken() or resp)


class _Frames(asyncio.StreamReader):
    """What is read of a connection; aiokafka itself takes up to 2 GiB into memory, if the broker says so."""

    _frame = b""

    async def readexactly(self, n: int) -> bytes:
        if n > _MOST_FRAME:
            _aiokafka_log.warning("An answer of %d bytes, more than %d, is not read", n, _MOST_FRAME)
            raise ConnectionAbortedError(f"an answer of {n} bytes, more than {_MOST_FRAME}")
        if n <= _LARGE_FRAME:
            return await super().readexactly(n)
        self._frame = await super().readexactly(n)
        return b""  # who asks keeps what it is given until it has the next

    def taken(self) -> bytes:
        """Give the answer that was read last, if it is a large one, and let go of it."""
        frame, self._frame = self._frame, b""
        return frame


class _Client(AIOKafkaClient):  # type: ignore[misc] # aiokafka is not typed
    """A client that creates no topic, and in which a broker out of reach holds up no other."""

    def adopt(self, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        # Its own lock lets one connection be opened at a time; one that hangs stops all reading.
        self._get_conn_lock_value = nullcontext()
        self._opening: defaultdict[Any, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next_update = 0.0
        self.refusals: dict[TopicPartition, str] = {}
        """Why brokers refused the last fetch of a partition: aiokafka only logs most reasons."""

    async def bootstrap(self) -> None:
        """Ask one address after the other: one that is silent leaves the others their share of the time."""
        usual: int = vars(self)["_request_timeout_ms"]
        share = min(CONNECT_SECONDS, self._connect_seconds / len(self.hosts))
        self._request_timeout_ms = min(usual, int(1000 * share))
        try:
            await super().bootstrap()
        finally:
            self._request_timeout_ms = usual

    async def _get_conn(
        self, node_id: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT, no_hint: bool = False
    ) -> Any:
        connection = self._conns.get((node_id, group))
        if connection is None or not connection.connected():
            try:
                async with asyncio.timeout(CONNECT_SECONDS), self._opening[node_id, group]:
                    connection = await super()._get_conn(node_id, group=group, no_hint=no_hint)
            except TimeoutError:
                _aiokafka_log.warning(
                    "Unable connect to node with id %s: no connection in %g s", node_id, CONNECT_SECONDS
                )
                self.force_metadata_update()
                return None
        if connection is not None:
            connection.__class__ = _Connection
            if connection._reader is not None:
                connection._reader.__class__ = _Frames
        return connection

    async def send(
        self, node_id: Any, request: Any, *, group: ConnectionGroup = ConnectionGroup.DEFAULT
    ) -> Any:
        answer = await super().send(node_id, request, group=group)
        if isinstance(request, FetchRequest):
            refused = {
                TopicPartition(topic, number): for_code(code).__name__
                for topic, partitions in answer.topics
                for number, code, *_ in partitions
                if code
            }
            if refused:
                # aiokafka asks again at once, as fast as the broker refuses.
                await asyncio.sleep(PAUSE_SECONDS)
            if refused or self.refusals:
                for topic, partitions in answer.topics:
                    for number, *_ in partitions:
                        self.refusals.pop(TopicPartition(topic, number), None)
                self.refusals |= refused
        return answer

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> Any:
        if cluster_metadata is self.cluster:
            # While a partition has no leader, the fetcher asks again as soon as it is answered.
            await asyncio.sleep(self._next_update - monotonic())
        updated = await super()._metadata_update(cluster_metadata, topics)
        self._next_update = monotonic() + (PAUSE_SECONDS if updated else OUTAGE_SECONDS)
        return updated


def make_consumer(connect_seconds: float, **options: Any) -> AIOKafkaConsumer:
    """Make a consumer that creates no topic, and keeps brokers apart.

    It tries all its bootstrap servers within `connect_seconds`.
    """
    consumer = AIOKafkaConsumer(**options)
    consumer._client.__class__ = _Client
    consumer._client.adopt(connect_seconds)
    return consumer


def make_admin(connect_seconds: float, **options: Any) -> AIOKafkaAdminClient:
    """Make an admin client likewise."""
    admin = AIOKafkaAdminClient(**options)
    admin._client.__class__ = _Client
    admin._client.adopt(connect_seconds)
    return admin


# Reading


class _RecordsAsRead(PartitionRecords):  # type: ignore[misc] # aiokafka is not typed
    """Gives each record as the C extension reads it: aiokafka would copy it field by field.

    It has no topic and partition, which `getmany` gives beside it.
    """

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        return record


class _Records:
    """The records of one answer: what can't be read ends them, and is told, in place of raising.

    Raised, it would take with it what was read before it, of other partitions too.
    """

    def __init__(self, place: TopicPartition, records: PartitionRecords, stopped: Stopped) -> None:
        self._place = place
        self._records = records
        self._stopped = stopped
        records.__class__ = _RecordsAsRead
        self._iterator = self._guarded()

    @property
    def next_fetch_offset(self) -> int:
        offset: int = self._records.next_fetch_offset
        return offset

    def __iter__(self) -> Iterator[Any]:
        return self._iterator  # one for all who take some: each goes on where the last one stopped

    def _guarded(self) -> Iterator[Any]:
        try:
            yield from self._records._records_iterator
        except Exception as error:  # noqa: BLE001 - codecs, structs and texts raise what they like
            self._stopped(self._place, self._records.next_fetch_offset, error)


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What the fetcher has in store, each answer guarded as it is put in."""

    def __init__(self, stopped: Stopped) -> None:
        super().__init__()
        self._stopped = stopped

    def __setitem__(self, place: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            result._partition_records = _Records(place, result._partition_records, self._stopped)
        super().__setitem__(place, result)


def take_over(consumer: AIOKafkaConsumer, stopped: Stopped) -> None:
    """Have `consumer`, started and not subscribed yet, leave to us what can't be read, and all positions.

    It calls `stopped` in the midst of `getmany`, where it would raise and skip; the partition's position is
    then the offset told. Positions are ours to `seek` after each assignment: it would ask the coordinator for
    them, and fetch nothing while that gives no answer.
    """
    consumer._fetcher._records = _Fetched(stopped)
    consumer._fetcher._update_fetch_positions = _wait_for_positions


async def _wait_for_positions(assignment: Any, _node: int, places: Collection[TopicPartition]) -> bool:
    """Return once all of `places` have a position, or the assignment is over."""
    positions = asyncio.gather(*(assignment.state_value(place).wait_for_position() for place in places))
    try:
        await asyncio.wait([positions, assignment.unassign_future], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        pass  # whoever cancels a task of the fetcher awaits it, and expects no error
    return False


def raise_what_ended_reading(consumer: AIOKafkaConsumer) -> None:
    """Raise the error that ended the client's reading, if one has: `getmany` would wait without end."""
    task = consumer._fetcher._fetch_task
    if task.done() and not task.cancelled():
        task.result()


def has_records(consumer: AIOKafkaConsumer, place: TopicPartition) -> bool:
    """Tell whether the client has records of `place` in store."""
    return place in consumer._fetcher._records


def position(consumer: AIOKafkaConsumer, place: TopicPartition) -> int | None:
    """Return the offset read next, None where there is none; `consumer.position()` would wait for one."""
    assignment = consumer._subscription.subscription.assignment
    state = None if assignment is None else assignment.state_value(place)
    return state.position if state is not None and state.has_valid_position else None


async def fetch_batches(
    consumer: AIOKafkaConsumer, place: TopicPartition, offset: int, *, isolation_level: str
) -> bytes:
    """Return the batches of `place` from the one that holds `offset` on, as they are. Raises KafkaError."""
    client = consumer._client
    leader = client.cluster.leader_for_partition(place)
    if leader is None or leader < 0:
        raise NotLeaderForPartitionError(place)
    isolation = 1 if isolation_level == "read_committed" else 0
    asked = [(place.topic, [(place.partition, offset, _WHOLE_BATCH)])]
    answer = await client.send(leader, FetchRequest(100, 1, _WHOLE_BATCH, isolation, asked))
    ((_, ((_, code, *_, batches),)),) = answer.topics
    if code:
        raise for_code(code)(place.topic)
    return bytes(batches)


def refusal(consumer: AIOKafkaConsumer, place: TopicPartition) -> str | None:
    """Return why a broker refused the last fetch of `place`; None when it did not."""
    reason: str | None = consumer._client.refusals.get(place)
    return reason


# The group


def generation(consumer: AIOKafkaConsumer) -> int:
    """Return the group's generation that we are a member of; negative when we are none (any more)."""
    number: int = consumer._coordinator.generation
    return number


def knows_coordinator(consumer: AIOKafkaConsumer) -> bool:
    """Tell whether the group's coordinator is known, and was there when it was last needed."""
    return consumer._coordinator.coordinator_id is not None


async def commit(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
    """Commit. Raises KafkaError; what may be tried again is.

    `consumer.commit()` refuses while a pattern's new subscription has no assignment yet, which is when the
    old one must be committed.
    """
    await consumer._coordinator.commit_offsets(None, offsets)


async def committed(
    consumer: AIOKafkaConsumer, places: Collection[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return the group's commits for `places`, in one exchange; without those that have none.

    Raises KafkaError; what may be tried again is.
    """
    found = await consumer._coordinator.fetch_committed_offsets(list(places))
    return {place: at for place, at in found.items() if at.offset >= 0}


async def coordinator_trouble(
    client: AIOKafkaConsumer | AIOKafkaAdminClient, group: str, seconds: float
) -> str | None:
    """Return what is wrong with the coordinator of `group`; None when it can be reached.

    Takes `seconds` at most for each of two steps.
    """
    inner = client._client
    node, answers = None, []
    try:
        async with asyncio.timeout(seconds):
            for asked in brokers(client):
                try:
                    answer = await inner.send(asked, FindCoordinatorRequest(group, CoordinationType.GROUP))
                except NodeNotReadyError:
                    answers.append(f"{describe(client, asked)} can't be reached")
                    continue
                if not answer.error_code:
                    node = answer.coordinator_id
                    break
                answers.append(f"{describe(client, asked)} says {for_code(answer.error_code).__name__}")
    except (KafkaError, OSError) as error:
        answers.append(reason_of(error))
    except TimeoutError:
        answers.append(f"no answer in {seconds:g} s")
    if node is None:
        return f"no broker tells who coordinates group {group}: {', '.join(answers) or 'none is known'}"
    try:
        async with asyncio.timeout(seconds):
            if await inner.ready(node, group=ConnectionGroup.COORDINATION):
                return None
    except TimeoutError:
        pass
    return f"the coordinator of group {group}, {describe(client, node)}, can't be reached"


# The cluster


def brokers(client: AIOKafkaConsumer | AIOKafkaAdminClient) -> dict[int, tuple[str, int]]:
    """Return the addresses that the cluster's brokers advertise, by their ids."""
    return {one.nodeId: (one.host, one.port) for one in client._client.cluster.brokers()}


def describe(client: AIOKafkaConsumer | AIOKafkaAdminClient, node: int) -> str:
    """Name a broker by its id and the address it advertises."""
    address = brokers(client).get(node)
    return f"broker {node}" if address is None else f"broker {node} at {address[0]}:{address[1]}"


def by_leader(
    consumer: AIOKafkaConsumer, places: Iterable[TopicPartition]
) -> dict[int | None, list[TopicPartition]]:
    """Sort `places` by the id of the broker that leads them; None or -1 for no leader."""
    led: dict[int | None, list[TopicPartition]] = defaultdict(list)
    for place in places:
        led[consumer._client.cluster.leader_for_partition(place)].append(place)
    return dict(led)


async def refresh_layout(consumer: AIOKafkaConsumer) -> None:
    """Ask for the brokers, topics and partitions there are now. Raises KafkaTimeoutError."""
    if not await consumer._client.force_metadata_update():
        raise KafkaTimeoutError("no broker tells the cluster's layout")


# The end


async def close_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group and close the connections in about twice CLOSE_SECONDS, whatever the broker does."""
    # In a task of its own: it lets the cancellation of an inner fetch escape, which is not meant for us.
    stopping = asyncio.create_task(consumer.stop())
    try:
        await asyncio.wait([stopping], timeout=CLOSE_SECONDS)
        if stopping.done() and not stopping.cancelled() and stopping.exception() is None:
            return
    finally:
        stopping.cancel()
    # Cut off in the middle (a rebalance in flight, a silent broker), it leaves its parts running.
    fetcher, coordinator = consumer._fetcher, consumer._coordinator
    left: set[asyncio.Task[Any]] = {stopping}
    if fetcher is not None:
        left |= {fetcher._fetch_task, *fetcher._pending_tasks}
    if coordinator is not None:
        left |= {
            coordinator._coordination_task,
            coordinator._heartbeat_task,
            coordinator._commit_refresh_task,
        } - {None}
    for task in left:
        task.cancel()
    left.add(asyncio.create_task(consumer._client.close()))
    ended, _ = await asyncio.wait(left, timeout=CLOSE_SECONDS)
    for task in ended:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it
