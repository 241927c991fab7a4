"""Mistakes seeded at a Rucio source, on live brokers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bridge.core.ports import Finding, Patience
from bridge.net.loop import Loop
from bridge.sandbox.servers import free_port
from bridge.sources.rucio import KIND
from bridge.sources.rucio.config import RucioConfig
from tests.check.findings import is_well, said
from tests.servers import activemq as active
from tests.servers import hermes
from tests.servers import rabbitmq as rabbit
from tests.servers.activemq import ActiveMQ
from tests.servers.black_hole import black_hole
from tests.servers.certificates import Certificates
from tests.servers.rabbitmq import RabbitMQ
from tests.sources.rucio import behind

PATIENCE = Patience(attempt=30, unsettled=630)


async def check(patience: Patience = PATIENCE, **keys: Any) -> Sequence[Finding]:
    config = RucioConfig.model_validate(
        {"type": "rucio", "username": rabbit.USERNAME, "password": rabbit.PASSWORD, **keys}
    )
    found = await KIND.check(config, "closed", patience)
    assert "odd%" not in str(found)
    return found


def amqp(broker: RabbitMQ, queue: str, **more: Any) -> dict[str, Any]:
    return {
        "protocol": "amqp",
        "brokers": f"127.0.0.1:{broker.port}",
        "queue": queue,
        "virtual_host": rabbit.VIRTUAL_HOST,
        **more,
    }


def stomp(broker: RabbitMQ | ActiveMQ, **more: Any) -> dict[str, Any]:
    return {
        "protocol": "stomp",
        "brokers": f"127.0.0.1:{broker.stomp_port}",
        "destination": "/queue/check",
        **more,
    }


async def test_a_queue_of_rabbitmq_is_well_and_nothing_is_taken(rabbitmq: RabbitMQ, unique: str) -> None:
    await rabbitmq.declare(unique)
    await hermes.publish(
        (rabbitmq.host, rabbitmq.stomp_port),
        f"/amq/queue/{unique}",
        hermes.numbered(2),
        username=rabbit.USERNAME,
        password=rabbit.PASSWORD,
        virtual_host=rabbit.VIRTUAL_HOST,
    )
    found = await check(**amqp(rabbitmq, unique))
    assert is_well(found)
    said(found, "ok", f"queue {unique} found, 2 messages waiting, 0 consumers")
    said(found, "note", "without TLS")
    assert await rabbitmq.ready(unique) == 2


async def test_other_consumers_of_a_queue_are_told(rabbitmq: RabbitMQ, unique: str) -> None:
    await rabbitmq.declare(unique)
    channel = await rabbitmq.channel()
    for _ in range(2):
        await channel.basic_consume(unique, lambda _: asyncio.sleep(0))
    found = await check(**amqp(rabbitmq, unique))
    assert is_well(found)
    said(found, "note", f"queue {unique} has 2 consumers: ", remedy="divide among them")
    found = await check(Patience(attempt=30, unsettled=630, alone=True), **amqp(rabbitmq, unique))
    said(found, "problem", f"queue {unique} has 2 consumers, and", remedy="remove_finished")
    await channel.connection.close()


async def test_both_brokers_are_well_by_stomp(rabbitmq: RabbitMQ, activemq: ActiveMQ) -> None:
    assert rabbit.PASSWORD == active.PASSWORD
    both = f"127.0.0.1:{rabbitmq.stomp_port}, 127.0.0.1:{activemq.stomp_port}"
    found = await check(**stomp(rabbitmq, brokers=both, virtual_host=rabbit.VIRTUAL_HOST))
    assert is_well(found)
    for port in (rabbitmq.stomp_port, activemq.stomp_port):
        said(found, "ok", f"127.0.0.1:{port}: logged in", "not tried")


async def test_a_missing_queue_is_told_unless_it_will_be_made(rabbitmq: RabbitMQ, unique: str) -> None:
    found = await check(**amqp(rabbitmq, unique))
    said(found, "problem", f"no queue {unique} in virtual host rucio", remedy="sources.closed.queue")
    found = await check(**amqp(rabbitmq, unique, declare={}))
    assert is_well(found)
    said(found, "ok", "will be made")


async def test_a_wrong_password_and_virtual_host_are_told(
    rabbitmq: RabbitMQ, activemq: ActiveMQ, unique: str
) -> None:
    wrong = {"password": "not-it"}
    for keys in (
        amqp(rabbitmq, unique, **wrong),
        stomp(rabbitmq, virtual_host=rabbit.VIRTUAL_HOST, **wrong),
        stomp(activemq, **wrong),
    ):
        found = await check(**keys)
        said(found, "problem", keys["brokers"], remedy="sources.closed.username")
        assert "not-it" not in str(found)
    for keys in (
        amqp(rabbitmq, unique, virtual_host="no-such"),
        stomp(rabbitmq, virtual_host="no-such"),
    ):
        found = await check(**keys)
        said(found, "problem", keys["brokers"], remedy="sources.closed.virtual_host")


async def test_nobody_there_and_somebody_else_there_are_told(rabbitmq: RabbitMQ, unique: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    found = await check(**amqp(rabbitmq, unique, brokers=nobody))
    said(found, "problem", f"nothing listens at {nobody}", remedy="sources.closed.brokers")
    found = await check(**amqp(rabbitmq, unique, brokers="no-such.invalid:5672"))
    said(found, "problem", "no-such.invalid", "can't be resolved")
    found = await check(**amqp(rabbitmq, unique, brokers=f"127.0.0.1:{rabbitmq.stomp_port}", heartbeat=1))
    said(found, "problem", remedy="a broker that speaks AMQP there")
    found = await check(**stomp(rabbitmq, brokers=f"127.0.0.1:{rabbitmq.port}", heartbeat=1))
    said(found, "problem", remedy="a broker that speaks STOMP there")
    found = await check(**amqp(rabbitmq, unique, tls={}))
    said(found, "problem", "no TLS connection", remedy="sources.closed.brokers")


async def test_an_authority_that_is_not_known_and_one_that_is_not_asked_are_told(
    rabbitmq: RabbitMQ, certificates: Certificates, unique: str
) -> None:
    await rabbitmq.declare(unique)
    client = {"cert_file": certificates.client, "key_file": certificates.client_key}
    keys = amqp(rabbitmq, unique, brokers=f"localhost:{rabbitmq.tls_port}")
    found = await check(**keys, tls=client)
    said(found, "problem", "an authority unknown here", remedy="sources.closed.tls.ca_file")
    found = await check(**keys, tls={**client, "verify": False})
    said(found, "warning", "whoever answers is believed", remedy="sources.closed.tls.ca_file")
    found = await check(**keys, tls={**client, "ca_file": certificates.authority})
    assert is_well(found)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_topic_that_keeps_nothing_is_told(activemq: ActiveMQ, unique: str, durable: bool) -> None:
    keys = {"client_id": unique, "subscription": "oscar"} if durable else {}
    found = await check(**stomp(activemq, destination="/topic/rucio", **keys))
    if durable:
        assert is_well(found)
    else:
        said(found, "warning", "keeps nothing for who is away", remedy="VirtualTopic")


def test_an_address_that_swallows_everything_is_told_beside_the_one_that_works(
    rabbitmq: RabbitMQ, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.sources.broker.check._PLACE_SECONDS", 2.0)
    behind(monkeypatch, "mq.test", "127.0.0.2", "127.0.0.1")
    keys = amqp(rabbitmq, unique, brokers=f"mq.test:{rabbitmq.port}", declare={})
    with black_hole("127.0.0.2", rabbitmq.port), asyncio.Runner(loop_factory=Loop) as runner:
        found = runner.run(check(**keys))
    said(found, "ok", "(127.0.0.1)", "logged in")
    said(found, "problem", "(127.0.0.2)", "no answer in time")


async def test_a_delivery_limit_is_told_and_a_warning_where_the_bridge_holds_or_it_is_small(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    await rabbitmq.declare(unique, x_queue_type="quorum", x_delivery_limit=20, x_dead_letter_exchange="")
    found = await check(**amqp(rabbitmq, unique))
    assert is_well(found)
    said(found, "ok", "a delivery limit of 20")
    found = await check(Patience(attempt=30, unsettled=630, parks=False), **amqp(rabbitmq, unique))
    said(found, "warning", "come back more than 20 times", "`park: false`", remedy="x-delivery-limit: -1")
    await rabbitmq.declare(f"{unique}-small", x_queue_type="quorum", x_delivery_limit=1)
    found = await check(**amqp(rabbitmq, f"{unique}-small"))
    said(found, "warning", "come back 2 times", remedy="x-delivery-limit: -1")


async def test_a_stream_is_told(rabbitmq: RabbitMQ, unique: str) -> None:
    await rabbitmq.declare(unique, x_queue_type="stream")
    found = await check(**amqp(rabbitmq, unique))
    said(found, "problem", f"{unique} is a stream", remedy="sources.closed.queue")
    by_stomp = {"destination": f"/amq/queue/{unique}", "virtual_host": rabbit.VIRTUAL_HOST}
    found = await check(**stomp(rabbitmq, **by_stomp))
    said(found, "problem", f"/amq/queue/{unique} is a stream", remedy="sources.closed.destination")
    await rabbitmq.declare(f"{unique}-classic")
    found = await check(**stomp(rabbitmq, **{**by_stomp, "destination": f"/amq/queue/{unique}-classic"}))
    assert is_well(found)


async def test_holding_longer_than_rabbitmq_allows_is_told(rabbitmq: RabbitMQ, unique: str) -> None:
    await rabbitmq.declare(unique)
    found = await check(Patience(attempt=30, unsettled=86_400), **amqp(rabbitmq, unique))
    said(found, "warning", "86400 s", remedy="park")
