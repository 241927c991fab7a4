"""A whole bridge between a dCache and OSCAR: every file version that exists and closed has one job."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar, Settings
from tests.promises.dcache_world import ROOT, DcacheWorld, Schedule
from tests.promises.world import until

SEEDS = [int(seed) for seed in os.environ.get("DCACHE_SEEDS", "1,2,3").split(",")]
"""DCACHE_SEEDS=17 plays one schedule again."""


@pytest.fixture
async def dcache_world(tmp_path: Path) -> AsyncIterator[DcacheWorld]:
    async with SandboxDcache() as site, SandboxOscar(Settings(simulate=True)) as oscar:
        await site.mkdir(ROOT)
        oscar.add_service("plants")
        world = DcacheWorld(tmp_path, site, oscar)
        try:
            yield world
        finally:
            world.close()


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
        if n in (60, 170):
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
    await daemon.becomes_ready()
    assert await daemon.metric("bridge_source_gaps_total", source="arrivals", reason="channel_lost") == 1


async def test_events_lost_while_the_bridge_was_down_are_found(dcache_world: DcacheWorld) -> None:
    daemon = dcache_world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    await dcache_world.site.upload(f"{ROOT}/first", b"x")
    await dcache_world.every_version_has_one_job()
    daemon.kill()
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


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_users_sites_and_kills_do_each_version_has_one_job(
    dcache_world: DcacheWorld, seed: int, replicas: int
) -> None:
    for _ in range(replicas):
        dcache_world.daemon().start()
    for daemon in dcache_world.daemons:
        await daemon.becomes_ready()
    await until(lambda: dcache_world.site.connected == replicas, what="the streams are connected")
    schedule = Schedule(dcache_world, seed)
    await schedule.play(150)
    try:
        await dcache_world.every_version_has_one_job()
    except AssertionError as failure:
        raise AssertionError(f"DCACHE_SEEDS={seed}: {failure}\n" + "\n".join(schedule.done)) from None
