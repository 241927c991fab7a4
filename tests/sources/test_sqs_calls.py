"""The bridge's own calls ask SQS what aiobotocore asks, and raise what it raises."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.exceptions import ClientError

from bridge.sources.sqs.calls import Calls
from bridge.sources.sqs.config import SqsConfig
from bridge.sources.sqs.connection import client_of, closing

REFUSAL = {"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "The specified queue does not exist."}


@pytest.mark.parametrize("path", ["", "/behind/a/proxy"])
async def test_a_call_is_the_one_that_the_client_makes(path: str) -> None:
    asked: list[tuple[str, dict[str, str], Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, dict(request.headers), await request.json()))
        code = {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"}
        return web.json_response(REFUSAL, status=400, headers=code)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    async with TestServer(app) as server:
        config = SqsConfig(
            type="sqs",
            queue="uploads",
            region="eu-west-1",
            endpoint_url=f"http://{server.host}:{server.port}{path}",
            access_key_id="key",
            secret_access_key="secret",
            session_token="token",
        )
        async with closing(client_of(config, "sqs", config.endpoint)) as client:
            with pytest.raises(ClientError) as theirs:
                await client.delete_message_batch(
                    QueueUrl="http://q/1/uploads", Entries=[{"Id": "0", "ReceiptHandle": "r"}]
                )
            with pytest.raises(ClientError) as ours:
                await Calls(client, asked[0][1]["User-Agent"]).call(
                    "DeleteMessageBatch",
                    QueueUrl="http://q/1/uploads",
                    Entries=[{"Id": "0", "ReceiptHandle": "r"}],
                )
    (their_path, their_headers, their_body), (our_path, our_headers, our_body) = asked
    assert (our_path, our_body) == (their_path, their_body)
    for name in ("X-Amz-Target", "Content-Type", "X-Amz-Security-Token", "User-Agent", "x-amzn-query-mode"):
        assert our_headers[name] == their_headers[name]
    assert our_headers["Authorization"].split(",")[0] == their_headers["Authorization"].split(",")[0]
    assert ours.value.response["Error"] == theirs.value.response["Error"]
    assert ours.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"


@pytest.mark.parametrize(
    ("region", "environment", "endpoint", "url"),
    [
        ("eu-west-1", {}, None, "https://sqs.eu-west-1.amazonaws.com/"),
        (
            "us-iso-east-1",
            {"AWS_USE_FIPS_ENDPOINT": "true"},
            None,
            "https://sqs-fips.us-iso-east-1.c2s.ic.gov/",
        ),
        (
            "us-iso-east-1",
            {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
            None,
            "https://sqs.us-iso-east-1.api.aws.ic.gov/",
        ),
        ("eu-west-1", {}, "http://sqs.example?x=1", "http://sqs.example/?x=1"),
    ],
)
async def test_a_call_goes_where_the_client_goes(
    region: str,
    environment: dict[str, str],
    endpoint: str | None,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    urls: list[str] = []

    async def send(request: Any) -> None:
        urls.append(request.url)
        raise ConnectionRefusedError

    config = SqsConfig(
        type="sqs", queue="uploads", region=region, access_key_id="key", secret_access_key="secret"
    )
    async with closing(client_of(config, "sqs", endpoint)) as client:
        monkeypatch.setattr(client._endpoint.http_session, "send", send)
        calls = Calls(client, "agent")
        for call in (client.receive_message, partial(calls.call, "ReceiveMessage")):
            with pytest.raises(ConnectionRefusedError):
                await call(QueueUrl="http://q/1/uploads")
    assert urls == [url, url]
