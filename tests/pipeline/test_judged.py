"""Jobs of which it is told later whether they ended well (`success: output`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from structlog.testing import capture_logs

from bridge.core.delivery import Delivery, Outcome
from bridge.core.event import Event
from bridge.core.jobs import JobOutcome, JobSeen, Phase
from bridge.pipeline.jobs import Jobs
from tests.pipeline.clock import now, wall_clock
from tests.pipeline.scripted import Bench, MemoryKeeper, ScriptedDestination, deliveries, event, settled


class Maker:
    afterwards = 10.0

    def job_of(self, one: Event) -> str:
        return f"job-{one.id}"


def bench_of(keeper: MemoryKeeper, active_jobs: int = 2) -> Bench:
    return Bench(
        ScriptedDestination(),
        active_jobs=active_jobs,
        on_failure="dead-letter",
        remove_finished=True,
        maker=Maker(),
        keeper=keeper,
    )


def ended(name: str) -> JobSeen:
    return JobSeen(name, Phase.ENDED, wall_clock() - 8, wall_clock() - 1)


async def both_ended(bench: Bench, given: Sequence[Delivery]) -> Jobs:
    await bench.put(given)
    await settled(given[:2])
    await asyncio.sleep(10)
    assert bench.lane.jobs is not None
    return bench.lane.jobs


async def test_its_place_is_free_at_once_and_the_rest_waits_for_the_judgement() -> None:
    bench = bench_of(MemoryKeeper())
    async with bench.running():
        given = deliveries(4)
        watch = await both_ended(bench, given)
        first, second = ended("job-0"), ended("job-1")
        told = watch.saw([first, second], now())
        assert [(seen, one.id) for seen, one in told.unjudged] == [(first, "0"), (second, "1")]
        assert (told.failed, told.removable) == ([], [])
        assert await settled(given) == [Outcome.ACCEPTED] * 4
        assert bench.value("bridge_jobs_finished_total", outcome="succeeded") == 0
        assert watch.saw([first, second], now()).unjudged == [], "they are judged already"
        # One whose pod was collected, or that is gone, is judged all the same.
        watch.saw([JobSeen("job-1", Phase.WAITING)], now())
        assert sorted(watch.sweep_began()) == ["job-2", "job-3"]
        watch.saw([JobSeen(name, Phase.RUNNING) for name in ("job-2", "job-3")], now())
        await watch.sweep_ended(seen=2, absence_tells=True)
        told = watch.judged([(first, JobOutcome.SUCCEEDED), (second, JobOutcome.FAILED)])
        assert (told.failed, told.removable) == (["job-1"], ["job-0"])
        with capture_logs() as logs:
            await watch.failed("job-1", "ends well\nIt has left no output in results/out/")
        assert [line["log"].endswith("no output in results/out/") for line in logs] == [True]
        assert [letter.event.id for letter in bench.dead.letters] == ["1"]
        assert await watch.remember(told.removable) == ["job-0"]
        watch.removed("job-0")
        assert bench.value("bridge_jobs_finished_total", outcome="succeeded") == 1
        assert bench.value("bridge_jobs_finished_total", outcome="failed") == 1
        assert bench.value("bridge_jobs_finished_total", outcome="gone") == 0
        assert bench.value("bridge_job_run_seconds_sum") == 14


async def test_one_that_can_not_be_judged_is_counted_and_neither_removed_nor_a_dead_letter() -> None:
    bench = bench_of(MemoryKeeper())
    async with bench.running():
        given = deliveries(2)
        watch = await both_ended(bench, given)
        both = [ended("job-0"), ended("job-1")]
        watch.saw(both, now())
        told = watch.judged([(seen, JobOutcome.UNJUDGED) for seen in both])
        assert (told.failed, told.removable) == ([], [])
        assert bench.value("bridge_jobs_finished_total", outcome="unjudged") == 2
        assert not bench.dead.letters
        assert watch.judged([(both[0], JobOutcome.SUCCEEDED)]).removable == [], "of one that is over already"
        bench.assert_nothing_is_remembered()


async def test_what_was_not_judged_before_a_restart_is_after_it() -> None:
    keeper = MemoryKeeper()
    first = bench_of(keeper)
    async with first.running():
        watch = await both_ended(first, deliveries(2))
        watch.saw([ended("job-0"), ended("job-1")], now())
    second = bench_of(keeper)
    async with second.running():
        await asyncio.sleep(1)
        assert second.lane.jobs is not None
        assert sorted(second.lane.jobs.sweep_began()) == ["job-0", "job-1"]
        told = second.lane.jobs.saw([ended("job-0"), ended("job-1")], now())
        assert [one.id for _, one in told.unjudged] == ["0", "1"]


async def test_a_judgement_says_nothing_of_the_job_that_was_made_meanwhile() -> None:
    bench = bench_of(MemoryKeeper(), 4)
    async with bench.running():
        watch = await both_ended(bench, deliveries(2))
        seen = ended("job-0")
        watch.saw([seen], now())
        again = Delivery(event("0"))
        await bench.put([again])
        await settled([again])
        assert bench.value("bridge_active_jobs") == 2
        told = watch.judged([(seen, JobOutcome.SUCCEEDED)])
        assert told.removable == []
        assert bench.value("bridge_active_jobs") == 2
