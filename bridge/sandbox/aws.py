"""S3 and SQS on one loopback port (moto, from PyPI), with a bucket that tells a queue of its new objects."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiobotocore.session import get_session
from botocore.config import Config

from bridge.sandbox.servers import free_port, running

REGION = "eu-west-1"
ACCESS_KEY_ID = "sandbox"
SECRET_ACCESS_KEY = "sandbox"  # noqa: S105 - the sandbox's own, told to whoever asks
BUCKET = "uploads"
QUEUE = "uploads-events"
MOTO = "import sys; sys.setswitchinterval(10); from moto.server import main; main(sys.argv[1:])"
"""What starts the server. moto's queues have no locks (moto/sqs/models.py: `SQSBackend.receive_message`,
`Queue.delete_message`): two receives at once both get a message, whose group then waits for ever once it is
deleted, and a send beside a delete is lost. SQS does neither. A thread that keeps Python's lock until it
waits for something runs through them alone.
"""
_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Aws:
    """The server's address, and what a person does with a bucket."""

    url: str

    async def put(self, key: str, body: bytes) -> None:
        """Put an object into the bucket."""
        async with self._client("s3") as s3:
            await s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    async def set_up(self) -> None:
        """Make the bucket and the queue, and let the one notify the other of every new object."""
        async with self._client("sqs") as sqs, self._client("s3") as s3:
            queue = (await sqs.create_queue(QueueName=QUEUE))["QueueUrl"]
            told = await sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
            await s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
            notify = {"QueueArn": told["Attributes"]["QueueArn"], "Events": ["s3:ObjectCreated:*"]}
            await s3.put_bucket_notification_configuration(
                Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": [notify]}
            )

    def _client(self, service: str) -> Any:
        return get_session().create_client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )


@asynccontextmanager
async def aws() -> AsyncIterator[Aws]:
    """Run the server while inside, bucket and queue made. Raises RuntimeError when it can't be started."""
    port = free_port()
    command = [sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)]
    async with running(command, port, {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}, _START_SECONDS):
        server = Aws(f"http://127.0.0.1:{port}")
        await server.set_up()
        yield server
