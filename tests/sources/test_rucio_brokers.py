"""What the Rucio source makes of queues, topics, logins and messages as real brokers have them."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from pamqp.commands import Basic

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.broker import reader
from bridge.telemetry.metrics import Metrics
from bridge.testing import Proxy, opened, settle, until
from tests.servers import hermes
from tests.servers.activemq import ActiveMQ
from tests.servers.certificates import Certificates
from tests.servers.rabbitmq import RabbitMQ
from tests.sources.rucio import behind, on_active, on_rabbit, source, to_active, to_rabbit
from tests.support.beds import RUCIO_KINDS, RucioBed, number

pytestmark = pytest.mark.usefixtures("told_no_longer")


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


def over_tls(
    kind: str, rabbitmq: RabbitMQ, activemq: ActiveMQ, name: str, tls: dict[str, Any]
) -> dict[str, Any]:
    """Give the keys of a source that shows a certificate, and no password."""
    nobody = {"username": None, "password": None, "tls": tls}
    if kind == "amqp":
        return on_rabbit(rabbitmq, brokers=f"localhost:{rabbitmq.tls_port}", queue=name, **nobody)
    if kind == "stomp-rabbitmq":
        return on_rabbit(
            rabbitmq,
            protocol="stomp",
            brokers=f"localhost:{rabbitmq.stomp_tls_port}",
            destination=f"/amq/queue/{name}",
            **nobody,
        )
    brokers = f"localhost:{activemq.stomp_tls_port}"
    return on_active(activemq, brokers=brokers, destination=f"/queue/{name}", **nobody)


@pytest.mark.parametrize("kind", RUCIO_KINDS)
async def test_a_client_certificate_says_who_we_are(
    kind: str, rabbitmq: RabbitMQ, activemq: ActiveMQ, certificates: Certificates, unique: str
) -> None:
    tls = {
        "ca_file": certificates.authority,
        "cert_file": certificates.client,
        "key_file": certificates.client_key,
    }
    keys = over_tls(kind, rabbitmq, activemq, unique, tls)
    await rabbitmq.declare(unique)
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


@pytest.mark.parametrize("kind", RUCIO_KINDS)
async def test_our_certificate_that_expired_is_told_and_a_renewed_one_is_taken_up(
    kind: str,
    rabbitmq: RabbitMQ,
    activemq: ActiveMQ,
    certificates: Certificates,
    unique: str,
    tmp_path: Path,
) -> None:
    ours = tmp_path / "ours.pem"
    ours.write_bytes(certificates.expired.read_bytes() + certificates.expired_key.read_bytes())
    await rabbitmq.declare(unique)
    keys = over_tls(kind, rabbitmq, activemq, unique, {"ca_file": certificates.authority, "cert_file": ours})
    one = source(**keys)
    with pytest.raises(SourceLost, match=r"refuses our certificate|reset"):
        async with opened(one):
            pass
    ours.write_bytes(certificates.client.read_bytes() + certificates.client_key.read_bytes())
    async with opened(one):
        pass


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


async def test_a_body_is_as_it_was_sent_whatever_it_is(bed: RucioBed) -> None:
    large = json.dumps(hermes.message(blob="\u20ac" * 500_000), ensure_ascii=False).encode()
    bodies = [b"", b"\x00", b"\x00\xff" * 1000, b"\n\r\n\n", b"MESSAGE\n\nack:1\n\n{}\x00\n", large]
    await bed.send(*bodies)
    async with opened(bed.source()) as hands:
        taken = await hands.take(len(bodies), timeout=20)
        assert hands.data == bodies
        assert [bool(delivery.fault) for delivery in taken] == [True] * 5 + [False]
        settle(taken)
    await bed.leaves(0)


async def test_headers_of_any_kind_are_attributes_or_none(rabbitmq: RabbitMQ, unique: str) -> None:
    """Of AMQP: texts and numbers are attributes, and what else there may be is not in the way."""
    await rabbitmq.declare(unique)
    odd: dict[str, Any] = {
        "a:b": "c:d\n\\n\\",
        "number": 7,
        "euro": "\u20ac",
        "empty": "",
        "x-death": [{"count": 1, "queue": "other", "reason": "expired"}],
        "table": {"a": 1},
        "nothing": None,
        "bytes": bytearray(b"\xff\xfe"),
    }
    channel = await rabbitmq.channel()
    for _ in range(2):
        await channel.basic_publish(
            json.dumps(hermes.message()).encode(),
            routing_key=unique,
            properties=Basic.Properties(headers=odd),
        )
    await channel.connection.close()
    async with opened(source(**on_rabbit(rabbitmq, queue=unique, max_in_flight=1)), limit=1) as hands:
        (by_amqp,) = await hands.take(1)
        settle([by_amqp])
        (again,) = await hands.take(1)
        assert again.event.id == by_amqp.event.id
    assert by_amqp.event.attributes == {
        "a:b": "c:d\n\\n\\",
        "number": "7",
        "euro": "\u20ac",
        "empty": "",
        "exchange": "",
        "routing_key": unique,
    }
    keys = on_rabbit(
        rabbitmq,
        protocol="stomp",
        brokers=f"127.0.0.1:{rabbitmq.stomp_port}",
        destination=f"/amq/queue/{unique}",
    )
    async with opened(source(**keys)) as hands:
        (by_stomp,) = await hands.take(1)
        settle([by_stomp])
    assert by_stomp.event.id == by_amqp.event.id
    assert by_stomp.event.attributes["a:b"] == "c:d\n\\n\\"
    assert by_stomp.event.attributes["euro"] == "\u20ac"
    assert by_stomp.event.attributes["redelivered"] == "true"


async def test_what_another_queue_s_deadline_sent_on_is_an_event(rabbitmq: RabbitMQ, unique: str) -> None:
    """With RabbitMQ's own x-death and its like."""
    await rabbitmq.declare(unique)
    to_it = {"x_dead_letter_exchange": "", "x_dead_letter_routing_key": unique, "x_message_ttl": 1}
    await rabbitmq.declare(f"{unique}-first", **to_it)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}-first", hermes.message())
    async with opened(source(**on_rabbit(rabbitmq, queue=unique))) as hands:
        (delivery,) = await hands.take(1)
        assert delivery.event.attributes["x-first-death-reason"] == "expired"
        assert "x-death" not in delivery.event.attributes
        settle([delivery])


