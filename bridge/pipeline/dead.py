"""Dead letters: durable first, settled then."""

from __future__ import annotations

import asyncio
from itertools import islice

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.journal import Journal
from bridge.core.ports import DeadLetter, Keeper
from bridge.pipeline.retry import STORE_BACKOFF

_log = structlog.get_logger(__name__)
_TOGETHER = 100
"""Letters of one lane that are written at once."""


async def bury(keeper: Keeper, journal: Journal, delivery: Delivery, letter: DeadLetter) -> None:
    """Keep `letter`, then settle `delivery` DEAD_LETTERED.

    While the store can't keep it the caller waits here, so that nothing is lost; a Delivery that is settled
    meanwhile (released) is let go.
    """
    failures = 0
    while delivery.outcome is None:
        try:
            await keeper.bury(letter)
        except StoreError as error:
            failures += 1
            _log.error("dead letter can't be kept", service=letter.service, error=str(error))
            await asyncio.sleep(STORE_BACKOFF.seconds(failures))
        else:
            _buried(journal, delivery, letter)


def note_dead(journal: Journal, letter: DeadLetter, since: float | None = None) -> None:
    """Write down in the journal that `letter` is kept, of an event in the bridge's hands `since` then."""
    journal.note(
        "dead",
        letter.event,
        letter.service,
        since=since,
        attempts=letter.attempts,
        cause=letter.cause,
        detail=letter.detail,
    )


def _buried(journal: Journal, delivery: Delivery, letter: DeadLetter) -> None:
    note_dead(journal, letter, delivery.since)
    _log.warning(
        "dead letter",
        source=letter.event.source,
        service=letter.service,
        id=letter.event.id,
        cause=letter.cause,
        detail=letter.detail,
        attempts=letter.attempts,
    )
    delivery.settle(Outcome.DEAD_LETTERED)


class Burials:
    """The dead letters of one lane on their way into the store: no attempt waits for them."""

    def __init__(self, keeper: Keeper, journal: Journal) -> None:
        self._keeper = keeper
        self._journal = journal
        self._letters: dict[Delivery, DeadLetter] = {}
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, delivery: Delivery, letter: DeadLetter) -> None:
        """Have `letter` kept soon, and `delivery` settled then."""
        self._letters[delivery] = letter
        self._none.clear()
        self._some.set()

    def left(self, delivery: Delivery) -> None:
        """Hear that `delivery` has settled, so that its letter need not be kept any more."""
        if self._letters.pop(delivery, None) is not None and not self._letters:
            self._some.clear()
            self._none.set()

    async def finished(self) -> None:
        """Return when none waits to be kept."""
        await self._none.wait()

    async def run(self) -> None:
        """Keep them until cancelled.

        What can't be kept goes behind the others: it may be too large for a store that is nearly full.
        """
        failures = 0
        while True:
            await self._some.wait()
            chunk = list(islice(self._letters.items(), _TOGETHER))
            results = await asyncio.gather(
                *(self._keeper.bury(letter) for _, letter in chunk), return_exceptions=True
            )
            trouble: StoreError | None = None
            for (delivery, letter), result in zip(chunk, results, strict=True):
                if isinstance(result, StoreError):
                    trouble = result
                    if self._letters.pop(delivery, None) is not None:
                        self._letters[delivery] = letter
                elif result is not None:
                    raise result
                else:
                    _buried(self._journal, delivery, letter)
            if trouble is None:
                failures = 0
                continue
            failures += 1
            service = chunk[0][1].service
            _log.error("dead letters can't be kept", service=service, error=str(trouble))
            await asyncio.sleep(STORE_BACKOFF.seconds(failures))
