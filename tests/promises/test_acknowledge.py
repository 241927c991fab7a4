"""A loss keeps the bridge from being ready, over its ends too, until a person says that it was seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.store import losses
from bridge.store.losses import Loss
from bridge.testing import until
from bridge.testing.world import plants_of
from bridge.web.socket import ask
from tests.servers.mock_kafka import MockKafka
from tests.sources.test_kafka_faults import commit, produce
from tests.support.daemon import Daemon
from tests.support.world import World


async def reasons(daemon: Daemon) -> list[str]:
    await daemon.is_up()
    told = await daemon.ready()
    assert told is not None
    return [problem["reason"] for problem in told["problems"]]


async def test_an_acknowledgement_ends_what_is_past_and_nothing_that_goes_on(world: World) -> None:
    plants = world.configuration()["services"]["plants"]
    daemon = world.daemon(world.configuration(services={"plants": {**plants, "service": "later"}}))
    state = daemon.store.parent
    state.mkdir()
    losses.write(state, [Loss("uploads", "uploads/3", 120, 1.8e9, 1.8e9)])
    await world.produce_numbers(1)
    daemon.start()
    await daemon.says("loss not acknowledged", source="uploads")
    await daemon.says("gate shut")
    problem = next(told for told in await reasons(daemon) if "were lost upstream" in told)
    assert problem.endswith("`oscar-bridge acknowledge source uploads`")
    assert await daemon.metric("bridge_events_lost_unacknowledged", source="uploads") == 120

    done = daemon.command("acknowledge")
    acknowledged, *others = done.stdout.splitlines()
    assert acknowledged.startswith("acknowledged: source uploads: 120 or more events were lost upstream")
    assert any(line.startswith("goes on: service plants: refused") for line in others)
    assert done.returncode == 1, "it is not well yet"
    world.oscar.add_service("later")
    await world.all_jobs(service="later")
    await daemon.becomes_ready()
    assert ask(state, {"do": "acknowledge"}) == {"acknowledged": [], "going_on": []}
    assert len(daemon.said("loss acknowledged")) == 1
    assert losses.read(state) == []
    assert await daemon.stop() == 0


@pytest.mark.prove
async def test_what_kafka_has_lost_is_told_over_a_restart(
    mock_kafka: MockKafka, unique: str, tmp_path: Path
) -> None:
    await produce(mock_kafka, unique, [b"0", b"1", b"2"])
    await commit(mock_kafka, unique, {0: 500})  # beyond the end: the topic was made anew
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        source = {
            "type": "kafka",
            "bootstrap_servers": mock_kafka.bootstrap_servers,
            "topics": [unique],
            "group_id": unique,
            "session_timeout": "6s",
        }
        routes = [{"from": "uploads", "to": "plants"}]
        daemon = Daemon(tmp_path, {**plants_of(oscar), "sources": {"uploads": source}, "routes": routes})
        try:
            daemon.start()
            await until(lambda: len(oscar.ledger.created) == 3, what="what there is goes on")
            await until((tmp_path / "state" / "losses.json").exists, what="the loss is kept")
            assert await daemon.metric("bridge_events_lost_total", source="uploads") == 1
            daemon.kill()
            daemon.start()
            told = [reason for reason in await reasons(daemon) if f"{unique}/0 (1)" in reason]
            assert len(told) == 1
            checked = json.loads(daemon.command("check", "--json").stdout)
            (finding,) = [one for one in checked["findings"] if "were lost upstream" in one["message"]]
            assert (finding["severity"], finding["remedy"]) == ("warning", told[0].partition("; ")[2])
            daemon.command("acknowledge", "source", "uploads")
            await daemon.becomes_ready()
            assert "were lost" not in daemon.command("check").stdout
            assert await daemon.stop() == 0
        finally:
            daemon.close()