async def _never(message: Any) -> None:
    raise AssertionError(message)


async def test_what_a_queue_refuses_is_told_in_the_broker_s_words(rabbitmq: RabbitMQ, unique: str) -> None:
    await rabbitmq.declare(unique)
    somebody = await rabbitmq.channel()
    await somebody.queue_declare(f"{unique}-theirs", exclusive=True)
    await rabbitmq.declare(f"{unique}-busy")
    await somebody.basic_consume(f"{unique}-busy", _never, exclusive=True)
    stomp = {"protocol": "stomp", "brokers": f"127.0.0.1:{rabbitmq.stomp_port}"}
    try:
        for keys, reason in (
            ({"queue": f"{unique}-new", "declare": {"exchange": "no-such"}}, "no exchange 'no-such'"),
            ({"queue": unique, "virtual_host": "no-such"}, "no virtual host no-such"),
            ({"queue": f"{unique}-theirs"}, "RESOURCE_LOCKED"),
            ({"queue": f"{unique}-busy"}, "in exclusive use"),
            ({**stomp, "destination": "/queue/x", "virtual_host": "no-such"}, "'no-such' access denied"),
            ({**stomp, "destination": f"/amq/queue/{unique}-theirs"}, "RESOURCE_LOCKED"),
            ({**stomp, "destination": f"/amq/queue/{unique}-busy"}, "in exclusive use"),
            ({**stomp, "destination": f"/amq/queue/{unique}-new2"}, "no queue"),
            ({**stomp, "destination": "/exchange/no-such/x"}, "no exchange 'no-such'"),
        ):
            with pytest.raises(SourceLost, match=reason):
                async with opened(source(**on_rabbit(rabbitmq, **keys))):
                    pass
    finally:
        await somebody.connection.close()


async def test_a_durable_subscription_is_one_replica_s_and_the_next_one_s_when_it_goes(
    activemq: ActiveMQ, unique: str
) -> None:
    keys = on_active(
        activemq, destination=f"/topic/{unique}", client_id=f"client-{unique}", subscription="oscar"
    )
    async with opened(source(**keys)) as hands:
        with pytest.raises(SourceLost, match=f"client-{unique} already connected"):
            async with opened(source(**keys)):
                pass
        await to_active(activemq, f"/topic/{unique}", *hermes.numbered(2))
        settle((await hands.take(2))[:1])
    async with opened(source(**keys)) as hands:
        (delivery,) = await hands.take(1)
        assert number(delivery.event) == 1
        settle([delivery])


