"""Events whose service or source is not in the configuration any more: told, and given a way out."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bridge.core.event import Event
from bridge.core.ports import NO_LANE, Spooled
from bridge.store import (
    Choice,
    Filter,
    Known,
    Store,
    list_waiting,
    orders,
    read_dead_letter,
    read_dead_letters,
    read_stranded,
)
from bridge.telemetry.metrics import Metrics
from tests.store.events import event, letter, parked, parked_ids, value

KNOWN = Known(("plants", "flood"), ("uploads",))
"""What the configuration has."""


async def strand(store: Store) -> None:
    """Park 1 for `plants`, 2 and 3 for `old`, 4 for `older`; 5 and 6 are spooled by `arrivals`."""
    for event_id, service in (("1", "plants"), ("2", "old"), ("3", "old"), ("4", "older")):
        await store.park(event(event_id), service)
    await store.spool("arrivals").append([Spooled(key=key, data=b"told " + key.encode()) for key in "ab"])


def told(store: Store) -> set[tuple[str, str, int]]:
    return {(each.reason, each.key, each.events) for each in store.stranded(KNOWN)}


async def test_what_nothing_will_take_is_counted_in_a_daemon_and_beside_it(
    state_dir: Path, metrics: Metrics
) -> None:
    everything = {("parked", "old", 2), ("parked", "older", 1), ("spooled", "arrivals", 2)}
    assert read_stranded(state_dir, KNOWN) == []
    async with Store.open(state_dir, metrics) as store:
        await strand(store)
        await store.park(event("5"), NO_LANE)
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        assert told(store) == everything
        assert {
            (each.reason, each.key, each.events) for each in read_stranded(state_dir, KNOWN)
        } == everything
        assert store.stranded(Known((*KNOWN.services, "old", "older"), ("uploads", "arrivals"))) == []
        (first, *_) = store.stranded(KNOWN)
        assert first.message == "2 events are parked for the service `old`, which is not in the configuration"
        assert "parked move --service old --to SERVICE" in first.remedy
        assert "parked bury --source arrivals" in store.stranded(KNOWN)[-1].remedy
    assert len(read_stranded(state_dir, KNOWN)) == 3


async def test_events_that_are_moved_wait_in_their_old_place_for_the_other_service(
    state_dir: Path, metrics: Metrics
) -> None:
    woken: list[str] = []
    async with Store.open(state_dir, metrics) as store:
        await strand(store)
        await store.park(event("9"), "plants")
        store.on_parked("plants", lambda: woken.append("plants"))
        dry = await orders.move(store, Choice(service="old"), "plants", KNOWN, dry_run=True)
        assert (dry.changed, woken, store.waiting("old")) == (2, [], 2)
        done = await orders.move(store, Choice(service="old"), "plants", KNOWN)
        assert (done.changed, done.refused, woken) == (2, {}, ["plants"])
        assert await parked_ids(store) == ["1", "2", "3", "9"]
        assert (store.waiting("plants"), store.waiting("old")) == (4, 0)
        assert value(metrics, "bridge_kept_events", service="old", reason="parked") == 0
        assert told(store) == {("parked", "older", 1)}  # what is spooled here has its source


async def test_an_event_that_is_kept_for_the_other_service_already_stays_where_it_is(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await strand(store)
        await store.park(event("2"), "plants")
        await store.bury(letter("4"))
        await store.park(event("3"), "older")  # parked for two services that are gone
        for dry_run in (True, False):
            done = await orders.move(store, Choice(), "plants", KNOWN, dry_run=dry_run)
            assert done.refused == {
                orders.KEPT_FOR_IT: 2 if dry_run else 3,  # the second of two counts once one is moved
                orders.SPOOLED_ONLY: 2,
            }
        assert done.changed == 1
        assert await parked_ids(store) == ["1", "3", "2"]
        assert await parked_ids(store, "old") == ["2"]
        assert sorted(await parked_ids(store, "older")) == ["3", "4"]


async def test_what_a_lane_or_a_source_will_take_is_left_to_it(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await strand(store)
        await store.spool("uploads").append([Spooled(key="c", data=b"")])
        await store.park(event("5"), NO_LANE)
        buried = await orders.bury(store, Choice(numbers=range(1, 99)), KNOWN)
        assert buried.changed == 5
        assert buried.refused == {orders.HAS_A_LANE: 1, orders.HAS_A_SOURCE: 1, orders.ON_ITS_WAY: 1}
        assert await parked_ids(store) == ["1"]
        assert store.spool("uploads").waiting == 1
        moved = await orders.move(store, Choice(service="plants"), "flood", KNOWN)
        assert (moved.changed, moved.refused) == (0, {orders.HAS_A_LANE: 1})


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        (Choice(), {"2", "3", "4", "unread:a", "unread:b"}),
        (Choice(service="old"), {"2", "3"}),
        (Choice(source="arrivals"), {"unread:a", "unread:b"}),
        (Choice(numbers=[3, 4, 5, 99, 10**30]), {"3", "4", "unread:a"}),
        (Choice(numbers=[]), set()),
        (Choice(service="none"), set()),
    ],
)
async def test_a_choice_means_the_same_to_all_commands(
    state_dir: Path, metrics: Metrics, chosen: Choice, ids: set[str]
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await strand(store)
        listed = list_waiting(state_dir, chosen, 100)
        assert {row.event_id.replace("spooled:", "unread:") for row in listed} - {"1"} == ids
        assert (await orders.bury(store, chosen, KNOWN, dry_run=True)).changed == len(ids)
        assert read_dead_letters(state_dir) == []
        assert (await orders.bury(store, chosen, KNOWN)).changed == len(ids)
        assert {row.event_id for row in read_dead_letters(state_dir)} == ids


async def test_what_is_buried_is_a_dead_letter_from_now_on(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event("2", data=b"its data"), "old", attempts=3, first_attempt=5.0)
        with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection, connection:
            connection.execute("UPDATE kept SET kept_at = kept_at - 1e7")
        await orders.bury(store, Choice(), KNOWN)
        (row,) = read_dead_letters(state_dir)
        assert (row.number, row.service, row.cause) == (1, "old", "service_removed")
        assert (row.attempts, row.first_attempt) == (3, 5.0)
        assert abs(row.kept_at - time.time()) < 300
        assert value(metrics, "bridge_dead_letters", service="old", cause="service_removed") == 1
        assert value(metrics, "bridge_kept_events", service="old", reason="parked") == 0
        assert (await orders.replay(store, Filter(), known=KNOWN, to="plants")).changed == 1
        (back,) = await parked(store)
        assert (back.event.data, back.number, back.attempts) == (b"its data", 1, 0)


async def test_an_occurrence_that_is_buried_can_be_told_and_buried_again(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        spool = store.spool("arrivals")
        await store.bury(
            replace(letter(service=NO_LANE), event=Event(id="a", source="arrivals", type="t", data=b""))
        )
        for _ in range(2):
            await spool.append([Spooled(key="a", data=b"told"), Spooled(key="b", data=b"told")])
            assert spool.waiting == 2
            assert (await orders.bury(store, Choice(), KNOWN)).changed == 2
            assert spool.waiting == 0
        rows = {row.event_id: row for row in read_dead_letters(state_dir)}
        assert rows.keys() == {"a", "unread:a", "unread:b"}
        assert {row.cause for name, row in rows.items() if name != "a"} == {"source_removed"}
        shown = read_dead_letter(state_dir, rows["unread:a"].number)
        assert shown is not None
        assert shown[1].data == b"told"
        assert value(metrics, "bridge_dead_letters", service="", cause="source_removed") == 2
        assert value(metrics, "bridge_kept_events", service="", reason="dead") == 3
        assert value(metrics, "bridge_kept_events", service="", reason="spooled") == 0
        again = await orders.replay(store, Filter(cause="source_removed"), known=KNOWN, to="plants")
        assert (again.changed, again.refused) == (0, {orders.UNREAD: 2})
    again_open = Metrics(CollectorRegistry())
    async with Store.open(state_dir, again_open):
        assert value(again_open, "bridge_kept_events", service="", reason="dead") == 3


# Dead letters of other services, and of none


async def test_a_replay_to_a_service_takes_letters_of_any_other(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("1", service="old"))
        await store.bury(letter("2", service=NO_LANE, cause="unreadable"))
        await store.bury(letter("3", service="old", cause="job_failed"))
        await store.bury(letter("4", service="flood"))
        await store.park(event("4"), "plants")
        await store.bury(letter("5"))
        dry = await orders.replay(store, Filter(), known=KNOWN, to="plants", dry_run=True)
        done = await orders.replay(store, Filter(), known=KNOWN, to="plants")
        assert dry == done
        assert (done.changed, done.refused) == (3, {orders.ITS_JOB_FAILED: 1, orders.KEPT_FOR_IT: 1})
        assert await parked_ids(store) == ["1", "2", "4", "5"]
        assert value(metrics, "bridge_kept_events", service="old", reason="dead") == 1
        assert value(metrics, "bridge_kept_events", service="plants", reason="parked") == 4
        done = await orders.replay(store, Filter(service="old"), known=KNOWN, to="plants", as_new=True)
        assert done.changed == 1
        assert await parked_ids(store) == ["1", "2", "3+1", "4", "5"]


@pytest.mark.parametrize(
    ("cause", "sources", "as_new", "changed", "refused"),
    [
        ("route", ("uploads",), False, 2, {}),
        ("not_json", ("uploads",), False, 2, {}),
        ("undecodable", ("uploads",), False, 2, {}),
        ("route", ("uploads",), True, 2, {}),
        ("not_json", (), False, 1, {orders.NO_SUCH_SOURCE: 1}),
        ("unreadable", ("uploads",), False, 1, {orders.NEVER_IN_A_LANE: 1}),
    ],
)
async def test_a_letter_without_a_service_goes_round_its_routes_again(
    state_dir: Path,
    metrics: Metrics,
    cause: str,
    sources: tuple[str, ...],
    as_new: bool,
    changed: int,
    refused: dict[str, int],
) -> None:
    woken: list[str] = []
    async with Store.open(state_dir, metrics) as store:
        store.on_parked(NO_LANE, lambda: woken.append(NO_LANE))
        await store.bury(letter("1", service=NO_LANE, cause=cause))
        await store.bury(letter("2", cause=cause))
        done = await orders.replay(store, Filter(), known=Known(KNOWN.services, sources), as_new=as_new)
        assert (done.changed, done.refused) == (changed, refused)
        assert woken == [NO_LANE] * (changed - 1)
        suffix = "+1" if as_new else ""
        assert await parked_ids(store, NO_LANE) == [f"1{suffix}"] * (changed - 1)
        assert await parked_ids(store) == [f"2{suffix}"]


async def test_thousands_are_moved_and_buried_in_batches(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for done in [store.park(event(str(number)), "old") for number in range(1200)]:
            await done
        numbers = range(1, 601)
        assert (await orders.move(store, Choice(numbers=numbers), "plants", KNOWN)).changed == 600
        assert (await orders.bury(store, Choice(service="old"), KNOWN)).changed == 600
        assert (store.waiting("plants"), store.waiting("old")) == (600, 0)
        assert len(list_waiting(state_dir, Choice(service="plants"), 550)) == 550


@pytest.mark.parametrize(
    "spoil", [lambda rows: rows[:0], lambda rows: rows + rows], ids=["none", "given twice"]
)
async def test_numbers_given_twice_or_not_at_all_change_each_once(
    state_dir: Path, metrics: Metrics, spoil: Callable[[list[int]], list[int]]
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await strand(store)
        chosen = spoil([2, 3])
        assert (await orders.bury(store, Choice(numbers=chosen), KNOWN)).changed == len(set(chosen))
