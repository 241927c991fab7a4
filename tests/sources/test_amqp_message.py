"""Messages of anybody's by AMQP: what they are as events."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from aiormq import spec
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.event import Event
from bridge.core.ports import Patience, Severity
from bridge.sources.amqp.check import check
from bridge.sources.amqp.config import AmqpConfig
from bridge.sources.amqp.message import to_event
from bridge.sources.amqp.source import source
from bridge.sources.broker.message import Message
from bridge.telemetry.metrics import Metrics
from bridge.testing import opened, settle
from tests.check.findings import is_well
from tests.servers.rabbitmq import Foreign, RabbitMQ
from tests.sources.rucio import on_rabbit
from tests.sources.storage import from_ceph

PLAIN = Message(7, b'{"n": 1}', {"exchange": "station", "routing_key": "level.high", "unit": "m"})


def config(broker: RabbitMQ, **keys: Any) -> AmqpConfig:
    told = on_rabbit(broker, **keys)
    del told["protocol"]
    return AmqpConfig.model_validate({**told, "type": "amqp"})


def event(message: Message) -> Event:
    return to_event(message, "station")


def test_a_message_is_an_event_with_all_that_its_publisher_said() -> None:
    told = event(
        PLAIN._replace(properties={"message_id": "m-1", "timestamp": "1769860800", "delivery_mode": "2"})
    )
    assert (told.source, told.type, told.subject) == ("station", "com.rabbitmq.message", "level.high")
    assert told.time == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert told.data == PLAIN.body
    assert told.attributes == {
        "exchange": "station",
        "routing_key": "level.high",
        "message_id": "m-1",
        "timestamp": "1769860800",
        "header.unit": "m",
    }


@pytest.mark.parametrize("separator", [":", "_"])
def test_a_cloudevent_in_headers_tells_type_and_subject(separator: str) -> None:
    headers = {f"cloudEvents{separator}type": "level", f"cloudEvents{separator}subject": "gauge 7"}
    told = event(PLAIN._replace(attributes={**PLAIN.attributes, **headers}, properties={"type": "other"}))
    assert (told.type, told.subject) == ("level", "gauge 7")
    assert event(PLAIN._replace(properties={"type": "other"})).type == "other"


@pytest.mark.parametrize("seconds", ["18446744073709551615", "", "x"])
def test_a_time_that_no_calendar_has_is_none(seconds: str) -> None:
    assert event(PLAIN._replace(properties={"timestamp": seconds})).time is None


def test_what_comes_again_has_the_same_id() -> None:
    again = {**PLAIN.attributes, "x-delivery-count": "3"}
    assert event(PLAIN).id == event(PLAIN._replace(tag=9, attributes=again)).id
    named = PLAIN._replace(properties={"message_id": "gauge 7", "timestamp": "1"})
    later = PLAIN._replace(properties={"message_id": "gauge 7", "timestamp": "2"})
    assert event(named).id != event(later).id, "some publishers mean a device by it"


_PARTS = st.sampled_from(("", "a", "b", "ab", '"'))


@given(st.tuples(*[_PARTS] * 6), st.tuples(*[_PARTS] * 6))
def test_all_that_the_publisher_said_tells_messages_apart(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    def made(parts: tuple[str, ...]) -> Message:
        exchange, key, header, kind, time, body = parts
        attributes = {"exchange": exchange, "routing_key": key, **({"h": header} if header else {})}
        return Message(1, body.encode(), attributes, {"message_id": kind, "timestamp": time})

    assert (event(made(one)).id == event(made(other)).id) == (one == other)


async def test_a_queue_is_made_and_read_and_what_is_told_of_messages_comes_with_them(
    rabbitmq: RabbitMQ, unique: str
) -> None:
    metrics = Metrics()
    built = config(rabbitmq, queue=unique, declare={"exchange": "amq.topic", "routing_key": "level.#"})
    async with opened(source(built, "station", metrics.source("station"))) as hands:
        channel = await rabbitmq.channel()
        properties = spec.Basic.Properties(
            message_id="m-1", headers={"unit": "m", "n": 7}, timestamp=datetime(2026, 1, 31, tzinfo=UTC)
        )
        for body in (b"high", json.dumps(from_ceph("a b.nc")).encode()):
            confirmed = await channel.basic_publish(
                body, exchange="amq.topic", routing_key="level.high", properties=properties
            )
            assert isinstance(confirmed, spec.Basic.Ack)
        await channel.connection.close()
        plain, stored = [delivery.event for delivery in await hands.take(2)]
        settle(hands.seen)
    assert (plain.data, plain.subject, plain.time) == (
        b"high",
        "level.high",
        datetime(2026, 1, 31, tzinfo=UTC),
    )
    assert plain.attributes["message_id"] == "m-1"
    assert {plain.attributes["header.unit"], plain.attributes["header.n"]} == {"m", "7"}
    assert (stored.type, stored.subject) == ("aws.s3.ObjectCreated:Put", "a b.nc")
    assert stored.attributes["exchange"] == "amq.topic"
    assert await rabbitmq.ready(unique) == 0


async def test_check_tells_of_the_queue_and_takes_no_message(rabbitmq: RabbitMQ, unique: str) -> None:
    patience = Patience(attempt=30, unsettled=600)
    (problem,) = [
        finding
        for finding in await check(config(rabbitmq, queue=unique), "station", patience)
        if finding.severity is Severity.PROBLEM
    ]
    assert f"no queue {unique}" in problem.message
    await rabbitmq.declare(unique)
    await rabbitmq.publish(unique, Foreign())
    found = await check(config(rabbitmq, queue=unique), "station", patience)
    assert is_well(found)
    assert any("1 messages waiting" in finding.message for finding in found)
    assert await rabbitmq.ready(unique) == 1
