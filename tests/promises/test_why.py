"""What became of a file, asked beside a running bridge."""

from __future__ import annotations

import asyncio

from bridge.sandbox.oscar import Fault
from tests.promises.world import World, until


async def test_what_a_running_bridge_has_in_hand_is_told_with_what_holds_it_up(world: World) -> None:
    world.oscar.faults.set(Fault(delay_seconds=3600), service="plants")
    one_at_once = {"plants": {"limits": {"concurrency": 1}}}
    daemon = world.daemon(world.configuration(services=one_at_once))
    daemon.start()
    ids = await world.produce([b"1", b"2"], keys=[b"runs/a.nc"] * 2)
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
