"""Deliveries that a quorum queue allows a message: the bridge uses up few, and notices when some are gone."""

from __future__ import annotations

import asyncio

import pytest

from bridge.core.delivery import Delivery, Outcome
from bridge.core.errors import SourceLost
from bridge.sources.broker import amqp, amqp_queue
from bridge.sources.broker.amqp_queue import look
from bridge.sources.broker.link import resolve
from bridge.sources.broker.message import Message
from bridge.sources.rucio.config import RucioConfig
from bridge.sources.rucio.stomp import open_link
from bridge.testing import opened, settle, until
from tests.servers import hermes
from tests.servers.activemq import ActiveMQ
from tests.servers.rabbitmq import RabbitMQ
from tests.sources.rucio import on_active, on_rabbit, source, to_active, to_rabbit
from tests.support.beds import number

PROTOCOLS = pytest.mark.parametrize("protocol", ["amqp", "stomp"])


def reading(broker: RabbitMQ, queue: str, protocol: str = "amqp") -> dict[str, object]:
    if protocol == "amqp":
        return on_rabbit(broker, queue=queue)
    return on_rabbit(
        broker,
        protocol="stomp",
        brokers=f"127.0.0.1:{broker.stomp_port}",
        destination=f"/amq/queue/{queue}",
    )


async def limit(broker: RabbitMQ, queue: str) -> int | None:
    channel = await broker.channel()
    try:
        found = await look(channel.connection, queue)  # type: ignore[arg-type] # aiormq's own connection
        assert found is not None
        return found.delivery_limit
    finally:
        await channel.connection.close()


async def goes_back(broker: RabbitMQ, queue: str, count: int) -> None:
    """Return once so many messages wait in it: a broker has them some time after it was left."""

    async def is_back() -> bool:
        return await broker.ready(queue) == count

    await until(is_back)


@PROTOCOLS
async def test_what_was_given_back_twice_is_nearly_dead(
    rabbitmq: RabbitMQ, unique: str, protocol: str
) -> None:
    await rabbitmq.declare(unique, x_queue_type="quorum", x_delivery_limit=20)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(3))
    for nearly_dead in (False, False, True):
        async with opened(source(**reading(rabbitmq, unique, protocol))) as hands:
            taken = await hands.take(3)
            assert [delivery.nearly_dead for delivery in taken] == [nearly_dead] * 3
    await goes_back(rabbitmq, unique, 3)


@PROTOCOLS
async def test_what_is_released_while_the_link_holds_uses_up_one_delivery(
    rabbitmq: RabbitMQ, unique: str, protocol: str
) -> None:
    """It is given back when the link ends: before, it would come again by this very link."""
    first = 33 if protocol == "amqp" else 32  # by AMQP the first one is asked for by itself
    await rabbitmq.declare(unique, x_queue_type="quorum", x_delivery_limit=20)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(40))
    async with opened(source(**reading(rabbitmq, unique, protocol))) as hands:
        taken = await hands.take(first)
        settle(taken, Outcome.RELEASED)
        await hands.takes_nothing(0.3)
    async with opened(source(**reading(rabbitmq, unique, protocol))) as hands:
        again = await hands.take(first)
        settle(again)
        again += await hands.take(40 - first)
        settle(again)
    assert [number(delivery.event) for delivery in again] == list(range(40))
    counts = [delivery.event.attributes.get("x-delivery-count", "0") for delivery in again]
    assert counts == ["1"] * first + ["0"] * (40 - first)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"x_queue_type": "quorum"}, {"x_queue_type": "quorum", "x_single_active_consumer": True}],
    ids=["classic", "quorum", "single-active-consumer"],
)
async def test_a_link_begins_with_few_messages_and_has_all_it_may_once_it_settles(
    rabbitmq: RabbitMQ, unique: str, arguments: dict[str, object]
) -> None:
    await rabbitmq.declare(unique, **arguments)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(600))
    keys = {**reading(rabbitmq, unique), "max_in_flight": 150}
    async with opened(source(**keys)) as hands:
        taken = await hands.take(33)  # one, which shows that it has not come back, and 32
        await hands.takes_nothing(0.3)
        settle(taken)
        while len(taken) < 600:
            more = await hands.take(1)
            settle(more)
            taken += more
        assert sorted(number(delivery.event) for delivery in taken) == list(range(600))
        channel = await rabbitmq.channel()

        async def is_one_consumer() -> bool:
            return (await channel.queue_declare(unique, passive=True)).consumer_count == 1

        await until(is_one_consumer)  # a quorum queue counts a cancelled one while it holds something
        await channel.connection.close()
        await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(200))
        await hands.take(150)
        await hands.takes_nothing(0.3)
    await goes_back(rabbitmq, unique, 200)


