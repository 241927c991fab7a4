"""Parked events: there until they are accepted, oldest first, each in its place."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bench.parked import SERVICE, bring_back, park, rates, some
from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.ports import InOrder, Keeper
from bridge.store import Filter, Store, orders, read_dead_letters
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import child, event, letter, parked, parked_ids, value


def rows(state_dir: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
        return connection.execute("SELECT number, id, service, reason FROM kept ORDER BY number").fetchall()


async def test_a_parked_event_comes_back_as_it_was(state_dir: Path, metrics: Metrics) -> None:
    given = Event(
        id="broken \udcff text\0",
        source="uploads",
        type="org.example.put",
        subject="a/ö.nc",
        time=datetime(2025, 3, 1, 12, tzinfo=UTC),
        data=bytes(range(256)),
        attributes={"partition": "3", "key": '\udcfe "\\ ö'},
    )
    async with Store.open(state_dir, metrics) as store:
        keeper: Keeper = store
        await keeper.park(given, "plants", attempts=3, first_attempt=1000.5)
        (row,) = await keeper.parked("plants", without=(), limit=10)
        assert (row.event, row.attempts, row.first_attempt) == (given, 3, 1000.5)
        assert await keeper.parked("flood", without=(), limit=10) == []
        assert await keeper.parked("plants", without=(), limit=0) == ()


async def test_one_with_a_broken_text_comes_back_among_others(state_dir: Path, metrics: Metrics) -> None:
    given = [event("first"), event("broken \udcff text"), event("last")]
    async with Store.open(state_dir, metrics) as store:
        for one in given:
            await store.park(one, "plants")
        for _ in range(2):
            assert [row.event for row in await parked(store)] == given


async def test_the_oldest_come_first_and_those_in_the_lane_are_left_out(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        for number in range(10):
            await store.park(event(str(number)), "plants" if number % 2 else "flood")
        assert await parked_ids(store) == ["1", "3", "5", "7", "9"]
        first, second = await store.parked("plants", without=(), limit=2)
        assert await parked_ids(store, without={first.number, second.number}) == ["5", "7", "9"]


async def test_those_up_to_a_number_are_left_out(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for number in range(5):
            await store.park(event(str(number)), "plants")
        first, second, third, *_ = await parked(store)
        assert await store.parked("plants", without=(), limit=9, after=second.number) == [
            row for row in await parked(store) if row.number > second.number
        ]
        store.forget(third.number)
        left = await store.parked("plants", without={first.number}, limit=9, after=second.number)
        assert [row.event.id for row in left] == ["3", "4"]


async def test_parking_again_is_the_same_row_in_its_old_place(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for number in range(3):
            await store.park(event(str(number)), "plants")
        await store.park(event("0"), "plants", attempts=2, first_attempt=50.0)
        await store.park(event("0"), "plants", attempts=1, first_attempt=70.0)
        first, *_ = await parked(store)
        assert (first.event.id, first.attempts, first.first_attempt) == ("0", 2, 50.0)
        assert await parked_ids(store) == ["0", "1", "2"]
        assert store.waiting("plants") == 3


async def test_a_big_chunk_is_given_in_parts_and_nothing_is_left_out(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        data = os.urandom(5 * 2**20)
        await asyncio.gather(*(store.park(event(str(n), data=data), "plants") for n in range(6)))
        found, seen = [], set[int]()
        while some_rows := await parked(store, without=seen):
            assert len(some_rows) <= 4
            found += [row.event.id for row in some_rows]
            seen |= {row.number for row in some_rows}
        assert found == ["0", "1", "2", "3", "4", "5"]


async def test_what_is_forgotten_is_gone_at_once_for_this_process_and_soon_on_disk(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        for number in range(3):
            await store.park(event(str(number)), "plants")
        first, *_ = await parked(store)
        store.forget(first.number)
        store.forget(first.number)
        assert store.waiting("plants") == 2
        assert await parked_ids(store) == ["1", "2"]
        await until(lambda: len(rows(state_dir)) == 2, seconds=2)
        await until(lambda: value(metrics, "bridge_kept_events", service="plants", reason="parked") == 2)
        assert store.waiting("plants") == 2
        store.forget(first.number)
        store.forget(999)
        await store.park(event("3"), "plants")
        assert store.waiting("plants") == 3


async def test_a_number_that_was_never_given_is_forgotten_too(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants")
    async with Store.open(state_dir, metrics) as store:
        store.forget(1)
        await until(lambda: store.waiting("plants") == 0)
    assert rows(state_dir) == []


async def test_leaving_the_store_writes_what_was_forgotten(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.park(event(str(n)), "plants") for n in range(3000)))
        async with asyncio.timeout(30):
            await bring_back(store)
    assert rows(state_dir) == []
    store.forget(1)
    with pytest.raises(StoreError, match="closed"):
        await store.park(event(), "plants")
    with pytest.raises(StoreError, match="closed"):
        await store.parked("plants", without=(), limit=1)
    with pytest.raises(StoreError, match="closed"):
        await orders.discard(store, Filter())


async def test_a_note_written_before_the_acceptance_does_not_bring_the_event_back(
    state_dir: Path, metrics: Metrics
) -> None:
    """The lane notes the first attempt, and OSCAR accepts the second, within one group."""
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants")
        (row,) = await parked(store)
        noting = asyncio.ensure_future(store.park(event(), "plants", attempts=1, first_attempt=5.0))
        await asyncio.sleep(0)
        store.forget(row.number)
        await noting
        assert store.waiting("plants") == 0
    assert rows(state_dir) == []


async def test_an_event_that_comes_again_right_after_its_acceptance_is_kept(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants")
        (row,) = await parked(store)
        store.forget(row.number)
        await store.park(event(), "plants")
        assert store.waiting("plants") == 1
        (again,) = await parked(store)
        assert again.number > row.number
    assert rows(state_dir) == [(again.number, "1", "plants", "parked")]


async def test_a_dead_letter_buried_before_it_is_forgotten_stays(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants")
        (row,) = await parked(store)
        burying = asyncio.ensure_future(store.bury(letter()))
        await asyncio.sleep(0)
        store.forget(row.number)
        await burying
        assert store.waiting("plants") == 0
    assert rows(state_dir) == [(row.number, "1", "plants", "dead")]


async def test_what_is_forgotten_and_parked_in_order_before_that_is_written_is_kept(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants")
        (row,) = await parked(store)
        store.forget(row.number)
        assert store._going == [row.number], "it waits for others to go with"
        await store.park_in_order("plants", [InOrder(event=event(), order_key=7)])
        await until(lambda: not store._leaving)
        assert store.waiting("plants") == 1
        (again,) = await parked(store)
        assert (again.number > row.number, again.order_key) == (True, 7)
    assert rows(state_dir) == [(again.number, "1", "plants", "parked")]


@pytest.mark.parametrize("buried_first", [False, True])
async def test_one_that_is_buried_while_it_is_forgotten_is_counted_as_gone_once(
    buried_first: bool, state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        for name in ("1", "2", "3"):
            await store.park(event(name), "plants")
        first, *_ = await parked(store)
        if buried_first:
            burying = asyncio.ensure_future(store.bury(letter()))
            await asyncio.sleep(0)
            store.forget(first.number)
        else:
            store.forget(first.number)
            burying = asyncio.ensure_future(store.bury(letter()))
        assert store.waiting("plants") == 2
        await burying
        assert store.waiting("plants") == 2
        await until(lambda: not store._leaving)
        assert store.waiting("plants") == 2
        assert value(metrics, "bridge_kept_events", service="plants", reason="parked") == 2
        assert value(metrics, "bridge_kept_events", service="plants", reason="dead") == 1
    assert [reason for *_, reason in rows(state_dir)].count("dead") == 1


async def test_burying_takes_a_parked_event_out_of_its_lane(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants", attempts=1, first_attempt=10.0)
        (row,) = await parked(store)
        await store.bury(replace(letter(), attempts=4, first_attempt=99.0, last_attempt=100.0))
        assert store.waiting("plants") == 0
        assert await parked(store) == []
        (dead,) = read_dead_letters(state_dir)
        assert (dead.number, dead.attempts, dead.first_attempt) == (row.number, 4, 10.0)
        assert value(metrics, "bridge_kept_events", service="plants", reason="parked") == 0
        assert value(metrics, "bridge_kept_events", service="plants", reason="dead") == 1
        assert store._given == {}


async def test_a_dead_letter_that_comes_again_can_be_parked(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter())
        await store.park(event(), "plants")
        assert store.waiting("plants") == 1
        assert value(metrics, "bridge_dead_letters", service="plants", cause="too_large") == 0
    assert rows(state_dir) == [(1, "1", "plants", "parked")]


async def test_a_dead_letter_whose_job_failed_is_not_parked_when_it_comes_again(
    state_dir: Path, metrics: Metrics
) -> None:
    """OSCAR would call the attempt a duplicate, and the dead letter would be gone."""
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter(cause="job_failed"))
        await store.park(event(), "plants")
        assert store.waiting("plants") == 0
    assert rows(state_dir) == [(1, "1", "plants", "dead")]


async def test_counts_are_right_again_after_a_restart(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for number in range(5):
            await store.park(event(str(number)), "plants" if number else "flood")
        await store.bury(letter("4"))
    again = Metrics(CollectorRegistry())
    async with Store.open(state_dir, again) as store:
        assert (store.waiting("plants"), store.waiting("flood"), store.waiting("other")) == (3, 1, 0)
        assert value(again, "bridge_kept_events", service="plants", reason="parked") == 3
        assert value(again, "bridge_kept_events", service="plants", reason="dead") == 1


async def test_reading_does_not_wait_for_a_writer_that_waits(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants")
        with closing(sqlite3.connect(state_dir / "events.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            parking = asyncio.ensure_future(store.park(event("2"), "plants"))
            async with asyncio.timeout(2):
                assert await parked_ids(store) == ["1"]
            assert not parking.done()
            other.execute("ROLLBACK")
        await parking


@pytest.mark.parametrize(
    "progress", [1, random.randint(2, 500), random.randint(501, 3000)], ids=["at once", "early", "late"]
)
def test_every_park_that_returned_survives_sigkill_and_nothing_is_there_twice(
    tmp_path: Path, progress: int
) -> None:
    """Parked and not forgotten is there; forgotten is parked no more than once; dead stays dead."""
    process = child(
        """
        async def park(store, name):
            for number in range(100_000):
                await store.park(event(f"{name}-{number}", data=b"x" * 1000), "plants")
                os.write(1, f"parked {name}-{number}\\n".encode())
                if number % 5 == 0:
                    await store.bury(letter(f"{name}-{number}"))
                    os.write(1, f"dead {name}-{number}\\n".encode())
        async def bring_back(store):
            while True:
                for row in await store.parked("plants", without=(), limit=5):
                    os.write(1, f"forgotten {row.event.id}\\n".encode())
                    store.forget(row.number)
                await asyncio.sleep(0)
        async def main():
            async with Store.open(Path(arguments[0]), Metrics(CollectorRegistry())) as store:
                await asyncio.gather(bring_back(store), *(park(store, name) for name in range(50)))
        asyncio.run(main())
        """,
        str(tmp_path),
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(progress)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().split("\n")
    process.stdout.close()
    process.wait(30)
    told: dict[str, set[str]] = {"parked": set(), "dead": set(), "forgotten": set()}
    for line in lines:
        what, _, name = line.strip().partition(" ")
        if name:
            told[what].add(name)
    kept = rows(tmp_path)
    ids = [str(row[1]) for row in kept]
    assert len(ids) == len(set(ids))
    assert told["parked"] - told["forgotten"] <= set(ids)
    dead = {str(row[1]) for row in kept if row[3] == "dead"}
    assert told["dead"] - told["forgotten"] <= dead


async def test_fifty_thousand_parked_events_take_no_memory_and_come_back_in_order(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await park(store, some(2_000))
        before = _resident()
        await park(store, some(48_000, first=2_000))
        assert store.waiting(SERVICE) == 50_000
        began = time.process_time()
        rows = await store.parked(SERVICE, without=(), limit=500)
        assert time.process_time() - began < 0.5  # some milliseconds on a quiet machine
        assert [row.number for row in rows] == sorted(row.number for row in rows)
        count, _ = await bring_back(store)
        assert count == 50_000
        assert _resident() - before < 16 * 2**20


@pytest.mark.prove
@pytest.mark.timeout(900)
async def test_a_million_parked_events_take_no_memory(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await park(store, some(20_000))
        before = _resident()
        await park(store, some(980_000, first=20_000))
        full = _resident()
        chunks = []
        for _ in range(20):
            began = time.perf_counter()
            await store.parked(SERVICE, without=(), limit=500)
            chunks.append(time.perf_counter() - began)
        print(f"{before / 2**20:.0f} MiB, then {full / 2**20:.0f} MiB; {sorted(chunks)[10] * 1000:.1f} ms")
        assert full < before * 1.1
        assert sorted(chunks)[10] < 0.1
        count, _ = await bring_back(store)
        assert count == 1_000_000
        assert _resident() < before * 1.1


async def test_what_is_parked_or_forgotten_together_shares_its_transactions(
    state_dir: Path, transactions: list[None]
) -> None:
    await rates(state_dir, 10_000)
    assert len(transactions) < 10_000 / 50


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
