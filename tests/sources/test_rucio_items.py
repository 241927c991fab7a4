"""One message that can't be read stops nothing beside it; on real brokers."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from bridge.core.delivery import Delivery
from bridge.sources.broker import door, link
from bridge.sources.rucio import stomp_frames
from bridge.testing import opened, settle
from tests.servers import hermes
from tests.servers.rabbitmq import Foreign, RabbitMQ
from tests.sources.rucio import on_rabbit, source
from tests.support.beds import RucioBed, number

GOOD = b'{"event_type": "close", "payload": {"n": 0}}'
ON_RABBIT = pytest.mark.parametrize("bed", ["amqp", "stomp-rabbitmq"], indirect=True)


def headers(*fields: tuple[bytes, bytes]) -> bytes:
    """Make properties with a header table of texts alone."""
    table = b"".join(
        bytes([len(name)]) + name + b"S" + struct.pack(">I", len(value)) + value for name, value in fields
    )
    return struct.pack(">HI", 0x2000, len(table)) + table


def faults(taken: list[Delivery]) -> list[str]:
    return [delivery.fault for delivery in taken if delivery.fault is not None]


async def takes(bed: RucioBed, count: int) -> list[Delivery]:
    """Take `count` by one link, and settle them."""
    before = bed.proxy.accepted
    async with opened(bed.source()) as hands:
        taken = await hands.take(count)
        settle(taken)
        assert not hands.source.problems()
    assert bed.proxy.accepted == before + 1
    await bed.leaves(0)
    return taken


@ON_RABBIT
@pytest.mark.parametrize(
    "properties",
    [
        b"\x80\x00" + b"\x01\xff",  # content_type
        b"\x04\x00" + b"\x02\xe9\x9f",  # correlation_id
        b"\x00\x80" + b"\x02\xe9\x9f",  # message_id
        headers((b"\xe9\x9f", b"x")),
    ],
)
async def test_names_and_properties_that_are_not_utf8_are_a_fault_with_what_was_received(
    bed: RucioBed, rabbitmq: RabbitMQ, properties: bytes
) -> None:
    await rabbitmq.publish(bed.name, Foreign(GOOD, properties))
    await bed.put(2)
    taken = await takes(bed, 3)
    (faulty,) = [each for each in taken if each.fault is not None]
    assert "UTF-8" in (faulty.fault or "")
    assert faulty.event.data == GOOD


@ON_RABBIT
@pytest.mark.parametrize(
    "properties",
    [
        b"\x00\x40" + struct.pack(">Q", 1_767_323_045_678_901),  # a time in µs
        b"\x00\x40" + b"\xff" * 8,
        headers((b"a", b"x" * 100_000)),
        struct.pack(">HI", 0x2000, 11) + b"\x01aT" + b"\x7f" + b"\xff" * 7,
        headers((b"ack", b"1"), (b"message-id", b"2"), (b"subscription", b"3"), (b"content-length", b"4")),
    ],
)
async def test_what_nobody_asks_of_a_message_is_no_fault(
    bed: RucioBed, rabbitmq: RabbitMQ, properties: bytes
) -> None:
    await rabbitmq.publish(bed.name, Foreign(GOOD, properties))
    await bed.put(2)
    taken = await takes(bed, 3)
    assert [each.event.data for each in taken].count(GOOD) == 1
    assert faults(taken) == []


@ON_RABBIT
async def test_bytes_in_a_header_are_left_out_by_amqp_and_no_text_by_stomp(
    bed: RucioBed, rabbitmq: RabbitMQ
) -> None:
    await rabbitmq.publish(bed.name, Foreign(GOOD, headers((b"a", b"\xe9\x9f"))))
    (taken,) = await takes(bed, 1)
    assert "a" not in taken.event.attributes
    assert (taken.fault is None) is (bed.settings()["protocol"] == "amqp")


@pytest.mark.parametrize("bed", ["amqp"], indirect=True)  # by STOMP it comes as %E9%9F
async def test_a_routing_key_that_is_not_utf8_is_a_fault(bed: RucioBed, rabbitmq: RabbitMQ) -> None:
    channel = await rabbitmq.channel()
    exchange = f"x-{bed.name}"
    await channel.exchange_declare(exchange, exchange_type="fanout", auto_delete=True)
    await channel.queue_bind(bed.name, exchange)
    await channel.connection.close()
    await rabbitmq.publish(bed.name, Foreign(GOOD, exchange=exchange.encode(), routing_key=b"\xe9\x9f"))
    await bed.put(2)
    (fault,) = faults(await takes(bed, 3))
    assert "UTF-8" in fault


async def test_of_a_body_that_is_too_large_the_beginning_is_a_fault(
    bed: RucioBed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (link, door, stomp_frames):
        monkeypatch.setattr(module, "MOST_BODY", 300_000)
        monkeypatch.setattr(module, "OVERSIZE_KEPT", 100)
    (large,) = hermes.numbered(1, blob="x" * 400_000)
    await bed.send(large, *hermes.numbered(2, first=1))
    taken = await takes(bed, 3)
    (faulty,) = [each for each in taken if each.fault is not None]
    assert "more than 300000" in (faulty.fault or "")
    assert len(faulty.event.data) == 100
    assert sorted(number(each.event) for each in taken if each.fault is None) == [1, 2]


async def test_of_a_quorum_queue_with_a_limit_the_neighbours_of_a_bad_message_are_not_dropped(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    await rabbitmq.declare(unique, x_queue_type="quorum", x_delivery_limit=2)
    await rabbitmq.publish(
        unique,
        Foreign(GOOD, b"\x04\x00\x02\xe9\x9f"),
        *(Foreign(b'{"event_type": "close", "payload": {"n": %d}}' % n) for n in range(1, 31)),
    )
    keys: dict[str, Any] = on_rabbit(rabbitmq, queue=unique)
    async with opened(source(**keys)) as hands:
        taken = await hands.take(31)
        settle(taken)
    assert len(faults(taken)) == 1
    assert await rabbitmq.ready(unique) == 0
