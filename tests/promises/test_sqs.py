"""A queue between S3 and OSCAR: one job an object, none lost, and nothing given back without need."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from faassupervisor.events import parse_event

from bridge.testing import until
from tests.servers.moto import ACCOUNT, REGION, SECRET_ACCESS_KEY
from tests.support.world import World

KEYS = ["in/leaf.jpg", "in/a b+c%20d.jpg", "in/ñandú 🌿.jpg"]


@pytest.fixture
def world(queue_world: World) -> World:
    return queue_world


def bodies(world: World) -> list[Any]:
    return [json.loads(body) for body in world.oscar.ledger.bodies("plants")]


async def jobs(world: World, count: int) -> None:
    """Return once there are `count` jobs, each created once."""
    await until(lambda: len(bodies(world)) >= count, what=f"{count} jobs")
    assert len(bodies(world)) == count
    assert set(world.oscar.ledger.created.values()) == {1}


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


async def notify(world: World, way: str) -> None:
    """Have the bucket tell the queue of its new objects, one way or another."""
    call = world.bed.queue.moto.call
    bucket, arn = world.bed.name, world.bed.queue.arn
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
    world: World, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_OBJECT_KEY", "EVENT_TIME", "EVENT"):  # what the supervisor sets is taken back
        monkeypatch.setenv(name, "")
    await notify(world, way)
    for key in KEYS:
        await world.bed.queue.moto.call("s3", "put_object", Bucket=world.bed.name, Key=key, Body=b"leaf")
    sources = {"uploads": world.source(session_token=f"token-of-{world.bed.name}")}
    daemon = world.daemon(world.configuration(log={"level": "debug"}, sources=sources))
    daemon.start()
    await jobs(world, len(KEYS))
    await world.bed.leaves(0)
    seen = [parse_event(body.decode("ascii")) for body in world.oscar.ledger.bodies("plants")]
    assert {event.get_type() for event in seen} == {"S3"}
    assert {event.bucket_name for event in seen} == {world.bed.name}
    assert {event.object_key for event in seen} == set(KEYS)
    # EventBridge has no test event.
    dropped = await daemon.metric("bridge_events_filtered_total", source="uploads", reason="test_event")
    assert dropped == (0 if way == "EventBridge" else 1)
    assert await daemon.stop() == 0
    said = daemon.log.read_text()
    assert SECRET_ACCESS_KEY not in said
    assert f"token-of-{world.bed.name}" not in said


@pytest.mark.parametrize(("wrap", "made"), [(dict, 1), (in_sns, 2)])
async def test_a_notification_of_three_records_is_three_jobs_and_then_one_delete(
    world: World, wrap: Any, made: int
) -> None:
    """The bridge is killed when `made` of the three jobs are made."""
    await world.bed.queue.send(wrap({"Records": [record(f"in/{n}") for n in range(3)]}))
    daemon = world.daemon(
        world.configuration(services={"plants": {"limits": {"concurrency": 1, "rate": "4/s"}}})
    )
    daemon.start()
    await until(lambda: world.oscar.ledger.total >= made, what=f"{made} jobs")
    daemon.kill()
    assert sum(await world.bed.queue.counts()) == 1, "it is deleted only after its last record"
    daemon.start()
    await jobs(world, 3)
    await world.bed.leaves(0)
    keys = [body["Records"][0]["s3"]["object"]["key"] for body in bodies(world)]
    assert sorted(keys) == ["in/0", "in/1", "in/2"]
    assert {len(body["Records"]) for body in bodies(world)} == {1}


async def test_one_object_told_twice_and_in_three_envelopes_is_one_job(world: World) -> None:
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
    await world.bed.queue.send(direct, direct, in_sns(direct), bridged, in_sns(bridged))
    await jobs(world, 1)
    await world.bed.leaves(0)
    assert await daemon.metric("bridge_invocations_total", service="plants", outcome="duplicate") == 4


async def test_a_stopping_bridge_gives_back_what_it_holds(world: World) -> None:
    await world.oscar.outage()
    await world.bed.queue.send("a", "b", "c")
    daemon = world.daemon(
        world.configuration(drain_seconds="1ms", sources={"uploads": world.source(max_in_flight=3)})
    )
    daemon.start()
    await until(lambda: daemon.said("attempt failed"), what="OSCAR is asked")
    assert await daemon.stop() == 0
    assert await world.bed.queue.counts() == (3, 0)
    assert len(await world.bed.queue.receive()) == 3


async def test_two_bridges_part_a_queue_and_double_nothing_when_one_is_killed(world: World) -> None:
    configuration = world.configuration(
        services={"plants": {"limits": {"rate": "20/s"}}}, sources={"uploads": world.source(max_in_flight=5)}
    )
    first, second = world.daemon(configuration), world.daemon(configuration)
    for daemon in (first, second):
        daemon.start()
        await daemon.is_up()
    await world.bed.queue.send(*({"n": number} for number in range(60)))
    async with asyncio.timeout(60):
        for daemon in (first, second):
            while not await daemon.metric("bridge_invocations_total", service="plants", outcome="accepted"):
                await asyncio.sleep(0.05)
    second.kill()  # without a word: what it had comes back after the visibility timeout
    await jobs(world, 60)
    await world.bed.leaves(0)
    assert await first.stop() == 0


async def test_a_source_that_can_not_be_made_is_told_and_ends_nothing_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "1s")  # not read where credentials are configured
    keys = {"type": "sqs", "queue": "other", "region": REGION, "endpoint_url": world.bed.queue.moto.url}
    daemon = world.daemon(
        world.configuration(
            sources={"uploads": world.source(), "other": keys},
            routes=[{"from": "uploads", "to": "plants"}, {"from": "other", "to": "plants"}],
        )
    )
    daemon.start()
    await until(lambda: daemon.said("source lost", source="other"), what="it is told")
    await world.bed.queue.send({"n": 0})
    await jobs(world, 1)
    told = await daemon.ready()
    assert told is not None
    ((part, reason),) = [(problem["part"], problem["reason"]) for problem in told["problems"]]
    assert part == "source other"
    assert reason.startswith("can't be opened: ")
    assert "AWS_METADATA_SERVICE_TIMEOUT" in reason
    assert await daemon.metric("bridge_source_up", source="uploads") == 1
    assert await daemon.metric("bridge_source_up", source="other") == 0
    assert await daemon.stop() == 0


async def test_a_message_that_is_half_used_up_is_parked_as_it_comes(world: World) -> None:
    """Else a few restarts while OSCAR is down would have the queue move it away."""
    await world.bed.redrive_after(4)
    await world.oscar.outage()
    await world.bed.queue.send({"n": 0}, {"n": 1})
    await world.bed.queue.receive(visibility=0)
    daemon = world.daemon()
    daemon.start()
    await daemon.is_up()
    async with asyncio.timeout(30):
        while await daemon.parked("plants") < 2:
            await asyncio.sleep(0.05)
    await world.bed.leaves(0)
    await world.oscar.end_outage()
    await jobs(world, 2)
    assert await daemon.stop() == 0
