"""One opening of a queue: receive, hand over, keep invisible, delete or give back."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.core.ports import Slots
from bridge.sources.handover import Handover
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import BATCH, Entry, Queue, Refusal, Throttled, Unanswered
from bridge.sources.sqs.held import Groups, Held
from bridge.sources.sqs.messages import to_event
from bridge.sources.sqs.s3 import open_notification
from bridge.telemetry.metrics import SourceMetrics

GATHER_SECONDS = 0.1
"""How long answers gather for a batch."""
ROOM_SECONDS = 0.02
"""A full bridge frees slots one by one: so long they gather, for a batch instead of single messages."""
WATCH_SECONDS = 15.0
"""Between two looks at the queue's attributes."""
LOST_SECONDS = 15.0
"""Without a good answer this long, the queue is lost."""
ATTEMPTS = 5
"""To delete a message, or to give it back."""
CALLS = 8
"""Batch calls under way at once."""
CLOSE_SECONDS = 8.0
"""For the last deletes, and for giving back what is left."""
NO_VISIBILITY_SECONDS = 30
"""What is asked for where the queue's own visibility timeout is 0: SQS's default."""

Tell = Callable[[Held, str, Refusal | None], None]
"""Told of one message, the receipt that was used, and why it was not done; None when it was."""


class Reader:
    """Owns what is received of an open queue from `run` to `close`; the runner iterates `batches`."""

    def __init__(
        self,
        queue: Queue,
        config: SqsConfig,
        attributes: Mapping[str, str],
        *,
        identity: str,
        slots: Slots,
        metrics: SourceMetrics,
        log: Any,
    ) -> None:
        self.batches = Handover()
        self.throttled: str | None = None
        """What SQS said when it last asked for fewer calls; None once it answers again."""
        self._queue = queue
        self._config = config
        self._identity = identity
        self._slots = slots
        self._metrics = metrics
        self._log = log
        self._in_order = attributes.get("FifoQueue") == "true"
        self._visibility = NO_VISIBILITY_SECONDS

        self._turn = asyncio.Lock()
        """One poller at a time waits for room."""
        self._asked = 0
        """Slots reserved for what a receive may bring."""
        self._room = asyncio.Event()
        """There may be room again."""
        self._ready: deque[Delivery] = deque()
        """Received, and not handed over yet."""
        self._some_ready = asyncio.Event()

        self._held: dict[str, Held] = {}
        """What is kept invisible, by MessageId."""
        self._hurry = asyncio.Event()
        """What falls due next may do so sooner than was thought."""
        self._groups = Groups()
        self._owed: dict[Held, bool] = {}
        """Messages to be answered: deleted (True) or given back."""
        self._some_owed = asyncio.Event()
        self._told_of_stale = False
        self._failing: dict[str, tuple[float, int]] = {}
        """What kind of call fails, since when and how many times."""
        self._take_up(attributes)

    async def run(self) -> None:
        """Read until cancelled, or until the queue is lost: then release everything, tell the runner."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._config.pollers):
                    tasks.create_task(self._poll())
                # A message with many records goes in pieces.
                tasks.create_task(self.batches.feed(self._ready, self._some_ready, self._slots))
                tasks.create_task(self._keep())
                tasks.create_task(self._answer())
                tasks.create_task(self._watch())
        except* Exception as group:  # noqa: BLE001 - whatever it was, the runner must hear of it
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if not isinstance(error, SourceLost):
                self._log.error("sqs reader failed", exc_info=error)
                error = SourceLost(_reason(error))
            self._release_all()
            self.batches.fail(error)

    async def close(self) -> None:
        """Delete what is settled, give back the rest. Never raises what the queue did."""
        self._release_all()
        for held in self._owed:
            held.failures = 0
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                while self._owed:
                    await self._answer_all()
        except (TimeoutError, SourceLost, ExceptionGroup) as error:
            self._log.warning(
                "sqs: not everything was answered; it comes again after its visibility timeout",
                messages=len(self._owed),
                reason=_reason(error),
            )

    # Receiving

    async def _poll(self) -> None:
        while True:
            count = await self._reserve()
            visibility = self._visibility
            messages: Sequence[Mapping[str, Any]] = ()
            pause = 0.0
            try:
                messages = await self._queue.receive(
                    count, wait=int(self._config.wait_seconds), visibility=visibility
                )
                self._succeeded("receive")
                if not messages:  # not every server holds back its empty answers
                    pause = GATHER_SECONDS
            except (Unanswered, Throttled) as failure:
                pause = self._failed("receive", failure)
            finally:
                self._asked -= count
                self._room.set()
            for message in messages:
                self._take(message, visibility)
            if pause:
                await asyncio.sleep(pause)

    async def _reserve(self) -> int:
        """Wait for free slots that nobody else has reserved, and reserve up to 10 of them."""
        async with self._turn:
            while True:
                if self._slots.free <= 0:
                    await self._slots.wait()
                    await asyncio.sleep(ROOM_SECONDS)
                taken = self._asked + len(self._ready) + self.batches.size + self._groups.waiting
                room = min(BATCH, self._slots.free - taken)
                if room > 0:
                    self._asked += room
                    return room
                self._room.clear()
                await self._room.wait()
                await asyncio.sleep(ROOM_SECONDS)

    def _take(self, message: Mapping[str, Any], visibility: int) -> None:
        event = to_event(message, self._identity)
        receipt = message["ReceiptHandle"]
        held = self._held.get(event.id)
        if held is not None:  # a second receipt of what we have: only the newest one is good for an answer
            held.receipt = receipt
            held.is_received(time.monotonic(), visibility)
            self._log.info("sqs: a message in hand came again", message=held.id)
            return
        group = event.attributes.get("message_group_id") if self._in_order else None
        held = self._held[event.id] = Held(event, receipt, group, self._settled)
        held.is_received(time.monotonic(), visibility)
        if len(self._held) == 1:
            self._hurry.set()
        if self._groups.enter(held):
            self._offer(held.delivery)

    # Handing over

    def _offer(self, delivery: Delivery) -> None:
        found = open_notification(delivery.event)
        if isinstance(found, str):
            self._metrics.filtered(found)
            self._log.debug("event filtered", source=self._metrics.key, id=delivery.event.id, reason=found)
            delivery.settle(Outcome.FILTERED)
            return
        for each in [delivery] if found is None else delivery.split(found):
            each.watch(self._freed)
            self._ready.append(each)
        self._some_ready.set()

    def _freed(self, _delivery: Delivery, _outcome: Outcome) -> None:
        self._room.set()

    # Settling

    def _settled(self, held: Held, outcome: Outcome) -> None:
        if outcome is Outcome.RELEASED:
            self._forget(held)
        self._owed[held] = outcome is not Outcome.RELEASED
        self._some_owed.set()
        self._room.set()
        following, given_back = self._groups.leave(held, outcome)
        for each in given_back:
            each.delivery.settle(Outcome.RELEASED)
        if following is not None:
            self._offer(following.delivery)

    def _forget(self, held: Held) -> None:
        if self._held.get(held.id) is held:
            del self._held[held.id]

    def _release_all(self) -> None:
        self.batches.withdraw()
        self._ready.clear()
        for held in list(self._held.values()):
            held.delivery.settle(Outcome.RELEASED)

    async def _answer(self) -> None:
        while True:
            await self._some_owed.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._some_owed.clear()
            await self._answer_all()

    async def _answer_all(self) -> None:
        """Delete and give back what is owed, once; what failed stays owed, after a pause."""
        deletes = [held for held, delete in self._owed.items() if delete]
        releases = [held for held, delete in self._owed.items() if not delete]
        await self._call([*_batches(deletes, None), *_batches(releases, 0)], self._answered)
        failures = max((held.failures for held in self._owed), default=0)
        if failures:
            self._some_owed.set()
            await asyncio.sleep(_pause(failures))

    def _answered(self, held: Held, receipt: str, refusal: Refusal | None) -> None:
        if refusal is not None and not refusal.stale:
            held.failures += 1
            if held.failures < ATTEMPTS:
                return
            self._log.warning(
                "sqs: can't be answered; the message comes again", message=held.id, reason=refusal.reason
            )
        elif held.receipt != receipt and self._owed.get(held):
            held.failures += 1  # it came again meanwhile, and only its newest receipt is good for a delete
            return
        elif refusal is not None and self._owed.get(held):
            self._count_stale(held, refusal)
        self._owed.pop(held, None)
        self._forget(held)

    def _count_stale(self, held: Held, refusal: Refusal) -> None:
        self._metrics.stale_receipts.inc()
        if not self._told_of_stale:
            self._told_of_stale = True
            self._log.warning(
                "sqs: a receipt is not valid any more: the message was deleted, or came to somebody else",
                message=held.id,
                reason=refusal.reason,
            )

    async def _call(self, batches: Iterable[tuple[list[Held], int | None]], tell: Tell) -> None:
        """Make the batch calls, some at once, and `tell` what became of each message."""
        calls = asyncio.Semaphore(CALLS)

        async def call(batch: list[Held], visibility: int | None) -> None:
            async with calls:
                entries: list[Entry] = [(held.receipt, visibility) for held in batch]
                refused: Mapping[int, Refusal] = {}
                try:
                    refused = await self._queue.answer(entries)
                except (Unanswered, Throttled) as failure:
                    refused = dict.fromkeys(range(len(batch)), Refusal(stale=False, reason=str(failure)))
                for at, held in enumerate(batch):
                    tell(held, entries[at][0], refused.get(at))

        async with asyncio.TaskGroup() as tasks:
            for batch, visibility in batches:
                tasks.create_task(call(batch, visibility))

    # Keeping invisible

    async def _keep(self) -> None:
        """Put off what falls due, and let go in time of what can't be."""
        while True:
            now, visibility = time.monotonic(), self._visibility
            for held in [each for each in self._held.values() if each.gives_way <= now]:
                self._let_go(held)
            # What falls due a little later goes along: it makes full batches.
            due = [held for held in self._held.values() if held.due <= now + visibility / 8]
            await self._call(_batches(due, visibility), partial(self._kept, now, visibility))
            pause = min(
                (min(held.due, held.gives_way) - time.monotonic() for held in self._held.values()),
                default=None,
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(None if pause is None else max(pause, visibility / 40)):
                    await self._hurry.wait()
            self._hurry.clear()

    def _kept(self, now: float, visibility: int, held: Held, receipt: str, refusal: Refusal | None) -> None:
        if refusal is None:
            held.is_kept(now, visibility)
        elif not refusal.stale:
            held.due = time.monotonic() + visibility * random.uniform(0.05, 0.1)
        elif held.receipt == receipt and self._held.get(held.id) is held:
            # It was deleted or came to somebody else: our copy must not stay beside that one.
            self._count_stale(held, refusal)
            held.delivery.settle(Outcome.RELEASED)
            self._forget(held)
            self._owed.pop(held, None)

    def _let_go(self, held: Held) -> None:
        self._log.warning(
            "sqs: a message could not be kept any longer",
            message=held.id,
            held_seconds=round(time.monotonic() - held.received),
        )
        held.delivery.settle(Outcome.RELEASED)
        self._forget(held)

    # The queue's health

    def _take_up(self, attributes: Mapping[str, str]) -> None:
        before = self._visibility
        self._visibility = int(attributes.get("VisibilityTimeout") or 0) or NO_VISIBILITY_SECONDS
        if self._visibility < before:
            self._hurry.set()
        self._metrics.lag(int(attributes.get("ApproximateNumberOfMessages") or 0))

    async def _watch(self) -> None:
        pause = WATCH_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = WATCH_SECONDS
            try:
                self._take_up(await self._queue.attributes())
                self._succeeded("attributes")
            except (Unanswered, Throttled) as failure:
                pause = self._failed("attributes", failure)

    def _succeeded(self, what: str) -> None:
        self._failing.pop(what, None)
        if not self._failing:
            self.throttled = None

    def _failed(self, what: str, failure: Unanswered | Throttled) -> float:
        """Give how long to wait before the next call. Raises SourceLost when it went on for too long."""
        since, times = self._failing.get(what, (time.monotonic(), 0))
        self._failing[what] = since, times + 1
        if isinstance(failure, Throttled):
            if self.throttled is None:
                self._log.warning("sqs: throttled", reason=str(failure))
            self.throttled = str(failure)
        elif time.monotonic() - since >= LOST_SECONDS:
            raise SourceLost(str(failure))
        return _pause(times + 1)


def _pause(failures: int) -> float:
    """Draw the seconds to wait after `failures` in a row: full jitter, 10 at most."""
    return random.uniform(0.05, min(10.0, 0.25 * 2 ** min(failures, 10)))


def _batches(messages: Sequence[Held], visibility: int | None) -> Iterator[tuple[list[Held], int | None]]:
    for at in range(0, len(messages), BATCH):
        yield list(messages[at : at + BATCH]), visibility


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
