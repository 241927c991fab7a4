"""One connection's life: read, hand over, commit, give way to a rebalance, notice a dead broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.core.ports import Slots
from bridge.sources.handover import Handover
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.ledger import Ledger
from bridge.sources.kafka.records import to_event
from bridge.telemetry.metrics import SourceMetrics

GAP = 10_000
"""Records of one partition between its committed prefix and the newest one handed out."""
BATCH = 500
"""Records handed over at once, at most."""
POLL_SECONDS = 1.0
COMMIT_SECONDS = 1.0
"""Between two commits."""
CALL_SECONDS = 20.0
"""For one exchange with the broker, aiokafka's own retries included."""
CLOSE_SECONDS = 5.0
"""For each of the last commit, leaving the group and closing the connections."""
DRAIN_SECONDS = 10.0
"""How long a rebalance waits for what is in the bridge's hands."""
GATHER_SECONDS = 0.002
"""A full bridge frees slots one by one: so long they gather, for a batch instead of single records."""
SILENCE_SECONDS = 15.0
"""Without an answer to a fetch this long, the broker is asked whether it is there."""
STUCK_SECONDS = 60.0
"""The broker is there, yet no fetch has been answered this long: the client is stuck."""
STUCK_REBALANCE_SECONDS = 900.0
"""A rebalance waits for its slowest member, whose own max.poll.interval is 5 minutes by default."""

_NOWHERE = TopicPartition("", -1)

Lost = Callable[[TopicPartition, int, int, int], None]
"""Told of records that the broker no longer has: where, how many, the offset asked for, the next one read."""


