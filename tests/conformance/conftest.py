"""Each test runs on every bed, or on those it names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bridge.sandbox.dcache import SandboxDcache
from bridge.sandbox.oscar import SandboxOscar, Settings
from bridge.sandbox.servers import free_port
from bridge.store import Store
from bridge.store.config import StoreConfig
from bridge.telemetry.metrics import Metrics
from tests.conformance.beds import Bed, DcacheBed, KafkaBed, make
from tests.conformance.world import BedWorld
from tests.servers.proxy import Proxy
from tests.servers.tansu import Tansu

KINDS = ("amqp", "rabbitmq", "stomp-rabbitmq", "stomp-activemq", "kafka", "sqs", "dcache")


@pytest.fixture(params=KINDS)
async def bed(request: pytest.FixtureRequest, unique: str, tmp_path: Path) -> AsyncIterator[Bed]:
    """One upstream with nothing in it."""
    bed: Bed
    if request.param == "kafka":
        port = free_port()
        with Tansu(advertised_port=port) as kafka:
            # By whichever port it is asked, it sends its clients on to the advertised one.
            async with Proxy(kafka.port, port=port) as proxy:
                await kafka.create_topic(unique)
                await kafka.prepare_group(unique, unique)
                bed = KafkaBed(unique, kafka)
                bed.proxy = proxy
                yield bed
        return
    if request.param == "dcache":
        state = tmp_path / "state"
        async with SandboxDcache() as site, Store.open(state, Metrics(), StoreConfig()) as store:
            await site.mkdir("/data/in")
            async with Proxy(urlsplit(site.url).port or 0) as proxy:
                bed = DcacheBed(unique, site, store, state)
                bed.proxy = proxy
                yield bed
        return
    bed, target = await make(request.param, unique, request)
    async with Proxy(target) as proxy:
        bed.proxy = proxy
        yield bed


@pytest.fixture
async def world(tmp_path: Path, bed: Bed) -> AsyncIterator[BedWorld]:
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        world = BedWorld(tmp_path, oscar, bed)
        try:
            yield world
        finally:
            world.close()
