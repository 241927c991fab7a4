"""That the bench works: every row gets a figure. How good the figures are is for a quiet machine to tell.

And that what it puts in SQS's place is one to SQS's own client.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from bench.processes import QueueClient, queue
from bench.records import body
from bench.table import QUICK, Row, Table, rows_of
from tests.servers.debian import PACKAGES, need


def bench(*arguments: str) -> list[list[str]]:
    """Give the table's rows, by cells."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--python", sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, _, *rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert head.startswith("| | Median | Min–max | Budget |")
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def has_figures(told: list[list[str]], rows: list[Row]) -> None:
    assert [row[0] for row in told] == [row.name for row in rows]
    for name, median, span, _budget, _verdict in told:
        if median.startswith("skipped: ") and name in PEER:  # it is had from PyPI
            continue
        assert re.match(r"-?[\d,]+(\.\d+)?( \S+)?$", median), median
        assert re.match(r"-?[\d,.]+–-?[\d,.]+$", span), span


TABLE = Table(QUICK)
PEER = [row.name for row in TABLE.of_the_peer()]
RUCIO = [
    row for each in (TABLE.rabbitmq_amqp, TABLE.rabbitmq_stomp, TABLE.activemq_stomp) for row in rows_of(each)
]
LIMITS = [row for scene in TABLE.limits.values() for row in rows_of(scene)]


@pytest.mark.prove  # it takes all there is of two cores for 40 s, of which others' deadlines know nothing
@pytest.mark.timeout(180)
def test_the_quick_bench_gives_every_row_a_figure_but_those_of_rucio() -> None:
    has_figures(bench(), [row for row in TABLE.all() if all(row is not one for one in RUCIO)])


def test_the_bench_gives_every_scenario_of_the_limits_its_figures() -> None:
    has_figures(bench("--only", "limits"), LIMITS)


@pytest.mark.prove
@pytest.mark.timeout(180)
def test_the_quick_bench_gives_rucio_s_rows_a_figure_when_it_is_asked_for_them() -> None:
    for package in PACKAGES:
        need(package)
    has_figures(bench("--only", "rucio"), RUCIO)


@dataclass
class SQS:
    """A queue that holds some messages, seen by SQS's client and by the bench."""

    client: Any
    url: str
    told: QueueClient

    async def receive(self, **more: Any) -> list[dict[str, Any]]:
        answer = await self.client.receive_message(QueueUrl=self.url, MaxNumberOfMessages=10, **more)
        return list(answer.get("Messages", ()))

    async def counts(self) -> tuple[int, int]:
        answer = await self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])
        told = answer["Attributes"]
        return int(told["ApproximateNumberOfMessages"]), int(told["ApproximateNumberOfMessagesNotVisible"])


def entries(messages: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    return [
        {"Id": str(at), "ReceiptHandle": each["ReceiptHandle"], **more} for at, each in enumerate(messages)
    ]


@pytest.fixture
async def sqs() -> AsyncIterator[SQS]:
    async with queue() as told:
        await told.begin(messages=12, visibility=30)
        client = get_session().create_client(
            "sqs",
            region_name="eu-west-1",
            endpoint_url=told.url.rpartition("/123456789012/")[0],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=AioConfig(retries={"total_max_attempts": 1}),
        )
        async with client as opened:
            url = (await opened.get_queue_url(QueueName="bench"))["QueueUrl"]
            assert url == told.url
            yield SQS(opened, url, told)


async def test_the_queue_gives_each_message_to_one_receiver_until_it_is_deleted(sqs: SQS) -> None:
    assert await sqs.counts() == (12, 0)
    ten = await sqs.receive(MessageSystemAttributeNames=["All"])
    assert [message["Body"].encode() for message in ten] == [body(number) for number in range(10)]
    for message in ten:
        assert message["MD5OfBody"] == hashlib.md5(message["Body"].encode()).hexdigest()  # noqa: S324 - SQS's
        assert message["Attributes"]["ApproximateReceiveCount"] == "1"
        assert int(message["Attributes"]["SentTimestamp"]) > 1.6e12
    assert len({message["MessageId"] for message in ten}) == 10
    assert await sqs.counts() == (2, 10)
    two = await sqs.receive()
    assert {message["MessageId"] for message in two}.isdisjoint(message["MessageId"] for message in ten)
    assert await sqs.receive() == []
    done = await sqs.client.delete_message_batch(QueueUrl=sqs.url, Entries=entries(ten))
    assert [each["Id"] for each in done["Successful"]] == [str(at) for at in range(10)]
    for message in two:
        await sqs.client.delete_message(QueueUrl=sqs.url, ReceiptHandle=message["ReceiptHandle"])
    assert await sqs.counts() == (0, 0)
    assert await sqs.told.after(deleted=12) == {"receives": 3, "received": 12, "deleted": 12}


async def test_a_message_of_the_queue_returns_when_its_visibility_ends(sqs: SQS) -> None:
    ten = await sqs.receive(VisibilityTimeout=2)
    kept = await sqs.client.change_message_visibility_batch(
        QueueUrl=sqs.url, Entries=entries(ten[1:], VisibilityTimeout=30)
    )
    assert len(kept["Successful"]) == 9
    await sqs.receive()  # the two others
    (again,) = await sqs.receive(WaitTimeSeconds=10, MessageSystemAttributeNames=["All"])
    assert again["MessageId"] == ten[0]["MessageId"]
    assert again["Attributes"]["ApproximateReceiveCount"] == "2"
    await sqs.client.change_message_visibility(
        QueueUrl=sqs.url, ReceiptHandle=ten[5]["ReceiptHandle"], VisibilityTimeout=0
    )
    (given_back,) = await sqs.receive()
    assert given_back["MessageId"] == ten[5]["MessageId"]


async def test_the_queue_refuses_a_receipt_that_is_not_the_last(sqs: SQS) -> None:
    stale, *_ = await sqs.receive(VisibilityTimeout=0)
    assert len(await sqs.receive(WaitTimeSeconds=5)) == 10
    await sqs.receive(WaitTimeSeconds=5)
    refused = await sqs.client.delete_message_batch(QueueUrl=sqs.url, Entries=entries([stale]))
    (failed,) = refused["Failed"]
    assert (failed["Code"], failed["SenderFault"]) == ("ReceiptHandleIsInvalid", True)
    with pytest.raises(ClientError, match="ReceiptHandleIsInvalid"):
        await sqs.client.change_message_visibility(
            QueueUrl=sqs.url, ReceiptHandle=stale["ReceiptHandle"], VisibilityTimeout=5
        )


async def test_a_long_poll_of_the_queue_waits_for_a_message_or_its_end(sqs: SQS) -> None:
    ten = await sqs.receive()
    await sqs.receive()
    began = time.monotonic()
    assert await sqs.receive(WaitTimeSeconds=1) == []
    assert time.monotonic() - began >= 0.99
    polling = asyncio.create_task(sqs.receive(WaitTimeSeconds=20))
    await asyncio.wait([polling], timeout=0.1)
    assert not polling.done()
    await sqs.client.change_message_visibility_batch(
        QueueUrl=sqs.url, Entries=entries(ten[:1], VisibilityTimeout=0)
    )
    assert [message["MessageId"] for message in await polling] == [ten[0]["MessageId"]]
    assert time.monotonic() - began < 15
