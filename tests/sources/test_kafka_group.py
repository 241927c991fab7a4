"""Several members of one group: nothing lost, nothing twice but what was unsettled."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import AsyncExitStack

from aiokafka.protocol.group import LeaveGroupRequest

from bridge.core.delivery import Delivery, Outcome
from bridge.testing import Hands, opened, settle, until
from tests.servers.tansu import Tansu
from tests.sources.reading import source


async def consume(hands: Hands) -> None:
    """Settle nine of ten at once and the tenth a while later, as lanes do."""
    loop = asyncio.get_running_loop()
    while True:
        for delivery in await hands.next():
            if delivery.event.data.endswith(b"0"):
                loop.call_later(0.4, delivery.settle, Outcome.ACCEPTED)
            else:
                delivery.settle(Outcome.ACCEPTED)


def shares(hands: Hands) -> bool:
    """Tell whether the member has two of the four partitions."""
    consumer, reader = hands.source._consumer, hands.source._reader
    return bool(consumer and reader and reader.is_assigned and len(consumer.assignment()) == 2)


async def test_members_that_join_and_leave_lose_nothing_and_double_only_what_was_unsettled(
    tansu: Tansu, unique: str
) -> None:
    await tansu.create_topic(unique, partitions=4)
    everything: list[Hands] = []

    def accepted() -> set[bytes]:
        return {
            delivery.event.data
            for hands in everything
            for delivery in hands.seen
            if delivery.outcome is Outcome.ACCEPTED
        }

    async def produce(first: int) -> None:
        values = [b"%d" % number for number in range(first, first + 200)]
        for partition in range(4):
            await tansu.produce(unique, values[partition::4], partition=partition)

    async def join(stack: AsyncExitStack) -> Hands:
        hands = await stack.enter_async_context(opened(source(tansu, unique, max_poll_interval=4)))
        everything.append(hands)
        consumer = asyncio.create_task(consume(hands))
        stack.callback(consumer.cancel)
        return hands

    async with AsyncExitStack() as second:
        async with AsyncExitStack() as first:
            one = await join(first)
            await produce(0)
            await until(lambda: len(one.seen) >= 50)
            two = await join(second)
            await until(lambda: shares(one) and shares(two), seconds=30)
            await produce(200)
            await until(lambda: len(two.seen) >= 20)
            await produce(400)
            one.room.limit = 0  # as the bridge stops: no more slots, then what is in hand is settled
            await until(lambda: not one.room.taken)
        await produce(600)
        await until(lambda: len(accepted()) == 800, seconds=30)

    copies: dict[str, list[Delivery]] = defaultdict(list)
    for hands in everything:
        for delivery in hands.seen:
            copies[delivery.event.id].append(delivery)
    assert len(copies) == 800
    for same in copies.values():
        assert [delivery.outcome for delivery in same].count(Outcome.ACCEPTED) == 1


async def test_a_rebalance_waits_for_what_is_in_hand_and_releases_the_rest(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique, partitions=2)
    for partition in (0, 1):
        await tansu.produce(unique, [b"soon", b"never"], partition=partition)
    async with opened(source(tansu, unique, max_poll_interval=2)) as one:
        taken = await one.take(4)
        soon = [delivery for delivery in taken if delivery.event.data == b"soon"]
        asyncio.get_running_loop().call_later(0.3, settle, soon)
        async with opened(source(tansu, unique, max_poll_interval=2)) as two:
            takers = [asyncio.create_task(hands.take(1)) for hands in (one, two)]
            again = [delivery for got in await asyncio.gather(*takers) for delivery in got]
            assert [delivery.event.data for delivery in again] == [b"never", b"never"]
        assert [delivery.outcome for delivery in taken if delivery.event.data == b"never"] == [
            Outcome.RELEASED,
            Outcome.RELEASED,
        ]


async def test_an_expelled_member_lets_go_at_once_and_comes_back(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"0", b"1"])
    async with opened(source(tansu, unique)) as hands:
        taken = await hands.take(2)
        coordinator = hands.source._consumer._coordinator  # type: ignore[union-attr]
        await coordinator._send_req(LeaveGroupRequest(unique, coordinator.member_id))
        settle(taken[:1])  # its commit is refused
        await until(lambda: taken[1].outcome is Outcome.RELEASED, seconds=8)  # `DRAIN_SECONDS` is 10
        await hands.take(2)
        assert hands.data == [b"0", b"1", b"0", b"1"]
