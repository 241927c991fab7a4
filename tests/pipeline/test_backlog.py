"""`active_jobs`: never more jobs of one's own than that, whatever is known of them, nor fewer for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import pairwise
from typing import Literal

import pytest
from structlog.testing import capture_logs

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.jobs import JobRecord, JobSeen, JobWatch, Phase, Progress
from bridge.core.ports import Answer, Verdict
from bridge.pipeline.jobs import _IN_ONE_RUN
from bridge.pipeline.limits.backlog import Backlog
from bridge.pipeline.limits.limit import NOT_BEFORE_TOLD
from tests.pipeline.clock import now, wall_clock
from tests.pipeline.scripted import (
    ACCEPTED,
    DUPLICATE,
    FAILED,
    REJECTED,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
    settled,
    stop,
)

TIMEOUT = Answer(Verdict.CAPACITY, "timeout", "no answer", perhaps_its_own=True)
DEVOURED = Answer(Verdict.CAPACITY, "http_429", "too many", status=429, perhaps_its_own=True)


class Cluster:
    """Makes a job of each call, `places` of which run at once for `seconds`, and lists them in pages."""

    afterwards = 10.0

    def __init__(self, *, places: int = 4, seconds: float = 10.0, page: int = 7) -> None:
        self.places = places
        self.seconds = seconds
        self.page = page
        self.made: list[str] = []
        """Ids of events, in order."""
        self.jobs: dict[str, float] = {}
        """Name → when it ends, as the places allow."""
        self.peak = 0
        self._ends = [0.0] * places

    def job_of(self, event: Event) -> str:
        return blake2b(event.id.encode(), digest_size=8).hexdigest()

    @property
    def active(self) -> int:
        return sum(end > now() for end in self.jobs.values())

    def make(self, event: Event) -> Answer:
        name = self.job_of(event)
        if name in self.jobs:
            return DUPLICATE
        self.made.append(event.id)
        place = min(range(self.places), key=lambda n: self._ends[n])
        self._ends[place] = self.jobs[name] = max(now(), self._ends[place]) + self.seconds
        self.peak = max(self.peak, self.active)
        return ACCEPTED

    def seen(self, names: Iterable[str]) -> list[JobSeen]:
        return [
            JobSeen(name, Phase.SUCCEEDED if self.jobs[name] <= now() else Phase.RUNNING) for name in names
        ]

    async def sweep(self, watch: JobWatch, *, pause: float = 1.0, absence_tells: bool = True) -> None:
        """List all once, a page each `pause` seconds."""
        watch.sweep_began()
        names = sorted(self.jobs)
        for first in range(0, len(names), self.page):
            asked_at = now()
            await asyncio.sleep(pause)
            watch.saw(self.seen(names[first : first + self.page]), asked_at)
        await asyncio.sleep(pause)
        await watch.sweep_ended(seen=len(names), absence_tells=absence_tells)

    async def sweeps(self, watch: JobWatch | None, *, pause: float = 1.0) -> None:
        assert watch is not None
        while True:
            await watch.wanted()
            await self.sweep(watch, pause=pause)


def bench_of(
    cluster: Cluster,
    destination: ScriptedDestination,
    most: int | None,
    keeper: MemoryKeeper | None = None,
    **more: int,
) -> Bench:
    return Bench(destination, active_jobs=most, maker=cluster, keeper=keeper, **more)


def test_fewer_than_so_many_are_active_before_one_more_begins() -> None:
    backlog = Backlog(2)
    assert backlog.pause("a") == NOT_BEFORE_TOLD, "before the first sweep"
    backlog.knows()
    assert backlog.pause("a") == 0
    backlog.take("a")
    backlog.take("b")
    assert backlog.pause("c") == NOT_BEFORE_TOLD
    assert backlog.pause("a") == 0, "it has its place"
    backlog.free("a")
    assert backlog.pause("c") == 0


def test_a_job_in_doubt_counts_and_may_not_begin_beyond_the_limit() -> None:
    backlog = Backlog(2)
    for name in "abc":
        backlog.doubt(name)
    backlog.knows()
    assert backlog.active == 3
    assert backlog.pause("a") == NOT_BEFORE_TOLD, "with it three would be active"
    backlog.free("c")
    assert backlog.pause("a") == 0, "it counts already"
    assert backlog.pause("d") == NOT_BEFORE_TOLD


async def test_the_limit_is_changed_while_jobs_are_active() -> None:
    cluster = Cluster(places=2, seconds=10.0)
    bench = bench_of(cluster, ScriptedDestination(cluster.make, seconds=0.05), 4)
    jobs, given = bench.lane.jobs, deliveries(300)
    assert jobs is not None

    def limit(most: int | None) -> None:
        jobs.limit(most)
        bench.lane.look()

    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(jobs, pause=0.05))
        await bench.put(given)
        await asyncio.sleep(30)
        assert cluster.peak == 4
        limit(9)
        await asyncio.sleep(30)
        assert cluster.peak == 9
        limit(2)
        await asyncio.sleep(60)
        assert cluster.active == 2
        limit(None)
        await asyncio.sleep(20)
        assert cluster.active > 200
        limit(4)
        made = len(cluster.jobs)
        await bench.put(deliveries(1, "later"))
        await asyncio.sleep(300)
        assert len(cluster.jobs) == made, "so many are still active"
        await asyncio.sleep(2000)
        assert len(cluster.jobs) == made + 1
        await stop(sweeping)


async def test_without_a_limit_nothing_waits_for_the_first_sweep() -> None:
    """So a person can let a lane go on whose jobs can't be listed."""
    cluster, keeper = Cluster(places=4), MemoryKeeper()
    first = bench_of(cluster, ScriptedDestination(cluster.make), 4, keeper)
    async with first.running():
        given = deliveries(4)
        await first.put(given)
        await settled(given)
    second = bench_of(cluster, ScriptedDestination(cluster.make), 4, keeper)
    assert second.lane.jobs is not None
    async with second.running():
        given = deliveries(8)[4:]
        await second.put(given)
        await asyncio.sleep(60)
        assert len(cluster.jobs) == 4
        second.lane.jobs.limit(None)
        second.lane.look()
        assert set(await settled(given)) == {Outcome.ACCEPTED}


