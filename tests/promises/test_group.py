"""Two bridges of one group, topics made anew, sources renamed: one job an event all the same."""

from __future__ import annotations

import asyncio

from bridge.testing import until
from tests.support.world import World


async def test_two_bridges_joining_and_leaving_lose_and_double_nothing(world: World) -> None:
    configuration = world.configuration(
        services={"plants": {"limits": {"rate": "150/s"}}},
        sources={"uploads": world.source(max_in_flight=50)},
    )
    first, second = world.daemon(configuration), world.daemon(configuration)
    created = world.oscar.ledger.created

    async def goes_on(what: str) -> None:
        wanted = len(created) + 200
        await world.produce_numbers(300)
        await until(lambda: len(created) > wanted, what=what)

    await world.produce_numbers(300)
    first.start()
    await until(lambda: len(created) > 100, what="the first works")
    second.start()
    await until(
        lambda: any(
            0 < len(line["partitions"]) < 4 for line in second.lines() if line["event"].endswith("assigned")
        ),
        what="the second gets a part",
    )
    await goes_on("both work")
    checked = await asyncio.to_thread(first.command, "check")
    assert "2 members are connected to group" in checked.stdout, checked.stdout
    assert await first.stop() == 0
    await goes_on("the second works alone")
    first.start()
    await goes_on("both work, or one while the other comes back")
    await world.produce_numbers(300)
    second.kill()  # without a word
    await world.all_jobs()
    await world.bed.leaves(0)
    world.assert_one_job_an_event()
    assert await first.stop() == 0


async def test_a_lane_that_stays_full_does_not_cost_the_membership(world: World) -> None:
    """Full for several times `max_poll_interval`: the group does not expel a member that only waits."""
    daemon = world.daemon(
        world.configuration(
            services={"plants": {"queue": 5, "limits": {"concurrency": 1}}},
            sources={
                "uploads": world.source(max_in_flight=10, max_poll_interval="1s", session_timeout="10s")
            },
        )
    )
    await world.oscar.outage()
    await world.produce_numbers(100)
    daemon.start()
    await until(lambda: daemon.said("gate shut"), what="the lane is stuck")
    await asyncio.sleep(4)  # the thing tested is time: four times the interval
    await world.oscar.end_outage()
    await world.all_jobs()
    await world.bed.leaves(0)
    world.assert_one_job_an_event()
    assigned = [line for line in daemon.lines() if line["event"].endswith("partitions assigned")]
    assert len(assigned) == 1, "it was never expelled, so it joined once"
    assert not daemon.said("source lost")


async def test_a_topic_made_anew_with_the_same_offsets_makes_new_jobs(world: World) -> None:
    daemon = world.daemon()
    await world.produce_numbers(20)
    daemon.start()
    await world.all_jobs()
    await world.bed.leaves(0)
    assert await daemon.stop() == 0
    old = set(world.oscar.ledger.created)
    await world.bed.kafka.delete_topic(world.bed.name)
    await world.bed.kafka.create_topic(world.bed.name, 4)
    world.ids.clear()
    await world.produce_numbers(20)
    # A group of its own: what a broker does with the commits of a deleted topic is the broker's.
    source = world.source(group_id=f"{world.bed.name}-anew")
    anew = world.daemon(world.configuration(sources={"uploads": source}))
    anew.start()
    await world.all_jobs()
    assert len(world.oscar.ledger.created) == 40
    assert not old & {world.job_of(n) for n in world.ids}


async def test_a_renamed_source_that_keeps_its_identity_makes_no_new_job(world: World) -> None:
    daemon = world.daemon()
    await world.produce_numbers(20)
    daemon.start()
    await world.all_jobs()
    assert await daemon.stop() == 0
    renamed = world.configuration(
        sources={"arrivals": world.source(identity="uploads", group_id=f"{world.bed.name}-again")},
        routes=[{"from": "arrivals", "to": "plants"}],
    )
    again = world.daemon(renamed)
    again.start()
    await until(lambda: world.oscar.ledger.requests >= 40, what="all are read again")
    await again.becomes_ready()
    assert len(world.oscar.ledger.created) == 20
    world.assert_one_job_an_event()
    assert await again.metric("bridge_invocations_total", service="plants", outcome="duplicate") == 20
