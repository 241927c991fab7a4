"""The events of one lane that wait in the store, and their way back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice
from time import monotonic

import structlog

from bridge.core.delivery import Delivery, Outcome, Watcher
from bridge.core.errors import StoreError
from bridge.core.ports import Keeper, Parked
from bridge.pipeline.retry import STORE_BACKOFF, Past

_CHUNK = 500
"""Events written, or brought back, at once."""
_BACK_BYTES = 16 * 2**20
"""What is back may take so much in memory; more is brought back below it."""
_TELL_SECONDS = 60.0
"""Between two log lines that tell how many wait."""

_log = structlog.get_logger(__name__)


class Parking:
    """Writes events to the store and settles them then; brings the oldest back when the lane has room.

    An event that came back is in the lane and in the store at once: it leaves the store when OSCAR has
    accepted it, so a crash in between costs no more than an attempt that OSCAR calls a duplicate.
    """

    def __init__(
        self,
        key: str,
        keeper: Keeper,
        *,
        room: Callable[[], int],
        put_back: Callable[[Delivery, Past | None], None],
        left: Watcher,
        changed: Callable[[], None],
    ) -> None:
        """Serve the lane `key`.

        `room` tells how many events it can take back now, `put_back` queues one there, `left` hears of
        its settling; `changed` is called when nothing is in the store that is not in the lane too, and
        when the store, which failed, may be tried again.
        """
        self._key = key
        self._keeper = keeper
        self._room = room
        self._put_back = put_back
        self._lane_left = left
        self._changed = changed
        self._to_write: dict[Delivery, Past | None] = {}
        self._to_note: dict[Delivery, Past] = {}
        self._told = -_TELL_SECONDS
        self._back: dict[Delivery, int] = {}
        self._back_bytes = 0
        self._something_to_write = asyncio.Event()
        self._look = asyncio.Event()
        self._closed = False
        self.failing = False
        """The store has just failed: nothing should be given to it for a while."""
        self._backlog = False
        self._parkings = 0
        """Times that something went into the store: whether a look into it is out of date."""
        keeper.on_parked(key, self._parked)
        if keeper.waiting(key):
            self._parked()

    @property
    def backlog(self) -> bool:
        """Whether events wait in the store, or for it, that newer ones must not overtake."""
        return (self._backlog or bool(self._to_write)) and not self._closed

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

    def take(self, delivery: Delivery, past: Past | None) -> None:
        """Write `delivery` to the store soon, then settle it PARKED. Slots bound how many are here."""
        self._to_write[delivery] = past
        self._something_to_write.set()
        self._look.set()  # it may have left room

    def look(self) -> None:
        """There may be room in the lane."""
        self._look.set()

    def close(self) -> list[Delivery]:
        """Bring nothing back any more; give what is back and may still be in the lane."""
        self._closed = True
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
            del self._to_write[delivery]
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
                _log.error("events can't be parked: their source waits", service=self._key, error=trouble)
                self.failing = True
                # They are of more use in the lane: what its service takes must not wait for the store.
                for delivery in list(islice(self._to_write, max(0, self._room()))):
                    self._put_back(delivery, self._to_write.pop(delivery))
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

    async def _write_chunk(self, most: int) -> str | None:
        """Park the first of what waits to be written; give what went wrong."""
        chunk = list(islice(self._to_write.items(), most))
        results = await asyncio.gather(*(self._keep(*one) for one in chunk), return_exceptions=True)
        trouble: str | None = None
        for (delivery, _), result in zip(chunk, results, strict=True):
            if isinstance(result, StoreError):
                trouble = str(result)
            elif result is not None:
                raise result
            else:
                self._backlog = True
                self._parkings += 1
                self._to_write.pop(delivery, None)
                delivery.settle(Outcome.PARKED)
        if self._backlog:
            self._look.set()
            if monotonic() - self._told > _TELL_SECONDS:
                self._told = monotonic()
                _log.warning("events are parked", service=self._key, waiting=self._keeper.waiting(self._key))
        return trouble

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
            room = 0 if self._closed else min(self._room(), _CHUNK)
            if not self._backlog or room <= 0 or self._back_bytes >= _BACK_BYTES:
                continue
            seen = self._parkings
            try:
                rows = await self._keeper.parked(self._key, without=self._back.values(), limit=room)
            except StoreError as error:
                failures += 1
                _log.error("parked events can't be read", service=self._key, error=str(error))
                await asyncio.sleep(STORE_BACKOFF.seconds(failures))
                self._look.set()
                continue
            failures = 0
            if self._closed:
                continue
            for row in rows:
                self._return(row)
            if rows:
                self._look.set()  # only a look that finds nothing tells that nothing is left
            elif self._parkings == seen:
                self._backlog = False
                self._changed()

    def _return(self, row: Parked) -> None:
        delivery = Delivery(row.event, self._lane_left)
        self._back[delivery] = row.number
        self._back_bytes += row.event.size
        delivery.watch(self._returned)
        past = None
        if row.first_attempt is not None:
            now = monotonic()
            began = now - max(0.0, self._keeper.now() - row.first_attempt)
            past = Past(first_attempt=row.first_attempt, began=began, tried_at=now, attempts=row.attempts)
        self._put_back(delivery, past)

    def _returned(self, delivery: Delivery, outcome: Outcome) -> None:
        number = self._back.pop(delivery)
        full = self._back_bytes >= _BACK_BYTES
        self._back_bytes -= delivery.event.size
        if full and self._back_bytes < _BACK_BYTES:
            self._look.set()
        if outcome in (Outcome.ACCEPTED, Outcome.FILTERED):
            self._keeper.forget(number)

    def _parked(self) -> None:
        self._backlog = True
        self._parkings += 1
        self._look.set()
