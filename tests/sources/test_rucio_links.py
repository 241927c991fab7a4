"""Brokers of Rucio that fall silent, go, refuse or come by several addresses; on real ones."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.rucio import reader
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.link import LinkLost, resolve
from bridge.telemetry.metrics import Metrics
from tests.conformance.beds import Bed, make, number
from tests.servers import activemq as active
from tests.servers import hermes
from tests.servers import rabbitmq as rabbit
from tests.servers.activemq import ActiveMQ
from tests.servers.certificates import Certificates
from tests.servers.proxy import Proxy
from tests.servers.rabbitmq import RabbitMQ
from tests.sources.reading import opened, settle, until

KINDS = ("amqp", "stomp-rabbitmq", "stomp-activemq")


@pytest.fixture(params=KINDS)
async def bed(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[Bed]:
    bed, target = await make(request.param, unique, request)
    async with Proxy(target) as proxy:
        bed.proxy = proxy
        yield bed


def source(metrics: Metrics | None = None, **keys: Any) -> Any:
    config = RucioConfig.model_validate({"type": "rucio", **keys})
    return config.build("closed", (metrics or Metrics()).source("closed"))


def on_rabbit(broker: RabbitMQ, **keys: Any) -> dict[str, Any]:
    return {
        "protocol": "amqp",
        "brokers": f"127.0.0.1:{broker.port}",
        "virtual_host": rabbit.VIRTUAL_HOST,
        "username": rabbit.USERNAME,
        "password": rabbit.PASSWORD,
        **keys,
    }


def on_active(broker: ActiveMQ, **keys: Any) -> dict[str, Any]:
    return {
        "protocol": "stomp",
        "brokers": f"127.0.0.1:{broker.stomp_port}",
        "username": active.USERNAME,
        "password": active.PASSWORD,
        **keys,
    }


async def to_rabbit(broker: RabbitMQ, destination: str, *messages: Any) -> None:
    await hermes.publish(
        ("127.0.0.1", broker.stomp_port),
        destination,
        messages,
        username=rabbit.USERNAME,
        password=rabbit.PASSWORD,
        virtual_host=rabbit.VIRTUAL_HOST,
    )


async def to_active(broker: ActiveMQ, destination: str, *messages: Any) -> None:
    await hermes.publish(
        ("127.0.0.1", broker.stomp_port),
        destination,
        messages,
        username=active.USERNAME,
        password=active.PASSWORD,
    )


async def test_a_broker_that_falls_silent_is_left_within_two_heartbeats(bed: Bed) -> None:
    await bed.put(3)
    async with opened(bed.source(heartbeat=1)) as hands:
        taken = await hands.take(3)
        await asyncio.sleep(2.5)  # heartbeats keep it
        assert not hands.source.problems()
        assert not any(delivery.outcome for delivery in taken)
        bed.proxy.stall()
        stalled = time.monotonic()
        await until(lambda: hands.source.problems(), timeout=5)
        assert time.monotonic() - stalled < 2.5
        assert "nothing heard" in hands.source.problems()[0]
        assert [delivery.outcome for delivery in taken] == [Outcome.RELEASED] * 3
        bed.proxy.stall(False)
        bed.proxy.cut()  # what was held back is of connections that nobody has any more
        settle(await hands.take(3, timeout=20))
        assert not hands.source.problems()
    await bed.leaves(0)


async def test_a_broker_that_accepts_and_says_nothing_is_lost_within_two_heartbeats(bed: Bed) -> None:
    bed.proxy.stall()
    begun = time.monotonic()
    with pytest.raises(SourceLost, match="no answer in time"):
        async with opened(bed.source(heartbeat=1)):
            pass
    assert time.monotonic() - begun < 3


async def test_an_answer_after_a_cut_is_none_and_the_message_comes_again(bed: Bed) -> None:
    await bed.put(2)
    async with opened(bed.source()) as hands:
        before = await hands.take(2)
        bed.proxy.cut()
        await until(lambda: all(delivery.outcome for delivery in before))
        settle(before)
        after = await hands.take(2)
        assert {each.event.id for each in after} == {each.event.id for each in before}
        settle(after)
    await bed.leaves(0)


async def test_a_wrong_password_is_told_without_it(bed: Bed) -> None:
    with pytest.raises(SourceLost) as raised:
        async with opened(bed.source(password="not-it-at-all")):
            pass
    assert str(bed.proxy.port) in str(raised.value)
    assert "not-it-at-all" not in str(raised.value)


async def test_of_several_addresses_each_is_read_and_one_that_is_down_is_told(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two doors to one broker, at two addresses behind one name."""
    behind(monkeypatch, "mq.test", "127.0.0.1", "127.0.0.2")
    metrics = Metrics()
    keys = {**bed.settings(), "brokers": f"mq.test:{bed.proxy.port}", "max_in_flight": 8}
    keys.pop("type")
    async with Proxy(bed.proxy.target_port, host="127.0.0.2", port=bed.proxy.port) as second:
        second.refuse()
        async with opened(source(metrics, **keys)) as hands:
            await until(lambda: hands.source.problems())
            (problem,) = hands.source.problems()
            assert problem.startswith(f"mq.test:{second.port} (127.0.0.2): ")
            await bed.put(4)
            settle(await hands.take(4))
            second.refuse(False)
            await until(lambda: not hands.source.problems(), timeout=15)
            bed.proxy.refuse()
            await until(lambda: hands.source.problems())
            await bed.put(4, first=4)
            settle(await hands.take(4))
            second.refuse()
            up = ("bridge_source_up", {"source": "closed"})
            await until(lambda: metrics.registry.get_sample_value(*up) == 0)
            assert len(hands.source.problems()) == 2
            second.refuse(False)
            await until(lambda: metrics.registry.get_sample_value(*up) == 1, timeout=15)
            settle(await hands.take(4))  # the last answers were lost with the link they had to go by
    await bed.leaves(0)