async def test_places_are_used_and_never_more_jobs_are_active_than_that() -> None:
    cluster = Cluster(places=4, seconds=10.0)
    destination = ScriptedDestination(cluster.make, seconds=0.05)
    bench = bench_of(cluster, destination, 8)
    given = deliveries(200)
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs, pause=0.05))
        began = now()
        await bench.put(given)
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        seconds = now() - began
        assert cluster.peak == 8
        assert seconds < 200 / 4 * 10.0 / 0.95, "places stay empty"
        await asyncio.sleep(60)
        assert bench.value("bridge_active_jobs") == 0
        assert bench.value("bridge_sweep_age_seconds") == 0
        await stop(sweeping)
        await asyncio.sleep(1)
        bench.assert_nothing_is_remembered()
        assert not bench.keeper.job_records["plants"], "what has ended is forgotten"


async def test_names_are_noted_in_batches_ahead_and_no_event_goes_before_its_own_is() -> None:
    cluster = Cluster(places=100)
    keeper = MemoryKeeper()

    def noted(one: Event) -> Answer:
        assert cluster.job_of(one) in keeper.job_records["plants"]
        return cluster.make(one)

    bench = bench_of(cluster, ScriptedDestination(noted, seconds=0.05), 1000, keeper)
    given = deliveries(500)
    async with bench.running():
        await bench.put(given)
        await settled(given)
    assert sum(keeper.notes) == 500
    assert len([count for count in keeper.notes if count]) <= 500 / 16 + 2


async def test_events_go_round_in_the_order_of_their_jobs_names() -> None:
    """So the jobs that are active lie close together in a listing, and each event has its turn in a round."""
    cluster = Cluster(places=4)
    bench = bench_of(cluster, ScriptedDestination(cluster.make, seconds=0.05), 8, concurrency=1)
    given = deliveries(100)
    name_of = {one.event.id: cluster.job_of(one.event) for one in given}
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs, pause=0.05))
        await bench.put(given[:80])
        await asyncio.sleep(50)
        await bench.put(given[80:])
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        await stop(sweeping)
    names = [name_of[name] for name in cluster.made]
    rounds = sum(later < earlier for earlier, later in pairwise(names))
    assert rounds <= 3, "one for those there at first, and one for those that came"


