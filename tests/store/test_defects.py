"""A defect in a thread of the store, or in what hears it: whoever waits is told, and the process ends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge.core.errors import StoreError, StoreFullError
from bridge.core.ports import Spooled
from bridge.store import Filter, Store, StoreConfig, access, orders, writer
from bridge.store.changes import Change
from bridge.store.writer import Writer
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import event, letter


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("a defect")


async def test_a_disk_that_can_not_be_asked_is_trouble_and_not_the_end(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_path: object) -> None:
        raise OSError(5, "Input/output error")

    async with Store.open(state_dir, metrics) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", gone)
            with pytest.raises(StoreError, match="Input/output error"):
                await store.park(event("1"), "plants")
        await store.park(event("1"), "plants")
        assert store.waiting("plants") == 1


async def test_a_disk_that_can_t_be_asked_is_told_until_it_can(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_PROBE_SECONDS", 0.01)
    asked = 0

    def gone(_path: object) -> None:
        nonlocal asked
        asked += 1
        raise OSError(5, "Input/output error")

    async with Store.open(state_dir, metrics) as store, asyncio.timeout(30):
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", gone)
            with pytest.raises(StoreError, match="Input/output error"):
                await store.park(event("1"), "plants")
            while asked < 5:
                (told,) = store.problems()
                assert told.endswith("can't be written: [Errno 5] Input/output error")
                await asyncio.sleep(0.001)
        while store.problems():
            await asyncio.sleep(0.001)


async def test_a_disk_that_is_gone_while_the_store_is_full_ends_nothing(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused is told without asking the disk again."""
    asked = os.statvfs

    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=2**20)) as store:
        calls: list[object] = []

        def once(path: str) -> os.statvfs_result:
            calls.append(path)
            if len(calls) > 2:  # before and after the log was emptied for it
                raise OSError(5, "Input/output error")
            return asked(path)

        monkeypatch.setattr(os, "statvfs", once)
        with pytest.raises(StoreFullError, match=r"store\.max_bytes"):
            await store.park(event("1", data=b"x" * 2**21), "plants")


@pytest.mark.parametrize(("place", "at_least"), [("_keep", 5), ("_attempt", 5), ("_do", 3), ("_gather", 1)])
async def test_whoever_waits_is_told_when_the_writing_thread_ends(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, place: str, at_least: int
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("before"))
        monkeypatch.setattr(Writer, place, broken)
        waiting = [
            asyncio.ensure_future(each)
            for each in (
                store.park(event("1"), "plants"),
                store.bury(letter("2")),
                orders.discard(store, Filter()),
                store.spool("uploads").append([Spooled(key="3", data=b"")]),
                store.broken(),
            )
        ]
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
        told = [str(result) for result in results if result is not None]  # None: written before the defect
        assert len(told) >= at_least, results
        assert all("is broken by a defect: RuntimeError: a defect" in each for each in told)
        with pytest.raises(StoreError, match="a defect"):
            await store.park(event("5"), "plants")
        store.forget(1)
        assert "a defect" in store.problems()[0]


def a_tally_that_is_wrong(store: Store) -> None:
    store._counts._metrics.kept_events.labels = broken  # type: ignore[method-assign]


def a_lane_that_raises(store: Store) -> None:
    store.on_parked("plants", broken)


@pytest.mark.parametrize("spoil", [a_tally_that_is_wrong, a_lane_that_raises])
async def test_whoever_waits_is_told_of_a_defect_in_what_hears_of_a_write(
    state_dir: Path, metrics: Metrics, spoil: Callable[[Store], None]
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("1"))
        spoil(store)
        with pytest.raises(StoreError, match="a defect"):  # on disk, and nothing can be asked any more
            await asyncio.wait_for(orders.replay(store, Filter()), 30)
        with pytest.raises(StoreError, match="a defect"):
            await asyncio.wait_for(store.broken(), 30)
        with pytest.raises(StoreError, match="a defect"):
            await store.bury(letter("2"))


async def test_a_store_that_breaks_while_it_closes_closes(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        waiting = [store.park(event(str(number)), "plants") for number in range(10)]
        store._take_in = broken  # type: ignore[method-assign,assignment]
    assert [future.exception() for future in waiting] == [None] * 10


async def test_a_disk_that_does_not_answer_is_told_while_it_lasts(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_HANG_SECONDS", 0.05)
    answers = threading.Event()
    async with Store.open(state_dir, metrics) as store:
        try:
            for question, told in (
                (store.write(lambda _: (answers.wait(60), Change())), "a write has been under way"),
                (store.read(lambda _: answers.wait(60)), "a read has been under way"),
            ):
                asked = asyncio.ensure_future(question)
                await until(lambda told=told: any(told in problem for problem in store.problems()))
                answers.set()
                await asked
                await until(lambda: not store.problems())
                answers.clear()
        finally:
            answers.set()
