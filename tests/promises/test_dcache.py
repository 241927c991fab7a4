"""A whole bridge between a dCache and OSCAR: every file version that exists and closed has one job."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.testing import until
from tests.promises.dcache_world import ROOT, DcacheWorld, Schedule

ONE, TWO = (1, 4, 5, 7, 8, 10, 15, 17, 20, 22, 23, 24), (2, 9, 19)
"""Seeds that are played with so many replicas. Together they have all kinds of trouble, and 4 kills."""
SHORT = [f"{seed}x1x80" for seed in ONE] + [f"{seed}x2x80" for seed in TWO]
"""Seed, replicas, steps."""
SCHEDULES = os.environ.get("DCACHE_SCHEDULES", " ".join(SHORT)).split()
"""DCACHE_SCHEDULES=17x2x150 plays one again, or several."""
CHUNK = 30


@asynccontextmanager
async def dcache_world_in(directory: Path) -> AsyncIterator[DcacheWorld]:
    async with SandboxDcache() as site, SandboxOscar(Settings(simulate=True)) as oscar:
        await site.mkdir(ROOT)
        oscar.add_service("plants")
        world = DcacheWorld(directory, site, oscar)
        try:
            yield world
        finally:
            world.close()


@pytest.fixture
async def dcache_world(tmp_path: Path) -> AsyncIterator[DcacheWorld]:
    async with dcache_world_in(tmp_path) as world:
        yield world


async def test_uploads_become_jobs(dcache_world: DcacheWorld) -> None:
    daemon = dcache_world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    for n in range(50):
        await dcache_world.site.upload(f"{ROOT}/d{n % 7}/{n}.nc", b"x" * n)
    await dcache_world.every_version_has_one_job()
    told = json.loads(dcache_world.oscar.ledger.bodies("plants")[0])
    assert set(told) == {"event", "subscription"}
    async with asyncio.timeout(10):  # marks are written soon, not at once
        while await daemon.metric("bridge_versions_remembered", source="arrivals") < 50:
            await asyncio.sleep(0.05)
    assert await daemon.stop() == 0


async def test_a_kill_in_between_loses_nothing(dcache_world: DcacheWorld) -> None:
    daemon = dcache_world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    for n in range(300):
        await dcache_world.site.upload(f"{ROOT}/d{n % 20}/{n}", b"x")
        if n == 110:
            daemon.kill()
            daemon.start()
    await dcache_world.every_version_has_one_job()


async def test_a_restart_of_dcache_that_forgets_the_channel_loses_nothing(dcache_world: DcacheWorld) -> None:
    daemon = dcache_world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    for n in range(200):
        await dcache_world.site.upload(f"{ROOT}/d{n % 20}/{n}", b"x")
        if n == 100:
            dcache_world.site.trouble.restart()
    await dcache_world.every_version_has_one_job()
    assert await daemon.metric("bridge_source_gaps_total", source="arrivals", reason="channel_lost") == 1


async def test_events_lost_while_the_bridge_was_down_are_found(dcache_world: DcacheWorld) -> None:
    daemon = dcache_world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    await dcache_world.site.upload(f"{ROOT}/first", b"x")
    await dcache_world.every_version_has_one_job()
    await daemon.stop()
    for n in range(100):
        await dcache_world.site.upload(f"{ROOT}/d{n % 20}/{n}", b"x")
    dcache_world.site.trouble.lose_events()
    daemon.start()
    await dcache_world.every_version_has_one_job()


@pytest.mark.parametrize(
    ("files", "directories"), [(1500, 100), pytest.param(20_000, 500, marks=pytest.mark.prove)]
)
async def test_files_written_into_new_nested_directories_at_once_are_all_found(
    dcache_world: DcacheWorld, files: int, directories: int
) -> None:
    daemon = dcache_world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    for n in range(files):
        at = n % directories
        await dcache_world.site.upload(f"{ROOT}/{at // 50}/{at // 10}/{at}/{n}", b"x")
    assert len(dcache_world.closed()) == files
    await dcache_world.every_version_has_one_job(seconds=110)


@pytest.mark.parametrize("played", SCHEDULES)
async def test_whatever_users_sites_and_kills_do_each_version_has_one_job(
    tmp_path: Path, played: str
) -> None:
    await play(tmp_path, played)


@pytest.mark.prove
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(1000, 1300, CHUNK))
async def test_in_300_schedules_too_each_version_has_one_job(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + CHUNK):
        await play(tmp_path / str(seed), f"{seed}x{1 + seed % 2}x150")


async def play(directory: Path, played: str) -> None:
    seed, replicas, steps = (int(number) for number in played.split("x"))
    async with dcache_world_in(directory) as world:
        for _ in range(replicas):
            world.daemon().start()
        for daemon in world.daemons:
            await daemon.becomes_ready()
        await until(lambda: world.site.connected == replicas, what="the streams are connected")
        schedule = Schedule(world, seed)
        await schedule.play(steps)
        try:
            await world.every_version_has_one_job()
        except AssertionError as failure:
            done = "\n".join(schedule.done)
            raise AssertionError(f"DCACHE_SCHEDULES={played}: {failure}\n{done}") from None