async def test_while_the_store_keeps_no_name_nothing_goes_and_no_place_is_held() -> None:
    cluster = Cluster()
    keeper = MemoryKeeper()
    destination = ScriptedDestination(cluster.make)
    bench = bench_of(cluster, destination, 8, keeper)
    given = deliveries(4)
    async with bench.running():
        await asyncio.sleep(1)
        keeper.broken = True
        await bench.put(given)
        await asyncio.sleep(120)
        assert not destination.began
        assert bench.value("bridge_active_jobs") == 0
        keeper.broken = False
        assert set(await settled(given)) == {Outcome.ACCEPTED}


@pytest.mark.parametrize("after", [0.3, 1.0, 7.0])
async def test_after_a_kill_the_limit_holds_and_the_lane_goes_on(after: float) -> None:
    cluster = Cluster(places=4, seconds=10.0)
    keeper = MemoryKeeper()
    first = bench_of(cluster, ScriptedDestination(cluster.make, seconds=0.2), 8, keeper)
    given = deliveries(100)
    task = asyncio.create_task(first.lane.run())
    await first.put(given)
    await asyncio.sleep(after)
    kept = {name: dict(records) for name, records in keeper.job_records.items()}
    await stop(task)
    # A kill: what the first has written since, and the calls that OSCAR still had in hand are made good.
    keeper.job_records = kept
    destination = ScriptedDestination(cluster.make, seconds=0.2)
    second = bench_of(cluster, destination, 8, keeper)
    again = [Delivery(one.event) for one in given]
    async with second.running():
        await second.put(again)
        await asyncio.sleep(5)
        assert not destination.began, "nothing goes before the first sweep"
        sweeping = asyncio.create_task(cluster.sweeps(second.lane.jobs, pause=0.05))
        assert set(await settled(again)) == {Outcome.ACCEPTED}
        assert cluster.peak <= 8
        assert len(cluster.jobs) == 100
        await asyncio.sleep(100)
        await stop(sweeping)
        second.assert_nothing_is_remembered()
        assert not keeper.job_records["plants"]


async def test_a_job_that_is_made_after_its_caller_gave_up_counts_as_active() -> None:
    """OSCAR goes on after a hang-up: the sweep that begins soon after does not show it yet."""
    cluster = Cluster(places=1, seconds=1000.0)
    loop = asyncio.get_running_loop()

    def late(one: Event) -> Answer:
        if cluster.job_of(one) in cluster.jobs:
            return DUPLICATE
        loop.call_later(8.0, cluster.make, one)
        return TIMEOUT

    bench = bench_of(cluster, ScriptedDestination(late, seconds=1.0), 2, concurrency=2)
    given = deliveries(6)
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs, pause=0.5))
        await bench.put(given)
        await asyncio.sleep(500)
        assert cluster.peak == 2
        assert len(cluster.jobs) == 2
        await stop(sweeping)


@pytest.mark.parametrize("answer", [UNREACHABLE, DEVOURED, FAILED, REJECTED], ids=lambda one: one.cause)
async def test_a_place_is_free_again_where_no_job_was_made(answer: Answer) -> None:
    cluster = Cluster(places=4, seconds=5.0)
    bad = {f"bad{n}" for n in range(4)}

    def make(one: Event) -> Answer:
        return answer if one.id in bad else cluster.make(one)

    bench = bench_of(cluster, ScriptedDestination(make, seconds=0.05), 4, max_attempts=3)
    given = [Delivery(event(name)) for name in sorted(bad)] + deliveries(40)
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs, pause=0.05))
        await bench.put(given)
        good = [one for one in given if one.event.id not in bad]
        assert set(await settled(good)) == {Outcome.ACCEPTED}
        assert cluster.peak <= 4
        await stop(sweeping)


async def test_a_job_that_is_gone_frees_its_place() -> None:
    cluster = Cluster(places=1, seconds=1e6)
    bench = bench_of(cluster, ScriptedDestination(cluster.make), 1)
    given = deliveries(2)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(1)
        watch = bench.lane.jobs
        assert watch is not None
        await cluster.sweep(watch)
        assert len(cluster.jobs) == 1
        cluster.jobs.clear()
        await cluster.sweep(watch)
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        assert bench.value("bridge_jobs_finished_total", outcome="gone") == 1


