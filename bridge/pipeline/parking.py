"""The events of one lane that wait in the store, and their way back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from time import monotonic
from typing import NamedTuple

import structlog

from bridge.core.delivery import Delivery, Outcome, Watcher
from bridge.core.errors import StoreError, StoreFullError
from bridge.core.journal import Journal
from bridge.core.ports import InOrder, Keeper, Parked
from bridge.pipeline.retry import STORE_BACKOFF, Past

_CHUNK = 500
"""Events written, or brought back, at once."""
_OF_ONE_KEY = 32
"""Events of one key, set aside, that are brought back at once: they go one after another."""
_BACK_BYTES = 16 * 2**20
"""What is back may take so much in memory; more is brought back below it."""
_TELL_SECONDS = 60.0
"""Between two log lines that tell how many wait."""

_log = structlog.get_logger(__name__)


class _Write(NamedTuple):
    """What is written of an event."""

    past: Past | None
    order_key: int | None
    aside: bool
    """Whether its key is set aside: then nobody but its followers waits for it."""


class Parking:
    """Writes events to the store and settles them then; brings the oldest back when the lane has room.

    An event that came back is in the lane and in the store at once: it leaves the store when OSCAR has
    accepted it, so a crash in between costs no more than an attempt that OSCAR calls a duplicate.

    Nothing new goes into a lane before what waits in the store, since it would overtake it. But the events of
    a key that is set aside are overtaken by all that are not of it, and come back when it has none left in
    the lane.
    """

    def __init__(
        self,
        key: str,
        keeper: Keeper,
        journal: Journal,
        *,
        room: Callable[[], int],
        put_back: Callable[[Delivery, Past | None, int | None], None],
        key_has_room: Callable[[int], bool],
        left: Watcher,
        changed: Callable[[], None],
    ) -> None:
        """Serve the lane `key`.

        `room` tells how many events it can take back now, `key_has_room` whether one of a key is among them,
        `put_back` queues one there, with its key, `left` hears of its settling; `changed` is called when
        nothing is in the store that is not in the lane too (of all, or of a key that was set aside), and when
        the store, which failed, may be tried again.
        """
        self._key = key
        self._keeper = keeper
        self._journal = journal
        self._room = room
        self._put_back = put_back
        self._key_has_room = key_has_room
        self._lane_left = left
        self._changed = changed
        self._to_write: dict[Delivery, _Write] = {}
        self._writes_aside = 0
        """How many of those are of keys that are set aside."""
        self._aside: set[int] = set()
        """The keys whose events in the store come back apart from the others."""
        self._to_bring: set[int] = set()
        """Those of them that have no events in the lane."""
        self._to_note: dict[Delivery, Past] = {}
        self._told = -_TELL_SECONDS
        self._back: dict[Delivery, tuple[int, int]] = {}
        """What came back and has not settled, with its number in the store, and its size."""
        self._back_bytes = 0
        self._something_to_write = asyncio.Event()
        self._look = asyncio.Event()
        self.closed = False
        """Whether nothing comes back any more, since the bridge stops."""
        self.failing = False
        """The store has just failed: nothing should be given to it for a while."""
        self._backlog = False
        self._parkings = 0
        """Times that something went into the store: whether a look into it is out of date."""
        self._parkings_not_aside = 0
        """Those of them that may have been of a key that is not set aside, or of none."""
        self._brought = 0
        """The number in the store of the last that came back, if all before it are back too, or of keys
        set aside; 0 where others may be among them."""
        keeper.on_parked(key, self._parked)
        if keeper.waiting(key):
            self._parked()

    @property
    def backlog(self) -> bool:
        """Whether events wait in the store, or for it, that newer ones must not overtake."""
        return (self._backlog or len(self._to_write) > self._writes_aside) and not self.closed

    def is_aside(self, order_key: int) -> bool:
        """Tell whether events of a key are in the store, or on their way, where others need not wait."""
        return order_key in self._aside

    def is_before(self, order_key: int) -> bool:
        """Tell whether a new event of a key would overtake those in the store, though others may come in."""
        return order_key in self._aside or (self.closed and (self._backlog or bool(self._to_write)))

    @property
    def leaving(self) -> list[Delivery]:
        """What is on its way into the store."""
        return list(self._to_write)

    @property
    def elsewhere(self) -> int:
        """How many events are parked, or on their way into the store, and not back in the lane."""
        return self._keeper.waiting(self._key) + len(self._to_write) - len(self._back)

    def owns(self, delivery: Delivery) -> bool:
        """Tell whether `delivery` came back from the store: then it is durable as it is."""
        return delivery in self._back

    def has(self, delivery: Delivery) -> bool:
        """Tell whether `delivery` came back from the store, or is on its way into it."""
        return delivery in self._back or delivery in self._to_write

    def take(self, delivery: Delivery, past: Past | None, order_key: int | None = None) -> None:
        """Write `delivery` to the store soon, then settle it PARKED. Slots bound how many are here."""
        aside = order_key in self._aside
        self._to_write[delivery] = _Write(past, order_key, aside)
        self._writes_aside += aside
        self._something_to_write.set()
        self._look.set()  # it may have left room

    def set_aside(self, order_key: int) -> None:
        """Have the events of a key that are in the store, or will be, come back apart from the others."""
        self._aside.add(order_key)

    def bring(self, order_key: int) -> None:
        """Bring back the next of a key, which has none in the lane any more, if it is set aside."""
        if order_key in self._aside and not self.closed:
            self._to_bring.add(order_key)
            self._look.set()

    def look(self) -> None:
        """There may be room in the lane."""
        self._look.set()

    def close(self) -> list[Delivery]:
        """Bring nothing back any more; give what is back and may still be in the lane."""
        self.closed = True
        self._changed()
        return list(self._back)

    def remember(self, delivery: Delivery, past: Past) -> None:
        """Note the first attempt at an event that came back soon, since `give_up_after` counts from it."""
        if past.attempts == 1 and delivery in self._back:
            self._to_note[delivery] = past
            self._something_to_write.set()

    def left(self, delivery: Delivery) -> None:
        """Hear that `delivery` has settled: one on its way into the store is let go."""
        self._to_note.pop(delivery, None)
        if delivery in self._to_write:
            self._write_no_more(delivery)
            if self._to_bring:
                self._look.set()
            if not self.backlog:
                self._changed()

    async def run(self) -> None:
        """Write and bring back until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(), name=f"lane {self._key} parking")
            tasks.create_task(self._bring_back(), name=f"lane {self._key} return")

    async def _write(self) -> None:
        failures = 0
        while True:
            await self._something_to_write.wait()
            await self._write_notes()
            trouble = await self._write_chunk(_CHUNK if not failures else 1)
            if trouble is None:
                failures = 0
            else:
                failures += 1
                _log.error(
                    "events can't be parked: their source waits", service=self._key, error=str(trouble)
                )
                self.failing = True
                self._put_back_unwritten()
                if isinstance(trouble, StoreFullError):
                    self._write_first_last()
                if not self.backlog:
                    self._changed()
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
                self.failing = False
                self._changed()
            if not self._to_write and not self._to_note:
                self._something_to_write.clear()

    async def _write_notes(self) -> None:
        notes = dict(islice(self._to_note.items(), _CHUNK))
        for delivery in notes:
            del self._to_note[delivery]
        results = await asyncio.gather(*(self._keep(*one) for one in notes.items()), return_exceptions=True)
        for result in results:
            if isinstance(result, StoreError):  # the event itself is durable; the store tells of its trouble
                _log.warning("first attempt can't be noted", service=self._key, error=str(result))
            elif result is not None:
                raise result

    async def _write_chunk(self, most: int) -> StoreError | None:
        """Park the first of what waits to be written; give what went wrong."""
        chunk = list(islice(self._to_write.items(), most))
        free = [(delivery, write) for delivery, write in chunk if write.order_key is None]
        ordered = [(delivery, write) for delivery, write in chunk if write.order_key is not None]
        writing = [self._keep(delivery, write.past) for delivery, write in free]
        if ordered:
            writing.append(self._keep_in_order(ordered))
        results = await asyncio.gather(*writing, return_exceptions=True)
        if ordered:
            results += [results.pop()] * len(ordered)
        trouble: StoreError | None = None
        for (delivery, write), result in zip(free + ordered, results, strict=True):
            if isinstance(result, StoreError):
                trouble = result
            elif result is not None:
                raise result
            else:
                self._backlog = self._backlog or not write.aside
                self._parkings += 1
                self._parkings_not_aside += not write.aside
                self._brought = 0  # it may have its old place
                self._write_no_more(delivery)
                attempts = 0 if write.past is None else write.past.attempts
                self._journal.note(
                    "parked", delivery.event, self._key, since=delivery.since, attempts=attempts
                )
                delivery.settle(Outcome.PARKED)
        if self._to_bring:
            self._look.set()
        if self._backlog:
            self._look.set()
            if monotonic() - self._told > _TELL_SECONDS:
                self._told = monotonic()
                _log.warning("events are parked", service=self._key, waiting=self._keeper.waiting(self._key))
        return trouble

    def _write_no_more(self, delivery: Delivery) -> None:
        write = self._to_write.pop(delivery, None)
        if write is not None:
            self._writes_aside -= write.aside

    def _write_first_last(self) -> None:
        """Have others tried next, which may be smaller: the first goes to the end, with all of its key.

        But where no key is set aside the oldest stays first: all come back in the order they are written.
        """
        if not self._writes_aside:
            return
        first = next(iter(self._to_write))
        key = self._to_write[first].order_key
        for delivery, write in list(self._to_write.items()):
            if delivery is first or (key is not None and write.order_key == key):
                self._to_write[delivery] = self._to_write.pop(delivery)

    def _put_back_unwritten(self) -> None:
        """Let into the lane what can't be written: what its service takes must not wait for the store.

        Not what would overtake others of its key there, and of a key all or none.
        """
        room = max(0, self._room())
        for delivery, write in list(self._to_write.items()):
            if write.order_key is None:
                if room <= 0:
                    continue
                room -= 1
            elif self._backlog or write.order_key in self._aside:
                continue
            self._write_no_more(delivery)
            self._put_back(delivery, write.past, write.order_key)

    def _keep_in_order(self, ordered: Iterable[tuple[Delivery, _Write]]) -> Awaitable[None]:
        events = [
            InOrder(
                event=delivery.event,
                order_key=write.order_key,
                attempts=0 if write.past is None else write.past.attempts,
                first_attempt=None if write.past is None else write.past.first_attempt,
            )
            for delivery, write in ordered
            if write.order_key is not None
        ]
        return self._keeper.park_in_order(self._key, events)

    def _keep(self, delivery: Delivery, past: Past | None) -> Awaitable[None]:
        return self._keeper.park(
            delivery.event,
            self._key,
            attempts=0 if past is None else past.attempts,
            first_attempt=None if past is None else past.first_attempt,
        )

    async def _bring_back(self) -> None:
        failures = 0
        while True:
            await self._look.wait()
            self._look.clear()
            try:
                await self._bring_back_keys()
                await self._bring_back_oldest()
            except StoreError as error:
                failures += 1
                _log.error("parked events can't be read", service=self._key, error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
                self._look.set()
                continue
            failures = 0

    async def _bring_back_oldest(self) -> None:
        """Bring back what the lane has room for, but of keys that are set aside. Raise StoreError."""
        room = 0 if self.closed else min(self._room(), _CHUNK)
        if not self._backlog or room <= 0 or self._back_bytes >= _BACK_BYTES:
            return
        seen, after = self._parkings_not_aside, self._brought
        rows = await self._keeper.parked(
            self._key,
            # Behind the last there are others that are back where that one took an old place, before them.
            without=[number for number in self._numbers_back() if number > after],
            limit=room,
            without_keys=self._aside,
            after=after,
        )
        if self.closed:
            return
        is_true = self._parkings_not_aside == seen
        self._brought = rows[-1].number if rows and is_true else 0
        for row in rows:
            if row.order_key is not None and not self._key_has_room(row.order_key):
                self._aside.add(row.order_key)
            if row.order_key not in self._aside:
                self._return(row)
        if rows and len(rows) == room > self._room():
            return  # the lane tells when it has room for many: to look for a few costs more than they do
        if rows or after or not is_true:
            self._look.set()  # only a look at all that finds nothing tells that nothing is left
        else:
            self._backlog = False
            self._changed()

    async def _bring_back_keys(self) -> None:
        """Bring back the next of the keys set aside that have none in the lane. Raise StoreError.

        Where the lane is full it is one of each: keys don't wait for room, which newer events would take.
        """
        for key in list(self._to_bring):
            if self._back_bytes >= _BACK_BYTES:
                return
            seen = self._parkings
            limit = max(1, min(_OF_ONE_KEY, self._room()))
            rows = await self._keeper.parked(
                self._key, without=self._numbers_back(), limit=limit, order_key=key
            )
            if self.closed:
                return
            if rows:
                self._to_bring.discard(key)
                for row in rows:
                    self._return(row)
            elif self._parkings != seen:
                self._look.set()
            elif all(write.order_key != key for write in self._to_write.values()):  # else once it is written
                self._to_bring.discard(key)
                self._aside.discard(key)
                self._changed()

    def _numbers_back(self) -> list[int]:
        return [number for number, _ in self._back.values()]

    def _return(self, row: Parked) -> None:
        event = row.event
        delivery = Delivery(event, self._returned)
        size = event.size
        self._back[delivery] = row.number, size
        self._back_bytes += size
        past = None
        if row.first_attempt is not None:
            now = monotonic()
            began = now - max(0.0, self._keeper.now() - row.first_attempt)
            past = Past(first_attempt=row.first_attempt, began=began, tried_at=now, attempts=row.attempts)
        attempts = 0 if past is None else past.attempts
        # By position, as an acceptance is noted.
        self._journal.note("returned", event, self._key, None, delivery.since, "", attempts)
        self._put_back(delivery, past, row.order_key)

    def _returned(self, delivery: Delivery, outcome: Outcome) -> None:
        self._lane_left(delivery, outcome)
        number, size = self._back.pop(delivery)
        full = self._back_bytes >= _BACK_BYTES
        self._back_bytes -= size
        if full and self._back_bytes < _BACK_BYTES:
            self._look.set()
        if outcome in (Outcome.ACCEPTED, Outcome.FILTERED):
            self._keeper.forget(number)
        else:
            self._brought = 0

    def _parked(self) -> None:
        self._backlog = True
        self._parkings += 1
        self._parkings_not_aside += 1
        self._brought = 0
        self._look.set()
