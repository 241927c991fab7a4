"""Changed while it runs: limits and pauses, which lose no event and leave every count exact."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from bridge.control import Control, Live, Overrides, Part
from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import StoreError
from bridge.core.event import Event
from bridge.core.ports import Answer
from bridge.pipeline.intake import Intake
from bridge.pipeline.jobs import Jobs as LaneJobs
from bridge.pipeline.limits.allowance import Allowance
from bridge.pipeline.limits.concurrency import Auto, Fixed
from bridge.pipeline.limits.limit import Limit
from bridge.pipeline.limits.pause import Pause
from bridge.pipeline.limits.ring import Ring
from bridge.pipeline.router import Router
from bridge.pipeline.routes import RouteConfig
from bridge.settings import Settings
from bridge.store.overrides import Override
from bridge.telemetry.metrics import Metrics
from tests.pipeline.clock import EPOCH, now
from tests.pipeline.scripted import (
    ACCEPTED,
    BUSY,
    FAILED,
    REFUSED,
    UNREACHABLE,
    Bench,
    MemoryKeeper,
    ScriptedDestination,
    deliveries,
    event,
    settled,
    stop,
)

pytestmark = pytest.mark.usefixtures("told_no_longer")


def configuration(**plants: Any) -> Settings:
    """A cluster with two services of jobs and one of runs, and a source into all."""
    return Settings.model_validate(
        {
            "state_dir": "/nonexistent",
            "clusters": {
                "main": {
                    "endpoint": "https://oscar.example.org",
                    "auth": {"type": "basic", "username": "oscar", "password": "swordfish"},
                    "limits": {"concurrency": 6},
                }
            },
            "services": {
                "plants": {"limits": {"concurrency": 4, **plants}},
                "flood": {"limits": {"concurrency": 4}},
                "runs": {"mode": "run", "limits": {"concurrency": 4}},
            },
            "sources": {
                "uploads": {
                    "type": "kafka",
                    "bootstrap_servers": "kafka:9092",
                    "topics": ["uploads"],
                    "group_id": "oscar",
                }
            },
            "routes": [{"from": "uploads", "to": to} for to in ("plants", "flood", "runs")],
        }
    )


class Jobs:
    """Knows how many may be active."""

    most: int | None = 40

    def limit(self, most: int | None) -> None:
        self.most = most


async def test_active_jobs_is_changed_where_it_is_configured_and_kept() -> None:
    jobs, saved = Jobs(), list[Override]()
    metrics, looks = Metrics(), list[float]()

    async def save(overrides: Collection[Override]) -> None:
        saved[:] = overrides

    def control(**plants: Any) -> Control:
        allowance = Allowance([], 4, None)
        live = Live(lambda _paused: None, allowance, lambda: looks.append(now()), cast("LaneJobs", jobs))
        parts = {Part("service", "plants"): live}
        return Control(Overrides(configuration(**plants), saved), parts, save, metrics)

    async def change(at: Control, **limits: str) -> dict[str, dict[str, Any]]:
        order = {"do": "limits", "kind": "service", "key": "plants", "limits": limits, "reset": not limits}
        return {row["name"]: row for row in (await at.carry_out(order))["rows"]}

    at = control(active_jobs=40)
    rows = await change(at, active_jobs="25")
    assert jobs.most == 25
    assert looks
    assert (rows["active_jobs"]["configured"], rows["active_jobs"]["in_force"]) == ("40", "25")
    assert metrics.registry.get_sample_value("bridge_lane_limits_overridden", {"service": "plants"}) == 1
    jobs.most = 40
    await control(active_jobs=40).begin()
    assert jobs.most == 25, "after a restart"
    assert (await change(at, active_jobs="none"))["active_jobs"]["in_force"] == "none"
    assert jobs.most is None
    await change(at)
    assert (jobs.most, saved) == (40, [])
    for wrong in ("0", "10001", "auto", "many"):
        with pytest.raises(ValueError, match="active_jobs: expected a whole number from 1 to 10000, or none"):
            await change(at, active_jobs=wrong)
    with pytest.raises(ValueError, match="is not in the configuration of `services"):
        await change(control(), active_jobs="25")
    with pytest.raises(ValueError, match="a run is over when it is answered"):
        await at.carry_out({"do": "limits", "kind": "service", "key": "runs", "limits": {"active_jobs": "2"}})
    with pytest.raises(ValueError, match="is no limit of cluster main"):
        await at.carry_out({"do": "limits", "kind": "cluster", "key": "main", "limits": {"active_jobs": "2"}})


class World:
    """Lanes of one cluster behind one source, as `app` puts them together, and what changes them."""

    def __init__(
        self,
        script: Callable[[Event], Any] | Answer = ACCEPTED,
        *,
        kept: Iterable[Override] = (),
        seconds: float = 0.1,
        slots: int = 200,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or configuration()
        self.metrics = Metrics()
        self.saved: list[Override] = list(kept)
        self.broken = False
        limits: list[Limit] = []
        self.allowance = Allowance(limits, 6, None)
        self.ring, cluster_pause = Ring(limits), Pause()
        live = {Part("cluster", "main"): Live(cluster_pause.set, self.allowance, self.ring.look)}
        self.benches: dict[str, Bench] = {}
        for key in self.settings.services:
            pause = Pause()
            self.benches[key] = bench = Bench(
                ScriptedDestination(script, seconds=seconds),
                concurrency=4,
                queue=100,
                park=True,
                ring=None if key == "runs" else self.ring,
                pauses=(pause, cluster_pause),
            )
            live[Part("service", key)] = Live(pause.set, bench.lane.allowance, bench.lane.look)
        source = self.metrics.source("uploads")
        self.intake = Intake(slots, 2**30, source)
        live[Part("source", "uploads")] = Live(self.intake.pause)
        lanes = {key: bench.lane for key, bench in self.benches.items()}
        routes = [RouteConfig.model_validate({"from": "uploads", "to": key}) for key in lanes]
        self.router = Router(routes, lanes, MemoryKeeper(), source, self.intake)
        values = Overrides(self.settings, self.saved, EPOCH + now())
        self.control = Control(values, live, self._save, self.metrics)
        self.given: list[Delivery] = []

    async def _save(self, overrides: Collection[Override]) -> None:
        await asyncio.sleep(0.01)
        if self.broken:
            raise StoreError("disk full")
        self.saved = list(overrides)

    def destination(self, key: str) -> ScriptedDestination:
        destination = self.benches[key].lane._places._destination
        assert isinstance(destination, ScriptedDestination)
        return destination

    def began(self, key: str) -> int:
        return len(self.destination(key).began)

    async def source(self, most: int) -> None:
        """Read so many, as a runner does."""
        while len(self.given) < most:
            room = min(50, self.intake.free, most - len(self.given))
            batch = [Delivery(event(len(self.given) + n)) for n in range(room)]
            self.given += batch
            self.intake.admit(batch)
            for delivery in batch:
                await self.router.route(delivery)
            if self.intake.full:
                self.router.make_way()
            await self.intake.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await self.control.begin()
            controlling = asyncio.create_task(self.control.run())
            for bench in self.benches.values():
                await stack.enter_async_context(bench.running())
            yield
            await stop(controlling)

    async def order(self, do: str, kind: str, key: str, **more: Any) -> list[Mapping[str, Any]]:
        answer = await self.control.carry_out({"do": do, "kind": kind, "key": key, **more})
        return list(answer["rows"])

    async def in_force(self) -> dict[tuple[str, str, str], str]:
        answer = await self.control.carry_out({"do": "limits"})
        return {(row["kind"], row["key"], row["name"]): row["in_force"] for row in answer["rows"]}

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def assert_all_counts_are_exact(self) -> None:
        for bench in self.benches.values():
            bench.assert_nothing_is_remembered()
            assert not bench.lane.allowance.under_way
            assert not bench.keeper.rows
        assert not self.allowance.under_way
        assert not self.ring.standing
        assert self.intake.in_flight == self.intake._bytes == 0
        assert set(self.router._reached._taken.values()) == {0}


# --- pauses ------------------------------------------------------------------------------------------


async def test_a_paused_service_begins_nothing_waits_in_the_store_and_holds_up_no_sibling() -> None:
    world = World()
    async with world.running():
        await world.order("pause", "service", "plants")
        await world.source(1000)
        await asyncio.sleep(120)
        assert world.began("plants") == 0
        assert world.began("flood") == world.began("runs") == 1000
        assert len(world.benches["plants"].keeper.rows) == 1000
        assert world.intake.in_flight == 0, "its source waits for nothing"
        assert not world.benches["plants"].lane.starving
        assert not world.benches["plants"].lane.problems(), "what a person wants is no fault"
        assert world.benches["plants"].value("bridge_lane_paused") == 1
        assert world.benches["flood"].value("bridge_lane_paused") == 0
        await world.order("resume", "service", "plants")
        await asyncio.sleep(120)
        assert [int(name) for name in world.destination("plants").ids] == list(range(1000)), "in order"
        assert world.benches["plants"].value("bridge_lane_paused") == 0
        world.assert_all_counts_are_exact()


async def test_what_is_under_way_goes_on_and_what_failed_waits_for_the_end_of_the_pause() -> None:
    world = World(FAILED, seconds=1)
    async with world.running():
        (given,) = deliveries(1)
        await world.benches["plants"].put([given])
        await asyncio.sleep(0.5)
        await world.order("pause", "service", "plants")
        await asyncio.sleep(3600)
        assert world.began("plants") == 1
        assert world.benches["plants"].keeper.parked_ids == ["0"]
        world.destination("plants").script = ACCEPTED
        await world.order("resume", "service", "plants")
        await asyncio.sleep(2)
        assert world.benches["plants"].invocations("accepted") == 1
        world.assert_all_counts_are_exact()


async def test_a_paused_cluster_begins_no_job_and_no_run() -> None:
    world = World()
    async with world.running():
        reading = asyncio.create_task(world.source(1_500))
        await asyncio.sleep(5)
        await world.order("pause", "cluster", "main")
        await asyncio.sleep(1)
        before = {key: world.began(key) for key in world.benches}
        assert min(before.values()) > 50
        await asyncio.sleep(600)
        assert {key: world.began(key) for key in world.benches} == before
        assert world.value("bridge_cluster_paused", cluster="main") == 1
        assert world.benches["plants"].value("bridge_lane_paused") == 1, "as its cluster is"
        await world.order("pause", "service", "runs")
        await world.order("resume", "cluster", "main")
        await asyncio.sleep(5)
        assert world.began("plants") > before["plants"] + 50
        assert world.began("runs") == before["runs"], "it has a pause of its own still"
        await reading


async def test_a_gate_that_is_shut_sends_no_probe_in_a_pause_and_one_at_its_end() -> None:
    world = World(REFUSED)
    async with world.running():
        await world.benches["plants"].put(deliveries(3))
        await asyncio.sleep(600)
        await world.order("pause", "service", "plants")
        await asyncio.sleep(1)
        before = world.began("plants")
        await asyncio.sleep(6 * 3600)
        assert world.began("plants") == before
        world.destination("plants").script = ACCEPTED
        await world.order("resume", "service", "plants")
        await asyncio.sleep(1)
        assert world.benches["plants"].invocations("accepted") == 3
        world.assert_all_counts_are_exact()


async def test_a_pause_longer_than_give_up_after_gives_up_nothing() -> None:
    world = World(UNREACHABLE)
    given = deliveries(3)
    async with world.running():
        await world.benches["plants"].put(given)
        await asyncio.sleep(10)
        await world.order("pause", "service", "plants")
        await asyncio.sleep(7 * 86400)
        await world.order("resume", "service", "plants")
        await asyncio.sleep(12 * 3600)
        assert world.began("plants") > 100
        assert not world.benches["plants"].keeper.letters
        await asyncio.sleep(13 * 3600)
        assert set(world.benches["plants"].keeper.causes.values()) == {"gave_up"}


async def test_a_paused_source_reads_nothing_and_what_it_has_goes_on() -> None:
    world = World(seconds=5, slots=60)
    async with world.running():
        reading = asyncio.create_task(world.source(100_000))
        await asyncio.sleep(1)
        await world.order("pause", "source", "uploads")
        read = len(world.given)
        assert read == 60
        assert world.intake.free == 0
        await asyncio.sleep(3600)
        assert len(world.given) == read
        assert {delivery.outcome for delivery in world.given} == {Outcome.ACCEPTED}
        assert not any(bench.keeper.rows for bench in world.benches.values()), "none had to make way"
        assert world.value("bridge_source_paused", source="uploads") == 1
        await world.order("resume", "source", "uploads")
        await asyncio.sleep(1)
        assert len(world.given) > read
        await stop(reading)


# --- limits ------------------------------------------------------------------------------------------


async def test_a_limit_on_concurrency_changes_for_what_is_under_way_too() -> None:
    world = World(seconds=1)
    async with world.running():
        plants = world.destination("plants")
        await world.benches["plants"].put(deliveries(80))
        await asyncio.sleep(0.5)
        assert plants.active == 4
        await world.order("limits", "service", "plants", limits={"concurrency": "6"})
        await asyncio.sleep(0.1)
        assert plants.active == 6, "at once"
        await world.order("limits", "service", "plants", limits={"concurrency": "1"})
        await asyncio.sleep(1)
        plants.peak = 0
        await asyncio.sleep(10)
        assert plants.peak == 1
        assert world.benches["plants"].value("bridge_lane_limit") == 1
        assert world.value("bridge_lane_limits_overridden", service="plants") == 1
        await world.order("limits", "service", "plants", reset=True)
        await asyncio.sleep(0.1)
        assert plants.active == 4
        assert world.value("bridge_lane_limits_overridden", service="plants") == 0
        await asyncio.sleep(60)
        world.assert_all_counts_are_exact()


async def test_a_rate_comes_changes_and_goes_and_no_old_pause_is_waited_for() -> None:
    world = World(seconds=0.01)
    async with world.running():
        await world.order("limits", "service", "plants", limits={"rate": "2/h"})
        await world.benches["plants"].put(given := deliveries(50))
        await asyncio.sleep(60)
        assert world.began("plants") == 1
        await world.order("limits", "service", "plants", limits={"rate": "10/s"})
        await asyncio.sleep(2)
        times = [at for at, _ in world.destination("plants").began[2:]]
        assert 18 <= len(times) <= 20
        assert all(0.09 < later - earlier < 0.11 for earlier, later in pairwise(times))
        await world.order("limits", "service", "plants", limits={"rate": "none"})
        await asyncio.sleep(1)
        assert await settled(given) == [Outcome.ACCEPTED] * 50


async def test_a_cluster_goes_from_a_number_to_auto_and_back_with_attempts_under_way() -> None:
    world = World(seconds=0.5)
    async with world.running():
        reading = asyncio.create_task(world.source(3_000))
        for wanted, kind in (("auto", Auto), ("3", Fixed), ("auto", Auto), ("5", Fixed)):
            await asyncio.sleep(20)
            rows = await world.order("limits", "cluster", "main", limits={"concurrency": wanted})
            (row,) = [row for row in rows if row["name"] == "concurrency"]
            assert row["in_force"] == wanted
            assert (row["found"] is not None) is (wanted == "auto")
            assert isinstance(world.allowance._places, kind)
            under_way = world.destination("plants").active + world.destination("flood").active
            assert len(world.allowance.under_way) >= under_way > 0
        await asyncio.sleep(2)
        for key in ("plants", "flood"):
            world.destination(key).peak = 0
        await asyncio.sleep(20)
        assert world.destination("plants").active + world.destination("flood").active == 5
        await world.order("limits", "cluster", "main", limits={"concurrency": "200"})
        await reading
        await settled(world.given)
        await asyncio.sleep(1200)
        world.assert_all_counts_are_exact()


@pytest.mark.parametrize(
    ("kind", "key", "limits", "told"),
    [
        (
            "service",
            "plants",
            {"concurrency": "0"},
            "concurrency: expected a whole number from 1 to 1000, or auto",
        ),
        ("service", "plants", {"concurrency": "2.5"}, "found '2.5'"),
        ("service", "plants", {"concurrency": "2", "rate": "fast"}, "rate: expected a rate such as 10/s"),
        ("service", "plants", {"concurrency": "auto"}, "`auto` is for `mode: run`"),
        ("service", "plants", {"concurency": "2"}, "did you mean `concurrency`"),
        ("service", "plant", {"concurrency": "2"}, "there is no service plant; did you mean `plants`"),
        ("source", "uploads", {"concurrency": "2"}, "no limit of source uploads"),
        ("tree", "plants", {"concurrency": "2"}, "'source', 'service' or 'cluster'"),
    ],
)
async def test_a_value_that_is_wrong_changes_nothing_and_is_told_with_what_was_expected(
    kind: str, key: str, limits: dict[str, str], told: str
) -> None:
    world = World()
    async with world.running():
        before = await world.in_force()
        with pytest.raises(ValueError, match=told.replace("(", r"\(")):
            await world.order("limits", kind, key, limits=limits)
        assert await world.in_force() == before
        assert not world.saved


async def test_what_can_not_be_kept_is_not_put_in_force_either() -> None:
    world = World()
    async with world.running():
        await world.order("limits", "service", "plants", limits={"rate": "5/s"})
        before = await world.in_force()
        world.broken = True
        for do, more in (
            ("pause", {}),
            ("limits", {"limits": {"concurrency": "2"}}),
            ("limits", {"reset": True}),
        ):
            with pytest.raises(StoreError, match="disk full"):
                await world.order(do, "service", "plants", **more)
            assert await world.in_force() == before


# --- how long ------------------------------------------------------------------------------------------


async def test_an_override_ends_when_its_time_is_over_and_both_are_logged() -> None:
    world = World()
    with capture_logs() as lines:
        async with world.running():
            await world.order("pause", "service", "plants", seconds=7200)
            await world.order("limits", "cluster", "main", limits={"concurrency": "2"}, seconds=60)
            await asyncio.sleep(30)
            (row,) = [r for r in await world.order("limits", "cluster", "main") if r["name"] == "concurrency"]
            assert (row["configured"], row["in_force"]) == ("6", "2")
            assert row["until"] - row["since"] == 60
            await asyncio.sleep(31)
            assert world.allowance.at_once == 6
            await world.benches["plants"].put(deliveries(1))
            await asyncio.sleep(7100)
            assert world.began("plants") == 0
            await asyncio.sleep(100)
            assert world.began("plants") == 1
            assert not world.saved
    told = [
        (line["event"], line.get("reason"))
        for line in lines
        if "paus" in line["event"] or "limit" in line["event"]
    ]
    assert told == [
        ("paused", None),
        ("limit overridden", None),
        ("limit as configured again", "its time is over"),
    ]
    (resumed,) = [line for line in lines if line["event"] == "resumed"]
    assert (resumed["service"], resumed["reason"]) == ("plants", "its time is over")


async def test_a_restart_keeps_it_and_tells_so() -> None:
    first = World()
    async with first.running():
        await first.order("pause", "service", "plants")
        await first.order("pause", "source", "uploads", seconds=3600)
        await first.order("limits", "service", "flood", limits={"concurrency": "1", "rate": "5/s"})
        in_force = await first.in_force()
    with capture_logs() as lines:
        second = World(kept=first.saved)
        async with second.running():
            assert await second.in_force() == in_force
            assert second.intake.free == 0
            await second.benches["plants"].put(deliveries(1))
            await asyncio.sleep(600)
            assert second.began("plants") == 0
            assert second.benches["flood"].lane.allowance.at_once == 1
    events = Counter(line["event"] for line in lines)
    assert (events["still paused"], events["limit still overridden"]) == (2, 2)


async def test_it_ends_when_the_configuration_has_another_value_or_its_time_was_over_meanwhile() -> None:
    first = World()
    async with first.running():
        await first.order("limits", "service", "plants", limits={"concurrency": "1", "rate": "5/s"})
        await first.order("limits", "service", "flood", limits={"concurrency": "2"})
        await first.order("pause", "source", "uploads", seconds=60)
    kept = [*first.saved, Override("service", "gone", "paused", True, False, since=1.0, until=None)]
    await asyncio.sleep(61)
    with capture_logs() as lines:
        second = World(kept=kept, settings=configuration(concurrency=8))
        async with second.running():
            in_force = await second.in_force()
            assert {(each.key, each.name) for each in second.saved} == {
                ("plants", "rate"),
                ("flood", "concurrency"),
            }
    assert in_force["service", "plants", "concurrency"] == "8"
    assert in_force["service", "plants", "rate"] == "5/s"
    assert in_force["service", "flood", "concurrency"] == "2"
    assert ("source", "uploads", "paused") not in in_force
    ended = {line.get("service", line.get("source")): line["reason"] for line in lines if "reason" in line}
    assert ended == {
        "plants": "the configuration has another value",
        "uploads": "its time is over",
        "gone": "it is not configured any more",
    }


# --- all of it ------------------------------------------------------------------------------------------


async def changed_at_random(world: World, draw: random.Random, changes: int) -> None:
    """Make so many changes, of every kind, one after the other."""
    services = list(world.benches)
    for _ in range(changes):
        await asyncio.sleep(draw.random() / 5)
        seconds = draw.choice([None, None, 0.5, 3.0])
        kind = draw.choice(["source", "service", "service", "cluster"])
        key = {"source": "uploads", "service": draw.choice(services), "cluster": "main"}[kind]
        what = draw.choice(["pause", "resume", "resume", "limits", "limits", "reset"])
        if what in ("pause", "resume"):
            await world.order(what, kind, key, **({"seconds": seconds} if what == "pause" else {}))
        elif kind != "source":
            values = {"concurrency": str(draw.randint(1, 12)), "rate": draw.choice(["none", "30/s", "100/s"])}
            if kind == "cluster" and draw.random() < 0.5:
                values["concurrency"] = "auto"
            more = {"reset": True} if what == "reset" else {"limits": values, "seconds": seconds}
            await world.order("limits", kind, key, **more)


@pytest.mark.parametrize("_turn", range(2))
async def test_limits_changed_1000_times_and_pauses_under_load_lose_nothing_double_nothing(
    _turn: int,
) -> None:
    draw = random.Random(random.randrange(2**32))

    def script(_event: Event) -> Answer:
        return draw.choice([ACCEPTED, ACCEPTED, ACCEPTED, BUSY, UNREACHABLE])

    world = World(script, seconds=0.05)
    async with world.running():
        reading = asyncio.create_task(world.source(3_000))
        await changed_at_random(world, draw, 1_000)
        assert not reading.done(), "there is load all the while"
        for part in list(world.control._live):
            await world.order("resume", part.kind, part.key)
            if part.kind != "source":
                await world.order("limits", part.kind, part.key, reset=True)
        await reading
        await settled(world.given, within=7200)
        await asyncio.sleep(3600)
        assert not world.saved
        for bench in world.benches.values():
            assert bench.invocations("accepted") == 3_000
            assert not bench.keeper.letters
        world.assert_all_counts_are_exact()
