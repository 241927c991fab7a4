from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.core.event import Event
from bridge.sources.handover import Handover
from bridge.sources.kafka.ledger import Ledger

SETTLED = st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.RELEASED])


def delivery(offset: int = 0) -> Delivery:
    return Delivery(Event(id=str(offset), source="s", type="t", data=b""))


@st.composite
def partitions(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A start and the offsets after it, with the holes that compaction and transactions leave."""
    start = draw(st.integers(0, 1000))
    steps = draw(st.lists(st.integers(1, 4), min_size=1, max_size=40))
    offsets, offset = [], start + draw(st.integers(0, 3)) - 1
    for step in steps:
        offset += step
        offsets.append(offset)
    return start, offsets


@st.composite
def runs_of(draw: st.DrawFn, offsets: list[int]) -> list[list[int]]:
    """The same, as some fetches bring them."""
    cuts = sorted(draw(st.sets(st.integers(1, len(offsets)))) | {0, len(offsets)})
    return [offsets[begin:end] for begin, end in pairwise(cuts)]


@given(partition=partitions(), data=st.data())
def test_the_prefix_ends_at_the_first_unsettled_event_in_every_order(
    partition: tuple[int, list[int]], data: st.DataObject
) -> None:
    start, offsets = partition
    ledger = Ledger(start)
    assert ledger.prefix() == start
    open_: dict[int, Delivery] = {}
    for fetched in data.draw(runs_of(offsets)):
        open_ |= {offset: delivery(offset) for offset in fetched}
        ledger.add(fetched, [open_[offset] for offset in fetched])
    prefixes = [ledger.prefix()]
    for offset in data.draw(st.permutations(offsets)):
        open_.pop(offset).settle(data.draw(SETTLED))
        prefixes.append(ledger.prefix())
        assert prefixes[-1] == min(open_, default=offsets[-1] + 1)
    assert all(before <= after for before, after in pairwise(prefixes))
    assert len(ledger) == 0


@given(partition=partitions(), data=st.data())
def test_the_prefix_never_passes_a_released_event(
    partition: tuple[int, list[int]], data: st.DataObject
) -> None:
    start, offsets = partition
    ledger = Ledger(start)
    everything = [delivery(offset) for offset in offsets]
    ledger.add(offsets, everything)
    released = data.draw(st.integers(0, len(offsets) - 1))
    for index in data.draw(st.permutations(range(len(offsets)))):
        everything[index].settle(Outcome.RELEASED if index == released else Outcome.ACCEPTED)
    assert ledger.prefix() == offsets[released]


def test_a_trailing_hole_counts_as_settled_once_nothing_before_it_is_owed() -> None:
    ledger = Ledger(5)
    first = delivery()
    ledger.add([5], [first])
    ledger.skip_to(9)
    assert ledger.prefix() == 5
    first.settle(Outcome.FILTERED)
    assert ledger.prefix() == 9


async def test_a_cancelled_taker_loses_no_batch() -> None:
    handover = Handover()
    taker = asyncio.ensure_future(anext(handover))
    await asyncio.sleep(0)
    batch = [delivery(1), delivery(2)]
    handover.put(batch)
    taker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taker
    assert await anext(handover) == batch
    assert handover.is_empty


async def test_what_was_released_on_its_way_is_not_handed_out() -> None:
    handover = Handover()
    gone, kept = delivery(1), delivery(2)
    handover.put([gone, kept])
    gone.settle(Outcome.RELEASED)
    assert await anext(handover) == [kept]


async def test_a_lost_source_is_told_each_time_it_is_asked() -> None:
    handover = Handover()
    handover.put([delivery()])
    handover.fail(SourceLost("gone"))
    for _ in range(2):
        with pytest.raises(SourceLost, match="gone"):
            await anext(handover)
