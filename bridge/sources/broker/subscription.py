"""What of one link is in the bridge's hands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from bridge.core.delivery import Delivery, Outcome
from bridge.sources.broker.link import NEARLY_DEAD, Link, LinkLost, returns
from bridge.sources.broker.message import Message, Read, Tag, Unreadable, Unwanted
from bridge.telemetry.metrics import SourceMetrics

GATHER_SECONDS = 0.01
"""How long answers gather, for one acknowledgement of many."""
CLOSE_SECONDS = 3.0
"""For the last answers, and for hanging up."""


class Full(LinkLost):
    """More bytes were received than may be held: a broker counts messages, whatever their size."""

    def __init__(self, messages: int, size: int) -> None:
        super().__init__(f"holds {size} bytes in {messages} messages: to be read again, fewer at once")
        self.mean = size // messages


class Subscription:
    """Takes a link's messages as Deliveries, and answers on that link alone.

    An answer that comes after the link has ended is none: its message comes again, on another.
    """

    def __init__(
        self,
        read: Read,
        offer: Callable[[Delivery], None],
        *,
        most_bytes: int,
        metrics: SourceMetrics,
        log: Any,
    ) -> None:
        """Make of each message what `read` does, and `offer` that once `run` can answer for it."""
        self._read = read
        self._early: list[Delivery] = []
        """What came while the link was being opened, which can't be answered then."""
        self._offer_it = offer
        self._offer = self._early.append
        self._most_bytes = most_bytes
        self._metrics = metrics
        self._log = log
        self._held: dict[Delivery, tuple[Tag, int]] = {}
        """What is not answered, with its size: what is handed over in its place may have another."""
        self._bytes = 0
        """Of what is held."""
        self._ended = False
        self._done: list[Tag] = []
        self._some_owed = asyncio.Event()

    def take(self, message: Message) -> None:
        """Take one message in. Raises Full over the byte limit: the message is then held, not offered.

        One message is always taken.
        """
        if self._ended:
            return
        found = self._read(message)
        if isinstance(found, Unwanted):
            self._metrics.filtered(found.reason)
            self._log.debug("event filtered", reason=found.reason)
            self._owe(message.tag)
            return
        event, fault = (found.event, found.reason) if isinstance(found, Unreadable) else (found, None)
        delivery = Delivery(
            event,
            self._settled,
            fault=message.fault or fault,
            nearly_dead=returns(message.attributes) >= NEARLY_DEAD,
        )
        self._held[delivery] = message.tag, event.size
        self._bytes += event.size
        if self._bytes > self._most_bytes and len(self._held) > 1:
            raise Full(len(self._held), self._bytes)
        self._offer(delivery)

    async def run(self, link: Link) -> NoReturn:
        """Answer until the link is lost, which raises LinkLost, or until cancelled.

        Either way nothing is held any more at the end: what is settled by then is answered, if the link
        still can, and all else is RELEASED.
        """
        self._offer = self._offer_it
        for delivery in self._early:
            self._offer(delivery)
        self._early.clear()
        answering = asyncio.create_task(self._answer(link))
        losing = asyncio.create_task(link.lost())
        try:
            await asyncio.wait((answering, losing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, losing):
                task.cancel()
            ends = await asyncio.gather(losing, answering, return_exceptions=True)
            failures = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
            self.release()
            if not failures:
                await self._hang_up(link)
        # Without a failure somebody else has cancelled them: aiormq does when it closes a channel.
        raise failures[0] if failures else LinkLost("the connection ended")

    def release(self) -> None:
        """Take no more, and give back all that is held."""
        self._ended = True
        for delivery in list(self._held):
            delivery.settle(Outcome.RELEASED)

    def _settled(self, delivery: Delivery, outcome: Outcome) -> None:
        tag, size = self._held.pop(delivery)
        self._bytes -= size
        if outcome is not Outcome.RELEASED:  # that one goes back when the link ends
            self._owe(tag)

    def _owe(self, tag: Tag) -> None:
        if tag:
            self._done.append(tag)
            self._some_owed.set()

    async def _answer(self, link: Link) -> NoReturn:
        while True:
            await self._some_owed.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._answer_all(link)

    def _answer_all(self, link: Link) -> None:
        self._some_owed.clear()
        done, self._done = self._done, []
        link.answer(done)
        self._metrics.committed()

    async def _hang_up(self, link: Link) -> None:
        with suppress(LinkLost, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._done:
                    self._answer_all(link)
                await link.close()  # which gives back the rest, and asks for no more at the same time