async def test_where_absence_tells_nothing_a_job_must_have_been_seen_before_it_is_gone() -> None:
    cluster = Cluster(places=9, seconds=1e6)
    bench = bench_of(cluster, ScriptedDestination(cluster.make), 2)
    given = deliveries(3)
    async with bench.running():
        await bench.put(given)
        await asyncio.sleep(1)
        assert len(cluster.jobs) == 2
        watch = bench.lane.jobs
        assert watch is not None
        hidden = dict(cluster.jobs)
        cluster.jobs.clear()
        with capture_logs() as logs:
            for _ in range(3):
                await cluster.sweep(watch, absence_tells=False)
        assert [line["jobs"] for line in logs] == [2]
        assert bench.value("bridge_active_jobs") == bench.value("bridge_unlisted_jobs") == 2
        cluster.jobs.update(hidden)
        await cluster.sweep(watch, absence_tells=False)
        cluster.jobs.clear()
        await cluster.sweep(watch, absence_tells=False)
        assert set(await settled(given)) == {Outcome.ACCEPTED}


async def test_a_job_that_no_listing_shows_counts_for_a_day_also_over_a_restart() -> None:
    cluster, keeper = Cluster(places=9, seconds=1e6), MemoryKeeper()
    first = bench_of(cluster, ScriptedDestination(cluster.make), 2, keeper)
    async with first.running():
        await first.put(deliveries(2))
        await asyncio.sleep(1)
    assert len(cluster.jobs) == 2
    bench = bench_of(cluster, ScriptedDestination(cluster.make), 2, keeper)
    watch, given = bench.lane.jobs, deliveries(3)[2:]
    assert watch is not None
    async with bench.running():
        await bench.put(given)
        for _ in range(23):
            await asyncio.sleep(3600)
            cluster.jobs.clear()
            await cluster.sweep(watch, absence_tells=False)
            assert bench.value("bridge_unlisted_jobs") == 2
        assert given[0].outcome is None
        await asyncio.sleep(3600)
        await cluster.sweep(watch, absence_tells=False)
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        assert bench.value("bridge_jobs_finished_total", outcome="unlisted") == 2
        assert bench.value("bridge_unlisted_jobs") == 0
        await asyncio.sleep(1)
        assert len(keeper.job_records["plants"]) == 1


async def test_many_jobs_that_are_gone_at_once_leave_the_loop_to_others_in_between() -> None:
    cluster, keeper = Cluster(places=1), MemoryKeeper()
    keeper.job_records["plants"] = {
        name: JobRecord(name=name, event=event(name), progress=Progress.SEEN, accepted_at=wall_clock())
        for name in (f"job-{n}" for n in range(10_000))
    }
    bench = bench_of(cluster, ScriptedDestination(cluster.make), 8, keeper)
    async with bench.running():
        watch = bench.lane.jobs
        assert watch is not None
        await asyncio.sleep(1)
        assert len(watch.sweep_began()) == 10_000
        ending = asyncio.create_task(watch.sweep_ended(seen=0, absence_tells=True))
        gone = [0.0]
        while not ending.done():
            await asyncio.sleep(0)
            gone.append(bench.value("bridge_jobs_finished_total", outcome="gone"))
        assert gone[-1] == 10_000
        assert max(after - before for before, after in pairwise(gone)) <= _IN_ONE_RUN
        assert bench.value("bridge_active_jobs") == 0


async def test_a_long_sweep_and_a_job_that_does_not_begin_are_told_once() -> None:
    cluster = Cluster(places=9, seconds=1e6)
    bench = bench_of(cluster, ScriptedDestination(cluster.make), 2)
    given = deliveries(1)
    async with bench.running():
        await bench.put(given)
        await settled(given)
        watch = bench.lane.jobs
        assert watch is not None
        (name,) = cluster.jobs
        with capture_logs() as logs:
            for _ in range(4):
                watch.sweep_began()
                watch.saw([JobSeen(name, Phase.WAITING)], now())
                await asyncio.sleep(301)
                await watch.sweep_ended(seen=70, absence_tells=True)
            assert bench.value("bridge_sweep_age_seconds") == pytest.approx(301)
            await asyncio.sleep(86_400)
            watch.saw([JobSeen(name, Phase.WAITING)], now())
            watch.saw([JobSeen(name, Phase.WAITING)], now())
        assert ["TTL_JOB" in line["event"] for line in logs] == [True, False]
        assert logs[1]["job"] == name


async def test_a_lane_whose_gate_is_shut_probes_with_jobs_as_well() -> None:
    cluster = Cluster(places=4, seconds=1.0)
    destination = ScriptedDestination(FAILED, seconds=0.05)
    bench = bench_of(cluster, destination, 2)
    given = deliveries(50)
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs))
        await bench.put(given)
        await asyncio.sleep(600)
        destination.script = cluster.make
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        assert cluster.peak <= 2
        await stop(sweeping)


