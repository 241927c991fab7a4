"""OSCAR is down for a day while files arrive in dCache: memory and disk stay bounded, and nothing is lost.

The day is compressed: `park_after` is a fifth of a second, so that all that arrives goes the long way, from
the spool to the lane and to the parked events, and what `give_up_after` counts is far from over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from bridge.sandbox.dcache import SandboxDcache, Version
from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from bridge.sources.dcache.keeping import MOST_PENDING_BYTES
from bridge.sources.dcache.session import LOOKUPS
from bridge.testing import until
from tests.promises.dcache_world import ROOT, DcacheWorld
from tests.support.daemon import Daemon

DIRECTORIES = 100
LOOKUP_RATE = 1000
"""A second: `request_rate` of the source."""
MIB = 2**20
BYTES_A_FILE = 1000
"""Of the store's budget. An event of this site takes about 500 while it is spooled; when it is parked, with
the mark that its version has entered, 850 to 900."""
WRITTEN = 8 * MIB
"""Of the budget, for what SQLite is writing."""
OVERDRAWN = 20 * MIB
"""What the disk may hold above the budget for a moment (`store.config`)."""


@pytest.fixture
async def dcache_world(tmp_path: Path) -> AsyncIterator[DcacheWorld]:
    settings = Settings(simulate=True, keep_bodies=False)
    async with SandboxDcache() as site, SandboxOscar(settings) as oscar:
        for number in range(DIRECTORIES):
            await site.mkdir(f"{ROOT}/{number}")
        oscar.add_service("plants")
        world = DcacheWorld(tmp_path, site, oscar)
        try:
            yield world
        finally:
            world.close()


async def started(world: DcacheWorld, max_bytes: int) -> Daemon:
    """Give a daemon that watches all directories, so that the stream tells of each file.

    Its lane has one worker: more would leave open which of two jobs under way is created first.
    """
    configuration = world.configuration()
    configuration["store"] = {"max_bytes": max_bytes}
    configuration["services"]["plants"] |= {
        "park_after": "200ms",
        "retry": {"max_backoff": "1s", "give_up_after": "24h"},
        "limits": {"concurrency": 1},
    }
    daemon = Daemon(world.directory / "daemon", configuration, fresh=True)
    world.daemons.append(daemon)
    daemon.start()
    await daemon.becomes_ready(seconds=60)
    await until(lambda: len(world.site.watched) == DIRECTORIES + 1, what="all directories are watched")
    return daemon


async def upload(world: DcacheWorld, amount: int, first: int = 0) -> list[Version]:
    return [
        await world.site.upload(f"{ROOT}/{number % DIRECTORIES}/{number:06}.nc", b"x")
        for number in range(first, first + amount)
    ]


async def kept(daemon: Daemon) -> dict[str, int]:
    """How many events are in the store, by reason."""
    return {
        dict(labels)["reason"]: int(value)
        for (name, labels), value in (await daemon.metrics()).items()
        if name == "bridge_kept_events"
    }


async def until_kept(daemon: Daemon, condition: Callable[[dict[str, int]], bool], *, seconds: float) -> None:
    """Return once `condition` holds for how many events are in the store, by reason."""
    now: dict[str, int] = {}
    try:
        async with asyncio.timeout(seconds):
            while not condition(now):
                await asyncio.sleep(0.1)
                now = await kept(daemon)
    except TimeoutError:
        raise AssertionError(f"only {now} in {seconds:g} s") from None


async def full(daemon: Daemon) -> set[str]:
    """Which parts say in /readyz that the store is full."""
    document = await daemon.ready()
    assert document is not None
    return {problem["part"] for problem in document["problems"] if "(store.max_bytes)" in problem["reason"]}


class Use(NamedTuple):
    """What a daemon takes, in bytes."""

    memory: int
    """Resident."""
    store: int
    """As it tells itself."""
    disk: int
    """As the file system tells."""

    @classmethod
    async def of(cls, daemon: Daemon) -> Use:
        status = Path(f"/proc/{daemon.pid}/status").read_text()  # noqa: ASYNC240 - in memory
        (memory,) = (int(line.split()[1]) * 1024 for line in status.splitlines() if "VmRSS" in line)
        files = (daemon.store, daemon.store.with_name(daemon.store.name + "-wal"))
        disk = sum(file.stat().st_size for file in files)
        return cls(memory, int(await daemon.metric("bridge_store_bytes")), disk)


@asynccontextmanager
async def watched(daemon: Daemon) -> AsyncIterator[list[Use]]:
    """Collect what the daemon takes until the end of the block, its last moment included."""
    uses: list[Use] = []

    async def watch() -> None:
        while True:
            uses.append(await Use.of(daemon))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    try:
        yield uses
    finally:
        watching.cancel()
        await asyncio.wait([watching])
    uses.append(await Use.of(daemon))


def all_have_one_job(world: DcacheWorld, files: list[Version]) -> list[int]:
    """Give for each job, by its creation, by how many places it is older (< 0) or newer than its place."""
    created = world.oscar.ledger.created
    place = {world.job_of(version): at for at, version in enumerate(files)}
    assert created.keys() == place.keys()
    assert set(created.values()) == {1}
    return [place[name] - at for at, name in enumerate(created)]


@pytest.mark.parametrize(
    ("files", "unreachable"),
    [
        pytest.param(2_000, False, id="2,000 files, 503"),
        pytest.param(
            100_000,
            True,
            id="100,000 files, unreachable",
            marks=[pytest.mark.prove, pytest.mark.timeout(480)],
        ),
    ],
)
async def test_a_day_without_oscar_takes_disk_alone_and_ends_with_the_oldest_first(
    dcache_world: DcacheWorld, files: int, *, unreachable: bool
) -> None:
    oscar, budget = dcache_world.oscar, WRITTEN + BYTES_A_FILE * files
    daemon = await started(dcache_world, budget)
    if unreachable:
        await oscar.outage()
    else:
        oscar.faults.set(Fault(statuses={503: 1.0}))
    some = min(10_000, files // 2)
    uploaded = await upload(dcache_world, some)
    await until_kept(daemon, lambda now: now == {"parked": some, "spooled": 0}, seconds=60)
    first = await Use.of(daemon)
    # What thousands a second need for a moment, Python's allocator keeps: it is the burst that shows in
    # memory, and how deep it is depends on the machine. So as many come three times, and what a backlog
    # takes would show after each of the last two.
    part = (files - some) // 3
    rests: list[Use] = []
    busy: list[Use] = []
    for there in (some, some + part):
        all_parked = {"parked": there + part, "spooled": 0}
        async with watched(daemon) as uses:
            uploaded += await upload(dcache_world, part, there)
            await until_kept(daemon, all_parked.__eq__, seconds=200)
        busy += uses
        rests.append(uses[-1])
    async with watched(daemon) as uses:
        uploaded += await upload(dcache_world, files - len(uploaded), len(uploaded))
        await until_kept(daemon, lambda now: sum(now.values()) >= files, seconds=60)
    busy += uses
    async with watched(daemon) as waiting:
        await until_kept(daemon, lambda now: now == {"parked": files, "spooled": 0}, seconds=200)
    if unreachable:
        await oscar.end_outage()
    else:
        oscar.faults.clear()
    async with watched(daemon) as afterwards:
        await until(lambda: len(oscar.ledger.created) >= files, seconds=200, what="all jobs are made")
    moved = all_have_one_job(dcache_world, uploaded)

    told = {"first": [first], "rests": rests, "busy": busy, "waiting": waiting, "afterwards": afterwards}
    for when, uses in told.items():
        memory, store, disk = ([use[at] / MIB for use in uses] for at in range(3))
        print(
            f"{when}: resident {min(memory):.1f} to {max(memory):.1f} MiB, store {max(store):.1f} MiB, "
            f"disk {max(disk):.1f} MiB"
        )
    size = (waiting[-1].store - rests[-1].store) / (files - some - 2 * part)
    print(f"{size:.0f} bytes an event; at most {-min(moved)} places too late, {max(moved)} too early")

    resident = [use.memory for use in (*rests, waiting[-1])]
    assert min(later / earlier for earlier, later in pairwise(resident)) <= 1.02, resident
    assert max(use.memory for use in waiting) <= max(use.memory for use in busy) + MIB
    # While thousands arrive a second, those read and not written yet are in memory, too.
    assert max(use.memory for use in busy) <= 1.1 * first.memory + MOST_PENDING_BYTES
    assert max(use.store for use in [*busy, *waiting]) <= budget
    # What is accepted leaves by way of SQLite's log, which nothing asks for room.
    assert max(max(use.store, use.disk) for use in [*busy, *waiting, *afterwards]) <= budget + OVERDRAWN
    # Look-ups go on side by side, at most LOOKUP_RATE begun in a second: one that takes longer than others
    # is overtaken by those that end before it.
    assert max(map(abs, moved)) <= 2 * LOOKUP_RATE  # 1,313 were seen once, of one event on a busy machine
    assert sum(abs(places) <= LOOKUPS for places in moved) >= 0.99 * files


@pytest.mark.parametrize(
    ("ring", "is_enough"),
    [
        pytest.param(16_384, True, id="the ring keeps them"),
        # The listing that finds the store full again is made anew after `listing.FULL_SECONDS`.
        pytest.param(100, False, id="a listing finds them", marks=pytest.mark.prove),
    ],
)
async def test_a_store_that_is_too_small_for_the_day_leaves_the_rest_to_dcache(
    dcache_world: DcacheWorld, ring: int, *, is_enough: bool
) -> None:
    files, site, oscar = 4_000, dcache_world.site, dcache_world.oscar
    site.settings.ring = ring
    daemon = await started(dcache_world, MIB)
    await oscar.outage()
    uploaded = await upload(dcache_world, files - 1_000)
    await until(lambda: not site.connected, what="the source disconnects")
    uploaded += await upload(dcache_world, 1_000, len(uploaded))
    # What is done goes, and its mark comes, whether there is room or not; and what is let in last is measured
    # by its rows, but takes whole pages, and those in SQLite's log.
    assert await daemon.metric("bridge_store_bytes") <= 1.25 * MIB
    assert 0 < sum((await kept(daemon)).values()) < files
    await daemon.says("dcache: disconnected, the store takes no more", source="arrivals")
    async with asyncio.timeout(30):
        while "source arrivals" not in await full(daemon):
            await asyncio.sleep(0.05)
    await oscar.end_outage()
    await until(lambda: len(oscar.ledger.created) >= files, seconds=100, what="all jobs are made")
    all_have_one_job(dcache_world, uploaded)
    await daemon.becomes_ready(seconds=60)
    gaps = await daemon.metric("bridge_source_gaps_total", source="arrivals", reason="event_loss")
    assert (gaps == 0) is is_enough