async def test_a_selector_that_is_none_is_told(activemq: ActiveMQ, unique: str) -> None:
    keys = on_active(
        activemq,
        destination=f"/topic/{unique}",
        client_id=unique,
        subscription="oscar",
        selector="event_type = = 'close'",
    )
    with pytest.raises(SourceLost, match="InvalidSelectorException"):
        async with opened(source(**keys)):
            pass


@pytest.mark.parametrize("bed", ["amqp", "stomp-rabbitmq"], indirect=True)
async def test_a_queue_that_is_deleted_takes_along_what_is_in_hand(bed: RucioBed, rabbitmq: RabbitMQ) -> None:
    await bed.put(5)
    async with opened(bed.source()) as hands:
        taken = await hands.take(5)
        settle(taken[:2])
        await rabbitmq.delete(bed.name)
        await until(lambda: hands.source.problems())
        assert "cancel" in hands.source.problems()[0]
        assert [delivery.outcome for delivery in taken[2:]] == [Outcome.RELEASED] * 3
        settle(taken[2:])  # too late, and harmless
        await until(lambda: "no queue" in hands.source.problems()[0])
        await rabbitmq.declare(bed.name)
        await bed.put(1)
        settle(await hands.take(1, timeout=20))


@pytest.mark.prove
@pytest.mark.ends_its_server
@pytest.mark.parametrize("bed", ["amqp", "stomp-rabbitmq"], indirect=True)
@pytest.mark.timeout(300)
async def test_a_broker_out_of_memory_still_gives_and_one_that_ends_connections_says_why(
    bed: RucioBed, own_rabbitmq: RabbitMQ
) -> None:
    """RabbitMQ's alarm blocks who publishes (`connection.blocked`); nobody who reads."""
    await bed.put(10)
    async with opened(bed.source(max_in_flight=5), limit=5) as hands:
        taken = await hands.take(5)
        await own_rabbitmq.control("set_vm_memory_high_watermark", "absolute", "1")
        try:
            settle(taken)
            taken = await hands.take(5)
            assert not hands.source.problems()
        finally:
            await own_rabbitmq.control("set_vm_memory_high_watermark", "absolute", "512MB")
        # Looked at meanwhile: when the command is over, the source may be connected again.
        ending = asyncio.create_task(
            own_rabbitmq.control("close_all_connections", "-p", "rucio", "maintenance")
        )
        await until(lambda: hands.source.problems(), seconds=150)  # rabbitmqctl may be slow
        assert "maintenance" in hands.source.problems()[0]
        assert all(delivery.outcome for delivery in taken)
        await ending
        settle(await hands.take(5))
    await bed.leaves(0)


@pytest.mark.parametrize("bed", ["amqp", "stomp-rabbitmq"], indirect=True)  # ActiveMQ does not tell
async def test_no_more_is_asked_of_a_broker_than_may_be_in_flight(bed: RucioBed) -> None:
    await bed.put(30)
    async with opened(bed.source(max_in_flight=5), limit=1) as hands:
        (first,) = await hands.take(1)
        await bed.leaves(25)
        settle([first])
        await hands.take(1)
        await bed.leaves(24)
    await bed.leaves(29)


async def test_what_is_delivered_again_does_not_exceed_the_slots(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LONGEST_PAUSE", 0.2)
    await bed.put(10)
    async with opened(bed.source(max_in_flight=3), limit=3) as hands:
        for _ in range(4):
            taken = await hands.take(3)  # `Room.take` counts
            await hands.takes_nothing(0.1)
            bed.proxy.cut()
            await until(lambda: all(delivery.outcome for delivery in taken))  # noqa: B023 - it is over then
    await bed.leaves(10)


async def test_a_password_within_tls_and_a_certificate_of_somebody_else(
    bed: RucioBed, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server, certificates.server_key)
    await bed.put(1)
    behind(monkeypatch, "mq.test", "127.0.0.1")
    async with Proxy(bed.proxy.target_port, tls=context) as proxy:
        keys = {**bed.settings(), "tls": {"ca_file": certificates.authority}}
        async with opened(source(**{**keys, "brokers": f"127.0.0.1:{proxy.port}"})) as hands:
            settle(await hands.take(1))
        with pytest.raises(SourceLost, match=r"not believed: Hostname mismatch.*mq\.test"):
            async with opened(source(**{**keys, "brokers": f"mq.test:{proxy.port}"})):
                pass
