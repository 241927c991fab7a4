"""What was lost upstream is told until a person acknowledges it, over restarts and whatever the disk does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.control import Losses
from bridge.core.errors import StoreError
from bridge.settings import Settings
from bridge.store import losses as kept
from bridge.store.losses import Loss
from bridge.telemetry.metrics import Metrics
from bridge.web import Problem
from tests.pipeline.clock import EPOCH

SETTINGS = Settings.model_validate(
    {
        "state_dir": "/nonexistent",
        "clusters": {
            "main": {
                "endpoint": "https://oscar.example.org",
                "auth": {"type": "basic", "username": "oscar", "password": "swordfish"},
            }
        },
        "services": {"plants": {}},
        "sources": {
            key: {"type": "kafka", "bootstrap_servers": "kafka:9092", "topics": [key], "group_id": key}
            for key in ("uploads", "sensors")
        },
        "routes": [{"from": "uploads", "to": "plants"}, {"from": "sensors", "to": "plants"}],
    }
)
GOES_ON = Problem("source uploads", "not connected: no route to host")


class Disk:
    """Keeps what it is given; while `full` it takes nothing, and while not `free` it takes its time."""

    def __init__(self) -> None:
        self.there: Collection[Loss] = ()
        self.full = False
        self.free = asyncio.Event()
        self.free.set()
        self.writing = asyncio.Event()

    async def save(self, there: Collection[Loss]) -> None:
        self.writing.set()
        await self.free.wait()
        if self.full:
            raise StoreError("losses.json can't be written: No space left on device")
        self.there = there

    def counts(self) -> dict[str, int]:
        return {loss.place: loss.events for loss in self.there}


@asynccontextmanager
async def running(disk: Disk, metrics: Metrics | None = None) -> AsyncIterator[Losses]:
    """Run, as a daemon does that finds what is on the disk."""
    losses = Losses(SETTINGS, disk.there, disk.save, metrics or Metrics())
    losses.begin()
    task = asyncio.create_task(losses.run())
    await asyncio.sleep(0)
    try:
        yield losses
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def nothing() -> list[Problem]:
    return []


async def acknowledge(losses: Losses, part: str | None = None) -> dict[str, Any]:
    command = {"do": "acknowledge"} if part is None else {"do": "acknowledge", "part": part}
    return await losses.acknowledge(command, lambda: [GOES_ON, *losses.problems()])


async def test_a_loss_is_told_over_a_restart_until_it_is_acknowledged() -> None:
    disk, metrics = Disk(), Metrics()
    async with running(disk) as losses:
        assert losses.problems() == []
        losses.add("uploads", "uploads/3", 100)
        losses.add("uploads", "uploads/3", 20)
        losses.add("uploads", "uploads/7", 1)
    assert disk.counts() == {"uploads/3": 120, "uploads/7": 1}, "the last is kept while it stops"
    with capture_logs() as lines:
        async with running(disk, metrics) as losses:
            (problem,) = losses.problems()
            assert problem.part == "source uploads"
            assert "121 or more events were lost upstream" in problem.reason
            assert "uploads/3 (120), uploads/7 (1)" in problem.reason
            assert problem.reason.endswith("`oscar-bridge acknowledge source uploads`")
            labels = {"source": "uploads"}
            assert metrics.registry.get_sample_value("bridge_events_lost_unacknowledged", labels) == 121
            answer = await acknowledge(losses, "source uploads")
            assert losses.problems() == []
            assert metrics.registry.get_sample_value("bridge_events_lost_unacknowledged", labels) == 0
    assert not disk.there
    assert answer["going_on"] == [{"part": GOES_ON.part, "reason": GOES_ON.reason}]
    assert [one["part"] for one in answer["acknowledged"]] == ["source uploads"]
    assert [line["event"] for line in lines] == ["loss not acknowledged", "loss acknowledged"]
    async with running(disk) as losses:
        assert losses.problems() == []


async def test_each_part_is_acknowledged_for_itself_and_all_without_a_name() -> None:
    disk = Disk()
    async with running(disk) as losses:
        losses.add("uploads", "uploads/0", 1)
        losses.add("sensors", "sensors/0", 2)
        assert (await acknowledge(losses, "service plants"))["acknowledged"] == []
        await acknowledge(losses, "source sensors")
        assert [problem.part for problem in losses.problems()] == ["source uploads"]
        assert disk.counts() == {"uploads/0": 1}
        answer = await acknowledge(losses)
        assert [problem["part"] for problem in answer["acknowledged"]] == ["source uploads"]
        assert losses.problems() == []


async def test_what_is_lost_after_it_is_told_anew_also_while_the_disk_is_slow() -> None:
    disk = Disk()
    async with running(disk) as losses:
        losses.add("uploads", "uploads/0", 5)
        await disk.writing.wait()
        disk.free.clear()
        disk.writing.clear()
        under_way = asyncio.create_task(acknowledge(losses))
        await disk.writing.wait()
        losses.add("uploads", "uploads/0", 2)
        losses.add("uploads", "uploads/1", 3)
        disk.free.set()
        await under_way
        (problem,) = losses.problems()
        assert "5 or more events" in problem.reason
    assert disk.counts() == {"uploads/0": 2, "uploads/1": 3}


async def test_a_full_disk_refuses_an_acknowledgement_and_keeps_losses_once_it_can() -> None:
    disk = Disk()
    disk.full = True
    async with running(disk) as losses:
        with capture_logs() as lines:
            losses.add("uploads", "uploads/0", 5)
            await asyncio.sleep(130)
            with pytest.raises(StoreError, match="No space left"):
                await acknowledge(losses)
        assert {line["event"] for line in lines} == {"losses can't be kept over a restart"}
        assert len(losses.problems()) == 1
        disk.full = False
        await asyncio.sleep(61)
        assert disk.counts() == {"uploads/0": 5}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ({"do": "acknowledge", "part": "source upload"}, "did you mean `source uploads`"),
        ({"do": "acknowledge", "part": 3}, "part"),
        ({"do": "acknowledge", "parts": []}, "parts"),
    ],
)
async def test_a_command_that_makes_no_sense_acknowledges_nothing(command: dict[str, Any], told: str) -> None:
    async with running(Disk()) as losses:
        losses.add("uploads", "uploads/0", 5)
        with pytest.raises(ValueError, match=told):
            await losses.acknowledge(command, nothing)
        assert len(losses.problems()) == 1


async def test_of_many_places_some_are_named_and_a_removed_source_can_be_acknowledged() -> None:
    disk = Disk()
    disk.there = [Loss("old", f"old/{number}", 2, EPOCH, EPOCH + 60) for number in range(9)]
    async with running(disk) as losses:
        (problem,) = losses.problems()
        assert "18 or more events" in problem.reason
        assert "old/4 (2), 4 more;" in problem.reason
        assert len((await acknowledge(losses, "source old"))["acknowledged"]) == 1


def test_what_is_on_the_disk_is_read_again_or_refused(tmp_path: Path) -> None:
    assert kept.read(tmp_path) == []
    there = [Loss("uploads", "uploads/0", 5, EPOCH, EPOCH)]
    kept.write(tmp_path, there)
    assert kept.read(tmp_path) == there
    file = tmp_path / kept.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    for damage in (
        "",
        "[]",
        "{}",
        '{"losses": [1]}',
        file.read_text().replace('events": 5', 'events": "many"'),
        '{"losses": [{}]}',
    ):
        file.write_text(damage)
        with pytest.raises(StoreError, match="remove it to go on without"):
            kept.read(tmp_path)


async def test_losses_whose_write_was_cancelled_are_kept_when_it_stops() -> None:
    disk = Disk()
    async with running(disk) as losses:
        disk.free.clear()
        losses.add("uploads", "uploads/0", 5)
        await disk.writing.wait()
        asyncio.get_running_loop().call_later(1, disk.free.set)
    assert disk.counts() == {"uploads/0": 5}
