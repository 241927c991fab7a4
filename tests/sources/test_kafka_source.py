from __future__ import annotations

from bridge.core.delivery import Outcome
from tests.servers.tansu import Tansu
from tests.sources.reading import opened, settle, source, until


async def test_a_group_resumes_where_everything_before_was_settled(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.prepare_group(unique, unique)
    await tansu.produce(unique, [b"%d" % number for number in range(10)])
    async with opened(source(tansu, unique)) as hands:
        taken = await hands.take(10)
        settle(taken[:4])
        settle(taken[6:])
    assert {delivery.outcome for delivery in taken[4:6]} == {Outcome.RELEASED}
    assert await tansu.committed(unique, unique) == {0: 4}
    async with opened(source(tansu, unique)) as hands:
        assert [delivery.event.data for delivery in await hands.take(6)] == [
            b"4",
            b"5",
            b"6",
            b"7",
            b"8",
            b"9",
        ]


async def test_what_is_settled_is_committed_while_reading_goes_on(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"a", b"b", b"c"])

    async def committed_two() -> bool:
        return await tansu.committed(unique, unique) == {0: 2}

    async with opened(source(tansu, unique)) as hands:
        taken = await hands.take(3)
        settle(taken[:2])
        await until(committed_two)
        settle(taken[2:])
    assert await tansu.committed(unique, unique) == {0: 3}