def behind(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> None:
    """Have the DNS give `addresses` for `name`."""
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *more: Any, **hints: Any) -> Any:
        if host != name:
            return real(host, port, *more, **hints)
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (family[":" in each], socket.SOCK_STREAM, 6, "", (each, port))
            for each in (*addresses, *addresses)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


async def test_a_name_stands_for_its_addresses_of_ipv4_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    behind(monkeypatch, "mq.test", "::1", "127.0.0.1", "127.0.0.2")
    assert [str(each) for each in await resolve("mq.test:1")] == [
        "mq.test:1 (127.0.0.1)",
        "mq.test:1 (127.0.0.2)",
    ]
    behind(monkeypatch, "six.test", "::1")
    assert [str(each) for each in await resolve("six.test:1")] == ["six.test:1 ([::1])"]
    assert [str(each) for each in await resolve("[::1]:1")] == ["[::1]:1"]
    with pytest.raises(LinkLost, match=r"no-such\.invalid can't be resolved"):
        await resolve("no-such.invalid:1")


async def test_a_queue_that_is_deleted_is_told_and_read_once_it_is_there_again(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    await rabbitmq.declare(unique)
    async with opened(source(**on_rabbit(rabbitmq, queue=unique))) as hands:
        await rabbitmq.delete(unique)
        await until(lambda: hands.source.problems())
        assert "cancelled" in hands.source.problems()[0] or "no queue" in hands.source.problems()[0]
        await rabbitmq.declare(unique)
        await to_rabbit(rabbitmq, f"/amq/queue/{unique}", hermes.message())
        settle(await hands.take(1, timeout=20))


async def test_a_queue_that_is_not_there_is_told(rabbitmq: RabbitMQ, unique: str) -> None:
    with pytest.raises(SourceLost, match=f"no queue '{unique}'"):
        async with opened(source(**on_rabbit(rabbitmq, queue=unique))):
            pass


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_a_missing_queue_is_made_and_bound_to_what_stomp_sends_to_a_topic(
    rabbitmq: RabbitMQ, unique: str, queue_type: str
) -> None:
    declare = {"queue_type": queue_type, "exchange": "amq.topic", "routing_key": unique}
    for _ in range(2):  # and a queue that is there is taken as it is
        async with opened(source(**on_rabbit(rabbitmq, queue=f"q-{unique}", declare=declare))) as hands:
            await to_rabbit(rabbitmq, f"/topic/{unique}", hermes.message())
            (delivery,) = await hands.take(1)
            settle([delivery])
    assert delivery.event.attributes["exchange"] == "amq.topic"
    assert delivery.event.attributes["routing_key"] == unique
    assert delivery.event.attributes["event_type"] == "close"


async def test_a_durable_subscription_keeps_what_its_selector_takes(activemq: ActiveMQ, unique: str) -> None:
    keys = on_active(
        activemq,
        destination=f"/topic/{unique}",
        client_id=unique,
        subscription="oscar",
        selector="event_type = 'close'",
    )
    async with opened(source(**keys)):
        pass
    await to_active(activemq, f"/topic/{unique}", *map(hermes.message, ("open", "close", "erase")))
    async with opened(source(**keys)) as hands:
        (delivery,) = await hands.take(1)
        assert delivery.event.type == "close"
        settle([delivery])
        await hands.takes_nothing(0.3)


async def test_a_durable_subscription_on_rabbitmq_keeps_what_is_sent_meanwhile(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    keys = on_rabbit(
        rabbitmq,
        protocol="stomp",
        brokers=f"127.0.0.1:{rabbitmq.stomp_port}",
        destination=f"/topic/{unique}",
        client_id=unique,
        subscription="oscar",
    )
    async with opened(source(**keys)):
        pass
    await to_rabbit(rabbitmq, f"/topic/{unique}", *hermes.numbered(3))
    async with opened(source(**keys)) as hands:
        settle(await hands.take(3))


async def test_a_virtual_topic_s_queue_keeps_what_is_sent_meanwhile(activemq: ActiveMQ, unique: str) -> None:
    keys = on_active(activemq, destination=f"/queue/Consumer.oscar.VirtualTopic.{unique}")
    async with opened(source(**keys)):
        pass
    await to_active(activemq, f"/topic/VirtualTopic.{unique}", *hermes.numbered(3))
    async with opened(source(**keys)) as hands:
        taken = await hands.take(3)
        assert [number(delivery.event) for delivery in taken] == [0, 1, 2]
        settle(taken)


async def test_what_is_given_back_on_activemq_is_not_in_its_dead_letter_queue(
    activemq: ActiveMQ, unique: str
) -> None:
    """However often: its limit of redeliveries is for those who roll back, not for those who go."""
    keys = on_active(activemq, destination=f"/queue/{unique}")
    await to_active(activemq, f"/queue/{unique}", hermes.message())
    for _ in range(8):
        async with opened(source(**keys)) as hands:
            (delivery,) = await hands.take(1)
    assert delivery.outcome is Outcome.RELEASED
    assert len(await activemq.browse(f"/queue/{unique}")) == 1
    assert unique.encode() not in b"".join(await activemq.browse("/queue/ActiveMQ.DLQ"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_certificate_says_who_we_are(
    kind: str, rabbitmq: RabbitMQ, activemq: ActiveMQ, certificates: Certificates, unique: str
) -> None:
    tls = {
        "ca_file": certificates.authority,
        "cert_file": certificates.client,
        "key_file": certificates.client_key,
    }
    nobody = {"username": None, "password": None, "tls": tls}
    await rabbitmq.declare(unique)
    if kind == "amqp":
        keys = on_rabbit(rabbitmq, brokers=f"localhost:{rabbitmq.tls_port}", queue=unique, **nobody)
    elif kind == "stomp-rabbitmq":
        keys = on_rabbit(
            rabbitmq,
            protocol="stomp",
            brokers=f"localhost:{rabbitmq.stomp_tls_port}",
            destination=f"/amq/queue/{unique}",
            **nobody,
        )
    else:
        keys = on_active(
            activemq,
            brokers=f"localhost:{activemq.stomp_tls_port}",
            destination=f"/queue/{unique}",
            **nobody,
        )
    if kind == "stomp-activemq":
        await to_active(activemq, f"/queue/{unique}", hermes.message())
    else:
        await to_rabbit(rabbitmq, f"/amq/queue/{unique}", hermes.message())
    async with opened(source(**keys)) as hands:
        settle(await hands.take(1))
    without = {**keys, "tls": {"cert_file": certificates.client, "key_file": certificates.client_key}}
    with pytest.raises(SourceLost, match="certificate is not believed"):
        async with opened(source(**without)):
            pass


async def test_a_defect_is_told_and_not_waited_for(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("bridge.sources.rucio.subscription.read", broken)
    await bed.put(1)
    with pytest.raises(SourceLost, match="a defect"):
        async with opened(bed.source()) as hands:
            await hands.take(1)


async def test_what_waits_in_a_queue_of_amqp_is_the_source_s_lag(
    rabbitmq: RabbitMQ, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WATCH_SECONDS", 0.1)
    await rabbitmq.declare(unique)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(5))
    metrics = Metrics()
    lag = ("bridge_source_lag", {"source": "closed"})
    async with opened(source(metrics, **on_rabbit(rabbitmq, queue=unique, max_in_flight=2))) as hands:
        taken = await hands.take(2)
        await until(lambda: metrics.registry.get_sample_value(*lag) == 3)
        settle(taken)
        settle(await hands.take(2))
        settle(await hands.take(1))
        await until(lambda: metrics.registry.get_sample_value(*lag) == 0)
