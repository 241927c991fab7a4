"""Each test runs on every bed, or on those it names."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bridge.sandbox.kafka import free_port
from tests.conformance.beds import Bed, KafkaBed, make
from tests.servers.proxy import Proxy
from tests.servers.tansu import Tansu

KINDS = ("amqp", "stomp-rabbitmq", "stomp-activemq", "kafka", "sqs")


@pytest.fixture(params=KINDS)
async def bed(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[Bed]:
    """One upstream with nothing in it."""
    if request.param == "kafka":
        port = free_port()
        with Tansu(advertised_port=port) as kafka:
            # By whichever port it is asked, it sends its clients on to the advertised one.
            async with Proxy(kafka.port, port=port) as proxy:
                await kafka.create_topic(unique)
                await kafka.prepare_group(unique, unique)
                bed: Bed = KafkaBed(unique, kafka)
                bed.proxy = proxy
                yield bed
        return
    bed, target = await make(request.param, unique, request)
    async with Proxy(target) as proxy:
        bed.proxy = proxy
        yield bed
