"""What every source does around its reader."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from structlog.testing import capture_logs

from bridge.core.backoff import Backoff
from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.core.event import Event
from bridge.sources.handover import Handover
from bridge.sources.reading import lost_with, reading

LOG = structlog.get_logger()


class Reader:
    """Fails with `error` once it is told to; notes what became of it."""

    def __init__(self, error: Exception | None = None, expected: tuple[type[Exception], ...] = ()) -> None:
        self.batches = Handover()
        self.fails = asyncio.Event()
        self.released = self.ended = False
        self._error = error
        self._expected = expected

    async def run(self) -> None:
        try:
            async with lost_with(
                self.batches, "it failed", LOG, release=self._release, expected=self._expected
            ) as tasks:
                tasks.create_task(self._fail())
                tasks.create_task(asyncio.Event().wait())
        finally:
            self.ended = True

    def _release(self) -> None:
        self.released = True

    async def _fail(self) -> None:
        await self.fails.wait()
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize(
    ("error", "told", "is_logged"),
    [
        (SourceLost("the broker is away"), "the broker is away", False),
        (ConnectionError("reset"), "ConnectionError: reset", False),
        (LookupError("a defect"), "LookupError: a defect", True),
    ],
)
async def test_what_ends_one_task_ends_all_and_is_told_after_all_is_given_back(
    error: Exception, told: str, is_logged: bool
) -> None:
    reader = Reader(error, expected=(ConnectionError,))

    async def read() -> None:
        async with reading(reader, "a reader") as batches:
            reader.fails.set()
            try:
                await anext(batches)
            finally:
                assert reader.released

    with capture_logs() as lines, pytest.raises(SourceLost, match=told):
        await read()
    assert [line["event"] for line in lines] == (["it failed"] if is_logged else [])


async def test_who_leaves_ends_the_reader_and_no_loss_is_told() -> None:
    reader = Reader()
    async with reading(reader, "a reader"):
        await asyncio.sleep(0)
    assert reader.ended
    assert not reader.released


async def test_a_reader_that_is_lost_before_it_has_begun_is_told_at_once() -> None:
    reader = Reader(SourceLost("no such group"))
    reader.fails.set()
    with pytest.raises(SourceLost, match="no such group"):
        async with reading(reader, "a reader", asyncio.Event().wait()):
            raise AssertionError("it has not begun")
    assert reader.ended


async def test_what_the_runner_raises_through_it_stays_what_it_is() -> None:
    async def read() -> None:
        async with reading(Reader(), "a reader"):
            raise LookupError("the runner's own")

    with pytest.raises(LookupError):
        await read()


async def test_what_is_offered_is_handed_over_but_what_was_settled_and_withdrawn() -> None:
    class Room:
        free = 2

        async def wait(self) -> None:
            pass

    batches = Handover()
    made = [Delivery(Event(id=str(n), source="s", type="t", data=b"")) for n in range(5)]
    for each in made:
        batches.offer(each)
    made[0].settle(Outcome.RELEASED)
    assert batches.waiting == 5
    batches.drop_settled()
    assert batches.waiting == 4
    feeding = asyncio.create_task(batches.feed(Room()))
    assert await anext(batches) == made[1:3]
    await asyncio.sleep(0)
    assert batches.withdraw() == made[3:]
    assert batches.waiting == 0
    feeding.cancel()
    await asyncio.wait([feeding])


def test_pauses_are_drawn_up_to_twice_as_long_each_time_and_have_an_end() -> None:
    for failures, most in ((1, 0.5), (2, 1.0), (3, 2.0), (6, 10.0), (10_000, 10.0)):
        drawn = [Backoff(first=0.5, longest=10.0).seconds(failures) for _ in range(500)]
        assert all(0 <= seconds <= most for seconds in drawn)
        assert max(drawn) > 0.9 * most
