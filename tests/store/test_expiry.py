"""Dead letters go for their age, and not because a clock is wrong."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from bridge.store import Store, StoreConfig, clock, expiry, read_dead_letters, writer
from bridge.telemetry.metrics import Metrics
from bridge.testing import until
from tests.store.events import letter


class Clocks:
    """What the store takes for the time, of day and since its start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = self.later = 0.0
        real = time.time, time.monotonic
        told = SimpleNamespace(time=lambda: real[0]() + self.ahead + self.later)
        for module in (clock, expiry):
            monkeypatch.setattr(module, "time", told)
            monkeypatch.setattr(module, "monotonic", lambda: real[1]() + self.later)
        monkeypatch.setattr(writer, "monotonic", lambda: real[1]() + self.later)


DAY = 86400.0


async def look_again(store: Store, clocks: Clocks) -> None:
    """Return when the writing thread has looked for old letters, as it does every ten minutes."""
    clocks.later += 601
    for _ in range(2):
        await store.bury(letter("new", service="flood"))


async def test_a_clock_far_ahead_deletes_nothing_before_it_has_told_so_for_a_day(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clocks = Clocks(monkeypatch)
    async with Store.open(state_dir, metrics) as store:
        await store.bury(letter("1"))
        await look_again(store, clocks)
    clocks.ahead = 91 * DAY
    again = Metrics(CollectorRegistry())
    async with Store.open(state_dir, again) as store:
        for _ in range(3):
            clocks.later += DAY / 4
            await look_again(store, clocks)
        assert {row.event_id for row in read_dead_letters(state_dir)} == {"1", "new"}
        assert capsys.readouterr().out.count("the clock is far beyond the newest time") == 1
        clocks.ahead = 0  # it was set right again, and then wrong once more
        await look_again(store, clocks)
        clocks.ahead = 91 * DAY
        clocks.later += DAY / 2
        await look_again(store, clocks)
        assert {row.event_id for row in read_dead_letters(state_dir)} == {"1", "new"}
        clocks.later += DAY
        await look_again(store, clocks)
        await until(lambda: "1" not in {row.event_id for row in read_dead_letters(state_dir)})


async def test_a_bridge_that_was_off_for_long_deletes_after_a_day_and_one_that_was_not_at_once(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks(monkeypatch)
    async with Store.open(state_dir, metrics, StoreConfig(keep_dead_for=2 * DAY)) as store:
        await store.bury(letter("1"))
        await look_again(store, clocks)
    for day in range(1, 4):  # started anew each night, and never full a day
        clocks.ahead += 0.9 * DAY
        async with Store.open(
            state_dir, Metrics(CollectorRegistry()), StoreConfig(keep_dead_for=2 * DAY)
        ) as store:
            await look_again(store, clocks)
            if day == 3:
                await until(lambda: "1" not in {row.event_id for row in read_dead_letters(state_dir)})
            else:
                assert "1" in {row.event_id for row in read_dead_letters(state_dir)}


@pytest.mark.parametrize(("off_for", "counted"), [(0.9 * DAY, 0.9 * DAY), (1.1 * DAY, 0.0)])
async def test_what_is_kept_has_no_age_by_a_clock_that_was_in_doubt_at_the_start(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, off_for: float, counted: float
) -> None:
    clocks = Clocks(monkeypatch)
    async with Store.open(state_dir, metrics) as store:
        await look_again(store, clocks)
        before = store.now()
    clocks.ahead = off_for
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        assert store.now() - before == pytest.approx(counted, abs=1000)
        clocks.later += DAY
        await look_again(store, clocks)
        assert store.now() - before == pytest.approx(counted + DAY, abs=2000)
        assert store.spool("dcache").now() == pytest.approx(store.now(), abs=1000)
