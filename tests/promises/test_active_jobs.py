"""`active_jobs`: the witness of how many jobs were active at any instant is the cluster's own ledger."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.testing import until
from tests.servers.tansu import Tansu
from tests.support.beds import KafkaBed
from tests.support.daemon import Daemon
from tests.support.world import World

FASTER = 20
"""A second here is so many of the cluster's."""
PLACES, MOST = 20, 40
SETTINGS = Settings(
    simulate=True, simulated_seconds=20, max_pods=PLACES, api_calls_per_second=5, keep_bodies=False
)


@pytest.fixture
async def world(tmp_path: Path, tansu: Tansu, unique: str) -> AsyncIterator[World]:
    """A cluster of 20 places with OSCAR's throttle, whose jobs take 20 s, all compressed."""
    await tansu.create_topic(unique, 1)
    async with SandboxOscar(SETTINGS.compressed(FASTER)) as oscar:
        oscar.add_service("plants")
        world = World(tmp_path, oscar, KafkaBed(unique, tansu))
        try:
            yield world
        finally:
            world.close()


def daemon_of(world: World) -> Daemon:
    configuration = world.configuration()
    configuration["services"]["plants"] |= {"limits": {"active_jobs": MOST}, "timeout_seconds": 2}
    return world.daemon(configuration)


async def test_never_more_are_active_than_that_through_a_kill(world: World) -> None:
    oscar = world.oscar
    await world.produce_numbers(90)
    daemon = daemon_of(world)
    daemon.start()
    await until(lambda: oscar.ledger.total >= 45, what="it has gone round")
    assert daemon.command("limits", "service", "plants", f"active_jobs={MOST - 10}").returncode == 0
    daemon.kill()
    daemon.start()
    await until(lambda: len(daemon.said("limit still overridden", limit="active_jobs")) == 1)
    await world.all_jobs(seconds=120)
    assert PLACES < oscar.activity().peak["plants"] <= MOST
    assert all(count == 1 for count in oscar.ledger.created.values())
    assert not daemon.said("the jobs can't be listed, so no place is known to be free")
    await until(lambda: not oscar.activity().active["plants"], what="all have ended")
    async with asyncio.timeout(60):
        # What came again after the kill may wait for its attempt still, though its job has ended by now.
        while await daemon.metric("bridge_source_in_flight", source="uploads"):
            await asyncio.sleep(0.1)
        while await daemon.metric("bridge_active_jobs", service="plants"):
            await asyncio.sleep(0.1)
    assert await daemon.stop() == 0
    with closing(sqlite3.connect(daemon.store)) as store:
        assert store.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


async def test_the_event_of_a_job_that_failed_is_a_dead_letter_to_be_replayed_as_new(world: World) -> None:
    oscar = world.oscar
    oscar.settings.supervisor = "go"
    oscar.faults.set(Fault(scripts={'"n":1}': 3}), "plants")
    await world.produce_numbers(3)
    configuration = world.configuration()
    configuration["services"]["plants"] |= {"track": True, "on_failure": "dead-letter"}
    daemon = world.daemon(configuration)
    daemon.start()
    await world.all_jobs()
    await until(lambda: daemon.said("a job failed"), what="it is seen to have failed")
    (told,) = daemon.said("a job failed")
    assert (told["id"], told["job"]) == (world.ids[1], world.job_of(1))
    async with asyncio.timeout(60):
        while not await daemon.metric("bridge_dead_letters", service="plants", cause="job_failed"):
            await asyncio.sleep(0.1)
        while await daemon.metric("bridge_jobs_finished_total", service="plants", outcome="succeeded") < 2:
            await asyncio.sleep(0.1)
    assert daemon.command("dead-letters", "replay", "--all", "--as-new").returncode == 0
    await until(lambda: oscar.ledger.total == 4, what="another job is made")


async def test_jobs_that_succeeded_are_removed_and_events_that_come_again_make_no_others(
    world: World,
) -> None:
    oscar = world.oscar
    await world.produce_numbers(30)
    configuration = world.configuration()
    configuration["services"]["plants"] |= {"track": True, "remove_finished": True}
    daemon = world.daemon(configuration)
    daemon.start()
    await world.all_jobs()
    await until(lambda: not oscar.jobs.all(), what="all jobs are removed", seconds=120)
    assert await daemon.metric("bridge_jobs_finished_total", service="plants", outcome="succeeded") == 30
    await daemon.says("what once means", at_least_once=["plants"])
    daemon.kill()
    text = daemon.file.read_text(encoding="utf-8")
    assert f"group_id: {world.bed.name}" in text
    # A group without commits: all comes again.
    daemon.file.write_text(text.replace(f"group_id: {world.bed.name}", f"group_id: {world.bed.name}-again"))
    daemon.start()
    came_again = "an event came again whose job had succeeded and was removed: it makes no other"
    await until(lambda: len(daemon.said(came_again)) == 30, what="all have come again")
    assert await daemon.stop() == 0
    assert all(count == 1 for count in oscar.ledger.created.values())


@pytest.mark.prove
async def test_a_job_that_left_no_output_has_failed_though_its_pod_ended_well(
    tmp_path: Path, tansu: Tansu, unique: str
) -> None:
    """Under the Python supervisor, whose pods end well whatever the script did."""
    await tansu.create_topic(unique, 1)
    async with SandboxOscar() as oscar:
        output = [{"storage_provider": "minio.default", "path": "results/out"}]
        oscar.add_service("plants", 'echo done > "$TMP_OUTPUT_DIR/$JOB_UUID.txt"', output=output)
        oscar.faults.set(Fault(scripts={'"n":1}': 3}), "plants")
        world = World(tmp_path, oscar, KafkaBed(unique, tansu))
        await world.produce_numbers(3)
        configuration = world.configuration()
        configuration["services"]["plants"] |= {
            "track": True, "success": "output", "on_failure": "dead-letter", "remove_finished": True,
        }  # fmt: skip
        daemon = world.daemon(configuration)
        try:
            daemon.start()
            await world.all_jobs()
            await until(lambda: daemon.said("a job failed"), what="it is seen to have left nothing")
            (told,) = daemon.said("a job failed")
            assert (told["id"], told["job"]) == (world.ids[1], world.job_of(1))
            assert told["log"].endswith("It has left no output in results/out/")
            await until(lambda: len(oscar.jobs.all()) == 1, what="the others are removed")
            (left,) = oscar.jobs.all()
            assert (left.name, left.phase) == (world.job_of(1), "Succeeded")
            finished = {
                outcome: await daemon.metric("bridge_jobs_finished_total", service="plants", outcome=outcome)
                for outcome in ("succeeded", "failed")
            }
            assert finished == {"succeeded": 2, "failed": 1}
            assert await daemon.metric("bridge_dead_letters", service="plants", cause="job_failed") == 1
        finally:
            world.close()
