"""One connection's life: read, hand over, commit, give way to a rebalance."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    KafkaError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicAuthorizationFailedError,
)

import bridge.sources.kafka.aiokafka_private as aiokafka_private
from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost, root_cause
from bridge.core.event import Event
from bridge.core.ports import Slots
from bridge.sources.handover import Handover
from bridge.sources.kafka.beginnings import Beginnings
from bridge.sources.kafka.config import KafkaConfig
from bridge.sources.kafka.connection import reason_of
from bridge.sources.kafka.health import Health
from bridge.sources.kafka.ledger import Ledger
from bridge.sources.kafka.positions import Lost, Positions
from bridge.sources.kafka.records import to_delivery
from bridge.sources.kafka.unreadable import Unreadable
from bridge.sources.kafka.watch import CALL_SECONDS, Watch, answer
from bridge.sources.opening import Opening
from bridge.sources.reading import lost_with
from bridge.sources.storage_events import may_be_one
from bridge.telemetry.metrics import SourceMetrics

GAP = 10_000
"""Records of one partition between its committed prefix and the newest one handed out."""
BATCH = 500
"""Records handed over at once, at most."""
OPENED_BATCH = 32
"""Likewise where they are opened, which takes up to 0.1 ms each: the other tasks have their turn between."""
POLL_SECONDS = 1.0
COMMIT_SECONDS = 1.0
"""Between two commits."""
CLOSE_SECONDS = 5.0
"""For the last commit."""
DRAIN_SECONDS = 10.0
"""How long a rebalance waits for what is in the bridge's hands."""
GATHER_SECONDS = 0.002
"""A full bridge frees slots one by one: so long they gather, for a batch instead of single records."""