async def come_back_twice(rabbitmq: RabbitMQ, queue: str, count: int) -> None:
    for _ in range(2):
        channel = await rabbitmq.channel()
        for _ in range(count):
            await channel.basic_get(queue)
        await channel.connection.close()
        await goes_back(rabbitmq, queue, count)


async def test_what_has_come_back_is_taken_one_by_one_and_more_as_it_is_settled(
    rabbitmq: RabbitMQ, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at once, again and again, the bridge uses up the deliveries of one or two, not of all."""
    monkeypatch.setattr(amqp, "_WARY_SECONDS", 600)
    await rabbitmq.declare(unique, x_queue_type="quorum", x_delivery_limit=4)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(30))
    await come_back_twice(rabbitmq, unique, 30)
    async with opened(source(**reading(rabbitmq, unique))) as hands:
        taken = await hands.take(1)
        await hands.takes_nothing(0.3)
        settle(taken)
        more = await hands.take(2)
        await hands.takes_nothing(0.3)
        settle(more)
        taken += more
        await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(1, 30))
        while len(taken) < 31:
            more = await hands.take(1)
            settle(more)
            taken += more
        assert sorted(number(delivery.event) for delivery in taken) == list(range(31))
        assert [delivery.nearly_dead for delivery in taken].count(False) == 1


async def test_what_has_come_back_and_is_held_keeps_no_other_for_long(
    rabbitmq: RabbitMQ, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp, "_WARY_SECONDS", 0.2)
    await rabbitmq.declare(unique, x_queue_type="quorum", x_delivery_limit=9)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(30))
    await come_back_twice(rabbitmq, unique, 30)
    async with opened(source(**reading(rabbitmq, unique))) as hands:
        assert len(await hands.take(30)) == 30


@pytest.mark.parametrize(
    ("destination", "arguments"),
    [
        ("/queue/{}", None),
        ("/amq/queue/{}", {}),
        ("/amq/queue/{}", {"x_queue_type": "quorum"}),
    ],
    ids=["made-by-stomp", "classic", "quorum"],
)
async def test_a_link_by_stomp_begins_with_few_messages_and_has_all_it_may_once_it_settles(
    rabbitmq: RabbitMQ, unique: str, destination: str, arguments: dict[str, object] | None
) -> None:
    if arguments is not None:
        await rabbitmq.declare(unique, **arguments)
    destination = destination.format(unique)
    await to_rabbit(rabbitmq, destination, *hermes.numbered(600))
    keys = {**reading(rabbitmq, unique, "stomp"), "destination": destination, "max_in_flight": 150}
    async with opened(source(**keys)) as hands:
        taken = await hands.take(32)
        await hands.takes_nothing(0.3)
        settle(taken)
        while len(taken) < 600:
            more = await hands.take(1)
            settle(more)
            taken += more
        assert sorted(number(delivery.event) for delivery in taken) == list(range(600))
        await to_rabbit(rabbitmq, destination, *hermes.numbered(200))
        await hands.take(150)
        await hands.takes_nothing(0.3)
    await goes_back(rabbitmq, unique, 200)


async def test_a_single_active_consumer_by_stomp_goes_on_with_the_few_it_began_with(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    await rabbitmq.declare(unique, x_queue_type="quorum", x_single_active_consumer=True)
    await to_rabbit(rabbitmq, f"/amq/queue/{unique}", *hermes.numbered(200))
    async with opened(source(**reading(rabbitmq, unique, "stomp"))) as hands:
        taken: list[Delivery] = []
        while len(taken) < 200:
            more = await hands.take(1)
            settle(more)
            taken += more
        assert [number(delivery.event) for delivery in taken] == list(range(200))


async def test_a_topic_by_stomp_is_subscribed_to_once_so_that_nothing_comes_twice(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    keys = {**reading(rabbitmq, unique, "stomp"), "destination": f"/topic/{unique}"}
    async with opened(source(**keys)) as hands:
        for _ in range(2):
            await to_rabbit(rabbitmq, f"/topic/{unique}", *hermes.numbered(40))
            taken = await hands.take(40)
            settle(taken)
            await hands.takes_nothing(0.2)
        assert len(hands.seen) == 80


async def test_activemq_drops_nothing_however_often_it_comes_back(activemq: ActiveMQ, unique: str) -> None:
    """Its clients' limit is 6 by default. So a link begins with all that it may have in hand."""
    keys = on_active(activemq, destination=f"/queue/{unique}", max_in_flight=100)
    await to_active(activemq, f"/queue/{unique}", *hermes.numbered(100))
    config = RucioConfig.model_validate({**keys, "type": "rucio"})
    (place,) = await resolve(config.brokers[0])
    for _ in range(8):
        came: list[Message] = []
        async with open_link(config, place, 100, came.append) as link:  # cut at its end, not closed
            losing = asyncio.create_task(link.lost())
            await until(lambda came=came: len(came) == 100)
            losing.cancel()
            await asyncio.wait([losing])
    async with opened(source(**keys)) as hands:
        taken = await hands.take(100)
        settle(taken)
    assert sorted(number(delivery.event) for delivery in taken) == list(range(100))
    assert {delivery.event.attributes["redelivered"] for delivery in taken} == {"true"}


async def test_a_stream_is_not_read(rabbitmq: RabbitMQ, unique: str) -> None:
    await rabbitmq.declare(unique, x_queue_type="stream")
    with pytest.raises(SourceLost, match="is a stream"):
        async with opened(source(**reading(rabbitmq, unique))):
            pass


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"x_queue_type": "quorum", "x_delivery_limit": 3, "x_dead_letter_exchange": ""},
        {"x_max_length": 1000, "x_dead_letter_exchange": ""},
    ],
)
async def test_a_queue_that_is_there_is_taken_as_it_is(
    rabbitmq: RabbitMQ, unique: str, arguments: dict[str, object]
) -> None:
    await rabbitmq.declare(unique, **arguments)
    declare = {"exchange": "amq.topic", "routing_key": unique}
    async with opened(source(**on_rabbit(rabbitmq, queue=unique, declare=declare))) as hands:
        await to_rabbit(rabbitmq, f"/topic/{unique}", hermes.message())
        settle(await hands.take(1))


