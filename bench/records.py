"""The events of the bench, and how they get into the broker."""

from __future__ import annotations

import json
import time
from functools import partial

from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

PARTITIONS = 4
_CALL_SECONDS = 20.0
_QUIET = {"log_level": 4}
"""Warnings and worse: librdkafka tells of each producer that is let go."""
_TURN_SECONDS = 0.001
"""Between two looks at what is due, at a steady rate."""


def body(number: int) -> bytes:
    """Give record `number` as Python's producers write JSON: 300 to 1,000 bytes, with spaces and an array."""
    return json.dumps(
        {
            "n": number,
            "name": key(number),
            "size": 1024 + number,
            "checksum": {"type": "adler32", "value": f"{number:08x}"},
            "tags": ["raw", "plants"],
            "note": note(number),
        }
    ).encode()


def key(number: int) -> str:
    """Give the key of record `number`: a path, which the route looks at."""
    return f"run-{number // 1000}/leaf-{number:08d}.nc"


def note(number: int) -> str:
    """Give the text that makes bodies differ in size, of 110 to 810 bytes."""
    return " ".join(["Kept as it came from the instrument."] * (3 + number % 20))


_BODIES = [body(number) for number in range(1000)]
_NUMBER = len(b'{"n": ')


def numbered(number: int) -> bytes:
    """Give a body of number `number` that is as one of the first 1,000 else: no two are alike, soon made."""
    template = _BODIES[number % len(_BODIES)]
    return b'{"n": %d%b' % (number, template[template.index(b",", _NUMBER) :])


def notification(number: int) -> bytes:
    """Give what S3 tells of object `number` (Amazon S3 User Guide, "Event message structure")."""
    created = {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "eu-west-1",
        "eventTime": "2026-11-30T18:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "userIdentity": {"principalId": "AWS:AIDAIT2UOQQY3AUEKVGXU"},
        "requestParameters": {"sourceIPAddress": "192.0.2.7"},
        "responseElements": {
            "x-amz-request-id": f"C3D13FE58DE4{number:04X}",
            "x-amz-id-2": "FMyUVURIY8/IgAtTv8xR",
        },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": "uploads",
            "bucket": {
                "name": "plants",
                "ownerIdentity": {"principalId": "A3NL1KOZZKExample"},
                "arn": "arn:aws:s3:::plants",
            },
            "object": {
                "key": key(number),
                "size": 1024 + number,
                "eTag": f"{number:032x}",
                "sequencer": f"{number:018X}",
            },
        },
    }
    return json.dumps({"Records": [created]}, separators=(",", ":")).encode()


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
