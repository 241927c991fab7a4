from __future__ import annotations

import asyncio
import random
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.core.delivery import Outcome
from bridge.core.errors import SourceLost
from bridge.sources.sqs import held, reader
from bridge.sources.sqs.connection import connect
from bridge.sources.sqs.source import SqsSource
from bridge.telemetry.metrics import Metrics
from bridge.testing import Proxy, opened, settle, until
from tests.servers.moto import Moto, MotoQueue
from tests.sources.receiving import source


@pytest.fixture
async def queue(moto: Moto, unique: str) -> MotoQueue:
    return await moto.create_queue(unique)


@pytest.fixture
async def fifo(moto: Moto, unique: str) -> MotoQueue:
    return await moto.create_queue(f"{unique}.fifo", VisibilityTimeout=5)


async def test_a_settled_message_is_deleted_whatever_became_of_it(queue: MotoQueue) -> None:
    await queue.send("a", "b", "c", "d")
    outcomes = (Outcome.ACCEPTED, Outcome.FILTERED, Outcome.PARKED, Outcome.DEAD_LETTERED)
    async with opened(source(queue)) as hands:
        for delivery, outcome in zip(await hands.take(4), outcomes, strict=True):
            delivery.settle(outcome)
        await until(queue.is_empty)


async def test_a_message_comes_as_an_event(queue: MotoQueue) -> None:
    before = datetime.now(UTC)
    [sent] = await queue.send(
        "not JSON: é",
        MessageAttributes={
            "kind": {"DataType": "String", "StringValue": "leaf"},
            "n": {"DataType": "Number", "StringValue": "1.50"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
    )
    async with opened(source(queue, identity="kept")) as hands:
        [delivery] = await hands.take(1)
    event = delivery.event
    assert (event.id, event.source, event.type) == (sent, "kept", "com.amazonaws.sqs.message")
    assert event.subject is None
    assert event.data == "not JSON: é".encode()
    assert event.time is not None
    assert before - timedelta(seconds=1) < event.time <= datetime.now(UTC)
    attributes = dict(event.attributes)
    assert attributes.pop("first_received").isdecimal()
    assert attributes.pop("sender_id")
    assert attributes == {
        "attribute.kind": "leaf",
        "attribute.n": "1.50",
        "attribute.raw": "AP8=",
        "receive_count": "1",
    }


async def test_messages_settled_in_any_order_are_each_deleted_for_themselves(queue: MotoQueue) -> None:
    await queue.send(*map(str, range(12)))
    async with opened(source(queue)) as hands:
        taken = await hands.take(12)
        random.Random(queue.name).shuffle(taken)
        settle(taken[:7])
        await until(lambda: _counts(queue, (0, 5)))
    left = await _all(queue)
    assert sorted(left) == sorted(delivery.event.id for delivery in taken[7:])


async def test_what_is_left_at_the_end_is_given_back_at_once(queue: MotoQueue) -> None:
    await queue.send("a", "b", "c")
    async with opened(source(queue), limit=3) as hands:  # no slot for a receive that outlives the connection
        taken = await hands.take(3)
        taken[0].settle(Outcome.ACCEPTED)
    assert [delivery.outcome for delivery in taken[1:]] == [Outcome.RELEASED] * 2
    assert await queue.counts() == (2, 0)


async def test_what_was_received_and_not_taken_is_given_back_too(queue: MotoQueue) -> None:
    await queue.send("a", "b", "c")
    made = source(queue)
    async with opened(made, limit=3):
        await until(lambda: made._reader is not None and len(made._reader._held) == 3)
    assert await queue.counts() == (3, 0)


async def test_what_was_not_deleted_comes_again_with_its_id(moto: Moto, unique: str) -> None:
    queue = await moto.create_queue(unique, VisibilityTimeout=1)
    ids = await queue.send("a", "b", "c")
    async with connect(source(queue)._config) as connection:  # a process that dies: nothing is answered
        assert len(await connection.receive(10, wait=1, visibility=1)) == 3
    async with opened(source(queue)) as hands:
        settle(await hands.take(3))
        assert sorted(delivery.event.id for delivery in hands.seen) == sorted(ids)
        await until(queue.is_empty)


async def test_no_more_is_received_than_there_are_slots(queue: MotoQueue) -> None:
    await queue.send(*map(str, range(12)))
    async with opened(source(queue, pollers=3), limit=5) as hands:
        await hands.take(5)
        await hands.takes_nothing(0.3)
        assert await queue.counts() == (7, 5)
        while len(hands.seen) < 12:
            settle(hands.seen[-1:])
            await hands.take(1)  # asserts that there was a slot
            held = hands.source._reader._held.values()  # type: ignore[attr-defined] # deletes are late
            assert sum(each.delivery.outcome is None for each in held) <= 5
        settle(hands.seen)
        await until(queue.is_empty)
        assert len({delivery.event.id for delivery in hands.seen}) == 12


async def test_a_message_is_kept_from_others_far_beyond_the_queues_timeout(moto: Moto, unique: str) -> None:
    queue = await moto.create_queue(unique, VisibilityTimeout=2)
    await queue.send("a", "b")
    async with opened(source(queue), limit=2) as hands:
        taken = await hands.take(2)
        deadline = time.monotonic() + 2.7
        while time.monotonic() < deadline:
            assert await queue.counts() == (0, 2)
            await asyncio.sleep(0.05)
        assert [delivery.outcome for delivery in taken] == [None, None]
    assert [message["Attributes"]["ApproximateReceiveCount"] for message in await queue.receive()] == [
        "2",
        "2",
    ]


async def test_a_message_is_given_back_before_the_longest_hold(
    moto: Moto, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "LONGEST_HOLD", 3.2)
    queue = await moto.create_queue(unique, VisibilityTimeout=2)
    await queue.send("a")
    with capture_logs() as lines:
        async with opened(source(queue), limit=1) as hands:
            [first] = await hands.take(1)
            await until(lambda: first.outcome is Outcome.RELEASED)
            [second] = await hands.take(1)
            assert second.event.id == first.event.id
    assert [line["held_seconds"] for line in lines if "any longer" in line["event"]] == [3]


async def test_a_visibility_timeout_that_changes_is_taken_up(
    moto: Moto, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WATCH_SECONDS", 0.1)
    queue = await moto.create_queue(unique, VisibilityTimeout=600)
    await queue.send("a")
    async with opened(source(queue, pollers=1)) as hands:
        await hands.take(1)
        await moto.call(
            "sqs", "set_queue_attributes", QueueUrl=queue.url, Attributes={"VisibilityTimeout": "2"}
        )
        mine = hands.source._reader  # type: ignore[attr-defined] # nothing else tells
        await until(lambda: mine._visibility == 2)
        await queue.send("between")  # a receive that is under way keeps the old one: this ends it
        settle(await hands.take(1))
        await queue.send("b")
        await hands.take(1)
        await hands.takes_nothing(2.6)
        assert await queue.counts() == (0, 2)


async def test_lag_is_what_waits_in_the_queue(queue: MotoQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WATCH_SECONDS", 0.1)
    metrics = Metrics()
    await queue.send(*map(str, range(5)))
    async with opened(source(queue, metrics=metrics), limit=2):
        await until(lambda: metrics.registry.get_sample_value("bridge_source_lag", {"source": "bucket"}) == 3)


async def test_a_cancelled_taker_finds_its_batch_the_next_time(queue: MotoQueue) -> None:
    async with opened(source(queue)) as hands:
        for number in range(5):
            waiting = asyncio.create_task(hands.next())
            await asyncio.sleep(0)
            await queue.send(str(number))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        while len(hands.seen) < 5:
            await hands.take(1)
        assert sorted(hands.data) == [b"0", b"1", b"2", b"3", b"4"]


# Stale receipts


def stale_receipts(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("bridge_receipts_stale_total", {"source": "bucket"})


async def test_a_stale_receipt_is_counted_told_once_and_ends_nothing(queue: MotoQueue) -> None:
    await queue.send("a", "b", "c")
    metrics = Metrics()
    with capture_logs() as lines:
        async with opened(source(queue, metrics=metrics)) as hands:
            taken = await hands.take(3)
            await queue.purge()
            settle(taken)
            await queue.send("d")
            settle(await hands.take(1))
            await until(queue.is_empty)
    told = [line for line in lines if "not valid any more" in line["event"]]
    assert len(told) == 1
    assert stale_receipts(metrics) == 3, "of four deletes"


async def test_a_message_that_is_gone_while_held_leaves_its_lane(moto: Moto, unique: str) -> None:
    queue = await moto.create_queue(unique, VisibilityTimeout=2)
    await queue.send("a")
    metrics = Metrics()
    async with opened(source(queue, metrics=metrics)) as hands:
        [delivery] = await hands.take(1)
        await queue.purge()
        await until(lambda: delivery.outcome is Outcome.RELEASED)
    assert stale_receipts(metrics) == 1


async def test_a_message_that_comes_again_while_held_is_not_handed_out_twice(queue: MotoQueue) -> None:
    await queue.send("a")
    async with opened(source(queue)) as hands:
        [delivery] = await hands.take(1)
        [mine] = hands.source._reader._held.values()  # type: ignore[attr-defined] # its receipt is nowhere else
        before = mine.receipt
        await queue.moto.call(
            "sqs",
            "change_message_visibility",
            QueueUrl=queue.url,
            ReceiptHandle=mine.receipt,
            VisibilityTimeout=0,
        )
        await until(lambda: mine.receipt != before)
        await hands.takes_nothing(0.2)
        delivery.settle(Outcome.ACCEPTED)
        await until(queue.is_empty)


# FIFO


async def test_a_group_goes_one_by_one_and_others_beside_it(fifo: MotoQueue) -> None:
    for body in ("a0", "b0", "a1", "b1", "a2"):
        await fifo.send(body, group=body[0])
    async with opened(source(fifo)) as hands:
        a0, b0 = await hands.take(2)
        await hands.takes_nothing(0.3)
        b0.settle(Outcome.ACCEPTED)
        await hands.take(1)
        a0.settle(Outcome.DEAD_LETTERED)
        [a1] = await hands.take(1)
        a1.settle(Outcome.PARKED)
        await hands.take(1)
        assert hands.data == [b"a0", b"b0", b"b1", b"a1", b"a2"]
        assert a1.event.attributes["message_group_id"] == "a"
        settle(hands.seen)
        await until(fifo.is_empty)


async def test_a_message_given_back_takes_its_followers_with_it(fifo: MotoQueue) -> None:
    await fifo.send("a0", "a1", "a2", group="a")
    async with opened(source(fifo, pollers=1)) as hands:
        [first] = await hands.take(1)
        assert len(hands.source._reader._held) == 3  # type: ignore[attr-defined] # followers are kept too
        first.settle(Outcome.RELEASED)
        while len(hands.seen) < 4:
            settle(await hands.take(1))
        assert hands.data == [b"a0", b"a0", b"a1", b"a2"]
        await until(fifo.is_empty)


async def test_followers_take_slots_and_are_kept_from_others(moto: Moto, unique: str) -> None:
    fifo = await moto.create_queue(f"{unique}.fifo", VisibilityTimeout=2)
    await fifo.send("a0", "a1", "a2", group="a")
    await fifo.send("b0", "b1", group="b")
    async with opened(source(fifo), limit=3) as hands:
        await hands.take(1)
        await hands.takes_nothing(2.6)
        assert await fifo.counts() == (2, 3)
        assert hands.data == [b"a0"]
    assert await fifo.counts() == (5, 0)


async def test_a_group_of_a_standard_queue_means_no_order(queue: MotoQueue) -> None:
    await queue.send("a0", "a1", group="a")
    async with opened(source(queue)) as hands:
        await hands.take(2)


# Failures


def at(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


async def test_a_dead_endpoint_is_a_lost_source_and_a_new_opening_heals(
    moto: Moto, queue: MotoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.5)
    await queue.send("a", "b")
    async with Proxy(moto.port) as proxy:
        through = source(queue, endpoint_url=at(proxy))
        async with opened(through) as hands:
            taken = await hands.take(2)
            proxy.refuse()
            began, accepted = time.monotonic(), proxy.accepted
            with pytest.raises(SourceLost, match=f"queue {queue.name} in region eu-west-1"):
                await hands.take(1)
            assert proxy.accepted - accepted < 40 * (time.monotonic() - began), "a busy loop"
            assert [delivery.outcome for delivery in taken] == [Outcome.RELEASED] * 2
        with pytest.raises(SourceLost, match=f"127.0.0.1:{proxy.port}"):
            async with opened(through):
                pass
        proxy.refuse(False)
        await queue.send("c")
        async with opened(through) as hands:
            await hands.take(1)


async def test_a_short_outage_loses_no_source_and_its_deletes_are_made_up_for(
    moto: Moto, queue: MotoQueue
) -> None:
    await queue.send("a", "b", "c")
    async with Proxy(moto.port) as proxy, opened(source(queue, endpoint_url=at(proxy)), limit=3) as hands:
        taken = await hands.take(3)
        proxy.refuse()
        settle(taken)
        await asyncio.sleep(0.3)
        proxy.refuse(False)
        await until(queue.is_empty)


async def test_a_message_that_can_not_be_kept_is_out_of_the_lane_before_others_have_it(
    moto: Moto, unique: str
) -> None:
    queue = await moto.create_queue(unique, VisibilityTimeout=5)
    await queue.send("a")
    async with Proxy(moto.port) as proxy, opened(source(queue, endpoint_url=at(proxy))) as hands:
        [delivery] = await hands.take(1)
        proxy.refuse()
        while delivery.outcome is None:
            visible, _ = await queue.counts()
            assert not visible or delivery.outcome is not None  # let go while the queue was asked
            await asyncio.sleep(0.01)
        assert delivery.outcome is Outcome.RELEASED
        proxy.refuse(False)


async def test_a_stalled_endpoint_does_not_hold_up_the_end(
    moto: Moto, queue: MotoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CLOSE_SECONDS", 0.5)
    await queue.send("a")
    async with Proxy(moto.port) as proxy:
        async with opened(source(queue, endpoint_url=at(proxy))) as hands:
            settle(await hands.take(1))
            proxy.stall()
            began = time.monotonic()
        assert time.monotonic() - began < 20


async def reason(lost: SqsSource) -> str:
    with pytest.raises(SourceLost) as raised:
        async with opened(lost):
            pass
    return str(raised.value)


async def test_a_missing_queue_is_told_with_its_name_and_region(queue: MotoQueue) -> None:
    told = await reason(source(queue, queue="no-such-queue"))
    assert told.startswith("queue no-such-queue in region eu-west-1 at http://127.0.0.1:")
    assert "does not exist" in told
    told = await reason(source(queue, queue=queue.url.replace(queue.name, "gone"), endpoint_url=None))
    assert "gone in region eu-west-1" in told


async def test_a_queue_can_be_named_by_its_url(queue: MotoQueue) -> None:
    await queue.send("a")
    async with opened(source(queue, queue=queue.url, endpoint_url=None)) as hands:
        await hands.take(1)


async def test_a_queue_deleted_meanwhile_is_a_lost_source(
    moto: Moto, queue: MotoQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WATCH_SECONDS", 0.1)
    async with opened(source(queue)) as hands:
        await moto.call("sqs", "delete_queue", QueueUrl=queue.url)
        with pytest.raises(SourceLost, match="does not exist"):
            await hands.take(1)


CHAIN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without anything of AWS; its metadata service does not answer."""
    for name in CHAIN:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, f"{tmp_path}/none")
    return monkeypatch


CHAINED = {"access_key_id": None, "secret_access_key": None}


async def test_credentials_come_from_the_environment_or_a_profile(
    queue: MotoQueue, bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await queue.send("a")
    bare.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    bare.setenv("AWS_SECRET_ACCESS_KEY", "x")
    async with opened(source(queue, **CHAINED), limit=1) as hands:
        await hands.take(1)
    bare.delenv("AWS_ACCESS_KEY_ID")
    bare.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "config").write_text(
        "[profile lab]\nregion = eu-west-1\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = x\n"
    )
    bare.setenv("AWS_CONFIG_FILE", f"{tmp_path}/config")
    async with opened(source(queue, profile="lab", region=None, **CHAINED)) as hands:
        await hands.take(1)
    assert "(lab2)" in await reason(source(queue, profile="lab2", **CHAINED))


async def test_without_credentials_or_region_the_reason_tells_what_to_give(
    queue: MotoQueue, bare: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        port = silent.getsockname()[1]
        bare.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        assert "no AWS credentials" in await reason(source(queue, **CHAINED))
        assert time.monotonic() - began < 60
    assert "give `region`" in await reason(source(queue, region=None))


async def _counts(queue: MotoQueue, expected: tuple[int, int]) -> bool:
    return await queue.counts() == expected


async def _all(queue: MotoQueue) -> list[str]:
    ids: list[str] = []
    while messages := await queue.receive():
        ids += [message["MessageId"] for message in messages]
    return ids
