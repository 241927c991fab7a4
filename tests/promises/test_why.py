"""What became of a file, asked beside a running bridge."""

from __future__ import annotations

import asyncio

from bridge.sandbox.oscar import Fault
from bridge.testing import until
from tests.support.world import World


async def test_what_a_running_bridge_has_in_hand_is_told_with_what_holds_it_up(world: World) -> None:
    world.oscar.faults.set(Fault(delay_seconds=3600), service="plants")
    one_at_once = {"plants": {"limits": {"concurrency": 1}}}
    daemon = world.daemon(world.configuration(services=one_at_once))
    daemon.start()
    ids = await world.bed.produce([b"1", b"2"], keys=[b"runs/a.nc"] * 2)
    await until(lambda: world.oscar.ledger.requests)
    while await daemon.metric("bridge_source_in_flight", source="uploads") < len(ids):
        await asyncio.sleep(0.01)

    def told() -> set[str]:
        asked = daemon.command("why", "a.nc")
        assert (asked.returncode, asked.stderr) == (0, "")
        return set(asked.stdout.splitlines())

    assert told() == {
        *(f"runs/a.nc: event {event_id} of uploads" for event_id in ids),
        "  plants: in hand: an attempt is under way",
        "  plants: in hand: it comes next",
    }
    assert daemon.command("pause", "service", "plants").returncode == 0
    assert "  plants: in hand: it comes next; the service takes nothing now: it is paused" in told()


async def test_an_event_that_is_asked_for_once_more_makes_one_new_job_through_a_kill(world: World) -> None:
    daemon = world.daemon()
    await world.produce_numbers(1)
    daemon.start()
    await world.all_jobs()
    await world.bed.leaves(0)
    assert daemon.command("pause", "service", "plants").returncode == 0
    event_id = world.ids[0]
    done = daemon.command("again", event_id)
    daemon.kill()
    told = f"uploads: event {event_id} goes round its routes once more, as {event_id}+1\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")
    daemon.start()
    await daemon.becomes_ready()
    again = daemon.command("again", event_id)
    assert again.returncode == 1
    assert "it is not done yet" in again.stderr or "it goes round its routes already" in again.stderr
    assert daemon.command("resume", "service", "plants").returncode == 0
    world.ids[1] = f"{event_id}+1"
    await world.all_jobs()
    assert await daemon.stop() == 0
    assert world.oscar.ledger.created == {world.job_of(0): 1, world.job_of(1): 1}
    assert daemon.command("again", "uploads/0/77@1").returncode == 1
