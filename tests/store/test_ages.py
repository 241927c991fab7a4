"""How long the event longest parked for each service waits: told at each scrape without a query."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.store import Choice, Filter, Known, Store, ages, orders
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import event, letter, parked, value

HOUR = 3600.0


def age(metrics: Metrics, service: str = "plants") -> float | None:
    return value(metrics, "bridge_parked_oldest_seconds", service=service)


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=60)


async def park_since(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str, hours: float, service: str = "plants"
) -> None:
    """Park an event as if so many hours ago."""
    with monkeypatch.context() as patched:
        at = time.time() - hours * HOUR
        patched.setattr("bridge.store.schema.time", SimpleNamespace(time=lambda: at))
        row = store.park(event(name), service)
    await row


async def test_the_age_is_that_of_the_event_longest_parked_for_each_service(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(state_dir, metrics) as store:
        store.on_parked("plants", lambda: None)
        assert age(metrics) == 0
        for hours in (5, 3, 1):
            await park_since(store, monkeypatch, f"{hours}", hours)
        await park_since(store, monkeypatch, "other", 9, "flood")
        assert age(metrics) == about(5 * HOUR)
        assert age(metrics, "flood") == about(9 * HOUR)
        rows = {row.event.id: row.number for row in await parked(store)}
        store.forget(rows["3"])
        store.forget(rows["5"])
        await until(lambda: age(metrics) == about(1 * HOUR))
        store.forget(rows["1"])
        await until(lambda: age(metrics) == 0)
        assert age(metrics, "flood") == about(9 * HOUR)


async def test_an_attempt_before_it_was_parked_counts(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event(), "plants", attempts=3, first_attempt=time.time() - 2 * HOUR)
        assert age(metrics) == about(2 * HOUR)


async def test_an_attempt_noted_later_makes_it_no_younger(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await park_since(store, monkeypatch, "1", 4)
        await store.park(event("1"), "plants", attempts=1, first_attempt=time.time())
        assert age(metrics) == about(4 * HOUR)


async def test_the_age_is_known_after_a_start(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(state_dir, metrics) as store:
        for hours in (5, 3, 1):
            await park_since(store, monkeypatch, f"{hours}", hours)
    again = Metrics()
    async with Store.open(state_dir, again):
        assert age(again) == about(5 * HOUR)


async def test_a_replay_in_front_of_older_events_makes_them_no_younger(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("first"))
        await park_since(store, monkeypatch, "old", 5)
        assert (await orders.replay(store, Filter())).changed == 1
        assert [row.event.id for row in await parked(store)] == ["first", "old"]
        assert age(metrics) == about(5 * HOUR)
        (_, old) = await parked(store)
        store.forget(old.number)
        await until(lambda: age(metrics) == about(0))


async def test_what_dies_moves_or_is_buried_is_parked_no_more(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Known(services=frozenset({"flood"}), sources=frozenset({"uploads"}))
    async with Store.open(state_dir, metrics) as store:
        await park_since(store, monkeypatch, "dies", 6)
        await park_since(store, monkeypatch, "moves", 4)
        await store.bury(letter("dies"))
        assert age(metrics) == about(4 * HOUR)
        assert (await orders.move(store, Choice(), "flood", nobody)).changed == 1
        assert (age(metrics), age(metrics, "flood")) == (0, about(4 * HOUR))
        await park_since(store, monkeypatch, "buried", 8)
        assert age(metrics) == about(8 * HOUR)
        assert (await orders.bury(store, Choice(), nobody)).changed == 1
        assert (age(metrics), age(metrics, "flood")) == (0, about(4 * HOUR))


async def test_a_transaction_that_failed_leaves_the_age_as_it_was(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await park_since(store, monkeypatch, "old", 5)
        await park_since(store, monkeypatch, "new", 2)
        look = ages.Ages.look
        failures: list[int] = []

        def fails_once(self: ages.Ages, *arguments: object) -> None:
            look(self, *arguments)  # type: ignore[arg-type]
            if not failures:
                failures.append(1)
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(ages.Ages, "look", fails_once)
        (old, _) = await parked(store)
        store.forget(old.number)
        await until(lambda: failures)
        assert age(metrics) == about(5 * HOUR)
        await until(lambda: age(metrics) == about(2 * HOUR))


async def test_its_look_ups_walk_over_no_events(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        for query, values in ((ages._STILL_PARKED, (b"plants", 1)), (ages._OLDEST, (b"plants",))):

            def explain(
                connection: sqlite3.Connection, query: str = query, values: tuple[object, ...] = values
            ) -> list[tuple[int, int, int, str]]:
                return connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()

            plan = await store.read(explain)
            assert len(plan) == 1
            assert "SEARCH kept USING" in plan[0][3]
            assert "INDEX kept_by_reason (reason=? AND service=?" in plan[0][3]
