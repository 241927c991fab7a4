"""A queue between S3 and OSCAR: one job an object, none lost, and nothing given back without need."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from faassupervisor.events import parse_event

from bridge.core.identity import invocation_name
from bridge.sandbox.oscar import Fault, SandboxOscar, Settings
from tests.promises.world import World, until
from tests.servers.moto import ACCESS_KEY_ID, ACCOUNT, REGION, SECRET_ACCESS_KEY, Moto, MotoQueue
from tests.servers.tansu import Tansu

KEYS = ["in/leaf.jpg", "in/a b+c%20d.jpg", "in/ñandú 🌿.jpg"]


class QueueWorld(World):
    """A queue with a visibility timeout of a second in place of the topic."""

    def __init__(
        self, directory: Path, kafka: Tansu, oscar: SandboxOscar, name: str, queue: MotoQueue
    ) -> None:
        super().__init__(directory, kafka, oscar, name)
        self.queue = queue

    def source(self, **more: Any) -> dict[str, Any]:
        return {
            "type": "sqs",
            "queue": self.queue.name,
            "region": REGION,
            "endpoint_url": self.queue.moto.url,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            "wait_seconds": 1,
            **more,
        }

    def bodies(self, service: str = "plants") -> list[Any]:
        return [json.loads(body) for body in self.oscar.ledger.bodies(service)]

    async def jobs(self, count: int, service: str = "plants", *, seconds: float = 30.0) -> None:
        """Return once there are `count` jobs, each created once."""
        bodies = self.oscar.ledger.bodies
        await until(lambda: len(bodies(service)) >= count, seconds=seconds, what=f"{count} jobs of {service}")
        assert len(bodies(service)) == count
        assert set(self.oscar.ledger.created.values()) == {1}

    async def emptied(self, *, seconds: float = 20.0) -> None:
        """Return once every message is deleted."""
        last = (-1, -1)
        try:
            async with asyncio.timeout(seconds):
                while last != (0, 0):
                    last = await self.queue.counts()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{last} messages are left") from None


@pytest.fixture
async def world(tmp_path: Path, tansu: Tansu, moto: Moto, unique: str) -> AsyncIterator[QueueWorld]:
    queue = await moto.create_queue(unique, VisibilityTimeout=1)
    async with SandboxOscar(Settings(simulate=True)) as oscar:
        oscar.add_service("plants")
        world = QueueWorld(tmp_path, tansu, oscar, unique, queue)
        try:
            yield world
        finally:
            world.close()


def record(key: str) -> dict[str, Any]:
    return {
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": REGION,
        "eventTime": "2026-01-31T12:00:00.123Z",
        "eventName": "ObjectCreated:Put",
        "s3": {
            "bucket": {"name": "field", "arn": "arn:aws:s3:::field"},
            "object": {"key": key, "size": 1, "eTag": "e", "sequencer": "00AB"},
        },
    }


def in_sns(body: dict[str, Any]) -> dict[str, Any]:
    return {
        "Type": "Notification",
        "TopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:t",
        "Message": json.dumps(body),
    }


async def notify(world: QueueWorld, way: str) -> None:
    """Have the bucket tell the queue of its new objects, one way or another."""
    call = world.queue.moto.call
    bucket, arn = world.name, world.queue.arn
    await call("s3", "create_bucket", Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    events = ["s3:ObjectCreated:*"]
    if way == "direct":
        told: dict[str, Any] = {"QueueConfigurations": [{"QueueArn": arn, "Events": events}]}
    elif way == "SNS":
        topic = (await call("sns", "create_topic", Name=bucket))["TopicArn"]
        await call("sns", "subscribe", TopicArn=topic, Protocol="sqs", Endpoint=arn)
        told = {"TopicConfigurations": [{"TopicArn": topic, "Events": events}]}
    else:
        pattern = json.dumps({"detail-type": ["Object Created"], "detail": {"bucket": {"name": [bucket]}}})
        await call("events", "put_rule", Name=bucket, EventPattern=pattern)
        await call("events", "put_targets", Rule=bucket, Targets=[{"Id": "queue", "Arn": arn}])
        told = {"EventBridgeConfiguration": {}}
    await call("s3", "put_bucket_notification_configuration", Bucket=bucket, NotificationConfiguration=told)


@pytest.mark.parametrize("way", ["direct", "SNS", "EventBridge"])
async def test_an_object_put_into_a_bucket_is_one_job_that_finds_it(
    world: QueueWorld, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_OBJECT_KEY", "EVENT_TIME", "EVENT"):  # what the supervisor sets is taken back
        monkeypatch.setenv(name, "")
    await notify(world, way)
    for key in KEYS:
        await world.queue.moto.call("s3", "put_object", Bucket=world.name, Key=key, Body=b"leaf")
    sources = {"uploads": world.source(session_token=f"token-of-{world.name}")}
    daemon = world.daemon(world.configuration(log={"level": "debug"}, sources=sources))
    daemon.start()
    await world.jobs(len(KEYS))
    await world.emptied()
    seen = [parse_event(body.decode("ascii")) for body in world.oscar.ledger.bodies("plants")]
    assert {event.get_type() for event in seen} == {"S3"}
    assert {event.bucket_name for event in seen} == {world.name}
    assert {event.object_key for event in seen} == set(KEYS)
    # EventBridge has no test event.
    dropped = await daemon.metric("bridge_events_filtered_total", source="uploads", reason="test_event")
    assert dropped == (0 if way == "EventBridge" else 1)
    assert await daemon.stop() == 0
    said = daemon.log.read_text()
    assert SECRET_ACCESS_KEY not in said
    assert f"token-of-{world.name}" not in said


@pytest.mark.parametrize("wrap", [dict, in_sns])
async def test_a_notification_of_three_records_is_three_jobs_and_then_one_delete(
    world: QueueWorld, wrap: Any
) -> None:
    """The bridge is killed when one of the three jobs is made, and again when two are."""
    await world.queue.send(wrap({"Records": [record(f"in/{n}") for n in range(3)]}))
    daemon = world.daemon(
        world.configuration(services={"plants": {"limits": {"concurrency": 1, "rate": "4/s"}}})
    )
    for made in (1, 2):
        daemon.start()
        await until(lambda made=made: world.oscar.ledger.total >= made, what=f"{made} jobs")  # type: ignore[misc] # bound
        daemon.kill()
        assert sum(await world.queue.counts()) == 1, "it is deleted only after its last record"
    daemon.start()
    await world.jobs(3)
    await world.emptied()
    keys = [body["Records"][0]["s3"]["object"]["key"] for body in world.bodies()]
    assert sorted(keys) == ["in/0", "in/1", "in/2"]
    assert {len(body["Records"]) for body in world.bodies()} == {1}


async def test_one_object_told_twice_and_in_three_envelopes_is_one_job(world: QueueWorld) -> None:
    direct = {"Records": [record("in/a+b")]}
    bridged = {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "time": "2026-01-31T12:00:00Z",
        "region": REGION,
        "detail": {
            "bucket": {"name": "field"},
            "object": {"key": "in/a b", "size": 1, "etag": "e", "sequencer": "00AB"},
            "reason": "PutObject",
        },
    }
    daemon = world.daemon()
    daemon.start()
    await world.queue.send(direct, direct, in_sns(direct), bridged, in_sns(bridged))
    await world.jobs(1)
    await world.emptied()
    assert await daemon.metric("bridge_invocations_total", service="plants", outcome="duplicate") == 4


async def test_kills_lose_no_message_and_double_none(world: QueueWorld) -> None:
    dice = random.Random(7)
    world.oscar.faults.set(Fault(statuses={503: 0.1}, lost_answers=0.1))
    ids = await world.queue.send(*[{"n": n} for n in range(30)])
    daemon = world.daemon(
        world.configuration(
            sources={"uploads": world.source(max_in_flight=15)},
            services={"plants": {"retry": {"max_backoff": "100ms"}, "limits": {"rate": "30/s"}}},
        )
    )
    for _ in range(3):
        daemon.start()
        goal = world.oscar.ledger.total + dice.randint(1, 7)
        await until(lambda goal=goal: world.oscar.ledger.total >= goal, what=f"{goal} jobs")  # type: ignore[misc] # bound
        await asyncio.sleep(dice.uniform(0, 0.2))
        daemon.kill()
    world.oscar.faults.clear()
    daemon.start()
    await world.jobs(30)
    await world.emptied()
    assert set(world.oscar.ledger.created) == {invocation_name("uploads", id, "plants") for id in ids}  # noqa: A001 - as SQS names it


async def test_a_stopping_bridge_gives_back_what_it_holds(world: QueueWorld) -> None:
    await world.oscar.outage()
    await world.queue.send("a", "b", "c")
    daemon = world.daemon(
        world.configuration(drain_seconds="1ms", sources={"uploads": world.source(max_in_flight=3)})
    )
    daemon.start()
    await until(lambda: daemon.said("gate shut"), what="the gate shuts")
    assert await daemon.stop() == 0
    assert await world.queue.counts() == (3, 0)
    assert len(await world.queue.receive()) == 3


async def test_a_dead_service_holds_up_no_other_and_lets_no_receive_count_rise(
    world: QueueWorld, unique: str
) -> None:
    """One queue, two services; one of them is missing while 20 × max_in_flight messages pass."""
    moto = world.queue.moto
    dead = await moto.create_queue(f"{unique}-dead")
    world.queue = await moto.create_queue(
        f"{unique}-2",
        VisibilityTimeout=2,
        RedrivePolicy=json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 1}),
    )
    count = 100
    daemon = world.daemon(
        world.configuration(
            sources={"uploads": world.source(max_in_flight=5)},
            services={
                "plants": {"retry": {"max_backoff": "500ms"}},
                "flood": {"retry": {"max_backoff": "500ms"}, "park_after": "1s"},
            },
            routes=[{"from": "uploads", "to": "plants"}, {"from": "uploads", "to": "flood"}],
        )
    )
    daemon.start()
    ids = await world.queue.send(*[{"n": n} for n in range(count)])
    await world.jobs(count, "plants", seconds=40)
    await world.emptied()
    world.oscar.add_service("flood")
    await world.jobs(count, "flood")
    assert await dead.is_empty(), "a message was received twice"
    numbers = [body["n"] for body in world.bodies("flood")]
    assert sorted(numbers) == list(range(count))
    expected = {invocation_name("uploads", id, service) for id in ids for service in ("plants", "flood")}  # noqa: A001 - likewise
    assert set(world.oscar.ledger.created) == expected
    assert await daemon.stop() == 0
