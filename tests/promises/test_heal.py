"""What goes wrong at OSCAR heals, and nothing is lost meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

from bridge.sandbox.oscar import Fault
from bridge.testing import until
from tests.support.world import World

QUICK = {"retry": {"max_backoff": "500ms"}}


async def problems(daemon: Any) -> list[dict[str, str]]:
    answer = await daemon.ready()
    return list(answer["problems"]) if answer else []


async def test_a_new_service_token_heals_without_a_loss(world: World) -> None:
    service = world.oscar.services.named("plants")[0]
    daemon = world.daemon()
    daemon.start()
    await world.produce_numbers(20)
    await world.all_jobs()
    world.oscar.rotate_token(service)
    await world.produce_numbers(50)
    await world.all_jobs()
    await world.bed.leaves(0)
    world.assert_one_job_an_event()
    assert await daemon.metric("bridge_lane_open", service="plants") == 1
    assert not daemon.said("gate shut"), "one refresh is enough: the gate stays open"


async def test_an_outage_loses_nothing_and_spends_no_attempts(world: World) -> None:
    daemon = world.daemon(
        world.configuration(services={"plants": {"retry": {"max_backoff": "300ms", "max_attempts": 2}}})
    )
    daemon.start()
    await world.produce_numbers(20)
    await world.all_jobs()
    await world.oscar.outage()
    await world.produce_numbers(300)
    await until(lambda: daemon.said("gate shut", reason="unavailable"), what="the gate shuts")
    # Many times `max_attempts` pass: an hour of pauses of a minute, compressed.
    await until(lambda: len(daemon.noted("failed", service="plants")) > 30, what="probes")
    told = await problems(daemon)
    assert [problem["part"] for problem in told] == ["service plants"]
    assert told[0]["reason"].startswith("unavailable: connect")
    assert await daemon.metric("bridge_lane_open", service="plants") == 0
    await world.oscar.end_outage()
    await world.all_jobs()
    await world.bed.leaves(0)
    await daemon.becomes_ready()
    world.assert_one_job_an_event()
    assert daemon.command("dead-letters", "list").stdout == "no dead letters\n"


async def test_a_missing_service_shuts_its_gate_alone(world: World) -> None:
    """404: `/readyz` names it, the other lane goes on, and the events flow once the service exists."""
    daemon = world.daemon(
        world.configuration(
            services={"plants": QUICK, "flood": QUICK},
            routes=[
                {"from": "uploads", "when": "data.to == 'plants'", "to": "plants"},
                {"from": "uploads", "when": "data.to == 'flood'", "to": "flood"},
            ],
        )
    )
    daemon.start()
    await world.produce_numbers(30, to="flood")
    await world.produce_numbers(200, to="plants")
    plants = range(30, 230)
    await until(
        lambda: all(world.job_of(n) in world.oscar.ledger.created for n in plants), what="plants go on"
    )
    await until(lambda: daemon.said("gate shut", service="flood", reason="refused"), what="the gate of flood")
    told = await problems(daemon)
    assert [problem["part"] for problem in told] == ["service flood"]
    assert "refused" in told[0]["reason"]
    assert "404" in told[0]["reason"]
    assert await daemon.metric("bridge_lane_open", service="flood") == 0
    assert await daemon.metric("bridge_lane_open", service="plants") == 1
    assert await world.bed.committed() < len(world.ids), "what flood holds is not committed"
    world.oscar.add_service("flood")
    await until(lambda: all(world.job_of(n, "flood") in world.oscar.ledger.created for n in range(30)))
    await world.bed.leaves(0)
    await daemon.becomes_ready()
    world.assert_one_job_an_event("plants", plants)
    world.assert_one_job_an_event("flood", range(30))


async def test_a_wrong_password_is_told_and_heals(world: World) -> None:
    right = world.oscar.settings.password
    world.oscar.settings.password = "another"
    configuration = world.configuration()
    configuration["clusters"]["main"]["auth"]["password"] = right
    daemon = world.daemon(configuration)
    daemon.start()
    await world.produce_numbers(10)
    await until(lambda: daemon.said("gate shut", reason="refused"), what="the gate shuts")
    told = await problems(daemon)
    assert "credentials" in told[0]["reason"]
    assert right not in daemon.log.read_text(), "no secret in the log"
    world.oscar.settings.password = right
    await world.all_jobs()
    await world.bed.leaves(0)
    world.assert_one_job_an_event()


async def test_a_poison_event_alone_becomes_a_dead_letter(world: World) -> None:
    """Always 500, while the others are accepted."""
    # The sandbox answers 500 for ever to a Records event whose principal is no label of Kubernetes.
    poison = await world.bed.produce(
        [b'{"Records": [{"requestParameters": {"principalId": "AWS:AIDA", "sourceIPAddress": ""}}]}']
    )
    configuration = world.configuration(
        services={"plants": {"retry": {"max_backoff": "50ms", "max_attempts": 3}}},
        sources={"uploads": world.source(trusted=True)},
    )
    daemon = world.daemon(configuration)
    daemon.start()
    # Others must go on being accepted between its attempts.
    async with asyncio.timeout(60):
        while not daemon.said("dead letter"):
            await world.produce_numbers(5)
            await asyncio.sleep(0.05)
    await until(lambda: daemon.said("dead letter", id=poison[0], cause="http_500"), what="the dead letter")
    await world.all_jobs()
    listed = daemon.command("dead-letters", "list")
    assert poison[0] in listed.stdout
    assert "http_500" in listed.stdout
    shown = daemon.command("dead-letters", "show", "1")
    assert "AWS:AIDA" in shown.stdout
    (letter,) = daemon.said("dead letter")
    assert letter["attempts"] >= 3
    assert await daemon.metric("bridge_dead_letters", service="plants", cause="http_500") == 1


async def test_slow_answers_and_lost_ones_make_one_job_each(world: World) -> None:
    world.oscar.faults.set(Fault(lost_answers=0.3, delay_seconds=0.01))
    daemon = world.daemon(world.configuration(services={"plants": {"retry": {"max_backoff": "100ms"}}}))
    daemon.start()
    await world.produce_numbers(300)
    await world.all_jobs()
    await world.bed.leaves(0)
    world.assert_one_job_an_event()
    accepted = await daemon.metric("bridge_invocations_total", service="plants", outcome="accepted")
    duplicates = await daemon.metric("bridge_invocations_total", service="plants", outcome="duplicate")
    assert accepted + duplicates == 300
    assert duplicates > 50, "OSCAR refused the second job of each whose answer was lost"
