"""How the events of the bench get into the broker."""

from __future__ import annotations

import time
from functools import partial

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.records import PARTITIONS, body, key, numbered

_CALL_SECONDS = 20.0
_QUIET = {"log_level": 4}
"""Warnings and worse: librdkafka tells of each producer that is let go."""
_TURN_SECONDS = 0.001
"""Between two looks at what is due, at a steady rate."""


def create_topic(bootstrap: str, topic: str, partitions: int = PARTITIONS) -> None:
    """Make a topic."""
    admin = AdminClient({**_QUIET, "bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(_CALL_SECONDS)


def fill(bootstrap: str, topic: str, count: int, partitions: int = PARTITIONS) -> None:
    """Put records 0 to `count` - 1 into `topic`; return once the broker has them."""
    producer = Producer(
        {**_QUIET, "bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": count + 1}
    )
    for number in range(count):
        producer.produce(topic, body(number), key=key(number), partition=number % partitions)
    left = producer.flush(_CALL_SECONDS)
    if left:
        raise RuntimeError(f"the broker did not take {left} of {count} records")


def steady(bootstrap: str, topic: str, rate: float, seconds: float) -> dict[int, int]:
    """Produce `rate` records a second into one partition for so long, with librdkafka's linger of 5 ms.

    One: tansu keeps each batch as an object of its own, and looks at all of them for each fetch.

    Gives when the broker's acknowledgement of each record arrived: CLOCK_MONOTONIC, in ns.
    """
    producer = Producer({**_QUIET, "bootstrap.servers": bootstrap, "acks": "all"})
    sent: list[int] = []
    acknowledged: dict[int, int] = {}

    def noted(number: int, error: KafkaError | None, message: Message) -> None:
        if error is None:
            # Measured by librdkafka's own thread: when this function is called does not count.
            acknowledged[number] = sent[number] + int((message.latency() or 0.0) * 1e9)

    began = time.monotonic()
    count = int(rate * seconds)
    while len(sent) < count:
        due = min(count, int((time.monotonic() - began) * rate) + 1)
        for number in range(len(sent), due):
            sent.append(time.monotonic_ns())
            producer.produce(
                topic,
                numbered(number),
                key=key(number),
                partition=0,
                on_delivery=partial(noted, number),
            )
        producer.poll(0)
        time.sleep(_TURN_SECONDS)
    producer.flush(_CALL_SECONDS)
    return acknowledged
