"""Commands on dead letters: list, replay, discard, by a filter; beside a daemon or alone."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.core.errors import StoreError, StoreLockedError
from bridge.core.event import Event
from bridge.store import Filter, Store, StoreConfig, Summary, orders, read_dead_letters
from bridge.store.orders import ITS_JOB_FAILED, NEVER_IN_A_LANE
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import event, letter, parked, parked_ids, value


async def bury(store: Store) -> None:
    """Numbers 1 to 6: plants too_large, flood gave_up, plants gave_up, no lane, plants job_failed, …"""
    await store.bury(letter("1"))
    await store.bury(letter("2", service="flood", cause="gave_up"))
    await store.bury(letter("3", cause="gave_up", data=b'{"size": 5}'))
    await store.bury(letter("4", service="", cause="unreadable"))
    await store.bury(letter("5", cause="job_failed"))
    await store.bury(letter("6", service="flood", cause="http_413", data=b'{"size": 6}'))


def age(state_dir: Path, number: int, seconds: float) -> None:
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection, connection:
        connection.execute("UPDATE kept SET kept_at = ? WHERE number = ?", (time.time() - seconds, number))


def big(_summary: Summary, its_event: Event) -> bool:
    return b"size" in its_event.data


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        (Filter(), [6, 5, 4, 3, 2, 1]),
        (Filter(numbers=[2, 3, 99]), [3, 2]),
        (Filter(numbers=[]), []),
        (Filter(service="plants"), [5, 3, 1]),
        (Filter(service=""), [4]),
        (Filter(cause="gave_up"), [3, 2]),
        (Filter(service="plants", cause="gave_up"), [3]),
        (Filter(older_than=60), [2, 1]),
        (Filter(younger_than=60), [6, 5, 4, 3]),
        (Filter(older_than=60, younger_than=200), [2]),
        (Filter(matches=big), [6, 3]),
        (Filter(matches=big, service="flood"), [6]),
    ],
)
async def test_a_filter_chooses_and_every_command_means_the_same(
    state_dir: Path, metrics: Metrics, chosen: Filter, numbers: list[int]
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await bury(store)
        age(state_dir, 1, 300)
        age(state_dir, 2, 100)
        assert (await orders.discard(store, chosen, dry_run=True)).changed == len(numbers)
        assert len(read_dead_letters(state_dir)) == 6
        assert (await orders.discard(store, chosen)).changed == len(numbers)
        left = {row.number for row in read_dead_letters(state_dir)}
        assert left == {1, 2, 3, 4, 5, 6} - set(numbers)


async def test_what_came_after_a_time_is_left_whatever_its_number(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await bury(store)
        for number in (1, 3, 6):
            age(state_dir, number, 100)
        assert (await orders.discard(store, Filter(kept_before=time.time() - 60))).changed == 3
        assert [row.number for row in read_dead_letters(state_dir)] == [5, 4, 2]


async def test_a_replay_parks_in_the_old_place_and_wakes_the_lanes(state_dir: Path, metrics: Metrics) -> None:
    woken: list[str] = []
    async with Store.open(state_dir, metrics) as store:
        for service in ("plants", "flood", "other"):
            store.on_parked(service, lambda service=service: woken.append(service))
        await store.bury(replace(letter("1"), attempts=7, first_attempt=1.0, last_attempt=2.0, status=500))
        await store.park(event("2"), "plants")
        await store.bury(letter("3", service="flood"))
        assert woken == []
        dry = await orders.replay(store, Filter(), dry_run=True)
        assert (dry.changed, woken, store.waiting("plants")) == (2, [], 1)
        done = await orders.replay(store, Filter())
        assert (done.changed, done.refused) == (2, {})
        assert sorted(woken) == ["flood", "plants"]
        assert (store.waiting("plants"), store.waiting("flood")) == (2, 1)
        first, second = await parked(store)
        assert (first.event.id, first.number, first.attempts, first.first_attempt) == ("1", 1, 0, None)
        assert second.event.id == "2"
        assert value(metrics, "bridge_dead_letters", service="plants", cause="too_large") == 0
        assert value(metrics, "bridge_kept_events", service="flood", reason="parked") == 1
        assert (await orders.replay(store, Filter())).changed == 0


async def test_a_dead_letter_is_counted_when_it_comes_and_not_when_the_store_is_opened(
    state_dir: Path, metrics: Metrics
) -> None:
    labels = {"service": "plants", "cause": "too_large"}
    names = "bridge_dead_lettered_total", "bridge_dead_letters", "bridge_dead_lettered_timestamp_seconds"
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("1"))
        await store.bury(letter("2"))
        await store.bury(letter("2"))
        assert [value(metrics, name, **labels) for name in names[:2]] == [2, 2], "one event is one letter"
        await orders.replay(store, Filter())
        await store.bury(letter("1"))
        assert [value(metrics, name, **labels) for name in names[:2]] == [3, 1]
        assert time.time() - (value(metrics, names[2], **labels) or 0) < 60
    again = Metrics()
    async with Store.open(state_dir, again) as store:
        assert [value(again, name, **labels) for name in names] == [0, 1, None]
        await store.bury(letter("3"))
        assert [value(again, name, **labels) for name in names[:2]] == [1, 2]


async def test_room_that_events_leave_is_free_though_the_file_keeps_its_size(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=16 * 2**20)) as store:
        empty = value(metrics, "bridge_store_used_bytes") or 0
        await asyncio.gather(*(store.bury(letter(str(n), data=bytes(2**16))) for n in range(50)))
        await until(lambda: (value(metrics, "bridge_store_used_bytes") or 0) - empty > 50 * 2**16)
        size = value(metrics, "bridge_store_bytes") or 0
        await orders.discard(store, Filter())
        await until(lambda: (value(metrics, "bridge_store_used_bytes") or 0) < 2 * empty)
        assert (value(metrics, "bridge_store_bytes") or 0) >= size / 2
        assert value(metrics, "bridge_store_limit_bytes") == 16 * 2**20


async def test_what_can_not_be_replayed_is_refused_and_counted(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await bury(store)
        for dry_run in (True, False):
            count = await orders.replay(store, Filter(), dry_run=dry_run)
            assert count.changed == 4
            assert count.refused == {NEVER_IN_A_LANE: 1, ITS_JOB_FAILED: 1}
        assert {row.number for row in read_dead_letters(state_dir)} == {4, 5}
        count = await orders.replay(store, Filter(), as_new=True)
        assert (count.changed, count.refused) == (1, {NEVER_IN_A_LANE: 1})
        assert await parked_ids(store) == ["1", "3", "5+1"]


async def test_every_replay_as_new_gives_an_identity_that_was_never_given(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("\udcffö+1"))
        for generation in (1, 2, 3):
            assert (await orders.replay(store, Filter(), as_new=True)).changed == 1
            (row,) = await parked(store)
            assert row.event.id == f"\udcffö+1+{generation}"
            await store.bury(letter(row.event.id, cause="job_failed"))
    async with Store.open(state_dir, metrics) as store:
        assert (await orders.discard(store, Filter())).changed == 1
        await store.bury(letter("\udcffö+1"))  # the same again, from upstream
        await orders.replay(store, Filter(), as_new=True)
        (row,) = await parked(store)
        assert row.event.id == "\udcffö+1+4"


async def test_a_fresh_identity_is_not_that_of_another_event(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("a"))
        await store.park(event("a+1"), "plants")
        await store.park(event("a+2"), "flood")
        await orders.replay(store, Filter(), as_new=True)
        assert await parked_ids(store) == ["a+2", "a+1"]


async def test_thousands_of_dead_letters_are_replayed_and_discarded_in_batches(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.bury(letter(str(n))) for n in range(3000)))
        assert (
            await orders.replay(store, Filter(matches=lambda row, _: int(row.event_id) % 3 == 0))
        ).changed == 1000
        assert store.waiting("plants") == 1000
        assert (await orders.replay(store, Filter(numbers=range(1, 1501)), as_new=True)).changed == 1000
        assert (await orders.discard(store, Filter())).changed == 1000
        assert store.waiting("plants") == 2000


async def test_an_expression_that_fails_ends_the_command_and_not_the_store(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await bury(store)
        with pytest.raises(ZeroDivisionError):
            await orders.replay(store, Filter(matches=lambda *_: bool(1 / 0)))
        assert store.problems() == []
        assert len(read_dead_letters(state_dir)) == 6


async def test_two_replays_at_once_park_each_letter_once(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.bury(letter(str(n))) for n in range(1200)))
        counts = await asyncio.gather(*(orders.replay(store, Filter(), as_new=True) for _ in range(3)))
        assert sum(count.changed for count in counts) == 1200
        assert store.waiting("plants") == 1200
        assert all(row.event.id.endswith("+1") for row in await parked(store))


async def test_a_command_without_a_daemon_marks_rows_that_the_next_daemon_takes(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as daemon:
        await bury(daemon)
        with pytest.raises(StoreLockedError):
            async with Store.open(state_dir, Metrics(CollectorRegistry())):
                pass
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as command:
        assert (await orders.replay(command, Filter(numbers=[1, 3]))).changed == 2
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as daemon:
        assert daemon.waiting("plants") == 2


async def test_a_command_that_can_not_be_written_says_so_and_can_be_given_again(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await bury(store)
        await orders.discard(store, Filter(), dry_run=True)  # the reader has the file open
        moved = (state_dir / "events.sqlite3").rename(state_dir / "moved")
        with pytest.raises(StoreError, match="can't be written"):
            await orders.replay(store, Filter(numbers=[1]))
        moved.rename(state_dir / "events.sqlite3")
        assert (await orders.replay(store, Filter(numbers=[1]))).changed == 1


async def test_old_dead_letters_go_and_parked_events_stay(
    state_dir: Path, metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await asyncio.gather(*(store.bury(letter(str(n))) for n in range(1100)))
        await store.park(event("parked"), "plants")
        with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection, connection:
            connection.execute("UPDATE kept SET kept_at = kept_at - 100 WHERE number > 1")
    again = Metrics(CollectorRegistry())
    async with Store.open(state_dir, again, StoreConfig(keep_dead_for=50.0)) as store:
        await until(lambda: value(again, "bridge_kept_events", service="plants", reason="dead") == 1)
        assert value(again, "bridge_dead_letters", service="plants", cause="too_large") == 1
        assert [row.number for row in read_dead_letters(state_dir)] == [1]
        assert await parked_ids(store) == ["parked"]
    out = capsys.readouterr().out
    assert [f"count={n}" in out for n in (500, 99)] == [True, True]


async def test_dead_letters_are_found_without_walking_what_is_parked(
    state_dir: Path, metrics: Metrics
) -> None:
    """SQLite's plans, because a test with a million rows would be slow."""
    queries = (
        "kept INDEXED BY dead_by_number WHERE reason = 'dead' AND number > 5 AND number < 9 ORDER BY number",
        "kept INDEXED BY dead_by_age WHERE reason = 'dead' AND kept_at < 5 ORDER BY kept_at",
        "kept INDEXED BY kept_by_reason WHERE reason = 'parked' AND service = 'plants' ORDER BY number",
        "kept NOT INDEXED WHERE number IN (SELECT value FROM json_each('[1]')) AND reason = 'dead'",
    )
    async with Store.open(state_dir, metrics):
        with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
            for query in queries:
                explained = connection.execute(f"EXPLAIN QUERY PLAN SELECT number FROM {query}")
                plan = str(explained.fetchall())
                assert "SEARCH kept" in plan, plan
                assert "SCAN kept" not in plan, plan
                assert "B-TREE" not in plan, plan