class Reader(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka is not typed
    """Owns a started consumer between `run` and `close`; `batches` is what the runner iterates."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        config: KafkaConfig,
        *,
        identity: str,
        slots: Slots,
        metrics: SourceMetrics,
        lost: Lost,
        log: Any,
    ) -> None:
        self.batches = Handover()
        self._consumer = consumer
        self._config = config
        self._identity = identity
        self._slots = slots
        self._metrics = metrics
        self._tell_lost = lost
        self._log = log

        self._ledgers: dict[TopicPartition, Ledger] = {}
        self._held: set[TopicPartition] = set()
        """Partitions paused at the bound of their gap."""
        self._unsettled = 0
        self._idle = asyncio.Event()
        """Nothing is in the bridge's hands, or nobody may wait for it any more."""
        self._idle.set()
        self._changed = asyncio.Event()
        """There may be something to commit."""
        self._committing = asyncio.Lock()
        self._assigned = asyncio.Event()
        """Positions of the present assignment are set."""
        self._releasing = False
        self._stopping = False
        self._failure: asyncio.Future[SourceLost] = asyncio.get_running_loop().create_future()
        self._heard = time.monotonic()
        self._answered = 0
        self._full = False
        self._most_slots = 0
        # Waiting for a full bridge must not look like a member that reads nothing.
        self._keep_alive = min(POLL_SECONDS, config.max_poll_interval / 4)
        self._drain = min(DRAIN_SECONDS, config.max_poll_interval / 2)

    @property
    def is_assigned(self) -> bool:
        return self._assigned.is_set()

    async def run(self) -> None:
        """Read until cancelled, or until the upstream is lost: then release everything, tell the runner."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._commit_settled())
                tasks.create_task(self._watch())
                tasks.create_task(self._heed_failure())
        except* Exception as group:  # noqa: BLE001 - whatever it was, the runner must hear of it
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if not isinstance(error, (SourceLost, KafkaError)):
                self._log.error("kafka reader failed", exc_info=error)
            self._release_all()
            lost = error if isinstance(error, SourceLost) else SourceLost(_reason(error))
            self.batches.fail(lost)

    async def close(self) -> None:
        """Commit what is settled, release the rest, leave the group. Never raises what the broker did."""
        self._stopping = True
        self._idle.set()
        try:
            await self._commit(CLOSE_SECONDS)
        except (KafkaError, SourceLost) as error:
            self._log.warning("kafka: last commit failed; its events will come again", reason=_reason(error))
        finally:
            self._release_all()
            await close_consumer(self._consumer)

    # Reading

    async def _read(self) -> None:
        while True:
            room = await self._room()
            self._resume_held()
            try:
                fetched = await self._consumer.getmany(timeout_ms=0, max_records=room)
                if not fetched:
                    self._adopt_positions()
                    fetched = await self._consumer.getmany(
                        timeout_ms=int(self._keep_alive * 1000), max_records=room
                    )
            except OffsetOutOfRangeError as error:
                for place, offset in error.args[0].items():
                    await self._read_on_from_earliest(place, offset)
                continue
            except NoOffsetForPartitionError:
                # aiokafka was faster than `on_partitions_assigned`, which will seek.
                await self._assigned.wait()
                continue
            self._hand_over(fetched)
            self._tell_lag()

    async def _room(self) -> int:
        """Wait until the runner took the last batch and has free slots; give how many records may be read."""
        while not (self.batches.is_empty and self._slots.free > 0):
            try:
                async with asyncio.timeout(self._keep_alive):
                    await self.batches.emptied()
                    if self._slots.free <= 0:
                        self._full = True
                        await self._slots.wait()
                        if self._most_slots >= BATCH:
                            await asyncio.sleep(GATHER_SECONDS)
            except TimeoutError:
                # A poll of no partition: the group sees us read, and what was fetched stays in the client,
                # where pausing would throw it away to be fetched again.
                await self._consumer.getmany(_NOWHERE, timeout_ms=0)
        if self._full:
            self._full = False
            self._heard = time.monotonic()
        free = self._slots.free
        self._most_slots = max(self._most_slots, free)
        return min(free, BATCH)

    def _hand_over(self, fetched: dict[TopicPartition, list[Any]]) -> None:
        batch: list[Delivery] = []
        for place, records in fetched.items():
            ledger = self._ledgers.get(place)
            if ledger is None:
                continue  # read before `on_partitions_assigned` has set the position, which will seek back
            for record in records:
                delivery = Delivery(to_event(record, self._identity), self._settled)
                ledger.add(record.offset, delivery)
                batch.append(delivery)
            if len(ledger) >= GAP:
                ledger.prefix()
                if len(ledger) >= GAP:
                    self._consumer.pause(place)
                    self._held.add(place)
                    self._log.warning("kafka: partition waits for its oldest event", partition=_name(place))
        if batch:
            self._unsettled += len(batch)
            self._idle.clear()
            self.batches.put(batch)

    def _resume_held(self) -> None:
        for place in list(self._held):
            self._ledgers[place].prefix()
            if len(self._ledgers[place]) < GAP // 2:
                self._held.discard(place)
                self._consumer.resume(place)

    def _adopt_positions(self) -> None:
        """Take trailing holes (aborted transactions, control records, compaction) as settled.

        Only called when the client has neither records nor an error in store, since aiokafka moves the
        position past a record too large to fetch before it raises the error.
        """
        for place, ledger in self._ledgers.items():
            position = self._position(place)
            if position is not None and position > ledger.position:
                ledger.skip_to(position)
                self._changed.set()

    def _position(self, place: TopicPartition) -> int | None:
        # `consumer.position()` would wait where there is none.
        assignment = self._consumer._subscription.subscription.assignment  # noqa: SLF001 - see above
        state = None if assignment is None else assignment.state_value(place)
        return state.position if state is not None and state.has_valid_position else None

    def _tell_lag(self) -> None:
        lag, answered = 0, 0
        assigned = self._consumer.assignment()
        for place, ledger in self._ledgers.items():
            if place in assigned:
                # The highwater mark comes with each fetch; asking for end offsets is an exchange of its own.
                lag += max(0, (self._consumer.highwater(place) or 0) - ledger.position)
                answered = max(answered, self._consumer.last_poll_timestamp(place) or 0)
        self._metrics.lag(lag)
        if answered != self._answered:
            self._answered, self._heard = answered, time.monotonic()

    async def _read_on_from_earliest(self, place: TopicPartition, offset: int) -> None:
        """The broker has no `offset`: count what is missing, and read on from what there is."""
        async with _answer("the earliest offset", CALL_SECONDS):
            begin = (await self._consumer.beginning_offsets([place]))[place]
        ledger = self._ledgers.get(place)
        if begin <= offset and ledger is not None and any(ledger.unsettled()):
            # Beyond the end: the topic was made anew or cut. What is in the bridge's hands may finish.
            await self._drained()
            ledger = self._ledgers.get(place)
        if ledger is None or not self._assigned.is_set():
            return  # revoked meanwhile; who gets the partition meets the same
        missing = begin - offset
        if begin > offset:
            ledger.skip_to(begin)
        else:
            missing = max(1, self._release(ledger.unsettled()))
            self._ledgers[place] = Ledger(begin)
            self._held.discard(place)
            self._consumer.resume(place)
        self._consumer.seek(place, begin)
        self._tell_lost(place, missing, offset, begin)
        self._changed.set()

    # Settling and committing

    def _settled(self, _delivery: Delivery, outcome: Outcome) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._idle.set()
        self._changed.set()
        if outcome is Outcome.RELEASED and not self._releasing:
            self._fail(SourceLost("an event was given back, so the partition is read again from its commit"))

    def _release(self, deliveries: Iterable[Delivery]) -> int:
        self._releasing = True
        count = 0
        for delivery in deliveries:
            delivery.settle(Outcome.RELEASED)
            count += 1
        self._releasing = False
        return count

    def _release_all(self) -> None:
        self.batches.withdraw()
        for ledger in self._ledgers.values():
            self._release(ledger.unsettled())

    async def _drained(self) -> None:
        try:
            async with asyncio.timeout(self._drain):
                await self._idle.wait()
        except TimeoutError:
            self._log.info("kafka: not all events were settled in time", unsettled=self._unsettled)

    async def _commit_settled(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._commit(CALL_SECONDS)
            await asyncio.sleep(COMMIT_SECONDS)

    async def _commit(self, seconds: float) -> None:
        """Commit each partition's prefix. Raises SourceLost when the broker does not take it in time."""
        async with _answer("a commit", seconds), self._committing:
            offsets = {
                place: OffsetAndMetadata(prefix, "")
                for place, ledger in self._ledgers.items()
                if (prefix := ledger.prefix()) != ledger.committed
            }
            if not offsets or self._is_expelled():
                return
            ledgers = {place: self._ledgers[place] for place in offsets}
            try:
                # Not `consumer.commit()`: it refuses while a pattern's new subscription has no assignment
                # yet, which is when the old one must be committed. Retriable errors are retried within.
                coordinator = self._consumer._coordinator  # noqa: SLF001 - see above
                await coordinator.commit_offsets(None, offsets)
            except CommitFailedError as error:
                # The group goes on without us: the rebalance that follows takes the partitions away.
                self._log.warning("kafka: commit refused", reason=_reason(error.__cause__ or error))
                return
            for place, ledger in ledgers.items():
                ledger.committed = offsets[place].offset

    # The group

    def _is_expelled(self) -> bool:
        """Tell whether the group goes on without us: others hold the partitions, and waiting is no use."""
        # aiokafka drops its generation when the broker does not know the member any more.
        return bool(self._consumer._coordinator.generation < 0)  # noqa: SLF001 - there is no public way

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Drain, commit, release the rest, forget. aiokafka waits for this before it joins again."""
        self._assigned.clear()
        try:
            self._release(self.batches.withdraw())
            if not (self._is_expelled() or self._stopping or self._failure.done()):
                await self._drained()
            await self._commit(CALL_SECONDS)
        except (KafkaError, SourceLost) as error:
            self._log.warning("kafka: commit before a rebalance failed", reason=_reason(error))
        finally:
            self._release_all()
            self._ledgers.clear()
            self._held.clear()
            if places := sorted(map(_name, revoked)):
                self._log.info("kafka: partitions revoked", partitions=places)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Set each partition's position: the committed offset, or where the configuration begins."""
        places = sorted(assigned)
        try:
            # No heartbeat goes out during this call, so it must end well within the session.
            async with _answer("committed offsets", min(CALL_SECONDS, self._config.session_timeout / 2)):
                async with asyncio.TaskGroup() as tasks:
                    asked = {place: tasks.create_task(self._consumer.committed(place)) for place in places}
                committed = {place: task.result() for place, task in asked.items()}
                begins = await self._consumer.beginning_offsets(places)
                fresh = [place for place in places if committed[place] is None]
                starts = await self._starts(fresh, begins)
            for place in places:
                offset = committed[place]
                start = starts[place] if offset is None else max(offset, begins[place])
                self._consumer.seek(place, start)
                self._ledgers[place] = Ledger(start, committed=offset)
                if offset is not None and offset < start:
                    self._tell_lost(place, start - offset, offset, start)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - aiokafka would only log it
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            self._fail(error if isinstance(error, SourceLost) else SourceLost(_reason(error)))
            return
        self._log.info("kafka: partitions assigned", partitions=[_name(place) for place in places])
        self._heard = time.monotonic()
        self._assigned.set()
        # Also commits where a fresh partition begins: `latest` must not mean a later one after a restart.
        self._changed.set()

    async def _starts(
        self, places: list[TopicPartition], begins: dict[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        if not places:
            return {}
        if self._config.start_at is None:
            if self._config.auto_offset_reset == "earliest":
                return begins
            return dict(await self._consumer.end_offsets(places))
        moment = int(self._config.start_at.timestamp() * 1000)
        found = await self._consumer.offsets_for_times(dict.fromkeys(places, moment))
        ends = await self._consumer.end_offsets(places)
        return {
            # No record that late yet: what comes next is the first. (Some brokers say so by -1.)
            place: ends[place] if at is None or at.timestamp < 0 else at.offset
            for place, at in found.items()
        }

    # Noticing a dead broker

    async def _watch(self) -> None:
        """aiokafka retries for ever and says nothing; the runner must know."""
        while True:
            await asyncio.sleep(SILENCE_SECONDS)
            silent = time.monotonic() - self._heard
            if silent < SILENCE_SECONDS:
                continue
            async with _answer("a question after a silence", CALL_SECONDS):
                await self._consumer.topics()
            if self._full or not (self._consumer.assignment() - self._held):
                continue
            if silent > (STUCK_SECONDS if self._assigned.is_set() else STUCK_REBALANCE_SECONDS):
                raise SourceLost(f"the broker is there, but nothing could be read for {silent:.0f} s")

    def _fail(self, lost: SourceLost) -> None:
        if not self._failure.done():
            self._failure.set_result(lost)

    async def _heed_failure(self) -> None:
        raise await self._failure


@asynccontextmanager
async def _answer(what: str, seconds: float) -> AsyncIterator[None]:
    """Bound an exchange with the broker: no answer in time is a lost source."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise SourceLost(f"the broker gave no answer to {what} in {seconds:g} s") from None


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
    fetcher, coordinator = consumer._fetcher, consumer._coordinator  # noqa: SLF001 - there is no public way
    left: set[asyncio.Task[Any]] = {stopping}
    if fetcher is not None:
        left |= {fetcher._fetch_task, *fetcher._pending_tasks}  # noqa: SLF001 - see above
    if coordinator is not None:
        left |= {
            coordinator._coordination_task,  # noqa: SLF001 - see above
            coordinator._heartbeat_task,  # noqa: SLF001 - see above
            coordinator._commit_refresh_task,  # noqa: SLF001 - see above
        } - {None}
    for task in left:
        task.cancel()
    left.add(asyncio.create_task(consumer._client.close()))  # noqa: SLF001 - see above
    ended, _ = await asyncio.wait(left, timeout=CLOSE_SECONDS)
    for task in ended:
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it


def _name(place: TopicPartition) -> str:
    return f"{place.topic}/{place.partition}"


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
