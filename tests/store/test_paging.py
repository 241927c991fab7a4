"""Kept events a page at a time: all of them once, in order, and in a bounded time however many there are."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bridge.core.errors import StoreError
from bridge.store import Choice, Store, page_of_dead_letters, page_of_waiting, paging
from bridge.store.paging import Page, Sought, page
from bridge.telemetry.metrics import Metrics
from tests.store.events import event, letter

ROWS = st.lists(st.tuples(st.integers(1, 3000), st.sampled_from("ab"), st.sampled_from("xyz")), max_size=30)


def table(rows: list[tuple[int, str, str]]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE kept (number INTEGER PRIMARY KEY, service TEXT, id TEXT)")
    connection.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?, ?)", rows)
    return connection


@given(
    rows=ROWS,
    limit=st.integers(1, 7),
    text=st.sampled_from([None, "X", "q"]),
    services=st.sampled_from(["a", "ab"]),
)
def test_pages_have_each_row_once_the_newest_first(
    rows: list[tuple[int, str, str]], limit: int, text: str | None, services: str
) -> None:
    parts = [("WHERE service = ?", (service,)) for service in services]
    with closing(table(rows)) as connection:
        found: list[int] = []
        before: int | None = None
        for _ in range(len(rows) + 2):
            sought = Sought(text, before, limit)
            one: Page[int] = page(connection, "number, id", parts, lambda row: row[0], sought, ("id",))
            assert len(one.rows) <= limit
            found += one.rows
            if text is None:
                (total,) = connection.execute(
                    "SELECT count(*) FROM kept WHERE instr(?, service)", (services,)
                ).fetchone()
                assert one.total == total
            before = one.next
            if before is None:
                break
        else:
            raise AssertionError("pages without end")
        wanted = connection.execute(
            "SELECT number FROM kept WHERE instr(?, service) AND (? IS NULL OR instr(id, lower(?))) "
            "ORDER BY number DESC",
            (services, text, text),
        )
        assert found == [number for (number,) in wanted]


def test_who_looks_for_what_is_not_there_gets_a_page_in_time_and_can_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among so many rows that to look through all takes longer than a page may."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.2
        return now

    monkeypatch.setattr(paging, "monotonic", clock)
    rows = [(number, "a", "x" if number != 3 else "needle") for number in range(1, 5000)]
    before, pages, found = None, 0, []
    with closing(table(rows)) as connection:
        while True:
            sought = Sought("needle", before)
            one: Page[int] = page(
                connection, "number", [("WHERE TRUE", ())], lambda row: row[0], sought, ("id",)
            )
            found += one.rows
            pages += 1
            if one.next is None:
                break
            assert before is None or one.next < before
            before = one.next
    assert found == [3]
    assert pages > 2


def test_a_disk_that_takes_for_ever_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(paging, "_STEPS", 1)
    with closing(table([(1, "a", "x")])) as connection:
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            page(connection, "number", [("WHERE TRUE", ())], lambda row: row[0], Sought(), ("id",))
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1,), "the next one is not"


async def test_dead_letters_are_chosen_by_service_cause_and_text(state_dir: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        page_of_dead_letters(state_dir, Sought())
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        await store.bury(letter("data/Leaf-1.nc"))
        await store.bury(letter("data/leaf-2.nc", service="flood"))
        await store.bury(letter("leaf_3", cause="gave_up"))
        await store.park(event("waits"), "plants")

        def numbers(text: str | None = None, **chosen: str) -> list[int]:
            return [row.number for row in page_of_dead_letters(state_dir, Sought(text), **chosen).rows]

        assert numbers() == [3, 2, 1]
        assert numbers(service="plants") == [3, 1]
        assert numbers(service="plants", cause="gave_up") == [3]
        assert numbers("leaf-") == [2, 1]
        assert numbers("why") == [3, 2, 1], "in the detail"
        assert numbers("leaf_") == [3], "no pattern"
        assert numbers("%") == []
        assert numbers("\udcff") == []


async def test_what_waits_is_listed_over_all_its_reasons(state_dir: Path) -> None:
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        await store.park(event("1"), "plants")
        await store.park(event("2"), "flood")
        await store.bury(letter("dead"))
        await store.park(event("3"), "plants")
        found = page_of_waiting(state_dir, Sought(limit=2), Choice())
        assert ([row.event_id for row in found.rows], found.total, found.next) == (["3", "2"], 3, 2)
        rest = page_of_waiting(state_dir, Sought(before=found.next), Choice())
        assert ([row.event_id for row in rest.rows], rest.next) == (["1"], None)
        only = page_of_waiting(state_dir, Sought(), Choice(service="plants"))
        assert [row.event_id for row in only.rows] == ["3", "1"]
