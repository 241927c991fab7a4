"""A whole bridge that sends events together: each is in one job, whatever is killed, none early."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge.sandbox.oscar import SandboxOscar
from bridge.testing import until
from tests.promises.dcache_world import ROOT, DcacheWorld
from tests.promises.test_dcache import dcache_world_in
from tests.support.world import World

FILES = 20


@pytest.fixture
async def dcache_world(tmp_path: Path) -> AsyncIterator[DcacheWorld]:
    async with dcache_world_in(tmp_path) as world:
        yield world


def sent(oscar: SandboxOscar) -> list[list[Any]]:
    """The members of each job."""
    assert set(oscar.ledger.created.values()) <= {1}
    return [json.loads(body)["events"] for body in oscar.ledger.bodies("plants")]


async def all_sent(oscar: SandboxOscar, count: int, *, seconds: float = 60.0) -> None:
    await until(lambda: sum(map(len, sent(oscar))) >= count, seconds=seconds, what=f"{count} are sent")


async def test_records_of_one_key_are_one_job_and_a_kill_changes_nothing(world: World) -> None:
    daemon = world.daemon(
        world.configuration(
            routes=[
                {"from": "uploads", "to": "plants", "merge": {"key": "subject"}, "complete": {"count": 30}}
            ]
        )
    )
    daemon.start()
    await daemon.becomes_ready()
    keys = [b"scan-%d" % (n % 10) for n in range(300)]
    values: list[bytes | None] = [json.dumps({"n": n, "scan": n % 10}).encode() for n in range(300)]
    ids = await world.bed.produce(values[:200], keys=keys[:200])
    await until(lambda: len(daemon.kept()) >= 100, what="some wait")
    daemon.kill()
    daemon.start()
    await daemon.becomes_ready()
    await until(lambda: len(daemon.kept()) == 200, what="all wait")
    assert not sent(world.oscar)
    assert {row.reason for row in daemon.kept()} == {"window"}
    listed = daemon.command("parked", "list", "--service", "plants", "--json").stdout.splitlines()
    assert {json.loads(line)["reason"] for line in listed} == {"window"}
    told = daemon.command("why", ids[0])
    assert "waits for others: in a window of key scan-0, with 19 others" in told.stdout
    await world.bed.produce(values[200:290], keys=keys[200:290])
    await world.bed.produce(values[290:], keys=keys[290:])
    await all_sent(world.oscar, 300)
    jobs = sent(world.oscar)
    assert Counter(len(job) for job in jobs) == {30: 10}
    assert all(len({member["scan"] for member in job}) == 1 for job in jobs)
    assert sorted(member["n"] for job in jobs for member in job) == list(range(300))
    await until(lambda: not daemon.kept(), what="nothing is left")
    told = daemon.command("why", ids[0])
    assert "sent with others as merged/30/" in told.stdout, told.stdout
    assert told.stdout.split("job ")[-1].split()[0] in world.oscar.ledger.created
    assert await daemon.stop() == 0


async def test_what_is_not_complete_is_a_dead_letter_that_is_replayed_as_one(world: World) -> None:
    complete = {"count": 5, "within": "1s", "then": "dead-letter"}
    daemon = world.daemon(
        world.configuration(routes=[{"from": "uploads", "to": "plants", "complete": complete}])
    )
    daemon.start()
    await daemon.becomes_ready()
    ids = await world.bed.produce([b'{"n": 1}', b'{"n": 2}'], keys=[b"a", b"a"])
    await until(lambda: [row.reason for row in daemon.kept()] == ["dead"], what="a letter")
    (listed,) = [
        json.loads(line) for line in daemon.command("dead-letters", "list", "--json").stdout.split("\n")[:-1]
    ]
    assert (listed["cause"], listed["subject"]) == ("incomplete", "a")
    shown = daemon.command("dead-letters", "show", str(listed["number"])).stdout
    assert '{"events":[{"n": 1},{"n": 2}]}' in shown
    assert all(f"  member:       {each}" in shown for each in ids)
    assert not sent(world.oscar)
    assert "1 " in daemon.command("dead-letters", "replay", "--all").stdout
    await all_sent(world.oscar, 2)
    assert sent(world.oscar) == [[{"n": 1}, {"n": 2}]]


@pytest.mark.parametrize(
    "folders", [15, pytest.param(500, marks=[pytest.mark.prove, pytest.mark.timeout(900)])]
)
async def test_a_folder_of_dcache_is_one_job_behind_its_marker(
    dcache_world: DcacheWorld, folders: int
) -> None:
    """None is early, none is twice: with 500 folders these are ten thousand files."""
    world = dcache_world
    daemon = _of_folders(world)
    daemon.start()
    await daemon.becomes_ready()
    await _upload(world, folders)
    await until(lambda: len(sent(world.oscar)) >= folders, seconds=600, what="a job a folder")
    jobs = [sorted(member["event"]["name"] for member in job) for job in sent(world.oscar)]
    expected = [sorted(f"{folder}/{n}.nc" for n in range(FILES)) for folder in range(folders)]
    assert sorted(jobs) == sorted(expected)
    assert await daemon.metric("bridge_window_members_late_total", service="plants") == 0


@pytest.mark.prove
@pytest.mark.timeout(900)
async def test_ten_thousand_files_of_dcache_are_each_in_one_job_though_it_is_killed(
    dcache_world: DcacheWorld,
) -> None:
    world = dcache_world
    daemon = _of_folders(world, within="20s")
    daemon.start()
    await daemon.becomes_ready()
    dice = random.Random(3)

    async def kill() -> None:
        while True:
            await asyncio.sleep(dice.uniform(1, 6))
            daemon.kill()
            daemon.start()

    killing = asyncio.create_task(kill())
    await _upload(world, 500)
    killing.cancel()
    await all_sent(world.oscar, 500 * FILES, seconds=600)
    await asyncio.sleep(5)
    names = Counter(member["event"]["name"] for job in sent(world.oscar) for member in job)
    assert set(names.values()) == {1}
    assert len(names) == 500 * FILES


def _of_folders(world: DcacheWorld, within: str = "1h") -> Any:
    daemon = world.daemon()
    text = daemon.file.read_text()
    marker = "subject.endsWith('/.done')"
    route = json.dumps(
        {"from": "arrivals", "to": "plants", "quiet": "3s", "complete": {"marker": marker, "within": within}}
    )
    daemon.file.write_text(text[: text.index("routes:")] + f"routes: [{route}]\n")
    return daemon


async def _upload(world: DcacheWorld, folders: int) -> None:
    for first in range(0, folders, 10):  # ten folders at a time, mixed
        some = range(first, min(first + 10, folders))
        for n in range(FILES):
            for folder in some:
                await world.site.upload(f"{ROOT}/{folder}/{n}.nc", b"x")
        for folder in some:
            await world.site.upload(f"{ROOT}/{folder}/.done", b"")


@pytest.mark.parametrize(
    ("folders", "kills"),
    [(5, 1), pytest.param(500, 20, marks=[pytest.mark.prove, pytest.mark.timeout(1800)])],
)
async def test_messages_in_no_order_are_each_in_one_job(queue_world: World, folders: int, kills: int) -> None:
    """With 500 folders these are ten thousand, some of which SQS gives twice, for it is killed."""
    world = queue_world
    route = {
        "from": "uploads",
        "to": "plants",
        "quiet": "1s",
        "merge": {"key": "data.folder"},
        "complete": {"marker": "has(data.done)", "within": "10s"},
    }
    daemon = world.daemon(world.configuration(routes=[route]))
    daemon.start()
    dice = random.Random(4)
    messages = [{"folder": f"f{n % folders}", "n": n} for n in range(folders * FILES)]
    messages += [{"folder": f"f{folder}", "done": True} for folder in range(folders)]
    dice.shuffle(messages)
    size = len(messages) // (kills + 1) + 1
    for at in range(0, len(messages), size):
        await world.bed.queue.send(*messages[at : at + size])
        if at + size < len(messages):
            daemon.kill()
            daemon.start()
    await all_sent(world.oscar, folders * FILES, seconds=600)
    await world.bed.leaves(0, seconds=60)
    await until(lambda: not daemon.kept(), what="nothing is left")
    numbers = Counter(member["n"] for job in sent(world.oscar) for member in job)
    assert numbers == Counter(range(folders * FILES))
