"""Dead letters: durable first, settled then."""

from __future__ import annotations

import asyncio

import structlog

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.ports import DeadLetter, Keeper
from bridge.pipeline.retry import Backoff

_log = structlog.get_logger(__name__)
_BACKOFF = Backoff(first=0.5, longest=15.0)


async def bury(keeper: Keeper, delivery: Delivery, letter: DeadLetter) -> None:
    """Keep `letter`, then settle `delivery` DEAD_LETTERED.

    While the store can't keep it the caller waits here, so a lane with a broken store stops instead
    of losing an event; a Delivery that is settled meanwhile (released) is let go.
    """
    failures = 0
    while delivery.outcome is None:
        try:
            await keeper.bury(letter)
        except StoreError as error:
            failures += 1
            _log.error("dead letter can't be kept", service=letter.service, error=str(error))
            await asyncio.sleep(_BACKOFF.seconds(failures))
        else:
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
