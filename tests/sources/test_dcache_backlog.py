"""What is spooled is handed out: oldest first, each version once, and nothing leaves the store unsettled."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError, StoreFullError
from bridge.core.event import Event
from bridge.core.ports import Spooled
from bridge.pipeline.intake import Intake
from bridge.sources.dcache.backlog import asking, failing, hand
from bridge.sources.dcache.backlog.reader import SpoolReader
from bridge.sources.dcache.backlog.resolution import Dropped, Found, Later, Trouble
from bridge.store import Store, StoreConfig
from bridge.telemetry.metrics import Metrics
from bridge.testing import until

Resolution = Found | Dropped | Later


def some(*keys: str) -> list[Spooled]:
    return [Spooled(key=key, data=key.encode()) for key in keys]


def found(occurrence: Spooled, version: bytes | None = None) -> Found:
    event = Event(id=occurrence.key, source="arrivals", type="t", data=occurrence.data)
    return Found(event, version)


async def at_once(occurrence: Spooled) -> Resolution:
    return found(occurrence)


class World:
    """One source's part of a store, a reader of it, and what stands for the runner."""

    def __init__(
        self, store: Store, metrics: Metrics, resolve: Callable[[Spooled], Awaitable[Resolution]], slots: int
    ) -> None:
        self.store = store
        self.metrics = metrics
        self.spool = store.spool("arrivals")
        own = metrics.source("arrivals")
        self.intake = Intake(slots, 2**30, own)
        self.reader = SpoolReader(self.spool, self.intake, resolve, own, structlog.get_logger())
        self.deliveries: dict[str, Delivery] = {}
        """All that came, by the event's id; the last one of each."""
        self.order: list[str] = []
        self.batches: list[int] = []

    async def take(self) -> None:
        async for batch in self.reader.batches:
            assert len(batch) <= self.intake.free
            self.intake.admit(batch)
            self.batches.append(len(batch))
            for delivery in batch:
                self.order.append(delivery.event.id)
                self.deliveries[delivery.event.id] = delivery

    async def came(self, *keys: str) -> None:
        await until(lambda: len(self.order) >= len(keys))
        assert self.order == list(keys)

    async def handed_out(self, amount: int) -> None:
        await until(lambda: len(self.order) == amount)

    async def in_hand(self, amount: int) -> None:
        await until(lambda: len(self.deliveries) == amount)

    def settle(self, *keys: str, outcome: Outcome = Outcome.ACCEPTED) -> None:
        for key in keys:
            self.deliveries.pop(key).settle(outcome)

    async def kept(self) -> list[str]:
        return [row.key for _, row in await self.spool.oldest(without=(), limit=100)]

    def filtered(self, reason: str) -> float:
        labels = {"source": "arrivals", "reason": reason}
        return self.metrics.registry.get_sample_value("bridge_events_filtered_total", labels) or 0


Resolve = Callable[[Spooled], Awaitable[Resolution]]


@asynccontextmanager
async def world(
    tmp_path: Path,
    resolve: Resolve = at_once,
    *,
    slots: int = 1000,
    before: Sequence[str] = (),
    config: StoreConfig | None = None,
) -> AsyncIterator[World]:
    metrics = Metrics(CollectorRegistry())
    async with Store.open(tmp_path / "state", metrics, config) as store:
        await store.spool("arrivals").append(some(*before))
        this = World(store, metrics, resolve, slots)
        taking = asyncio.create_task(this.take())
        running = asyncio.create_task(this.reader.run())
        try:
            yield this
        finally:
            for task in (running, taking):
                task.cancel()
            await asyncio.wait([running, taking])
            assert running.cancelled(), running.exception()
            assert taking.cancelled(), taking.exception()


# Handing out


async def test_what_was_spooled_before_and_what_is_appended_comes_in_order(tmp_path: Path) -> None:
    async with world(tmp_path, before=["1", "2"]) as here:
        await here.came("1", "2")
        await here.reader.append(some("3", "4"), "p4")
        await here.came("1", "2", "3", "4")
        assert await here.spool.position() == "p4"
        assert (here.deliveries["3"].event.data, here.spool.waiting) == (b"3", 4)


