"""What a source promises, each promise a test."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytest_asyncio

from bridge.core.delivery import Outcome
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.testing.beds import Bed, ProxiedBed
from bridge.testing.hands import opened, settle
from bridge.testing.waiting import until
from bridge.testing.world import World

COUNT = 30
"""Events of a test without a daemon."""
MANY = 100
"""Events of a test that kills or stops something in their midst."""
FEW = 6
"""Events of a test that is about something beside them."""

DEAD_NAMES = """
import socket, threading
real = socket.getaddrinfo
def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    if isinstance(host, str) and host.endswith(".dead.test") and not flags & socket.AI_NUMERICHOST:
        threading.Event().wait()  # for ever
    return real(host, port, family, type, proto, flags)
socket.getaddrinfo = getaddrinfo
"""
"""For a daemon: nobody ever answers for some names."""


class _InAWorld:
    """Gives tests a whole bridge beside the bed."""

    world_type: ClassVar[type[World]] = World

    @pytest_asyncio.fixture
    async def world(self, tmp_path: Path, bed: Bed) -> AsyncIterator[World]:
        """Run a simulating OSCAR with the service `plants`; no daemon is started yet."""
        async with SandboxOscar(Settings(simulate=True)) as oscar:
            oscar.add_service("plants")
            world = self.world_type(tmp_path, oscar, bed)
            try:
                yield world
            finally:
                world.close()


def slowly(world: World) -> dict[str, Any]:
    """Return a configuration that takes some seconds for some hundred events."""
    return world.configuration(
        sources={"uploads": world.source(max_in_flight=20)},
        services={"plants": {"retry": {"max_backoff": "100ms"}, "limits": {"rate": "40/s"}}},
    )


@pytest.mark.asyncio
class SourcePromises:
    """Of every source, by itself: what its `open`, its Deliveries and its `problems` promise the bridge."""

    async def test_what_is_settled_never_comes_again(self, bed: Bed) -> None:
        await bed.put(COUNT)
        async with opened(bed.source()) as hands:
            taken = await hands.take(COUNT)
            assert sorted(bed.number(delivery.event.data) for delivery in taken) == list(range(COUNT))
            committed = partial(
                bed.metrics.registry.get_sample_value,
                "bridge_last_committed_timestamp_seconds",
                {"source": "uploads"},
            )
            before = time.time()
            settle(taken)
        assert before <= (committed() or 0) <= time.time()
        await bed.leaves(0)
        async with opened(bed.source()) as hands:
            await hands.takes_nothing(0.5)
        assert not hands.source.problems()

    async def test_the_same_event_has_the_same_id_when_it_comes_again(self, bed: Bed) -> None:
        await bed.put(5)
        ids = []
        for _ in range(2):
            async with opened(bed.source()) as hands:
                ids.append({bed.number(each.event.data): each.event.id for each in await hands.take(5)})
        assert ids[0] == ids[1]
        assert len(set(ids[0].values())) == 5

    @pytest.mark.parametrize("seed", range(2))
    async def test_settling_in_any_order_answers_all(self, bed: Bed, seed: int) -> None:
        dice = random.Random(seed)
        await bed.put(COUNT)
        async with opened(bed.source()) as hands:
            taken = await hands.take(COUNT)
            dice.shuffle(taken)
            for at, delivery in enumerate(taken):
                delivery.settle(dice.choice((Outcome.ACCEPTED, Outcome.FILTERED, Outcome.DEAD_LETTERED)))
                if at % 7 == 0:
                    await asyncio.sleep(0.02)  # so that answers go in several rounds
        await bed.leaves(0)

    async def test_no_more_is_in_hand_than_there_are_slots(self, bed: Bed) -> None:
        await bed.put(COUNT)
        async with opened(bed.source(max_in_flight=5), limit=5) as hands:
            open_ones = list(await hands.take(5))
            await hands.takes_nothing(0.3)
            while len(hands.seen) < COUNT:
                settle([open_ones.pop(0), open_ones.pop()])
                open_ones += await hands.take(min(2, COUNT - len(hands.seen)))  # `Room.take` counts
            settle(open_ones)
        await bed.leaves(0)

    async def test_what_is_not_settled_at_the_end_is_given_back(self, bed: Bed) -> None:
        await bed.put(10)
        async with opened(bed.source()) as hands:
            taken = sorted(await hands.take(10), key=lambda delivery: bed.number(delivery.event.data))
            settle(taken[:4])
        assert [delivery.outcome for delivery in taken[4:]] == [Outcome.RELEASED] * 6
        settle(taken[4:])  # too late, and harmless
        await bed.leaves(6)
        async with opened(bed.source()) as hands:
            again = await hands.take(6, timeout=5)
            assert {bed.number(delivery.event.data) for delivery in again} == set(range(4, 10))
            settle(again)
        await bed.leaves(0)

    async def test_an_idle_source_does_nothing(self, bed: Bed) -> None:
        async with opened(bed.source()) as hands:
            await hands.takes_nothing(0.5)
            begun = time.process_time()
            await hands.takes_nothing(1.5)
            # An idle one of ours takes 6 ms; what never rests takes 200 where seven share each core.
            assert time.process_time() - begun < 0.1


@pytest.mark.asyncio
class BridgePromises(_InAWorld):
    """Of every source, in a whole bridge: at least once, and one job an event, whatever happens."""

    async def test_kills_and_cuts_lose_no_event_and_double_none(self, world: World) -> None:
        await world.bed.put(MANY)
        daemon = world.daemon(slowly(world))
        jobs = world.oscar.ledger
        daemon.start()
        await until(lambda: jobs.total >= 10, what="10 jobs")
        await world.bed.cut()
        await until(lambda: jobs.total >= 25, what="25 jobs, after a cut")
        daemon.kill()
        daemon.start()
        await until(lambda: jobs.total >= 40, what="40 jobs, after a kill")
        await world.bed.refuse(True)
        await asyncio.sleep(1)  # an outage: long enough for attempts to fail
        await world.bed.refuse(False)
        await world.one_job_each(MANY)
        assert await daemon.stop() == 0
        await world.bed.leaves(0, seconds=20)

    async def test_a_pause_loses_no_event_and_doubles_none_and_leaves_upstream_what_is_not_in_hand(
        self, world: World
    ) -> None:
        await world.bed.put(MANY)
        daemon = world.daemon(slowly(world))
        jobs = world.oscar.ledger
        daemon.start()
        await until(lambda: jobs.total >= 10, what="10 jobs")
        assert daemon.command("pause", "source", "uploads").returncode == 0
        quiet = 0
        while quiet < 10:  # what it has goes on
            before = jobs.total
            await asyncio.sleep(0.2)
            quiet = quiet + 1 if jobs.total == before else 0
        assert 10 <= jobs.total <= 70, "nothing more is read"
        is_left = world.bed.kind.config.model_validate(world.bed.settings()).holds_unread
        if is_left:  # once it has settled what it had
            await daemon.says("source left for its pause")
        assert len(daemon.said("source left for its pause")) == is_left
        assert await daemon.metric("bridge_source_up", source="uploads") == (not is_left)
        assert (await daemon.ready() or {})["ready"]
        daemon.kill()
        daemon.start()
        await daemon.becomes_ready()
        before = jobs.total
        await asyncio.sleep(2)
        assert jobs.total == before, "a start ends no pause"
        assert daemon.command("resume", "source", "uploads").returncode == 0
        await world.one_job_each(MANY)
        assert await daemon.stop() == 0
        await world.bed.leaves(0, seconds=20)


@pytest.mark.asyncio
class UnreadablePromises(_InAWorld):
    """Of a source that may meet what it can't read (`Bed.poison`): it is told, and holds nothing up."""

    async def test_what_can_not_be_read_is_a_fault_and_what_is_beside_it_is_read(self, bed: Bed) -> None:
        await bed.put(3)
        await bed.poison()
        await bed.put(3, first=3)
        async with opened(bed.source()) as hands:
            taken = await hands.take(7)
            settle(taken)
            assert not hands.source.problems()
        assert [bool(delivery.fault) for delivery in taken].count(True) == 1
        assert sorted(bed.number(each.event.data) for each in taken if each.fault is None) == list(range(6))
        await bed.leaves(0)

    async def test_a_poisoned_item_is_a_dead_letter_and_its_neighbours_are_jobs(self, world: World) -> None:
        await world.bed.put(FEW // 2)
        await world.bed.poison()
        await world.bed.put(FEW // 2, FEW // 2)
        daemon = world.daemon()
        daemon.start()
        await world.one_job_each(FEW)
        await until(lambda: daemon.said("dead letter", cause="unreadable"), what="the dead letter")
        await world.bed.leaves(0, seconds=30)
        assert await daemon.metric("bridge_dead_letters", service="", cause="unreadable") == 1
        assert await daemon.metric("bridge_source_losses_total", source="uploads") == 0
        assert len(daemon.said("source open")) == 1
        await daemon.becomes_ready()
        assert await daemon.stop() == 0


@pytest.mark.asyncio
class NetworkPromises(_InAWorld):
    """Of a source whose upstream is behind a network (a `ProxiedBed`): silence is no health."""

    async def test_a_peer_that_is_there_and_does_not_answer_is_never_taken_for_well(
        self, world: World
    ) -> None:
        bed = _proxied(world)
        await bed.put(FEW)
        bed.proxy.stall()
        daemon = world.daemon()
        daemon.start()
        await daemon.is_up()
        for _ in range(30):
            told = await daemon.ready()
            assert told is not None
            assert [problem["part"] for problem in told["problems"]] == ["source uploads"]
            assert await daemon.metric("bridge_source_up", source="uploads") == 0
            await asyncio.sleep(0.05)
        bed.proxy.stall(False)
        await world.one_job_each(FEW, seconds=90)
        assert await daemon.stop() == 0

    async def test_names_that_nobody_answers_for_keep_no_source_from_its_events(self, world: World) -> None:
        """Their look-ups hang: of eight more sources of its kind, and of eight more clusters."""
        bed = _proxied(world)
        await bed.put(FEW)
        configuration = world.configuration()
        for number in range(8):
            host = f"host-{number}.dead.test"
            service = {"cluster": host.partition(".")[0]}
            configuration["clusters"][service["cluster"]] = {
                **configuration["clusters"]["main"],
                "endpoint": f"http://{host}",
            }
            configuration["services"][service["cluster"]] = service
            configuration["routes"].append({"from": "uploads", "when": "false", "to": service["cluster"]})
            elsewhere = f"elsewhere-{number}"
            configuration["sources"][elsewhere] = {**bed.settings_at(host), "identity": elsewhere}
            configuration["routes"].append({"from": elsewhere, "to": "plants"})
        daemon = world.daemon(configuration, DEAD_NAMES)
        daemon.start()
        await world.one_job_each(FEW, seconds=60)
        told = await daemon.ready()
        assert told is not None
        assert "source uploads" not in [problem["part"] for problem in told["problems"]]
        assert await daemon.stop() == 0


@pytest.mark.asyncio
class RestartPromises(_InAWorld):
    """Of a source whose upstream keeps its events over a restart (`Bed.restart`)."""

    async def test_a_broker_that_is_killed_and_started_again_loses_no_event_and_doubles_none(
        self, world: World
    ) -> None:
        await world.bed.put(MANY)
        daemon = world.daemon(slowly(world))
        daemon.start()
        await until(lambda: world.oscar.ledger.total >= 10, what="10 jobs")
        await world.bed.restart()
        await world.one_job_each(MANY)
        assert await daemon.stop() == 0
        await world.bed.leaves(0, seconds=20)


def _proxied(world: World) -> ProxiedBed:
    assert isinstance(world.bed, ProxiedBed), "its bed has no proxy: see `bridge.testing.ProxiedBed`"
    return world.bed