async def test_a_queue_that_is_made_has_no_limit_where_a_broker_would_have_one(
    rabbitmq: RabbitMQ, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ from 4.0 has one by default; before, it takes -1 for a limit that nothing comes below."""
    monkeypatch.setattr(amqp_queue, "_version", lambda _connection: (4, 0))
    await rabbitmq.declare(f"{unique}-by-default", x_queue_type="quorum")
    assert await limit(rabbitmq, f"{unique}-by-default") == 20
    async with opened(source(**on_rabbit(rabbitmq, queue=unique, declare={}))):
        assert await limit(rabbitmq, unique) is None


async def test_a_queue_that_is_made_drops_nothing(rabbitmq: RabbitMQ, unique: str) -> None:
    keys = on_rabbit(rabbitmq, queue=unique, declare={})
    async with opened(source(**keys)):
        await to_rabbit(rabbitmq, f"/amq/queue/{unique}", hermes.message())
    assert await limit(rabbitmq, unique) is None
    for _ in range(4):
        async with opened(source(**keys)) as hands:
            await hands.take(1)
    await goes_back(rabbitmq, unique, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, None),
        ({"x_dead_letter_exchange": "", "x_max_priority": 3}, None),
        ({"x_queue_type": "stream"}, None),
        ({"x_queue_type": "quorum"}, None),
        ({"x_queue_type": "quorum", "x_delivery_limit": 20}, 20),
        ({"x_queue_type": "quorum", "x_delivery_limit": -1}, None),
        (
            {
                "x_queue_type": "quorum",
                "x_delivery_limit": 7,
                "x_dead_letter_exchange": "",
                "x_dead_letter_routing_key": "it's of type 'a'",
                "x_dead_letter_strategy": "at-least-once",
                "x_overflow": "reject-publish",
                "x_max_length": 1000,
                "x_max_length_bytes": 10**9,
                "x_message_ttl": 10**8,
                "x_expires": 10**8,
                "x_single_active_consumer": True,
                "x_quorum_initial_group_size": 1,
            },
            7,
        ),
    ],
)
async def test_the_delivery_limit_of_a_queue_is_found_out(
    rabbitmq: RabbitMQ, unique: str, arguments: dict[str, object], expected: int | None
) -> None:
    await rabbitmq.declare(unique, **arguments)
    assert await limit(rabbitmq, unique) == expected
    channel = await rabbitmq.channel()
    try:
        assert await look(channel.connection, f"{unique}-missing") is None  # type: ignore[arg-type] # likewise
        assert await look(channel.connection, f"{unique}-missing") is None, "it was made"  # type: ignore[arg-type] # likewise
    finally:
        await channel.connection.close()
