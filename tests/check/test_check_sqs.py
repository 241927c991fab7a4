"""Mistakes seeded at an SQS source: on a live server, and by one that refuses as AWS does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from bridge.core.ports import Finding, Patience
from bridge.sandbox.servers import free_port
from bridge.sources.sqs import KIND
from bridge.sources.sqs.config import SqsConfig
from tests.check.findings import is_well, said
from tests.check.stubs import sqs_that_answers
from tests.servers.moto import ACCESS_KEY_ID, REGION, SECRET_ACCESS_KEY, Moto

PATIENCE = Patience(attempt=30, unsettled=630)


async def check(url: str, queue: str, patience: Patience = PATIENCE, **more: Any) -> Sequence[Finding]:
    config = SqsConfig.model_validate(
        {
            "type": "sqs",
            "queue": queue,
            "region": REGION,
            "endpoint_url": url,
            "access_key_id": ACCESS_KEY_ID,
            "secret_access_key": SECRET_ACCESS_KEY,
            **more,
        }
    )
    found = await KIND.check(config, "bucket", patience)
    assert SECRET_ACCESS_KEY not in str(found)
    return found


async def test_a_queue_as_it_should_be_is_well_and_nothing_is_received(moto: Moto, unique: str) -> None:
    dead = await moto.create_queue(f"{unique}-dead")
    redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 10})
    queue = await moto.create_queue(unique, VisibilityTimeout=60, RedrivePolicy=redrive)
    await queue.send("one", "two")
    found = await check(moto.url, unique)
    assert is_well(found)
    said(found, "ok", "about 2 messages waiting, 0 in somebody's hands")
    said(found, "ok", "after 10 receipts", dead.arn)
    assert await queue.counts() == (2, 0)
    (received, *_) = await queue.receive()
    assert received["Attributes"]["ApproximateReceiveCount"] == "1"


async def test_no_such_queue_and_another_region_are_told(moto: Moto, unique: str) -> None:
    await moto.create_queue(unique)
    found = await check(moto.url, "no-such")
    said(found, "problem", "queue no-such", "does not exist", remedy="create the queue")
    found = await check(moto.url, unique, region="eu-central-1")
    said(found, "problem", "in region eu-central-1", remedy="sources.bucket.region")


async def test_attributes_that_do_not_fit_are_told(moto: Moto, unique: str) -> None:
    dead = await moto.create_queue(f"{unique}-dead.fifo")
    redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 1})
    name = f"{unique}.fifo"
    await moto.create_queue(
        name, VisibilityTimeout=5, MessageRetentionPeriod=120, RedrivePolicy=redrive, KmsMasterKeyId="alias/q"
    )
    found = await check(moto.url, name)
    said(found, "warning", "VisibilityTimeout is 5 s", "30 s", remedy="raise the queue's VisibilityTimeout")
    said(found, "warning", "keeps messages for 120 s", remedy="MessageRetentionPeriod")
    said(found, "warning", "after 1 receipts", remedy="maxReceiveCount")
    said(found, "note", "FIFO")
    said(found, "note", "alias/q", remedy="kms:Decrypt")
    found = await check(moto.url, name, Patience(attempt=30, unsettled=24 * 3600))
    said(found, "warning", "12 h", remedy="park: true")


async def test_a_queue_without_a_dead_letter_queue_is_a_note(moto: Moto, unique: str) -> None:
    await moto.create_queue(unique, VisibilityTimeout=7200)
    found = await check(moto.url, unique)
    assert is_well(found)
    said(found, "note", "no dead-letter queue of its own")
    said(found, "note", "VisibilityTimeout is 7200 s", remedy="some minutes")


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        ("ExpiredToken", "The security token included in the request is expired", "get a new one"),
        ("InvalidClientTokenId", "The security token included in the request is invalid.", "access_key_id"),
        ("SignatureDoesNotMatch", "The request signature we calculated does not match", "secret_access_key"),
        ("AccessDenied", "User: x is not authorized to perform: sqs:getqueueurl", "ReceiveMessage"),
        ("KmsAccessDenied", "The ciphertext refers to a key that does not exist", "kms:Decrypt"),
    ],
)
async def test_refused_credentials_are_told_apart(code: str, message: str, remedy: str) -> None:
    async with sqs_that_answers(code, message) as url:
        said(await check(url, "q"), "problem", code, remedy=remedy)


@pytest.mark.parametrize("operation", ["DeleteMessage", "ChangeMessageVisibility"])
async def test_a_permission_that_is_missing_is_named(operation: str) -> None:
    async with sqs_that_answers("AccessDenied", "no identity-based policy allows it", operation) as url:
        said(await check(url, "q"), "problem", f"sqs:{operation} is not allowed", remedy=f"sqs:{operation}")


async def test_the_way_to_the_server_is_told_apart(
    moto: Moto, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await check(f"http://127.0.0.1:{free_port()}", unique)
    said(found, "problem", "connection refused", remedy="sources.bucket.endpoint_url")
    found = await check(moto.url.replace("http:", "https:"), unique)
    said(found, "problem", "no TLS connection", remedy="another port or no TLS")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    found = await check(moto.url, unique, region=None)
    said(found, "problem", "no region", remedy="sources.bucket.region")
    found = await check(moto.url, unique, access_key_id=None, secret_access_key=None, profile="nobody")
    said(found, "problem", "nobody", remedy="sources.bucket.profile")


async def test_a_redrive_policy_before_a_service_that_does_not_park_is_told(moto: Moto, unique: str) -> None:
    dead = await moto.create_queue(f"{unique}-dead")
    redrive = json.dumps({"deadLetterTargetArn": dead.arn, "maxReceiveCount": 10})
    await moto.create_queue(unique, VisibilityTimeout=60, RedrivePolicy=redrive)
    found = await check(moto.url, unique, Patience(attempt=30, unsettled=630, parks=False))
    said(found, "warning", "park: false", dead.arn, remedy="park: true")
