"""One opening of a queue: receive, hand over, keep invisible, delete or give back."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost, reason
from bridge.core.ports import Slots
from bridge.core.steady import Steady
from bridge.sources.handover import Handover
from bridge.sources.opening import Opening
from bridge.sources.reading import lost_with
from bridge.sources.sqs.answers import BACKOFF, GATHER_SECONDS, Answers, batches
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import BATCH, Queue, Refusal, Throttled, Unanswered
from bridge.sources.sqs.held import Groups, Held
from bridge.sources.sqs.messages import fault_of, nearly_dead, to_event
from bridge.sources.sqs.policy import most_receipts, number
from bridge.telemetry.metrics import SourceMetrics

ROOM_SECONDS = 0.02
"""A full bridge frees slots one by one: so long they gather, for a batch instead of single messages."""
WATCH_SECONDS = 15.0
"""Between two looks at the queue's attributes."""
LOST_SECONDS = 15.0
"""Without a good answer this long, the queue is lost."""
CLOSE_SECONDS = 8.0
"""For the last deletes, and for giving back what is left."""
NO_VISIBILITY_SECONDS = 30
"""What is asked for where the queue's own visibility timeout is 0: SQS's default."""


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
        throttled: Steady,
        unanswered: Steady,
        log: Any,
    ) -> None:
        """Take what outlives this: `throttled`, what SQS said when it last asked for fewer calls, and
        `unanswered`, why messages could last not be answered.
        """
        self.batches = Handover()
        self._throttled = throttled
        self._queue = queue
        self._config = config
        self._identity = identity
        self._slots = slots
        self._metrics = metrics
        self._log = log
        self._in_order = attributes.get("FifoQueue") == "true"
        self._visibility = NO_VISIBILITY_SECONDS
        self._most_receipts: int | None = None
        """After so many the queue moves a message to another, as far as is known."""

        self._turn = asyncio.Lock()
        """One poller at a time waits for room."""
        self._asked = 0
        """Slots reserved for what a receive may bring."""
        self._room = asyncio.Event()
        """There may be room again."""
        self._opening = Opening(config.open, self._offer, metrics, log)

        self._held: dict[str, Held] = {}
        """What is kept invisible, by MessageId."""
        self._due_at = self._gives_way_at = math.inf
        """Monotonic seconds at which the next is put off, and at which the next gives way, so far."""
        self._due_sooner = asyncio.Event()
        self._gives_way_sooner = asyncio.Event()
        self._groups = Groups()
        self._answers = Answers(
            queue,
            metrics,
            log,
            trouble=unanswered,
            is_held=lambda name: name in self._held,
            answered=self._forget,
        )
        self._failing: dict[str, tuple[float, int]] = {}
        """What kind of call fails, since when and how many times."""
        self._take_up(attributes)

    async def run(self) -> None:
        """Read until cancelled, or until the queue is lost: then release everything, tell the runner."""
        async with lost_with(
            self.batches, "sqs reader failed", self._log, release=self._release_all
        ) as tasks:
            for _ in range(self._config.pollers):
                tasks.create_task(self._poll())
            tasks.create_task(self._opening.run())
            # A message with many records goes in pieces.
            tasks.create_task(self.batches.feed(self._slots))
            tasks.create_task(self._put_off())
            tasks.create_task(self._give_way())
            tasks.create_task(self._answers.run())
            tasks.create_task(self._watch())

    async def close(self) -> None:
        """Delete what is settled, give back the rest. Never raises what the queue did."""
        self._release_all()
        self._metrics.lag(None)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._answers.finish()
        except (TimeoutError, SourceLost, ExceptionGroup) as error:
            self._log.warning(
                "sqs: not everything was answered; it comes again after its visibility timeout",
                messages=self._answers.left,
                reason=reason(error),
            )

    # Receiving

    async def _poll(self) -> None:
        while True:
            count = await self._reserve()
            visibility = self._visibility
            messages: Sequence[Mapping[str, Any]] = ()
            quiet = 0.0
            try:
                messages = await self._queue.receive(
                    count, wait=int(self._config.wait_seconds), visibility=visibility
                )
                self._succeeded("receive")
                if not messages:  # not every server holds back its empty answers
                    quiet = GATHER_SECONDS
            except (Unanswered, Throttled) as failure:
                quiet = self._failed("receive", failure)
            finally:
                self._asked -= count
                self._room.set()
            for message in messages:
                self._take(message, visibility)
            if quiet:
                await asyncio.sleep(quiet)

    async def _reserve(self) -> int:
        """Wait for free slots that nobody else has reserved, and reserve up to 10 of them."""
        async with self._turn:
            while True:
                if self._slots.free <= 0:
                    await self._slots.wait()
                    await asyncio.sleep(ROOM_SECONDS)
                taken = self._asked + self._opening.waiting + self.batches.waiting + self._groups.waiting
                room = min(BATCH, self._slots.free - taken)
                if room > 0:
                    self._asked += room
                    return room
                self._room.clear()
                await self._room.wait()
                await asyncio.sleep(ROOM_SECONDS)

    def _take(self, message: Mapping[str, Any], visibility: int) -> None:
        name, receipt = message.get("MessageId"), message.get("ReceiptHandle")
        if not isinstance(name, str) or not isinstance(receipt, str) or not name:
            # It can't be answered: the queue gives it again, until its retention or redrive policy ends that.
            self._metrics.filtered("unreadable")
            self._log.warning(
                "sqs: a message without id or receipt is left to the queue", told=sorted(message)
            )
            return
        held = self._held.get(name)
        if held is not None:  # a second receipt of what we have: only the newest one is good for an answer
            held.receipt = receipt
            self._is_received(held, visibility)
            self._log.info("sqs: a message in hand came again", message=held.id)
            return
        event = to_event(message, self._identity)
        group = event.attributes.get("message_group_id") if self._in_order else None
        held = self._held[name] = Held(
            event,
            receipt,
            group,
            self._settled,
            fault=fault_of(message),
            nearly_dead=nearly_dead(event, self._most_receipts),
        )
        self._is_received(held, visibility)
        if self._groups.enter(held):
            self._opening.take(held.delivery)

    def _is_received(self, held: Held, visibility: int) -> None:
        held.is_received(time.monotonic(), visibility)
        if held.due < self._due_at:
            self._due_sooner.set()
        if held.gives_way < self._gives_way_at:
            self._gives_way_sooner.set()

    # Handing over

    def _offer(self, delivery: Delivery) -> None:
        delivery.watch(self._freed)
        self.batches.offer(delivery)

    def _freed(self, _delivery: Delivery, _outcome: Outcome) -> None:
        self._room.set()

    # Settling

    def _settled(self, held: Held, outcome: Outcome) -> None:
        if outcome is Outcome.RELEASED:
            self._forget(held)
        self._answers.owe(held, delete=outcome is not Outcome.RELEASED)
        self._room.set()
        following, given_back = self._groups.leave(held, outcome)
        for each in given_back:
            each.delivery.settle(Outcome.RELEASED)
        if following is not None:
            self._opening.take(following.delivery)

    def _forget(self, held: Held) -> None:
        if self._held.get(held.id) is held:
            del self._held[held.id]

    def _release_all(self) -> None:
        self.batches.withdraw()
        for held in list(self._held.values()):
            held.delivery.settle(Outcome.RELEASED)

    # Keeping invisible

    async def _put_off(self) -> NoReturn:
        """Put off what falls due. No call waits for another: one may hang."""
        async with asyncio.TaskGroup() as calls:
            while True:
                now, visibility = time.monotonic(), self._visibility
                # What falls due a little later goes along, which makes full batches: but nothing that failed,
                # or it would be tried again as fast as the queue refuses.
                due = [
                    held
                    for held in self._held.values()
                    if held.due <= now + visibility / 8 and held.not_before <= now
                ]
                for batch in batches(due):
                    for held in batch:
                        held.due = math.inf  # until its call is over
                    calls.create_task(self._keep(batch, visibility))
                self._due_at = min((held.due for held in self._held.values()), default=math.inf)
                await _until(self._due_sooner, max(self._due_at - time.monotonic(), visibility / 40))

    async def _keep(self, batch: Sequence[Held], visibility: int) -> None:
        await self._answers.call(batch, visibility, partial(self._kept, time.monotonic(), visibility))
        self._due_sooner.set()

    def _kept(self, now: float, visibility: int, held: Held, receipt: str, refusal: Refusal | None) -> None:
        if refusal is None:
            held.is_kept(now, visibility)
        elif not refusal.stale:
            held.due = held.not_before = time.monotonic() + visibility * random.uniform(0.05, 0.1)
        elif held.receipt == receipt and self._held.get(held.id) is held:
            # It was deleted or came to somebody else: our copy must not stay beside that one.
            self._answers.count_stale(held, refusal)
            held.delivery.settle(Outcome.RELEASED)
            self._forget(held)
            self._answers.waive(held)

    async def _give_way(self) -> NoReturn:
        """Let go in time of what could not be put off, whatever the calls for it are at."""
        while True:
            now = time.monotonic()
            for held in [each for each in self._held.values() if each.gives_way <= now]:
                if self._held.get(held.id) is held:  # else it went with one before it
                    self._let_go(held)
            self._gives_way_at = min((held.gives_way for held in self._held.values()), default=math.inf)
            await _until(self._gives_way_sooner, self._gives_way_at - time.monotonic())

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
        self._visibility = number(attributes, "VisibilityTimeout") or NO_VISIBILITY_SECONDS
        if self._visibility < before:
            self._due_sooner.set()
        self._most_receipts = most_receipts(attributes)
        self._metrics.lag(number(attributes, "ApproximateNumberOfMessages"))

    async def _watch(self) -> None:
        quiet = WATCH_SECONDS
        while True:
            await asyncio.sleep(quiet)
            quiet = WATCH_SECONDS
            try:
                self._take_up(await self._queue.attributes())
                self._succeeded("attributes")
            except (Unanswered, Throttled) as failure:
                quiet = self._failed("attributes", failure)

    def _succeeded(self, what: str) -> None:
        self._failing.pop(what, None)
        if not self._failing:
            self._throttled.recovered()

    def _failed(self, what: str, failure: Unanswered | Throttled) -> float:
        """Give how long to wait before the next call. Raises SourceLost when it went on for too long."""
        since, times = self._failing.get(what, (time.monotonic(), 0))
        self._failing[what] = since, times + 1
        if isinstance(failure, Throttled):
            self._log.warning("sqs: throttled", reason=str(failure))
            self._throttled.failed(f"throttled: {failure}")
        elif time.monotonic() - since >= LOST_SECONDS:
            raise SourceLost(str(failure))
        return BACKOFF.seconds(times + 1)


async def _until(event: asyncio.Event, seconds: float) -> None:
    """Return once `event` is set, or after `seconds` (infinity: never); then it is not set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            await event.wait()
    event.clear()
