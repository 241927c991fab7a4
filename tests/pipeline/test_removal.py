"""`remove_finished`: a job that succeeded is deleted, and its event makes no second, whenever it comes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.jobs import JobSeen, Phase
from bridge.core.ports import Answer
from bridge.pipeline.jobs import Jobs
from tests.pipeline.clock import now
from tests.pipeline.scripted import (
    ACCEPTED,
    DUPLICATE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
    settled,
    stop,
)


class Cluster:
    """Makes jobs of 5 s, of which those whose event is called `bad` fail, and deletes them."""

    afterwards = 10.0

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        """Jobs that were made of each event."""
        self.jobs: dict[str, float] = {}
        """By name: when they end."""
        self.deletes = True

    def job_of(self, one: Event) -> str:
        return f"job-{one.id}"

    def make(self, one: Event) -> Answer:
        if self.job_of(one) in self.jobs:
            return DUPLICATE
        self.jobs[self.job_of(one)] = now() + 5.0
        self.made[one.id] += 1
        return ACCEPTED

    def listed(self) -> list[JobSeen]:
        ended = {name: Phase.FAILED if "bad" in name else Phase.SUCCEEDED for name in self.jobs}
        return [
            JobSeen(name, ended[name] if end <= now() else Phase.RUNNING) for name, end in self.jobs.items()
        ]

    async def sweep(self, watch: Jobs) -> None:
        watch.sweep_began()
        asked_at = now()
        listed = self.listed()
        await asyncio.sleep(0.3)
        ended = watch.saw(listed, asked_at)
        for name in ended.failed:
            await watch.failed(name, "")
        for name in await watch.remember(ended.removable):
            await asyncio.sleep(0.1)
            if self.deletes:
                self.jobs.pop(name, None)
                await asyncio.sleep(0.1)
                watch.removed(name)
        await watch.sweep_ended(seen=len(listed), absence_tells=True)

    async def sweeps(self, watch: Jobs | None) -> None:
        assert watch is not None
        while True:
            await watch.wanted()
            await self.sweep(watch)


def bench_of(cluster: Cluster, keeper: MemoryKeeper, active_jobs: int | None = 8) -> Bench:
    destination = ScriptedDestination(cluster.make, seconds=0.05)
    return Bench(destination, active_jobs=active_jobs, remove_finished=True, maker=cluster, keeper=keeper)


async def test_jobs_that_succeeded_are_removed_and_their_events_make_no_others() -> None:
    cluster, keeper = Cluster(), MemoryKeeper()
    for _ in range(3):  # the second and third are processes of their own, to which all comes again
        bench = bench_of(cluster, keeper)
        async with bench.running():
            sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs))
            given = [*deliveries(30), Delivery(event("bad"))]
            await bench.put(given)
            assert set(await settled(given)) == {Outcome.ACCEPTED}
            await asyncio.sleep(30)
            again = deliveries(30)
            await bench.put(again)
            assert set(await settled(again)) == {Outcome.ACCEPTED}
            await asyncio.sleep(30)
            await stop(sweeping)
            assert list(cluster.jobs) == ["job-bad"], "of one that failed the log is read by people"
            bench.assert_nothing_is_remembered()
    assert set(cluster.made.values()) == {1}
    assert len(cluster.made) == 31


async def test_a_job_is_removed_only_once_its_name_is_kept() -> None:
    cluster, keeper = Cluster(), MemoryKeeper()
    bench = bench_of(cluster, keeper)
    async with bench.running():
        given = deliveries(2)
        await bench.put(given)
        await settled(given)
        watch = bench.lane.jobs
        assert watch is not None
        await asyncio.sleep(10)
        keeper.full = True
        await cluster.sweep(watch)
        assert len(cluster.jobs) == 2
        keeper.full = False
        await cluster.sweep(watch)
        assert not cluster.jobs


async def three_that_stay(cluster: Cluster, bench: Bench) -> asyncio.Task[None]:
    """Have three jobs succeed of which none can be removed; give the task that sweeps."""
    sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs))
    given = deliveries(3)
    await bench.put(given)
    await settled(given)
    await asyncio.sleep(60)
    return sweeping


async def test_a_job_whose_removal_failed_is_removed_with_the_next_sweep() -> None:
    cluster = Cluster()
    cluster.deletes = False
    bench = bench_of(cluster, MemoryKeeper())
    async with bench.running():
        sweeping = await three_that_stay(cluster, bench)
        assert len(cluster.jobs) == 3
        again = deliveries(3)
        await bench.put(again)
        assert set(await settled(again)) == {Outcome.ACCEPTED}
        cluster.deletes = True
        await asyncio.sleep(60)
        await stop(sweeping)
        assert not cluster.jobs
        assert bench.value("bridge_jobs_finished_total", outcome="succeeded") == 3
        bench.assert_nothing_is_remembered()


async def test_one_that_is_gone_by_itself_needs_no_removal() -> None:
    cluster = Cluster()
    cluster.deletes = False
    bench = bench_of(cluster, MemoryKeeper())
    async with bench.running():
        sweeping = await three_that_stay(cluster, bench)
        cluster.jobs.clear()
        await asyncio.sleep(60)
        await stop(sweeping)
        assert bench.value("bridge_jobs_finished_total", outcome="gone") == 0
        bench.assert_nothing_is_remembered()


@pytest.mark.parametrize("configured", [None, 2])
async def test_jobs_that_are_followed_without_a_limit_have_one_so_that_each_is_known(
    monkeypatch: pytest.MonkeyPatch, configured: int | None
) -> None:
    monkeypatch.setattr("bridge.pipeline.jobs._MOST_FOLLOWED", 10)
    cluster = Cluster()
    bench = bench_of(cluster, MemoryKeeper(), configured)
    async with bench.running():
        assert bench.lane.jobs is not None
        bench.lane.jobs.limit(None)  # as a person does who wants none for a while
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs))
        given = deliveries(40)
        await bench.put(given)
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        assert bench.value("bridge_jobs_finished_total", outcome="not_followed") == 0
        await stop(sweeping)


async def one_that_succeeded(bench: Bench, given: Delivery) -> Jobs:
    """Have the job of `given` made, and wait until it has ended."""
    await bench.put([given])
    await settled([given])
    await asyncio.sleep(10)
    assert bench.lane.jobs is not None
    return bench.lane.jobs


async def test_a_job_stays_whose_event_came_again_before_its_name_was_kept() -> None:
    cluster = Cluster()
    bench = bench_of(cluster, MemoryKeeper(), 1)
    async with bench.running():
        watch = await one_that_succeeded(bench, Delivery(event("a")))
        assert watch.saw(cluster.listed(), now()).removable == ["job-a"]
        again = Delivery(event("a"))
        await bench.put([Delivery(event("b")), again])
        await asyncio.sleep(1)
        assert again.outcome is None, "it may go, and waits for its place"
        assert await watch.remember(["job-a"]) == []
        assert watch.saw(cluster.listed(), now()).removable == ["job-a"]
        assert again.outcome is Outcome.ACCEPTED
        assert await watch.remember(["job-a"]) == ["job-a"]


async def test_a_job_that_was_removed_just_before_a_kill_is_not_made_again() -> None:
    cluster, keeper = Cluster(), MemoryKeeper()
    first = bench_of(cluster, keeper)
    async with first.running():
        watch = await one_that_succeeded(first, Delivery(event("a")))
        assert await watch.remember(watch.saw(cluster.listed(), now()).removable) == ["job-a"]
        cluster.jobs.clear()
    second = bench_of(cluster, keeper)
    again = Delivery(event("a"))
    async with second.running():
        assert second.lane.jobs is not None
        await second.put([again])
        await cluster.sweep(second.lane.jobs)
        assert await settled([again]) == [Outcome.ACCEPTED]
    assert cluster.made == {"a": 1}


async def test_what_is_known_of_a_job_says_nothing_of_the_one_that_is_made_after_it() -> None:
    """A person deletes it before the bridge could, and the event comes again."""
    cluster, keeper = Cluster(), MemoryKeeper()
    bench = bench_of(cluster, keeper)
    async with bench.running():
        watch = await one_that_succeeded(bench, Delivery(event("a")))
        assert watch.saw(cluster.listed(), now()).removable == ["job-a"]
        cluster.jobs.clear()
        await one_that_succeeded(bench, Delivery(event("a")))
        assert cluster.made == {"a": 2}
        ended = watch.saw([JobSeen("job-a", Phase.FAILED)], now())
        assert (ended.failed, ended.removable) == (["job-a"], [])


@pytest.mark.parametrize("seed", range(5))
async def test_events_that_come_again_at_any_moment_through_kills_have_one_job_each(seed: int) -> None:
    dice = random.Random(seed)
    cluster, keeper = Cluster(), MemoryKeeper()
    names = [str(number) for number in range(20)] + ["bad"]
    for _ in range(4):
        bench = bench_of(cluster, keeper)
        task = asyncio.create_task(bench.lane.run())
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs))
        async with asyncio.TaskGroup() as putting:
            for _ in range(300):
                putting.create_task(bench.lane.put(Delivery(event(dice.choice(names)))))
                await asyncio.sleep(dice.expovariate(5.0))
        # A kill: what is written at the end of an orderly stop is not.
        kept = {service: dict(records) for service, records in keeper.job_records.items()}
        remembered = set(keeper.remembered)
        for one in (sweeping, task):
            one.cancel()
            with suppress(asyncio.CancelledError):
                await one
        keeper.job_records, keeper.remembered = kept, remembered
    assert set(cluster.made.values()) == {1}, cluster.made