@pytest.mark.parametrize("seed", range(5))
async def test_with_answers_of_all_kinds_the_limit_holds_and_nothing_is_lost(seed: int) -> None:
    dice = random.Random(seed)
    cluster = Cluster(places=3, seconds=3.0)
    loop = asyncio.get_running_loop()

    def make(one: Event) -> Answer:
        throw = dice.random()
        if throw < 0.1:
            return UNREACHABLE
        if throw < 0.2:
            return FAILED
        if throw < 0.3:
            loop.call_later(dice.uniform(0, 8), cluster.make, one)
            return TIMEOUT
        return cluster.make(one)

    bench = bench_of(cluster, ScriptedDestination(make, seconds=0.05), 6, max_attempts=1000)
    given = deliveries(150)
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs, pause=0.1))
        await bench.put(given)
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        assert len(cluster.jobs) == 150
        assert cluster.peak <= 6
        await asyncio.sleep(60)
        await stop(sweeping)
        bench.assert_nothing_is_remembered()


async def test_a_record_of_a_job_seen_is_kept_as_seen() -> None:
    cluster = Cluster(places=9, seconds=1e6)
    keeper = MemoryKeeper()
    bench = bench_of(cluster, ScriptedDestination(cluster.make), 2, keeper)
    given = deliveries(2)
    async with bench.running():
        await bench.put(given)
        await settled(given)
        await asyncio.sleep(1)
        assert {record.progress for record in keeper.job_records["plants"].values()} == {Progress.ACCEPTED}
        watch = bench.lane.jobs
        assert watch is not None
        await cluster.sweep(watch)
        await asyncio.sleep(1)
        records = keeper.job_records["plants"].values()
        assert {record.progress for record in records} == {Progress.SEEN}
        assert all(record.accepted_at is not None for record in records)


async def test_jobs_are_followed_to_their_end_without_a_limit() -> None:
    cluster = Cluster(places=4, seconds=10.0)
    bench = bench_of(cluster, ScriptedDestination(cluster.make, seconds=0.05), None)
    given = deliveries(40)
    async with bench.running():
        sweeping = asyncio.create_task(cluster.sweeps(bench.lane.jobs))
        await bench.put(given)
        await settled(given, within=10)
        assert bench.value("bridge_active_jobs") == 40
        await asyncio.sleep(200)
        assert bench.value("bridge_jobs_finished_total", outcome="succeeded") == 40
        await stop(sweeping)
        bench.assert_nothing_is_remembered()


async def test_what_is_followed_is_bounded_where_the_jobs_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.pipeline.jobs._MOST_FOLLOWED", 10)
    cluster = Cluster(places=4, seconds=10.0)
    bench = bench_of(cluster, ScriptedDestination(cluster.make, seconds=0.05), None)
    given = deliveries(40)
    async with bench.running():
        await bench.put(given)
        assert set(await settled(given)) == {Outcome.ACCEPTED}
        assert bench.value("bridge_active_jobs") == 10
        assert len(bench.keeper.job_records["plants"]) == 10
        assert bench.value("bridge_jobs_finished_total", outcome="not_followed") == 30


async def test_of_a_job_that_ended_is_told_how_long_it_waited_and_ran() -> None:
    cluster = Cluster()
    bench = bench_of(cluster, ScriptedDestination(cluster.make), None)
    happened = datetime.fromtimestamp(wall_clock() - 50, UTC)
    given = [Delivery(event("one", time=happened))]
    async with bench.running():
        await bench.put(given)
        await settled(given)
        accepted = wall_clock()
        watch = bench.lane.jobs
        assert watch is not None
        (name,) = cluster.jobs
        await asyncio.sleep(60)
        watch.saw([JobSeen(name, Phase.SUCCEEDED, accepted + 10, accepted + 40)], now())
    assert bench.value("bridge_job_queued_seconds_sum") == pytest.approx(10, abs=0.1)
    assert bench.value("bridge_job_run_seconds_sum") == pytest.approx(30)
    assert bench.value("bridge_event_to_end_seconds_sum") == pytest.approx(90, abs=0.1)