async def test_what_is_answered_leaves_the_store_with_its_version_marked(tmp_path: Path) -> None:
    outcomes = [Outcome.ACCEPTED, Outcome.PARKED, Outcome.DEAD_LETTERED, Outcome.FILTERED]

    async def resolve(occurrence: Spooled) -> Resolution:
        return found(occurrence, occurrence.key.encode() * 16)

    async with world(tmp_path, resolve, before=list("1234")) as here:
        await here.came(*"1234")
        for key, outcome in zip("1234", outcomes, strict=True):
            here.settle(key, outcome=outcome)
        assert here.spool.waiting == 0
        await until(lambda: here.spool.remembered == 4)
        labels = {"source": "arrivals"}
        assert here.metrics.registry.get_sample_value("bridge_versions_remembered", labels) == 4
    async with world(tmp_path) as here:
        assert here.spool.waiting == 0
        versions = [key.encode() * 16 for key in "1234"]
        assert await here.spool.entered(versions) == set(versions)


async def test_no_more_is_handed_out_than_there_are_slots(tmp_path: Path) -> None:
    keys = [str(number) for number in range(100)]
    async with world(tmp_path, slots=7, before=keys) as here:
        while len(here.order) < 100:
            await until(lambda: not here.intake.free or len(here.order) == 100)
            here.settle(*list(here.deliveries))
        assert here.order == keys
        assert max(here.batches) <= 7


async def test_the_oldest_of_what_is_looked_up_goes_first(tmp_path: Path) -> None:
    gates = {key: asyncio.Event() for key in "12345"}

    async def resolve(occurrence: Spooled) -> Resolution:
        await gates[occurrence.key].wait()
        return found(occurrence)

    async with world(tmp_path, resolve, slots=1, before=list("12345")) as here:
        gates["4"].set()
        await here.came("4")
        gates["5"].set()
        await until(lambda: len(here.reader._ready) == 1)
        for key in "23":
            gates[key].set()
        await until(lambda: len(here.reader._ready) == 3)
        gates["1"].set()
        await until(lambda: len(here.reader._ready) == 4)
        for nr in range(1, 5):
            here.settle(here.order[-1])
            await here.handed_out(nr + 1)
        assert here.order == list("41235")


async def test_no_more_is_looked_up_at_once_than_was_said(tmp_path: Path) -> None:
    under_way = most = 0

    async def resolve(occurrence: Spooled) -> Resolution:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return found(occurrence)

    async with world(tmp_path, resolve, before=[str(n) for n in range(100)]) as here:
        await until(lambda: len(here.order) == 100)
    assert most == 8


async def test_no_more_is_read_than_the_window_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand, "WINDOW", 10)
    keys = [str(number) for number in range(100)]
    async with world(tmp_path, slots=3, before=keys) as here:
        for _ in range(33):
            await until(lambda: not here.intake.free)
            assert len(here.reader.hand.rows) <= 13
            here.settle(*list(here.deliveries))
        await until(lambda: len(here.order) == 100)
    assert here.order == keys


async def test_big_occurrences_are_read_by_their_bytes(tmp_path: Path) -> None:
    async with world(tmp_path, slots=1) as here:
        for number in range(40):
            await here.spool.append([Spooled(key=str(number), data=bytes(2**20))])
        here.reader.hand.wake()
        for number in range(40):
            await here.handed_out(number + 1)
            # Below 8 MiB one page more is read, of 16 MiB at most.
            assert here.reader.hand.window_bytes == 2**20 * here.reader.hand.window <= 24 * 2**20
            here.settle(*list(here.deliveries))
        assert here.reader.hand.window_bytes == 0


# Looked up in vain


async def test_what_is_none_of_ours_is_done_and_counted(tmp_path: Path) -> None:
    async def resolve(occurrence: Spooled) -> Resolution:
        return Dropped("gone") if occurrence.key == "1" else found(occurrence)

    async with world(tmp_path, resolve, before=["1", "2"]) as here:
        await here.came("2")
        assert await here.kept() == ["2"]
        assert here.filtered("gone") == 1