_NOWHERE = TopicPartition("", -1)


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
        beginnings: Beginnings,
        health: Health,
        log: Any,
    ) -> None:
        self.batches = Handover()
        self._consumer = consumer
        self._config = config
        self._identity = identity
        self._slots = slots
        self._metrics = metrics
        self._tell_lost = lost
        self._beginnings = beginnings
        self._health = health
        self._log = log

        self._ledgers: dict[TopicPartition, Ledger] = {}
        self._held: set[TopicPartition] = set()
        """Partitions paused at the bound of their gap."""
        self._ready: deque[Delivery] = deque()
        """Read, and not handed over yet: an opened record may hold more events than there are slots."""
        self._opening = Opening(config.open, self._ready.append, metrics, log)
        self._opens = config.open != "none"
        self._unsettled = 0
        self._idle = asyncio.Event()
        """Nothing is in the bridge's hands, or nobody may wait for it any more."""
        self._idle.set()
        self._changed = asyncio.Event()
        """There may be something to commit."""
        self._all_committed = True
        """Whether nothing has settled since a commit began."""
        self._committing = asyncio.Lock()
        self._assigned = asyncio.Event()
        """Positions of the present assignment are set."""
        self._releasing = False
        self._stopping = False
        self._failure: asyncio.Future[SourceLost] = asyncio.get_running_loop().create_future()
        self._joined = asyncio.Event()
        """The group has given partitions once, or none."""
        self._most_slots = 0
        self._looks = "open" not in config.model_fields_set
        """Nobody has decided yet whether storage events are opened, nor been asked to."""
        self._batch = BATCH if config.open == "none" else OPENED_BATCH
        # Waiting for a full bridge must not look like a member that reads nothing.
        self._keep_alive = min(POLL_SECONDS, config.max_poll_interval / 4)
        self._drain = min(DRAIN_SECONDS, config.max_poll_interval / 2)
        self._unreadable = Unreadable(
            consumer, self._ledgers, health, isolation_level=config.isolation_level, resume=self._resume
        )
        self._positions = Positions(
            consumer, self._ledgers, beginnings, health, lost=lost, resume=self._resume, changed=self._changed
        )
        self._watch = Watch(
            consumer, config, health, self._ledgers, assigned=self._assigned, waits=self._waits
        )
        aiokafka_private.take_over(
            consumer, lambda place, offset, error: self._unreadable.hold(place, error, offset)
        )

    @property
    def is_assigned(self) -> bool:
        return self._assigned.is_set()

    async def joined(self) -> None:
        """Return once the group has given partitions, or none; without end when `run` ends before."""
        await self._joined.wait()
        await self._watch.look_for_topics()

    async def run(self) -> None:
        """Read until cancelled, or until the upstream is lost: then release everything, tell the runner."""
        async with lost_with(
            self.batches,
            "kafka reader failed",
            self._log,
            release=self._release_all,
            expected=(KafkaError,),
            explain=reason_of,
        ) as tasks:
            tasks.create_task(self._read())
            tasks.create_task(self._commit_settled())
            tasks.create_task(self._watch.run())
            tasks.create_task(self._unreadable.run())
            tasks.create_task(self._positions.begin_late())
            tasks.create_task(self._heed_failure())

    async def close(self) -> None:
        """Commit what is settled, release the rest, leave the group. Never raises what the broker did."""
        self._stopping = True
        self._idle.set()
        try:
            await self._commit(CLOSE_SECONDS)
        except (KafkaError, SourceLost) as error:
            self._log.warning(
                "kafka: last commit failed; its events will come again", reason=reason_of(error)
            )
        finally:
            self._release_all()
            await aiokafka_private.close_consumer(self._consumer)

    # Reading

    async def _read(self) -> None:
        while True:
            room = await self._room()
            if self._ready:
                self._offer(room)
                continue
            self._resume_held()
            try:
                fetched = self._unreadable.take(room)
                if not fetched:
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
            except RecordTooLargeError as error:
                _, place, offset, *_ = error.args
                self._consumer.seek(place, offset)  # it went past it
                self._unreadable.hold(place, error, offset)
                continue
            except TopicAuthorizationFailedError as error:
                for place in self._ledgers.keys() & self._consumer.assignment():
                    if place.topic in error.args:
                        self._unreadable.hold(place, error)
                continue
            self._take(fetched)
            await self._opening.finish()
            self._offer(room)
            self._tell_lag()

    async def _room(self) -> int:
        """Wait until the runner took the last batch and has free slots; give how many records may be read."""
        while not (self.batches.is_empty and self._slots.free > 0):
            try:
                async with asyncio.timeout(self._keep_alive):
                    await self.batches.emptied()
                    if self._slots.free <= 0:
                        await self._slots.wait()
                        if self._most_slots >= BATCH:
                            await asyncio.sleep(GATHER_SECONDS)
            except TimeoutError:
                # A poll of no partition: the group sees us read, and what was fetched stays in the client,
                # where pausing would throw it away to be fetched again.
                await self._consumer.getmany(_NOWHERE, timeout_ms=0)
        free = self._slots.free
        self._most_slots = max(self._most_slots, free)
        return min(free, self._batch)

    def _take(self, fetched: dict[TopicPartition, list[Any]]) -> None:
        for one in self._ledgers.values():
            one.prefix()  # lets go of what has settled: the events of a second would be 20 MiB and more
        since, identity, settled = monotonic(), self._identity, self._settled
        for place, records in fetched.items():
            ledger = self._ledgers.get(place)
            if ledger is None or not records:
                continue  # read before `on_partitions_assigned` has set the position, which will seek back
            self._unsettled += len(records)
            deliveries = [to_delivery(record, place, identity, settled, since) for record in records]
            ledger.add([record.offset for record in records], deliveries)
            if self._looks:
                self._look_at(random.choice(deliveries).event, place)
            if self._opens:
                for delivery in deliveries:
                    self._opening.take(delivery)
            else:
                self._ready.extend(deliveries)
            if len(ledger) >= GAP:
                ledger.prefix()
                if len(ledger) >= GAP:
                    self._consumer.pause(place)
                    self._held.add(place)
                    self._log.warning("kafka: partition waits for its oldest event", partition=_name(place))
        if self._unsettled:
            self._idle.clear()

    def _look_at(self, event: Event, place: TopicPartition) -> None:
        """Tell, once, of storage events that are taken as they are; one of each fetch is looked at."""
        if may_be_one(event.data):
            self._looks = False
            self._log.warning(
                "kafka: a storage event is taken as it is, and of several records in one the service "
                "sees the first; write `open: auto` for one event a record, or `open: none`",
                partition=_name(place),
                offset=int(event.attributes["offset"]),
            )

    def _offer(self, room: int) -> None:
        if len(self._ready) <= room:
            batch = [delivery for delivery in self._ready if delivery.outcome is None]
            self._ready.clear()
        else:
            batch = []
            while self._ready and len(batch) < room:
                delivery = self._ready.popleft()
                if delivery.outcome is None:
                    batch.append(delivery)
        if batch:
            self.batches.put(batch)

    def _resume_held(self) -> None:
        for place in list(self._held):
            self._ledgers[place].prefix()
            if len(self._ledgers[place]) < GAP // 2:
                self._held.discard(place)
                self._resume(place)

    def _resume(self, place: TopicPartition) -> None:
        is_ours = place in self._consumer.assignment()  # it is not while a pattern's topics turn over
        if is_ours and place not in self._held and place not in self._unreadable:
            self._consumer.resume(place)

    def _waits(self, place: TopicPartition) -> bool:
        return (
            place in self._held
            or place in self._unreadable
            or aiokafka_private.has_records(self._consumer, place)
        )

    def _adopt_positions(self) -> None:
        """Take trailing holes (aborted transactions, control records, compaction) as settled.

        Only called when the client has neither records nor an error in store, since aiokafka moves the
        position past a record too large to fetch before it raises the error.
        """
        for place, ledger in self._ledgers.items():
            position = aiokafka_private.position(self._consumer, place)
            if position is not None and position > ledger.position:
                ledger.skip_to(position)
                self._changed.set()

    def _tell_lag(self) -> None:
        """Tell how many records are not handed out yet; nothing unless it is known of every partition."""
        lag = 0
        known = self._assigned.is_set() and not (self._positions.late or self._watch.silent)
        assigned = self._consumer.assignment()
        for place, ledger in self._ledgers.items():
            # The highwater mark comes with each fetch; asking for end offsets is an exchange of its own.
            highwater = self._consumer.highwater(place) if place in assigned else None
            if highwater is None:
                known = False
                break
            lag += max(0, highwater - ledger.position)
        self._metrics.lag(lag if known else None)

    async def _read_on_from_earliest(self, place: TopicPartition, offset: int) -> None:
        """The broker has no `offset`: count what is missing, and read on from what there is."""
        async with answer("the earliest offset", CALL_SECONDS):
            begin = (await self._consumer.beginning_offsets([place]))[place]
        ledger = self._ledgers.get(place)
        if begin <= offset and ledger is not None and any(ledger.unsettled()):
            # Beyond the end: the topic was made anew or cut. What is in the bridge's hands may finish.
            await self._drained()
            ledger = self._ledgers.get(place)
        if ledger is None or not self._assigned.is_set() or place not in self._consumer.assignment():
            return  # revoked meanwhile; who gets the partition meets the same
        missing = begin - offset
        if begin > offset:
            ledger.skip_to(begin)
        else:
            missing = max(1, self._release(ledger.unsettled()))
            self._ledgers[place] = Ledger(begin)
            self._held.discard(place)
            self._resume(place)
        self._consumer.seek(place, begin)
        self._tell_lost(place, missing, offset, begin)
        self._changed.set()

    # Settling and committing

    def _settled(self, _delivery: Delivery, outcome: Outcome) -> None:
        self._unsettled -= 1
        if not self._unsettled:
            self._idle.set()
        if self._all_committed:
            self._all_committed = False
            self._changed.set()
        # Of a record that was opened, part may have been given back by a rebalance; then the rest ends here.
        if outcome is Outcome.RELEASED and not self._releasing and self._assigned.is_set():
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
        self._ready.clear()
        for ledger in self._ledgers.values():
            self._release(ledger.unsettled())
        self._metrics.lag(None)

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
            self._all_committed = True
            await self._commit(CALL_SECONDS)
            await asyncio.sleep(COMMIT_SECONDS)

    async def _commit(self, seconds: float) -> None:
        """Commit each partition's prefix. Raises SourceLost when the broker does not take it in time."""
        async with answer("a commit", seconds), self._committing:
            mark = self._beginnings.mark(self._consumer)
            offsets = {
                place: OffsetAndMetadata(prefix, mark)
                for place, ledger in self._ledgers.items()
                if (prefix := ledger.prefix()) != ledger.committed
            }
            if not offsets or self._is_expelled():
                return
            ledgers = {place: self._ledgers[place] for place in offsets}
            try:
                await aiokafka_private.commit(self._consumer, offsets)
            except CommitFailedError as error:
                # The group goes on without us: the rebalance that follows takes the partitions away.
                self._log.warning("kafka: commit refused", reason=reason_of(error.__cause__ or error))
                return
            for place, ledger in ledgers.items():
                ledger.committed = offsets[place].offset
            self._metrics.committed()

    # The group

    def _is_expelled(self) -> bool:
        """Tell whether the group goes on without us: others hold the partitions, and waiting is no use."""
        # aiokafka drops its generation when the broker does not know the member any more.
        return aiokafka_private.generation(self._consumer) < 0

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Drain, commit, release the rest, forget. aiokafka waits for this before it joins again."""
        self._assigned.clear()
        self._metrics.lag(None)
        try:
            self._release([*self.batches.withdraw(), *self._ready])
            self._ready.clear()
            if not (self._is_expelled() or self._stopping or self._failure.done()):
                await self._drained()
            await self._commit(CALL_SECONDS)
        except (KafkaError, SourceLost) as error:
            self._log.warning("kafka: commit before a rebalance failed", reason=reason_of(error))
        finally:
            self._release_all()
            self._ledgers.clear()
            self._held.clear()
            self._unreadable.clear()
            self._positions.clear()
            if places := sorted(map(_name, revoked)):
                self._log.info("kafka: partitions revoked", partitions=places)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Set each partition's position: the committed offset, or where the configuration begins."""
        places = sorted(assigned)
        self._health.forget(lambda what: not isinstance(what, TopicPartition) or what in places)
        try:
            # No heartbeat goes out during this call, so it must end well within the session.
            seconds = min(CALL_SECONDS, self._config.session_timeout / 2)
            async with answer("committed offsets", seconds):
                await self._beginnings.learn(self._consumer, self._consumer.subscription(), places)
                await self._positions.begin(places, seconds / 2)
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - aiokafka would only log it
            cause = root_cause(error)
            self._fail(cause if isinstance(cause, SourceLost) else SourceLost(reason_of(cause)))
            return
        self._log.info("kafka: partitions assigned", partitions=[_name(place) for place in places])
        self._watch.joined()
        self._assigned.set()
        self._joined.set()

    # Giving up

    def _fail(self, lost: SourceLost) -> None:
        if not self._failure.done():
            self._failure.set_result(lost)

    async def _heed_failure(self) -> None:
        raise await self._failure


def _name(place: TopicPartition) -> str:
    return f"{place.topic}/{place.partition}"
