"""Windows in the store itself: budget, damage, clock, and what is told of their members."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from bridge.core.errors import StoreError, StoreFullError
from bridge.core.event import Event
from bridge.core.ports import DeadLetter
from bridge.core.windows import Joined, Member, Name, Part, Policy, Rules
from bridge.store import Store, StoreConfig, migrations, schema
from bridge.store.changes import Change, Done
from bridge.store.clock import Clock
from bridge.store.find import find, members_of
from bridge.store.windows import Windows
from bridge.telemetry.metrics import Metrics
from tests.store.events import event, parked_ids, value

T = TypeVar("T")


class Access:
    """A file in memory, which counts the steps that SQLite makes."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.text_factory = schema.text
        migrations.upgrade(self._connection)
        self._steps = 0

    async def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        return question(self._connection)

    async def write(self, call: Callable[[sqlite3.Connection], tuple[T, Change]], size: int = 0) -> T:
        with schema.transaction(self._connection):
            return call(self._connection)[0]

    def now(self) -> float:
        return 1000.0

    steady = now

    def finish(self, done: Done) -> bool:
        raise NotImplementedError

    async def steps(self, call: Awaitable[object]) -> int:
        self._steps = 0
        self._connection.set_progress_handler(self._step, 1)
        await call
        self._connection.set_progress_handler(None, 1)
        return self._steps

    def _step(self) -> int:
        self._steps += 1
        return 0


NAME = Name("uploads", "plants", "all", "")
RULES = Rules(longest=3600.0, most=1000)


def member(event_id: str, *, data: bytes = b"{}", rules: Rules = RULES, name: Name = NAME) -> Member:
    return Member(event(event_id, data=data), name, Policy(rules, "{}"), is_marker=False)


async def join(store: Store, *members: Member) -> Sequence[Joined]:
    results, _ = await store.windows.join(members)
    return results


async def join_until_full(store: Store) -> int:
    joined = 0
    try:
        while True:
            await join(store, member(str(joined), data=b"x" * 20_000))
            joined += 1
    except StoreFullError:
        return joined


async def close_all(store: Store) -> None:
    """Close every window there is, as one whose route is gone."""
    await store.windows.begin(lambda _: None)


async def send_all(store: Store, remember: float = 3600.0) -> list[str]:
    """Send what is closed, one event a window; give their ids."""
    sent = []
    while True:
        closed, _ = await store.windows.close(100, lambda _: None)
        if not closed:
            return sent
        members = await store.windows.members(closed)
        parts = []
        for window in closed:
            numbers = [number for number, _ in members[window.number]]
            merged = Event(id=f"merged-{window.number}", source="uploads", type="t", data=b"{}")
            parts.append(Part(window, numbers, merged, remember))
            sent.append(merged.id)
        await store.windows.send(parts)


