"""What is owed to the queue: messages to delete, and to give back; by batches, some of them at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from bridge.core.backoff import Backoff
from bridge.core.steady import Steady
from bridge.sources.sqs.connection import BATCH, CALL_SECONDS, Entry, Queue, Refusal, Throttled, Unanswered
from bridge.sources.sqs.held import Held
from bridge.telemetry.metrics import SourceMetrics

GATHER_SECONDS = 0.1
"""How long answers gather for a batch."""
ATTEMPTS = 5
"""To delete a message, or to give it back."""
BACKOFF = Backoff(first=0.5, longest=10.0)
"""Between calls of one kind that fail in a row."""
CALLS = 8
"""Batch calls under way at once, of answers and of those that put off."""
TELL_SECONDS = 5.0
"""For which calls fail, and none is answered, until that is told: one of them alone is made again."""

Tell = Callable[[Held, str, Refusal | None], None]
"""Told of one message, the receipt that was used, and why it was not done; None when it was."""


class Answers:
    """Deletes and gives back, each message a few times at most; then it comes again by itself."""

    def __init__(
        self,
        queue: Queue,
        metrics: SourceMetrics,
        log: Any,
        *,
        trouble: Steady,
        is_held: Callable[[str], bool],
        answered: Callable[[Held], None],
    ) -> None:
        """Take `is_held`, which tells whether a message is in hand, by its MessageId, and `answered`.

        The latter hears of each message that nothing is owed for any more; `trouble` of calls that fail.
        """
        self._trouble = trouble
        self._failing: dict[str, float] = {}
        """What calls are for of which the last one failed, and since when they do (monotonic)."""
        self._queue = queue
        self._metrics = metrics
        self._log = log
        self._is_held = is_held
        self._answered = answered
        self._owed: dict[Held, bool] = {}
        """Messages to be deleted (True) or given back."""
        self._some = asyncio.Event()
        self._turns = asyncio.Semaphore(CALLS)
        self._turns_to_put_off = asyncio.Semaphore(CALLS)
        """Answers that hang must not keep anything from being put off."""
        self._told_of_stale = False

    def owe(self, held: Held, *, delete: bool) -> None:
        """Delete `held`, or give it back, soon."""
        self._owed[held] = delete
        self._some.set()

    def waive(self, held: Held) -> None:
        """Owe nothing for `held` any more."""
        self._owed.pop(held, None)

    async def run(self) -> NoReturn:
        """Answer until cancelled. Raise SourceLost, in a group, when the queue refuses."""
        while True:
            await self._some.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._some.clear()
            await self._answer_all()

    async def finish(self) -> None:
        """Answer all that is owed, each anew as often as may be. Raise as `run` does."""
        for held in self._owed:
            held.failures = 0
        while self._owed:
            await self._answer_all()

    @property
    def left(self) -> int:
        """How many messages are not answered."""
        return len(self._owed)

    async def call(self, batch: Sequence[Held], visibility: int | None, tell: Tell) -> None:
        """Make one batch call when its turn comes, and `tell` what became of each message.

        The call for a new visibility is over when the last of the batch has given way.
        """
        async with self._turns_to_put_off if visibility else self._turns:
            entries: list[Entry] = [(held.receipt, visibility) for held in batch]
            seconds = CALL_SECONDS
            if visibility:
                seconds = min(seconds, max(held.gives_way for held in batch) - time.monotonic())
            done = "kept from others" if visibility else "deleted" if visibility is None else "given back"
            try:
                refused: Mapping[int, Refusal] = await self._queue.answer(entries, seconds=seconds)
                if visibility is None and len(refused) < len(batch):
                    self._metrics.committed()
                self._failing.pop(done, None)
                if not self._failing:
                    self._trouble.recovered()
            except (Unanswered, Throttled) as failure:
                since = self._failing.setdefault(done, time.monotonic())
                if time.monotonic() - since >= TELL_SECONDS:
                    self._trouble.failed(f"messages can't be {done}: {failure}")
                refused = dict.fromkeys(range(len(batch)), Refusal(stale=False, reason=str(failure)))
            for at, held in enumerate(batch):
                tell(held, entries[at][0], refused.get(at))

    def count_stale(self, held: Held, refusal: Refusal) -> None:
        """Count a receipt that is not valid any more."""
        self._metrics.stale_receipts.inc()
        if not self._told_of_stale:
            self._told_of_stale = True
            self._log.warning(
                "sqs: a receipt is not valid any more: the message was deleted, or came to somebody else",
                message=held.id,
                reason=refusal.reason,
            )

    async def _answer_all(self) -> None:
        """Delete and give back what is owed, once; what failed stays owed, after a pause."""
        for held, delete in list(self._owed.items()):
            if not delete and self._is_held(
                held.id
            ):  # it has come again: giving it back would be for nothing
                del self._owed[held]
        deletes = [held for held, delete in self._owed.items() if delete]
        releases = [held for held, delete in self._owed.items() if not delete]
        async with asyncio.TaskGroup() as tasks:
            for batch in batches(deletes):
                tasks.create_task(self.call(batch, None, self._settle))
            for batch in batches(releases):
                tasks.create_task(self.call(batch, 0, self._settle))
        failures = max((held.failures for held in self._owed), default=0)
        if failures:
            self._some.set()
            await asyncio.sleep(BACKOFF.seconds(failures))

    def _settle(self, held: Held, receipt: str, refusal: Refusal | None) -> None:
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
            self.count_stale(held, refusal)
        self._owed.pop(held, None)
        self._answered(held)


def batches(messages: Sequence[Held]) -> Iterator[Sequence[Held]]:
    """Part `messages` into what one call takes."""
    for at in range(0, len(messages), BATCH):
        yield messages[at : at + BATCH]