async def test_a_look_up_that_failed_is_tried_again_while_others_go_on(tmp_path: Path) -> None:
    failures = 3

    async def resolve(occurrence: Spooled) -> Resolution:
        nonlocal failures
        if occurrence.key == "1" and failures:
            failures -= 1
            return Later(0.01)
        return found(occurrence)

    async with world(tmp_path, resolve, before=["1", "2", "3"]) as here:
        await here.came("2", "3", "1")
        assert await here.kept() == ["1", "2", "3"]
        assert (failures, here.reader._put_off.failures, here.reader.hand.passed_by) == (0, {}, 0)


async def test_the_pauses_between_look_ups_grow(tmp_path: Path) -> None:
    times: list[float] = []

    async def resolve(occurrence: Spooled) -> Resolution:
        times.append(time.monotonic())
        return Later(0.04) if len(times) < 5 else found(occurrence)

    async with world(tmp_path, resolve, before=["1"]) as here:
        await here.came("1")
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause >= 0.04 * 2**n * 0.75 for n, pause in enumerate(pauses))


async def test_what_is_passed_by_is_bounded_and_nothing_of_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand, "HELD", 20)
    down = True

    async def resolve(occurrence: Spooled) -> Resolution:
        return Later(0.02) if down else found(occurrence)

    keys = [str(number) for number in range(100)]
    async with world(tmp_path, resolve, before=keys) as here:
        await until(lambda: here.reader.hand.passed_by == 20)
        assert len(here.reader.hand.rows) <= 20 + 8, "those passed by, and those being looked up again"
        assert here.order == []
        down = False
        await until(lambda: len(here.order) == 100)
        assert sorted(here.order, key=int) == keys


# The same version again


async def test_a_version_that_has_entered_is_dropped(tmp_path: Path) -> None:
    version = b"v" * 16

    async def resolve(occurrence: Spooled) -> Resolution:
        return found(occurrence, version)

    async with world(tmp_path, resolve, before=["1"]) as here:
        await here.came("1")
        here.settle("1")
        await here.reader.append(some("2"))
        await until(lambda: here.filtered("repeated") == 1)
        await until(lambda: here.spool.remembered == 1)
        await here.reader.append(some("3"))
        await until(lambda: here.filtered("repeated") == 2)
        assert (here.order, here.spool.waiting, here.reader.hand.rows) == (["1"], 0, {})


async def test_a_version_in_hand_holds_back_its_others_until_it_is_settled(tmp_path: Path) -> None:
    async def resolve(occurrence: Spooled) -> Resolution:
        return found(occurrence, b"v" * 16)

    async with world(tmp_path, resolve, before=["1", "2", "3"]) as here:
        await here.came("1")
        await until(lambda: here.reader.hand.passed_by == 2)
        # A crash now must find the file by one of them, wherever it was moved.
        assert await here.kept() == ["1", "2", "3"]
        here.settle("1")
        await until(lambda: here.filtered("repeated") == 2)
        assert (here.spool.waiting, here.order, here.reader.hand.passed_by) == (0, ["1"], 0)


async def test_after_a_release_another_of_the_same_version_brings_it_in(tmp_path: Path) -> None:
    moved = False

    async def resolve(occurrence: Spooled) -> Resolution:
        if moved and occurrence.key == "old-name":
            return Dropped("gone")
        return found(occurrence, b"v" * 16)

    async with world(tmp_path, resolve, before=["old-name", "new-name"]) as here:
        await here.came("old-name")
        await until(lambda: here.reader.hand.passed_by == 1)
        moved = True
        here.settle("old-name", outcome=Outcome.RELEASED)
        await here.came("old-name", "new-name")
        assert here.filtered("gone") == 1
        here.settle("new-name")
        assert here.spool.waiting == 0
        assert await here.spool.entered([b"v" * 16]) == {b"v" * 16}


# Given back, ended, in trouble


