"""Limits changed and parts paused beside a running bridge, over its ends, and under load."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from bridge.testing import until
from bridge.web.socket import ask
from tests.support.daemon import Daemon
from tests.support.world import World


def limits(daemon: Daemon) -> dict[tuple[str, str, str], dict[str, Any]]:
    done = daemon.command("limits", "--json")
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, done.stdout.splitlines())
    return {(row["kind"], row["key"], row["name"]): row for row in rows}


async def test_a_service_is_paused_over_a_kill_and_resumed_with_every_job_once(world: World) -> None:
    daemon = world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    done = daemon.command("pause", "service", "plants")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "service plants is paused until it is resumed\n",
        "",
    )
    await world.produce_numbers(20)
    await until(lambda: len(daemon.said("paused", service="plants")) == 1, what="the log tells")
    await asyncio.sleep(1)
    daemon.kill()
    daemon.start()
    await daemon.becomes_ready()
    assert await daemon.metric("bridge_lane_paused", service="plants") == 1
    (row,) = [row for row in limits(daemon).values() if row["name"] == "paused"]
    assert (row["kind"], row["key"], row["in_force"], row["until"]) == ("service", "plants", "yes", None)
    await daemon.says("still paused", service="plants")
    assert not world.oscar.ledger.created
    resumed = daemon.command("resume", "service", "plants")
    assert resumed.stdout == "service plants is not paused\n"
    await world.all_jobs()
    world.assert_one_job_an_event()
    await daemon.says("resumed", service="plants", reason="a person ended it")
    assert await daemon.stop() == 0


async def test_a_paused_source_reads_on_where_it_was(world: World) -> None:
    daemon = world.daemon()
    await world.produce_numbers(10)
    daemon.start()
    await world.bed.leaves(0)
    assert daemon.command("pause", "source", "uploads", "--for", "1h").returncode == 0
    await asyncio.sleep(1)  # what is on its way through the client is read still
    received = await daemon.metric("bridge_events_received_total", source="uploads")
    await world.produce_numbers(50)
    await asyncio.sleep(3)  # three times the session's time-out: its group has not lost it
    assert await daemon.metric("bridge_events_received_total", source="uploads") == received
    assert await daemon.metric("bridge_source_paused", source="uploads") == 1
    assert await daemon.metric("bridge_source_up", source="uploads") == 1
    assert (await daemon.ready() or {})["ready"]
    assert daemon.command("resume", "source", "uploads").returncode == 0
    await world.all_jobs()
    world.assert_one_job_an_event()
    assert not daemon.said("source lost")


async def test_limits_change_at_once_and_end_when_the_file_says_something_else(world: World) -> None:
    daemon = world.daemon()
    daemon.start()
    await daemon.becomes_ready()
    done = daemon.command("limits", "service", "plants", "concurrency=3", "rate=50/s", "--for", "2h")
    assert done.returncode == 0, done.stderr
    assert await daemon.metric("bridge_lane_limit", service="plants") == 3
    assert daemon.command("limits", "cluster", "main", "concurrency=5").returncode == 0
    assert await daemon.metric("bridge_cluster_limit", cluster="main") == 5
    assert await daemon.metric("bridge_lane_limits_overridden", service="plants") == 2
    await world.produce_numbers(20)
    await world.all_jobs()
    assert await daemon.stop() == 0
    text = daemon.file.read_text()
    daemon.file.write_text(text.replace("max_backoff: 1s", "max_backoff: 1s\n    limits: {concurrency: 7}"))
    daemon.start()
    await daemon.becomes_ready()
    assert await daemon.metric("bridge_lane_limit", service="plants") == 7
    assert await daemon.metric("bridge_cluster_limit", cluster="main") == 5
    assert await daemon.metric("bridge_lane_limits_overridden", service="plants") == 1, "the rate"
    await daemon.says("limit as configured again", reason="the configuration has another value")
    world.assert_one_job_an_event()


async def changed(daemon: Daemon, changes: int) -> None:
    """Make so many changes of every kind, one after the other, and end all of them."""
    state_dir = daemon.directory / "state"

    async def give(do: str, kind: str, key: str, **more: Any) -> None:
        answer = await asyncio.to_thread(ask, state_dir, {"do": do, "kind": kind, "key": key, **more})
        assert answer is not None
        assert answer["rows"]

    parts = [("source", "uploads"), ("service", "plants"), ("cluster", "main")]
    for _ in range(changes):
        kind, key = random.choice(parts)
        what = random.choice(["pause", "resume", "resume", "limits", "limits", "reset"])
        seconds = random.choice([None, 0.1, 0.5])
        if what == "pause":
            await give("pause", kind, key, seconds=seconds)
        elif what == "resume":
            await give("resume", kind, key)
        elif kind != "source":
            wanted = {"concurrency": str(random.randint(1, 32)), "rate": random.choice(["none", "200/s"])}
            if kind == "cluster" and random.random() < 0.5:
                wanted["concurrency"] = "auto"
            more = {"reset": True} if what == "reset" else {"limits": wanted, "seconds": seconds}
            await give("limits", kind, key, **more)
    for kind, key in parts:
        await give("resume", kind, key)
        if kind != "source":
            await give("limits", kind, key, reset=True)


@pytest.mark.prove
async def test_limits_changed_1000_times_and_pauses_under_load_lose_nothing_and_double_nothing(
    world: World,
) -> None:
    daemon = world.daemon()
    await world.produce_numbers(20_000)
    daemon.start()
    await daemon.becomes_ready()
    await changed(daemon, 1000)
    await world.all_jobs(seconds=300)
    await world.bed.leaves(0, seconds=60)
    world.assert_one_job_an_event()
    assert await daemon.metric("bridge_lane_in_flight", service="plants") == 0
    assert await daemon.metric("bridge_lane_queued", service="plants") == 0
    assert await daemon.metric("bridge_source_in_flight", source="uploads") == 0
    assert await daemon.metric("bridge_lane_limit", service="plants") == 16
    assert await daemon.parked("plants") == 0
    assert json.loads((Path(daemon.directory) / "state" / "overrides.json").read_text()) == {"overrides": []}
    accepted = await daemon.metric("bridge_invocations_total", service="plants", outcome="accepted")
    assert accepted == 20_000
    assert await daemon.stop() == 0
