from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime

import pytest

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.kafka import reader
from bridge.telemetry.metrics import Metrics
from bridge.testing import opened, settle, until
from tests.servers.tansu import Tansu
from tests.sources.reading import source


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
        await hands.take(6)
        assert hands.data == [b"4", b"5", b"6", b"7", b"8", b"9"]


async def test_the_commit_never_passes_an_unsettled_event(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"%d" % number for number in range(60)])
    order = list(range(60))
    random.Random(unique).shuffle(order)
    async with opened(source(tansu, unique)) as hands:
        taken = await hands.take(60)
        for part in (order[:20], order[20:40], order[40:]):
            settle([taken[index] for index in part])
            owed = [index for index, delivery in enumerate(taken) if delivery.outcome is None]
            expected = min(owed, default=60)

            async def is_committed(offset: int = expected) -> bool:
                stored = (await tansu.committed(unique, unique)).get(0, 0)
                assert stored <= offset
                return stored == offset

            await until(is_committed)


async def test_records_come_as_events_with_key_headers_and_tombstones(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(
        unique,
        [(b"k", b"\xff not text"), (b"gone", None)],
        headers=[("ce_type", b"org.example"), ("trace", b"1")],
        timestamp_ms=1_700_000_000_000,
    )
    async with opened(source(tansu, unique, key="uploads", identity="kept")) as hands:
        first, second = [delivery.event for delivery in await hands.take(2)]
    assert first.id == f"{unique}/0/0@1700000000000"
    assert (first.source, first.type, first.subject) == ("kept", "org.example", "k")
    assert first.data == b"\xff not text"
    assert first.attributes["header.trace"] == "1"
    assert first.time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (second.data, second.attributes["key"]) == (b"", "gone")


async def test_a_topic_made_anew_gives_new_ids_and_a_renamed_key_gives_the_old_ones(
    tansu: Tansu, unique: str
) -> None:
    async def identities(key: str, identity: str | None) -> list[tuple[str, str]]:
        async with opened(source(tansu, unique, key=key, identity=identity, group_id=unique + key)) as hands:
            taken = await hands.take(3)
            return [(delivery.event.source, delivery.event.id) for delivery in taken]

    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"a", b"b", b"c"])
    first, renamed = await asyncio.gather(identities("old", None), identities("new", "old"))
    assert renamed == first
    await tansu.delete_topic(unique)
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"a", b"b", b"c"])
    again = await identities("third", "old")
    assert [one.partition("@")[0] for _, one in again] == [one.partition("@")[0] for _, one in first]
    assert not set(again) & set(first)


async def test_never_more_is_handed_over_than_there_are_slots(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique, partitions=3)
    await tansu.produce(unique, [b"%d" % number for number in range(200)], partition=None)
    async with opened(source(tansu, unique), limit=7) as hands:
        while len(hands.seen) < 200:
            await hands.take(1)  # `Room.take` asserts the bound
            settle(random.Random(len(hands.seen)).sample(hands.seen, 1))
            if not hands.room.free:
                settle(hands.seen)
        assert len({delivery.event.id for delivery in hands.seen}) == 200


async def test_a_full_bridge_is_not_expelled_and_goes_on_where_it_stopped(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"%d" % number for number in range(30)])
    async with opened(source(tansu, unique, max_poll_interval=1), limit=10) as hands:
        first = await hands.take(10)
        await hands.takes_nothing(2.5)
        assert {delivery.outcome for delivery in first} == {None}, "a rebalance released them"
        settle(first)
        while len(hands.seen) < 30:
            settle(await hands.take(1))
        assert hands.data == [b"%d" % number for number in range(30)]


async def test_a_cancelled_taker_finds_its_batch_the_next_time(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    async with opened(source(tansu, unique)) as hands:
        for number in range(5):
            waiting = asyncio.create_task(hands.next())
            await asyncio.sleep(0)
            await tansu.produce(unique, [b"%d" % number])
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        while len(hands.seen) < 5:
            await hands.take(1)
        assert hands.data == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_released_event_is_read_again_from_the_commit(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"0", b"1", b"2", b"3"])
    async with opened(source(tansu, unique)) as hands:
        taken = await hands.take(4)
        settle(taken[:1])
        settle(taken[1:2], Outcome.RELEASED)
        with pytest.raises(SourceLost, match="given back"):
            await hands.take(1)
        assert {delivery.outcome for delivery in taken[2:]} == {Outcome.RELEASED}
    assert await tansu.committed(unique, unique) == {0: 1}