async def test_what_is_released_is_handed_out_again_before_what_is_younger(tmp_path: Path) -> None:
    async with world(tmp_path, slots=2, before=list("1234")) as here:
        await here.came("1", "2")
        here.settle("1", outcome=Outcome.RELEASED)
        await until(lambda: len(here.order) == 3)
        here.settle("2")
        await until(lambda: len(here.order) == 4)
        assert sorted(here.order[2:]) in (["1", "3"], ["3", "4"])  # "3" may have been offered already
        here.settle(*list(here.deliveries))
        await until(lambda: set(here.order[2:]) == {"1", "3", "4"})
        assert here.order.count("1") == 2


async def test_the_end_releases_what_is_in_hand_and_the_next_opening_finds_it(tmp_path: Path) -> None:
    async with world(tmp_path, slots=2, before=["1", "2", "3"]) as here:
        await here.came("1", "2")
        first = dict(here.deliveries)
        here.settle("1")
    assert first["2"].outcome is Outcome.RELEASED
    async with world(tmp_path) as here:
        await here.came("2", "3")


async def test_a_batch_that_nobody_took_is_released_and_found_again(tmp_path: Path) -> None:
    metrics = Metrics(CollectorRegistry())
    async with Store.open(tmp_path / "state", metrics) as store:
        here = World(store, metrics, at_once, 10)
        await here.reader.append(some("1", "2"))
        running = asyncio.create_task(here.reader.run())
        await until(lambda: not here.reader.batches.is_empty)
        running.cancel()
        await asyncio.wait([running])
        assert here.reader.batches.is_empty
    async with world(tmp_path) as here:
        await here.came("1", "2")


@pytest.mark.usefixtures("told_no_longer")
async def test_a_full_store_is_told_until_an_append_succeeds_and_drains_meanwhile(tmp_path: Path) -> None:
    async with world(tmp_path, config=StoreConfig(max_bytes=2**20)) as here:
        number = 0
        with pytest.raises(StoreFullError):  # noqa: PT012 - until it does
            while True:
                await here.reader.append([Spooled(key=str(number), data=b"x" * 20_000)], str(number))
                number += 1
        assert "the store is full" in here.reader.problems()[0]
        assert await here.spool.position() == str(number - 1)
        await until(lambda: len(here.order) == number)
        await here.reader.append((), str(number - 1))  # what needs no room tells of none
        assert here.reader.problems()
        here.settle(*list(here.deliveries))
        await until(lambda: here.store.problems() == [])
        await here.reader.append(some("later"))
        assert here.reader.problems() == []
        await until(lambda: here.order[-1] == "later")


async def test_a_store_that_can_not_be_read_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "STORE_PAUSES", (0.01, 0.02))
    async with world(tmp_path) as here:
        real, times = here.spool.oldest, 0

        async def oldest(*, without: Sequence[int], limit: int) -> Sequence[tuple[int, Spooled]]:
            nonlocal times
            times += 1
            if times < 4:
                raise StoreError("it can't be read")
            return await real(without=without, limit=limit)

        monkeypatch.setattr(here.spool, "oldest", oldest)
        await here.reader.append(some("1"))
        await here.came("1")


async def test_what_the_look_up_raises_ends_the_reader_and_releases_what_is_in_hand(tmp_path: Path) -> None:
    async def resolve(occurrence: Spooled) -> Resolution:
        if occurrence.key == "2":
            raise ValueError("a defect")
        return found(occurrence)

    metrics = Metrics(CollectorRegistry())
    async with Store.open(tmp_path / "state", metrics) as store:
        here = World(store, metrics, resolve, 10)
        await here.reader.append(some("1"))
        running = asyncio.create_task(here.reader.run())
        (delivery,) = await anext(here.reader.batches)
        await here.reader.append(some("2"))
        with pytest.raises(ExceptionGroup):
            await running
        assert delivery.outcome is Outcome.RELEASED
        assert await here.kept() == ["1", "2"]


# Much of it


