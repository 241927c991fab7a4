"""What an operator takes out of the configuration strands nothing in silence, and what he mends goes on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bridge.core.identity import invocation_name
from bridge.testing import until
from tests.support.daemon import Daemon
from tests.support.world import World


async def parked_for_old(world: World, count: int) -> Daemon:
    """Park events for the service `old`, which the next configuration has no more."""
    daemon = world.daemon(
        world.configuration(
            services={"old": {"service": "gone", "park_after": "200ms", "retry": {"max_backoff": "1s"}}},
            routes=[{"from": "uploads", "to": "old"}],
        )
    )
    await world.produce_numbers(count)
    daemon.start()
    await daemon.is_up()
    async with asyncio.timeout(30):
        while await daemon.parked("old") < count:
            await asyncio.sleep(0.05)
    assert await daemon.stop() == 0
    return daemon


def without_old(world: World, daemon: Daemon) -> Daemon:
    return world.daemon(world.configuration(state_dir=str(daemon.store.parent)))


async def problems(daemon: Daemon) -> list[dict[str, str]]:
    told = await daemon.ready()
    assert told is not None
    return [problem for problem in told["problems"] if "not in the configuration" in problem["reason"]]


async def test_events_of_a_removed_service_are_told_and_moved_beside_the_daemon(world: World) -> None:
    daemon = without_old(world, await parked_for_old(world, 6))
    daemon.start()
    await daemon.is_up()
    told = "6 events are parked for the service `old`, which is not in the configuration"
    assert [line["problem"] for line in await daemon.says("events that nothing will take")] == [told]
    (problem,) = await problems(daemon)
    assert problem["part"] == "store"
    assert problem["reason"].startswith(told)
    assert "oscar-bridge parked move --service old --to SERVICE" in problem["reason"]
    checked = await asyncio.to_thread(daemon.command, "check")
    assert checked.returncode == 1
    assert told in checked.stdout
    assert "parked bury --service old" in checked.stdout

    listed = [json.loads(line) for line in daemon.command("parked", "list", "--json").stdout.splitlines()]
    assert {row["service"] for row in listed} == {"old"}
    assert len(daemon.command("parked", "list").stdout.splitlines()) == 7
    dry = daemon.command("parked", "move", "--service", "old", "--to", "plants", "--dry-run")
    assert dry.stdout == "6 would be parked for plants\n"
    some = daemon.command("parked", "move", str(listed[0]["number"]), "--to", "plants")
    assert (some.returncode, some.stdout) == (0, "1 parked for plants\n")
    rest = daemon.command("parked", "move", "--all", "--to", "plants")
    assert (rest.returncode, rest.stdout) == (0, "5 parked for plants\n")
    await world.all_jobs()
    world.assert_one_job_an_event()
    await daemon.becomes_ready()
    await until(lambda: not daemon.kept(), what="nothing is left")  # soon after its job was made
    assert daemon.command("parked", "list").stdout == "no events are parked\n"


async def test_they_are_buried_without_a_daemon_and_replayed_to_another_service(world: World) -> None:
    daemon = without_old(world, await parked_for_old(world, 3))
    buried = daemon.command("parked", "bury", "--service", "old")
    assert (buried.returncode, buried.stdout) == (0, "3 made dead letters\n")
    listed = daemon.command("dead-letters", "list", "--cause", "service_removed", "--json")
    assert len(listed.stdout.splitlines()) == 3
    own = daemon.command("dead-letters", "replay", "--all")
    assert "3 left as they are: its service is not in the configuration any more" in own.stdout
    wrong = daemon.command("dead-letters", "replay", "--all", "--to", "plant")
    assert (wrong.returncode, "did you mean `plants`" in wrong.stderr) == (2, True)
    moved = daemon.command("dead-letters", "replay", "--all", "--to", "plants")
    assert moved.stdout == "3 parked for their lanes\n"
    daemon.start()
    await world.all_jobs()
    world.assert_one_job_an_event()


def choosing(world: World, to: str, **more: Any) -> dict[str, Any]:
    return world.configuration(routes=[{"from": "uploads", "to": to, "allow": ["plants"]}], **more)


async def test_letters_without_a_service_go_round_the_mended_routes(world: World) -> None:
    daemon = world.daemon(choosing(world, 'data.n > 0 ? data.to : "plants"'))  # `to` is a number
    (first, second) = await world.bed.produce([b'{"n": 1, "to": 5}', b'{"n": 2, "to": 6}'])
    daemon.start()
    await until(lambda: len(daemon.said("dead letter", cause="route")) == 2, what="the dead letters")
    numbers = [
        json.loads(line)["number"]
        for line in daemon.command("dead-letters", "list", "--json").stdout.splitlines()
    ]
    still = daemon.command("dead-letters", "replay", str(numbers[0]))
    assert still.stdout == "1 parked for their lanes\n"
    await until(lambda: len(daemon.said("dead letter", cause="route")) == 3, what="a dead letter again")
    assert await daemon.stop() == 0

    mended = world.daemon(choosing(world, '"plants"', state_dir=str(daemon.store.parent)))
    marked = mended.command("dead-letters", "replay", "--all")
    assert marked.stdout == "2 parked for their lanes\n"
    assert not world.oscar.ledger.created
    mended.start()
    names = {invocation_name("uploads", event_id, "plants") for event_id in (first, second)}
    await until(lambda: set(world.oscar.ledger.created) == names, what="the jobs")
    await until(lambda: not mended.kept(), what="none is kept")
