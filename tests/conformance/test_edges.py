"""What no source may let happen to what is beside one bad item, one silent peer, one dead name."""

from __future__ import annotations

import asyncio

from tests.conformance.world import BedWorld
from tests.promises.world import until

GOOD = 6

DEAD_NAMES = """
import socket, threading
real = socket.getaddrinfo
def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    if isinstance(host, str) and host.endswith(".dead.test") and not flags & socket.AI_NUMERICHOST:
        threading.Event().wait()  # for ever
    return real(host, port, family, type, proto, flags)
socket.getaddrinfo = getaddrinfo
"""


async def test_a_poisoned_item_is_a_dead_letter_and_its_neighbours_are_jobs(world: BedWorld) -> None:
    await world.bed.put(GOOD // 2)
    await world.bed.poison()
    await world.bed.put(GOOD // 2, GOOD // 2)
    daemon = world.daemon()
    daemon.start()
    await world.one_job_each(GOOD)
    await until(lambda: daemon.said("dead letter", cause="unreadable"), what="the dead letter")
    await world.bed.leaves(0, seconds=30)
    assert await daemon.metric("bridge_dead_letters", service="", cause="unreadable") == 1
    assert await daemon.metric("bridge_source_losses_total", source="uploads") == 0
    assert len(daemon.said("source open")) == 1
    await daemon.becomes_ready()
    assert await daemon.stop() == 0


async def test_a_peer_that_is_there_and_does_not_answer_is_never_taken_for_well(world: BedWorld) -> None:
    await world.bed.put(GOOD)
    world.bed.proxy.stall()
    daemon = world.daemon()
    daemon.start()
    await daemon.is_up()
    for _ in range(30):
        told = await daemon.ready()
        assert told is not None
        assert [problem["part"] for problem in told["problems"]] == ["source uploads"]
        assert await daemon.metric("bridge_source_up", source="uploads") == 0
        await asyncio.sleep(0.05)
    world.bed.proxy.stall(False)
    await world.one_job_each(GOOD, seconds=90)
    assert await daemon.stop() == 0


async def test_names_that_nobody_answers_for_keep_no_source_from_its_events(world: BedWorld) -> None:
    """Their look-ups hang: of eight more sources of its kind, and of eight more clusters."""
    await world.bed.put(GOOD)
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
        configuration["sources"][elsewhere] = {**world.bed.settings_at(host), "identity": elsewhere}
        configuration["routes"].append({"from": elsewhere, "to": "plants"})
    daemon = world.daemon(configuration, DEAD_NAMES)
    daemon.start()
    await world.one_job_each(GOOD, seconds=60)
    told = await daemon.ready()
    assert told is not None
    assert "source uploads" not in [problem["part"] for problem in told["problems"]]
    assert await daemon.stop() == 0