async def drain(tmp_path: Path, amount: int) -> tuple[float, list[int]]:
    """Take `amount` waiting occurrences.

    Give how many were taken in a second of the processor, and the memory used at each tenth (KiB).
    """
    memory: list[int] = []

    async def resolve(occurrence: Spooled) -> Resolution:
        return found(occurrence, occurrence.key.encode().rjust(16))

    async with world(tmp_path, resolve, slots=2000) as here:
        for first in range(0, amount, 500):
            keys = range(first, first + 500)
            data = json.dumps({"event": {"name": "x" * 200}}).encode()
            await here.spool.append([Spooled(key=str(key), data=data) for key in keys])
        began = time.process_time()
        here.reader.hand.wake()
        for done in range(1000, amount + 1, 1000):
            # Half of what is in hand is answered, as a lane would: the store keeps 1,000 to leave out.
            left = min(2000, amount - done + 1000)
            await here.in_hand(left)
            here.settle(*list(here.deliveries)[:1000])
            here.order.clear()
            if done % (amount // 10) == 0:
                memory.append(_rss())
        rate = amount / (time.process_time() - began)
        assert here.spool.waiting == 0
        await until(lambda: here.spool.remembered == amount)
    return rate, memory


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


async def test_a_backlog_is_no_bottleneck(tmp_path: Path) -> None:
    rate, _ = await drain(tmp_path, 10_000)
    print(f"{rate:,.0f} occurrences a second")
    assert rate > 1000  # 5,000 on a quiet machine; one that is shared has less of its caches


@pytest.mark.prove
async def test_the_memory_is_flat_over_100_000_occurrences(tmp_path: Path) -> None:
    rate, memory = await drain(tmp_path, 100_000)
    print(f"{rate:,.0f} occurrences a second; RSS {memory[0]:,} to {max(memory):,} KiB")
    assert max(memory) < memory[0] * 1.1


# Look-ups that fail by themselves


async def test_what_fails_by_itself_is_laid_aside_over_a_restart_and_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failing, "MOST", 5)
    monkeypatch.setattr(hand, "HELD", 8)
    monkeypatch.setattr(hand, "WINDOW", 4)
    monkeypatch.setattr(failing, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(failing, "LONGEST_ROUND_SECONDS", 0.05)
    monkeypatch.setattr(hand, "LONGEST_PAUSE", 0.05)
    forbidden = True
    bad = [f"bad-{number}" for number in range(40)]

    async def resolve(occurrence: Spooled) -> Resolution:
        if forbidden and occurrence.key in bad:
            return Later(0.01, trouble=Trouble("denied", "403", by_itself=True))
        return found(occurrence)

    async with world(tmp_path, resolve, before=[*bad, "good"]) as this:
        await this.came("good")
        this.settle("good")
        assert this.reader.problems() == ["look-ups fail: 403"]
        await until(lambda: this.spool.waiting == 40)
        assert len(this.reader.hand.rows) <= 8 + 4
    async with world(tmp_path, resolve, before=["better"]) as this:
        await this.came("better")
        forbidden = False
        await this.handed_out(41)
        this.settle("better", *bad)
        await until(lambda: this.spool.waiting == 0)


async def test_it_is_kept_when_a_look_up_failed_first(tmp_path: Path) -> None:
    seen: list[float | None] = []

    async def resolve(occurrence: Spooled) -> Resolution:
        seen.append(occurrence.first_attempt)
        if seen[-1] is None:
            return Later(0.05, doubles=False, trouble=Trouble("failing", "500"))
        return found(occurrence)

    async with world(tmp_path, resolve, before=["a"]) as this:
        await this.came("a")
    assert seen[0] is None
    assert abs(time.time() - (seen[-1] or 0)) < 60


async def test_a_fault_makes_a_delivery_that_no_route_can_want(tmp_path: Path) -> None:
    async def resolve(occurrence: Spooled) -> Resolution:
        return Found(found(occurrence).event, fault="it is no event")

    async with world(tmp_path, resolve, before=["a"]) as this:
        await this.came("a")
        assert this.deliveries["a"].fault == "it is no event"
        this.settle("a", outcome=Outcome.DEAD_LETTERED)
        await until(lambda: this.spool.waiting == 0)