async def test_a_partition_at_the_bound_of_its_gap_waits_alone(
    tansu: Tansu, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "GAP", 40)
    monkeypatch.setattr(reader, "BATCH", 10)
    await tansu.create_topic(unique, partitions=2)
    for partition in (0, 1):
        await tansu.produce(unique, [b"%d" % partition] * 100, partition=partition)
    async with opened(source(tansu, unique)) as hands:
        stuck = None
        while len(hands.seen) < 140:
            for delivery in await hands.take(1):
                if stuck is None and delivery.event.data == b"0":
                    stuck = delivery
                elif delivery is not stuck:
                    delivery.settle(Outcome.ACCEPTED)
        await hands.takes_nothing(0.3)
        assert (hands.data.count(b"0"), hands.data.count(b"1")) == (40, 100)
        assert stuck is not None
        stuck.settle(Outcome.ACCEPTED)
        while len(hands.seen) < 200:
            settle(await hands.take(1))


async def test_what_has_settled_is_let_go_before_it_is_committed(
    tansu: Tansu, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "COMMIT_SECONDS", 60.0)
    await tansu.create_topic(unique, partitions=2)
    for partition in (0, 1):
        await tansu.produce(unique, [b"%d" % partition] * 100, partition=partition)
    async with opened(source(tansu, unique), limit=10) as hands:
        while len(hands.seen) < 200:
            settle(await hands.take(1))
            kept = sum(map(len, hands.source._reader._ledgers.values()))
            assert kept <= 20  # as many as there are slots, and those that took the place of settled ones


async def test_a_pattern_takes_up_topics_that_appear(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(f"{unique}-a")
    await tansu.create_topic(f"other-{unique}-a")
    await tansu.create_topic(f"{unique}-a-more")
    await tansu.produce(f"{unique}-a", [b"a"])
    await tansu.produce(f"other-{unique}-a", [b"no"])
    await tansu.produce(f"{unique}-a-more", [b"no"])
    pattern = source(tansu, unique, topic_pattern=f"{unique}-.", metadata_max_age=0.5)
    async with opened(pattern) as hands:
        settle(await hands.take(1))  # not committed yet when the next topic turns the subscription over
        await tansu.create_topic(f"{unique}-b")
        await tansu.produce(f"{unique}-b", [b"b"])
        await hands.take(1)
        assert hands.data == [b"a", b"b"]


async def test_latest_begins_with_what_comes_and_stays_there(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.prepare_group(unique, unique)
    await tansu.produce(unique, [b"old"])

    async def begun() -> bool:
        return await tansu.committed(unique, unique) == {0: 1}

    latest = source(tansu, unique, auto_offset_reset="latest")
    async with opened(latest):
        await until(begun)  # without a commit a restart would begin at a later end
    await tansu.produce(unique, [b"new"])
    async with opened(latest) as hands:
        await hands.take(1)
        assert hands.data == [b"new"]


async def test_a_timestamp_says_where_a_fresh_group_begins(tansu: Tansu, unique: str) -> None:
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"before"])
    moment = time.time() + 0.02  # tansu looks up its own clock's time, not the record's
    await until(lambda: time.time() > moment + 0.02)
    await tansu.produce(unique, [b"after"])
    past = source(tansu, unique, start_at=datetime.fromtimestamp(moment, UTC))
    future = source(tansu, unique, start_at=datetime(2999, 1, 1, tzinfo=UTC), group_id=f"{unique}-later")

    async def begun() -> bool:
        return await tansu.committed(f"{unique}-later", unique) == {0: 2}

    async with opened(past) as hands, opened(future) as late_hands:
        await hands.take(1)
        assert hands.data == [b"after"]
        await until(begun)
        await tansu.produce(unique, [b"new"])
        await late_hands.take(1)
        assert late_hands.data == [b"new"]


async def test_lag_is_what_was_not_handed_out(tansu: Tansu, unique: str) -> None:
    metrics = Metrics()
    await tansu.create_topic(unique)
    await tansu.produce(unique, [b"%d" % number for number in range(50)])

    def lag() -> float | None:
        return metrics.registry.get_sample_value("bridge_source_lag", {"source": "uploads"})

    async with opened(source(tansu, unique, metrics=metrics), limit=20) as hands:
        await hands.take(20)
        await until(lambda: lag() == 30)
        while len(hands.seen) < 50:
            settle(hands.seen)
            await hands.take(1)
        await until(lambda: lag() == 0)
