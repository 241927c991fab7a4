"""Every storage event in every envelope, through each broker, to what faas-supervisor reads."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from bridge.core.ports import Source
from bridge.sources.amqp.config import AmqpConfig
from bridge.telemetry.metrics import Metrics
from tests.servers.moto import Moto
from tests.servers.rabbitmq import Foreign, RabbitMQ
from tests.servers.tansu import Tansu
from tests.sources import receiving
from tests.sources.reading import opened, settle, source, until
from tests.sources.rucio import on_rabbit
from tests.sources.storage import corpus, seen_by_supervisor

CASES = list(corpus())


async def _by_kafka(request: pytest.FixtureRequest, name: str, metrics: Metrics, **keys: Any) -> Source:
    kafka: Tansu = request.getfixturevalue("tansu")
    await kafka.create_topic(name)
    await kafka.produce(name, [(b"field/leaf", json.dumps(case.body).encode()) for case in CASES])
    return source(kafka, name, metrics=metrics, **keys)


async def _by_amqp(request: pytest.FixtureRequest, name: str, metrics: Metrics, **keys: Any) -> Source:
    rabbit: RabbitMQ = request.getfixturevalue("rabbitmq")
    await rabbit.declare(name)
    await rabbit.publish(name, *(Foreign(body=json.dumps(case.body).encode()) for case in CASES))
    told = on_rabbit(rabbit, queue=name, **keys)
    del told["protocol"]
    config = AmqpConfig.model_validate({**told, "type": "amqp"})
    return config.build("uploads", metrics.source("uploads"))


async def _by_sqs(request: pytest.FixtureRequest, name: str, metrics: Metrics, **keys: Any) -> Source:
    moto: Moto = request.getfixturevalue("moto")
    queue = await moto.create_queue(name)
    await queue.send(*(case.body for case in CASES))
    return receiving.source(queue, metrics=metrics, **keys)


@pytest.mark.parametrize("put", [_by_kafka, _by_amqp, _by_sqs])
async def test_the_supervisor_reads_every_object_right_and_a_poisoned_record_is_one_dead_letter(
    put: Any, request: pytest.FixtureRequest, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_OBJECT_KEY", "EVENT_TIME", "EVENT"):  # what the supervisor sets is taken back
        monkeypatch.setenv(name, "")
    metrics = Metrics()
    expected = Counter(pair for case in CASES for pair in zip(case.stores, case.keys, strict=True))
    poisoned = sum(case.poisoned for case in CASES)
    async with opened(await put(request, unique, metrics, open="auto"), limit=3) as hands:
        while len(hands.seen) < expected.total() + poisoned:
            settle(await hands.take(1))
        await hands.takes_nothing(0.1)
    events = [delivery.event for delivery in hands.seen if delivery.fault is None]
    seen = Counter(
        (store, key) for store, bucket, key in map(seen_by_supervisor, events) if bucket == "field"
    )
    assert seen == expected
    assert len(hands.seen) - len(events) == poisoned
    name = "bucket" if put is _by_sqs else "uploads"
    labels = {"source": name, "reason": "test_event"}
    dropped = metrics.registry.get_sample_value("bridge_events_filtered_total", labels)
    assert dropped == sum(case.dropped for case in CASES)


async def test_records_of_kafka_are_taken_as_they_are_unless_asked(
    request: pytest.FixtureRequest, unique: str
) -> None:
    async with opened(await _by_kafka(request, unique, Metrics())) as hands:
        taken = await hands.take(len(CASES))
        assert [json.loads(delivery.event.data) for delivery in taken] == [case.body for case in CASES]
        assert len({delivery.event.id for delivery in taken}) == len(CASES)


async def test_an_opened_record_is_committed_once_the_last_of_its_events_is_settled(
    tansu: Tansu, unique: str
) -> None:
    several = next(case for case in CASES if case.name == "bare/several")
    await tansu.create_topic(unique)
    await tansu.produce(unique, [json.dumps(several.body).encode(), b'{"n": 1}'])
    async with opened(source(tansu, unique, open="auto")) as hands:
        first, second, third, last = await hands.take(4)
        settle([third, last, first])
    assert second.outcome is not None, "given back at the end"
    assert sum((await tansu.committed(unique, unique)).values()) <= 0
    async with opened(source(tansu, unique, open="auto")) as hands:
        again = await hands.take(4)
        assert [each.event.id for each in again] == [each.event.id for each in (first, second, third, last)]
        settle(again)

        async def committed() -> bool:
            return sum((await tansu.committed(unique, unique)).values()) == 2

        await until(committed)
