"""One batch on its way: the taker hears of whatever ends the task that reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.core.event import Event
from bridge.sources.handover import Handover


def delivery(name: str) -> Delivery:
    return Delivery(Event(id=name, source="s", type="t", data=b""))


async def test_a_batch_that_was_not_taken_stays_and_what_was_settled_meanwhile_is_not_given() -> None:
    handover = Handover()
    first, second = delivery("first"), delivery("second")
    handover.put([first, second])
    taking = asyncio.create_task(anext(handover))
    taking.cancel()
    await asyncio.wait([taking])
    first.settle(Outcome.RELEASED)
    assert await anext(handover) == [second]
    assert handover.is_empty


async def test_the_taker_is_told_of_a_loss_whenever_it_asks() -> None:
    handover = Handover()
    taking = asyncio.create_task(anext(handover))
    await asyncio.sleep(0)
    handover.fail(SourceLost("gone"))
    for asked in (taking, anext(handover)):
        with pytest.raises(SourceLost, match="gone"):
            await asked


class Panic(BaseException):
    """No Exception, so that no `except* Exception` takes it."""


async def panics() -> None:
    raise BaseExceptionGroup("tasks", [Panic("out of bounds")])


async def fails() -> None:
    raise LookupError("a defect in telling of a loss")


async def breaks_off() -> None:
    raise asyncio.CancelledError


async def ends() -> None:
    pass


@pytest.mark.parametrize(
    ("reads", "told"),
    [
        (panics, BaseExceptionGroup),
        (fails, LookupError),
        (breaks_off, SourceLost),
        (ends, SourceLost),
    ],
)
async def test_a_reader_that_ends_of_itself_is_a_loss(
    reads: Callable[[], Coroutine[Any, Any, None]], told: type[BaseException]
) -> None:
    handover = Handover()
    handover.rests_on(asyncio.create_task(reads()))
    with pytest.raises(told):
        await anext(handover)
    with pytest.raises(told):
        await handover.begun(asyncio.Event().wait())


async def test_what_begins_is_waited_for_with_its_own_failure() -> None:
    handover = Handover()
    await handover.begun(ends())
    with pytest.raises(LookupError):
        await handover.begun(fails())
    with pytest.raises(SourceLost):
        await handover.begun(breaks_off())


async def test_the_loss_that_a_reader_told_before_it_ended_is_the_one_that_counts() -> None:
    handover = Handover()

    async def reads() -> None:
        handover.fail(SourceLost("the broker is away"))
        raise LookupError("and then a defect")

    handover.rests_on(asyncio.create_task(reads()))
    await asyncio.sleep(0)
    with pytest.raises(SourceLost, match="the broker is away"):
        await anext(handover)
