"""One batch on its way from the task that reads to the runner that asks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, NoReturn

from bridge.core.delivery import Delivery
from bridge.core.errors import SourceLost
from bridge.core.ports import Slots


class Handover(AsyncIterator[Sequence[Delivery]]):
    """Holds at most one batch, so that what is read never exceeds the slots its taker had free.

    `__anext__` may be cancelled: the batch stays for the next call. Deliveries settled meanwhile (their
    upstream took them back) are not given out.
    """

    def __init__(self) -> None:
        self._batch: list[Delivery] = []
        self._queue: deque[Delivery] = deque()
        """What `feed` makes batches of."""
        self._some_queued = asyncio.Event()
        self._lost: BaseException | None = None
        self._is_lost = asyncio.Event()
        self._wakes = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    async def __anext__(self) -> Sequence[Delivery]:
        while True:
            await self._wakes.wait()
            if self._lost is not None:
                raise self._lost
            batch = [delivery for delivery in self._take_back() if delivery.outcome is None]
            if batch:
                return batch

    @property
    def is_empty(self) -> bool:
        return self._empty.is_set()

    @property
    def waiting(self) -> int:
        """How many Deliveries wait to be taken."""
        return len(self._queue) + len(self._batch)

    def offer(self, delivery: Delivery) -> None:
        """Have `delivery` handed over by `feed`, behind those offered before."""
        self._queue.append(delivery)
        self._some_queued.set()

    async def feed(self, slots: Slots) -> NoReturn:
        """Hand over what was offered, as much as there are slots, oldest first."""
        queue = self._queue
        while True:
            await self._some_queued.wait()
            await self.emptied()
            await slots.wait()
            free = slots.free
            batch: list[Delivery] = []
            while queue and len(batch) < free:
                delivery = queue.popleft()
                if delivery.outcome is None:
                    batch.append(delivery)
            if not queue:
                self._some_queued.clear()
            if batch:
                self.put(batch)

    def drop_settled(self) -> None:
        """Hold none of those offered that were settled meanwhile."""
        left = [delivery for delivery in self._queue if delivery.outcome is None]
        self._queue.clear()
        self._queue.extend(left)

    async def emptied(self) -> None:
        """Return once the batch was taken."""
        await self._empty.wait()

    def put(self, batch: list[Delivery]) -> None:
        """Offer `batch`, which is not empty; the one before was taken."""
        self._batch = batch
        self._empty.clear()
        self._wakes.set()

    def withdraw(self) -> list[Delivery]:
        """Take back what was not taken."""
        queued = list(self._queue)
        self._queue.clear()
        return [*self._take_back(), *queued]

    def _take_back(self) -> list[Delivery]:
        """Take the batch back, if there is one."""
        batch, self._batch = self._batch, []
        self._empty.set()
        if self._lost is None:
            self._wakes.clear()
        return batch

    def rests_on(self, reading: asyncio.Task[None]) -> None:
        """Tell the taker when `reading`, which feeds this, ends of itself: nothing would come any more."""
        reading.add_done_callback(self._ended)

    async def begun(self, beginning: Coroutine[Any, Any, object]) -> None:
        """Return once `beginning` is done. Raises what it raises, and what `fail` was told before its end."""
        tasks = [asyncio.create_task(beginning), asyncio.create_task(self._is_lost.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self._lost is not None:
            raise self._lost
        if tasks[0].cancelled():  # by a library: nobody has cancelled us
            raise SourceLost("its beginning was broken off")
        tasks[0].result()

    def _ended(self, reading: asyncio.Task[None]) -> None:
        if self._lost is None:
            error = None if reading.cancelled() else reading.exception()
            self.fail(error or SourceLost("its reader ended"))

    def fail(self, lost: BaseException) -> None:
        """Tell the taker, now and whenever it asks again."""
        self._lost = lost
        self._is_lost.set()
        self._wakes.set()