async def test_members_become_one_parked_event_and_counts_tell(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        assert await join(store, member("1"), member("2"), member("1")) == [
            Joined.NEW,
            Joined.NEW,
            Joined.THERE,
        ]
        assert value(metrics, "bridge_windows", service="plants") == 1
    metrics = Metrics()
    async with Store.open(state_dir, metrics) as store:
        woken: list[None] = []
        store.on_parked("plants", lambda: woken.append(None))
        assert value(metrics, "bridge_kept_events", service="plants", reason="window") == 2
        assert store.waiting("plants") == 0
        (kept,) = find(state_dir, ["uploads"], "2").kept
        waits = find(state_dir, ["uploads"], "2").windows[kept.number]
        assert (kept.reason, waits.members, waits.reason) == ("window", 2, "window")
        assert waits.due == pytest.approx(time.time() + 3600, abs=60)
        await close_all(store)
        (merged_id,) = await send_all(store)
        assert woken
        assert await parked_ids(store) == [merged_id]
        assert value(metrics, "bridge_kept_events", service="plants", reason="window") == 0
        assert value(metrics, "bridge_windows", service="plants") == 0
        traces = find(state_dir, ["uploads"], "2")
        assert traces.merged == {("uploads", "plants"): merged_id}
        assert [row.event_id for row in traces.kept] == [merged_id]
        assert members_of(state_dir, "uploads", merged_id) == ["1", "2"]
        assert members_of(state_dir, "uploads", f"{merged_id}+1") == ["1", "2"]
        assert await join(store, member("2"), member("3")) == [Joined.REPEATED, Joined.NEW]


async def test_a_member_is_one_for_another_service_or_of_another_source(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await join(store, member("1"))
        await close_all(store)
        await send_all(store)
        flood = member("1", name=NAME._replace(service="flood"))
        assert await join(store, flood) == [Joined.NEW]


async def test_what_is_kept_for_the_service_already_joins_no_window(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.park(event("1"), "plants")
        assert await join(store, member("1")) == [Joined.THERE]
        assert await parked_ids(store) == ["1"]


async def test_a_dead_letter_whose_event_comes_again_is_in_its_window_as_the_route_gives_it_now(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        coded = event("1", data=b"eyJuIjoxfQ==")
        await store.bury(DeadLetter(event=coded, service="plants", cause="rejected", detail=""))
        assert await join(store, member("1", data=b'{"n":1}')) == [Joined.NEW]
        assert value(metrics, "bridge_dead_letters", service="plants", cause="rejected") == 0
        await close_all(store)
        closed, _ = await store.windows.close(1, lambda _: None)
        members = await store.windows.members(closed)
        assert [one.data for _, one in members[closed[0].number]] == [b'{"n":1}']


async def test_ids_take_an_eighth_of_the_budget_and_the_oldest_go_first(
    state_dir: Path, metrics: Metrics
) -> None:
    forgotten = 0
    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=2**20)) as store:
        for round_ in range(10):
            await join(store, *(member(f"{round_}-{n}" + "x" * 100) for n in range(100)))
            await close_all(store)
            closed, _ = await store.windows.close(1, lambda _: None)
            members = await store.windows.members(closed)
            numbers = [number for number, _ in members[closed[0].number]]
            _, early = await store.windows.send([Part(closed[0], numbers, None, 3600.0)])
            forgotten += early
        with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
            (taken,) = connection.execute("SELECT bytes FROM remembered").fetchone()
            (count,) = connection.execute("SELECT count(*) FROM merged").fetchone()
        assert 2**16 < taken <= 2**17
        assert count + forgotten == 1000
        first, last = (member(f"{which}-0" + "x" * 100) for which in (0, 9))
        assert await join(store, first, last) == [Joined.NEW, Joined.REPEATED]


async def test_at_the_budget_nothing_joins_and_what_is_there_is_sent(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=2**20)) as store:
        joined = await join_until_full(store)
        assert joined > 20
        assert store.problems()
        await close_all(store)
        assert await send_all(store)
        assert await join(store, member("more", data=b"x" * 20_000)) == [Joined.NEW]


async def test_what_an_event_costs_does_not_grow_with_windows_or_with_what_is_remembered() -> None:
    """Told by the steps that SQLite makes."""
    costs = []
    for count in (20, 2000):
        store = Access()
        kept = Windows(store, 2**30)
        for n in range(count):
            await kept.join([member(f"old-{n}")])
            await kept.begin(lambda _: None)
            (window,), _ = await kept.close(1, lambda _: None)
            ((number, _),) = (await kept.members([window]))[window.number]
            await kept.send([Part(window, [number], event(f"merged-{n}"), 3600.0)])
        await kept.join([member(f"open-{n}", name=NAME._replace(key=str(n))) for n in range(count)])
        costs.append(
            [
                await store.steps(kept.join([member("new", name=NAME._replace(key="new"))])),
                await store.steps(kept.join([member("newer", name=NAME._replace(key="new"))])),
                await store.steps(kept.close(100, lambda _: None, ["uploads"])),
            ]
        )
    few, many = costs
    assert all(now < 2 * before + 100 for before, now in zip(few, many, strict=True)), costs


async def test_members_of_a_store_whose_windows_are_damaged_are_sent_as_they_are(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await join(store, *(member(str(n)) for n in range(50)))
        await join(store, *(member(f"f{n}", name=NAME._replace(service="flood")) for n in range(5)))
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'windows'").fetchone()
    with (state_dir / "events.sqlite3").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(StoreError, match="55 events were saved, 0 are known to be lost"):
        async with Store.open(state_dir, metrics):
            pass
    async with Store.open(state_dir, Metrics(), accept_loss=True) as store:
        closed, _ = await store.windows.close(100, lambda _: None)
        assert {(one.reason, one.name.service, one.members) for one in closed} == {
            ("salvaged", "plants", 50),
            ("salvaged", "flood", 5),
        }
        assert len(await send_all(store)) == 2
        assert await join(store, member("1")) == [Joined.REPEATED]


async def test_a_salvage_keeps_windows_and_what_is_remembered(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await join(store, member("1"))
        await close_all(store)
        await send_all(store)
        await join(store, member("2"), member("3"))
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
        name = "kept_by_reason"
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    with (state_dir / "events.sqlite3").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    async with Store.open(state_dir, Metrics(), accept_loss=True) as store:
        assert await join(store, member("1"), member("2"), member("4")) == [
            Joined.REPEATED,
            Joined.THERE,
            Joined.NEW,
        ]
        await close_all(store)
        (window,), _ = await store.windows.close(100, lambda _: None)
        assert (window.members, window.reason) == (3, "route_gone")


async def test_ids_whose_sending_is_lost_in_a_damaged_store_are_not_taken_for_those_of_another(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await join(store, member("1"), member("2"))
        await close_all(store)
        await send_all(store)
    with closing(sqlite3.connect(state_dir / "events.sqlite3")) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'merges'").fetchone()
    with (state_dir / "events.sqlite3").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    async with Store.open(state_dir, Metrics(), accept_loss=True) as store:
        flood = NAME._replace(service="flood")
        assert await join(store, member("1", name=flood)) == [Joined.NEW]
        await close_all(store)
        assert await send_all(store)
        assert await join(store, member("1", name=flood), member("2", name=flood)) == [
            Joined.REPEATED,
            Joined.NEW,
        ]


async def test_a_clock_that_was_set_back_lets_no_window_wait_the_longer(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Clock, "steady", lambda _: time.time() + 7200)
        async with Store.open(state_dir, metrics) as store:
            await join(store, member("1"))
    async with Store.open(state_dir, Metrics()) as store:
        due = await store.windows.begin(lambda _: Policy(RULES, "{}"))
        assert due == pytest.approx(time.time() + 3600, abs=60)