@pytest.mark.parametrize("on_failure", ["ignore", "dead-letter"])
async def test_a_job_that_failed_is_told_with_the_end_of_its_log(
    on_failure: Literal["ignore", "dead-letter"],
) -> None:
    cluster = Cluster()
    keeper = MemoryKeeper()
    bench = Bench(
        ScriptedDestination(cluster.make), on_failure=on_failure, maker=cluster, keeper=keeper, active_jobs=1
    )
    given = [Delivery(event("one", b'{"n": 1}')), Delivery(event("two"))]
    async with bench.running():
        await bench.put(given)
        await settled(given[:1])
        watch = bench.lane.jobs
        assert watch is not None
        (name,) = cluster.jobs
        await asyncio.sleep(60)
        assert watch.saw([JobSeen(name, Phase.FAILED)], now()).failed == [name]
        assert await settled(given) == [Outcome.ACCEPTED] * 2, "its place is free at once"
        assert name in keeper.job_records["plants"], "until what is to be kept is"
        assert watch.saw([JobSeen(name, Phase.FAILED)], now()).failed == [name]
        with capture_logs() as logs:
            keeper.broken = on_failure == "dead-letter"
            telling = asyncio.create_task(watch.failed(name, "x" * 5000 + "\nno such file\n"))
            await asyncio.sleep(10)
            assert watch.saw([JobSeen(name, Phase.FAILED)], now()).failed == [], "it is being told"
            keeper.broken = False
            await telling
        told = [line for line in logs if line["event"] == "a job failed"]
        assert [(line["id"], line["job"]) for line in told] == [("one", name)]
        assert told[0]["log"].endswith("x\nno such file")
        assert len(told[0]["log"]) == 2000
        assert bench.value("bridge_jobs_finished_total", outcome="failed") == 1
        await asyncio.sleep(1)
        assert name not in keeper.job_records["plants"]
    if on_failure == "ignore":
        assert not keeper.letters
    else:
        (letter,) = keeper.letters
        assert (letter.cause, letter.event.data) == ("job_failed", b'{"n": 1}')
        assert letter.detail.endswith("no such file")


async def test_without_a_limit_no_sweep_is_waited_for_after_a_restart() -> None:
    cluster = Cluster(places=4, seconds=1000.0)
    keeper = MemoryKeeper()
    first = bench_of(cluster, ScriptedDestination(cluster.make), None, keeper)
    async with first.running():
        await first.put(deliveries(10))
        await asyncio.sleep(1)
    second = bench_of(cluster, ScriptedDestination(cluster.make), None, keeper)
    given = deliveries(10, "more")
    async with second.running():
        await second.put(given)
        assert set(await settled(given, within=5)) == {Outcome.ACCEPTED}
        assert second.value("bridge_active_jobs") == 20


async def test_with_places_left_nothing_goes_before_the_first_sweep_either() -> None:
    cluster = Cluster(places=4, seconds=1000.0)
    keeper = MemoryKeeper()
    first = bench_of(cluster, ScriptedDestination(cluster.make), 8, keeper)
    async with first.running():
        await first.put(deliveries(2))
        await asyncio.sleep(1)
    destination = ScriptedDestination(cluster.make)
    second = bench_of(cluster, destination, 8, keeper)
    given = deliveries(3, "more")
    async with second.running():
        await second.put(given)
        await asyncio.sleep(600)
        assert not destination.began
        assert second.lane.jobs is not None
        await cluster.sweep(second.lane.jobs)
        assert set(await settled(given, within=5)) == {Outcome.ACCEPTED}


async def test_a_page_that_was_asked_for_before_an_acceptance_tells_nothing_of_its_job() -> None:
    """It may show the one before it, which had ended and was deleted before the event came again."""
    cluster = Cluster()
    bench = bench_of(cluster, ScriptedDestination(cluster.make, seconds=1.0), 1)
    given = deliveries(1)
    async with bench.running():
        asked_at = now()
        await bench.put(given)
        watch = bench.lane.jobs
        assert watch is not None
        ended = [JobSeen(cluster.job_of(given[0].event), Phase.SUCCEEDED)]
        await asyncio.sleep(0.5)
        watch.saw(ended, now())
        assert bench.value("bridge_active_jobs") == 1, "an attempt is under way"
        await settled(given)
        watch.saw(ended, asked_at)
        assert bench.value("bridge_active_jobs") == 1
        await asyncio.sleep(0.5)
        watch.saw(ended, now())
        assert bench.value("bridge_active_jobs") == 0
