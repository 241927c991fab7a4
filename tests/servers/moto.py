"""A real server of SQS, S3, SNS and EventBridge (moto) on a free loopback port, in memory."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any
from urllib.request import urlopen

import boto3  # type: ignore[import-untyped] # it has no stubs
from botocore.config import Config

from bridge.sandbox.aws import MOTO
from bridge.sandbox.servers import free_port

REGION = "eu-west-1"
ACCOUNT = "123456789012"
ACCESS_KEY_ID = "AKIAIOSFODNN7EXAMPLE"
SECRET_ACCESS_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
_START_SECONDS = 60.0


class Moto:
    """One server process. It serves some 60 messages a second.

    A receive whose connection is gone goes on in it to the end of its long poll, and takes messages that
    nobody gets: give sources under test a short `wait_seconds`.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: dict[str, Any] = {}

    def __enter__(self) -> Moto:
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                urlopen(f"{self.url}/moto-api/", timeout=5).close()  # noqa: S310 - our own server
                return self
            except OSError:
                assert self._process.poll() is None, "moto did not start"
                assert time.monotonic() < deadline, "moto does not answer"
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def client(self, service: str) -> Any:
        """Give a boto3 client of one service."""
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                endpoint_url=self.url,
                region_name=REGION,
                aws_access_key_id=ACCESS_KEY_ID,
                aws_secret_access_key=SECRET_ACCESS_KEY,
                config=Config(s3={"addressing_style": "path"}),
            )
        return self._clients[service]

    async def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """Make one call without holding up the event loop."""
        function: Callable[..., dict[str, Any]] = getattr(self.client(service), operation)
        return await asyncio.to_thread(function, **parameters)

    async def create_queue(self, name: str, **attributes: Any) -> MotoQueue:
        """Make a queue; `attributes` as SQS names them."""
        if name.endswith(".fifo"):
            attributes |= {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
        made = await self.call(
            "sqs", "create_queue", QueueName=name, Attributes={k: str(v) for k, v in attributes.items()}
        )
        return MotoQueue(self, name, made["QueueUrl"])


class MotoQueue:
    """One queue, seen by somebody else than the bridge."""

    def __init__(self, moto: Moto, name: str, url: str) -> None:
        self.moto = moto
        self.name = name
        self.url = url
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"

    async def send(
        self, *bodies: str | Mapping[str, Any], group: str | None = None, **more: Any
    ) -> list[str]:
        """Send messages one after the other; gives their MessageIds."""
        ids = []
        for body in bodies:
            told = body if isinstance(body, str) else json.dumps(body)
            grouped = {} if group is None else {"MessageGroupId": group}
            sent = await self.moto.call(
                "sqs", "send_message", QueueUrl=self.url, MessageBody=told, **grouped, **more
            )
            ids.append(sent["MessageId"])
        return ids

    async def receive(self, count: int = 10, *, wait: int = 0, visibility: int = 30) -> list[dict[str, Any]]:
        answer = await self.moto.call(
            "sqs",
            "receive_message",
            QueueUrl=self.url,
            MaxNumberOfMessages=count,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            MessageSystemAttributeNames=["All"],
        )
        return list(answer.get("Messages", ()))

    async def counts(self) -> tuple[int, int]:
        """Give how many messages are visible, and how many are in somebody's hands."""
        answer = await self.moto.call(
            "sqs", "get_queue_attributes", QueueUrl=self.url, AttributeNames=["All"]
        )
        told = answer["Attributes"]
        return int(told["ApproximateNumberOfMessages"]), int(told["ApproximateNumberOfMessagesNotVisible"])

    async def is_empty(self) -> bool:
        return await self.counts() == (0, 0)

    async def purge(self) -> None:
        await self.moto.call("sqs", "purge_queue", QueueUrl=self.url)
