"""The names of jobs: durable, each once, bounded by the budget, forgotten, saved from a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.core.errors import StoreFullError
from bridge.core.event import Event
from bridge.core.jobs import JobChanges, Progress
from bridge.store import Store, StoreConfig, jobs
from bridge.telemetry.metrics import Metrics
from tests.store.test_damage import fresh, overwrite, page_of, refused


def event(name: str, data: bytes = b"{}") -> Event:
    return Event(id=name, source="uploads", type="test", data=data, attributes={"a": "b"})


def noted(*names: str, data: bytes = b"{}") -> JobChanges:
    return JobChanges(note={f"job-{name}": event(name, data) for name in names})


async def names(store: Store, service: str = "plants") -> list[str]:
    return [record.name for record in await store.jobs(service)]


async def test_jobs_are_kept_for_their_lane_until_they_are_forgotten(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.change_jobs("plants", noted("1", "2", "3"))
        await store.change_jobs("flood", noted("1"))
        await store.change_jobs(
            "plants",
            JobChanges(
                progress={"job-1": (Progress.ACCEPTED, 5.0), "job-2": (Progress.SEEN, None)},
                forget={"job-3", "never-noted"},
            ),
        )
        # What is noted again stays as it is, and nothing that is known becomes less.
        await store.change_jobs("plants", noted("1"))
        await store.change_jobs("plants", JobChanges(progress={"job-2": (Progress.ACCEPTED, 7.0)}))
    async with Store.open(state_dir, fresh()) as store:
        first, second = await store.jobs("plants")
        assert (first.name, first.progress, first.accepted_at) == ("job-1", Progress.ACCEPTED, 5.0)
        assert (second.name, second.progress, second.accepted_at) == ("job-2", Progress.SEEN, 7.0)
        assert first.event == event("1", b""), "without the data, which is read alone"
        assert await store.event_of_job("plants", "job-1") == event("1")
        assert await store.event_of_job("plants", "job-3") is None
        assert await names(store, "flood") == ["job-1"]


async def test_a_name_that_is_no_text_of_unicode_is_kept(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics) as store:
        await store.change_jobs("plants", JobChanges(note={"job": event("\udc80")}))
        (record,) = await store.jobs("plants")
        assert record.event.id == "\udc80"


async def test_a_job_that_was_removed_is_remembered_and_not_noted_again(
    state_dir: Path, metrics: Metrics
) -> None:
    async with Store.open(state_dir, metrics) as store:
        assert not await store.change_jobs("plants", noted("1", "2"))
        assert not await store.change_jobs("plants", JobChanges(remember={"job-1"}))
        assert await names(store) == ["job-1", "job-2"], "until it is forgotten"
        await store.change_jobs("plants", JobChanges(forget={"job-1", "job-2"}))
        assert await store.change_jobs("plants", noted("1", "2", "3")) == {"job-1"}
        assert await names(store) == ["job-2", "job-3"]
    async with Store.open(state_dir, fresh()) as store:
        assert await store.change_jobs("plants", noted("1")) == {"job-1"}
        assert not await store.change_jobs("flood", noted("1")), "another lane's"


async def test_of_those_that_were_removed_the_oldest_are_forgotten(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_MOST_REMEMBERED", 3)
    async with Store.open(state_dir, metrics) as store:
        for name in "12345":
            await store.change_jobs("plants", JobChanges(remember={f"job-{name}"}))
        assert await store.change_jobs("plants", noted(*"12345")) == {"job-3", "job-4", "job-5"}
        later = store.now() + jobs._REMEMBER_SECONDS + 1
        monkeypatch.setattr(store, "now", lambda: later)
        await store.change_jobs("plants", JobChanges(remember={"job-6"}))
        assert await store.change_jobs("plants", noted(*"345678")) == {"job-6"}


async def test_the_budget_bounds_those_that_were_removed(
    state_dir: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_REMEMBERED_BYTES", 2 * 2**20)
    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=2 * 2**20)) as store:
        with pytest.raises(StoreFullError):
            await store.change_jobs("plants", JobChanges(remember={"job-1"}))
        assert not await store.change_jobs("plants", noted("1"))


async def test_the_budget_bounds_them(state_dir: Path, metrics: Metrics) -> None:
    async with Store.open(state_dir, metrics, StoreConfig(max_bytes=2 * 2**20)) as store:
        for number in range(10):
            await store.change_jobs("plants", noted(str(number), data=bytes(100_000)))
        with pytest.raises(StoreFullError):
            await store.change_jobs("plants", noted("too much", data=bytes(1_500_000)))
        kept = await names(store)
        assert len(kept) == 10
        await store.change_jobs("plants", JobChanges(forget=set(kept)))
        assert await names(store) == []


async def test_names_are_saved_from_a_file_that_is_damaged_elsewhere(state_dir: Path) -> None:
    wanted = [str(number) for number in range(500)]
    async with Store.open(state_dir, fresh()) as store:
        await store.change_jobs("plants", noted(*wanted))
        await store.change_jobs("plants", JobChanges(remember={f"gone-{number}" for number in wanted}))
        for number in wanted:
            await store.park(event(number, bytes(500)), "plants")
    overwrite(state_dir, page_of(state_dir, "kept", 0.5))
    await refused(state_dir)
    async with Store.open(state_dir, fresh(), accept_loss=True) as store:
        assert sorted(await names(store)) == sorted(f"job-{number}" for number in wanted)
        again = JobChanges(note={f"gone-{number}": event(number) for number in wanted})
        assert len(await store.change_jobs("plants", again)) == len(wanted)
