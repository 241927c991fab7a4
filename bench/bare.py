"""What the bridge is compared with: the same libraries, loop and number of workers, and nothing else.

- `python -m bench.bare URL post N` posts N bodies.
- `python -m bench.bare URL read BOOTSTRAP TOPIC GROUP SECONDS` posts what a consumer group reads, whose
  session lasts so long, and prints how long the broker kept it waiting for the group.
- `python -m bench.bare URL receive QUEUE_URL` posts what a queue holds and deletes it.

Each runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import uvloop
from aiobotocore.session import get_session
from aiokafka import AIOKafkaConsumer
from yarl import URL

from bench.records import numbered

WORKERS = 16
SESSION_SECONDS = 1
"""The broker holds a join back by a part of it."""
POLLERS = 2
"""Receives under way at once: the bridge's default."""
REGION, ACCESS_KEY_ID, SECRET_ACCESS_KEY = "eu-west-1", "bench", "bench"
_BATCH = 10
"""Messages of one receive or delete (SQS quotas)."""
_WAIT_SECONDS = 20
_GATHER_SECONDS = 0.1
_DELETERS = 8


@asynccontextmanager
async def _poster(url: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    where = URL(url) / "job" / "plants"
    headers = {"Authorization": f"Bearer {'f' * 64}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=WORKERS)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:

        async def post(data: bytes) -> None:
            async with session.post(where, data=data, headers=headers) as response:
                await response.read()

        yield post


async def post_bodies(url: str, count: int) -> None:
    """Post `count` bodies by so many workers as the bridge's lane has."""
    bodies = iter([numbered(number) for number in range(count)])
    async with _poster(url) as post:

        async def work() -> None:
            for body in bodies:
                await post(body)

        await asyncio.gather(*(work() for _ in range(WORKERS)))
        await asyncio.Event().wait()  # its memory and CPU time are read while it is there


def consumer_of(
    bootstrap: str, topic: str, group: str, session_seconds: int, **committing: Any
) -> AIOKafkaConsumer:
    """Make a consumer of a group that begins with the first record; `committing` says how it commits."""
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        session_timeout_ms=session_seconds * 1000,
        heartbeat_interval_ms=session_seconds * 300,
        **committing,
    )


async def post_records(url: str, bootstrap: str, topic: str, group: str, session_seconds: int) -> None:
    """Post what a group reads, until cancelled."""
    consumer = consumer_of(bootstrap, topic, group, session_seconds, auto_commit_interval_ms=1000)
    joins = _time_joins(consumer)
    records: asyncio.Queue[bytes] = asyncio.Queue(1000)
    await consumer.start()
    print(f"{sum(joins):.3f}", flush=True)
    async with _poster(url) as post:

        async def work() -> None:
            while True:
                await post(await records.get())

        async def read() -> None:
            while True:
                for batch in (await consumer.getmany(timeout_ms=1000, max_records=500)).values():
                    for record in batch:
                        await records.put(record.value)

        await asyncio.gather(read(), *(work() for _ in range(WORKERS)))


async def post_messages(url: str, queue: str) -> None:
    """Post what a queue holds and delete it, until cancelled."""
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(100)
    posted: asyncio.Queue[str] = asyncio.Queue()
    gathering = asyncio.Lock()
    client = get_session().create_client(
        "sqs",
        region_name=REGION,
        endpoint_url=f"http://{URL(queue).authority}",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    )
    async with _poster(url) as post, client as sqs:

        async def receive() -> None:
            while True:
                answer = await sqs.receive_message(
                    QueueUrl=queue,
                    MaxNumberOfMessages=_BATCH,
                    WaitTimeSeconds=_WAIT_SECONDS,
                    MessageSystemAttributeNames=["All"],
                    MessageAttributeNames=["All"],
                )
                for message in answer.get("Messages", ()):
                    await messages.put(message)

        async def work() -> None:
            while True:
                message = await messages.get()
                await post(message["Body"].encode())
                posted.put_nowait(message["ReceiptHandle"])

        async def delete() -> None:
            while True:
                async with gathering:
                    batch = [await posted.get()]
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_GATHER_SECONDS):
                            while len(batch) < _BATCH:
                                batch.append(await posted.get())
                await sqs.delete_message_batch(
                    QueueUrl=queue,
                    Entries=[{"Id": str(at), "ReceiptHandle": receipt} for at, receipt in enumerate(batch)],
                )

        await asyncio.gather(
            *(receive() for _ in range(POLLERS)),
            *(work() for _ in range(WORKERS)),
            *(delete() for _ in range(_DELETERS)),
        )


def _time_joins(consumer: Any) -> list[float]:
    """Give the list that will hold the seconds until the broker answered each JoinGroup."""
    joins: list[float] = []
    client = consumer._client  # noqa: SLF001 - nothing public tells
    send = client.send

    async def timed(node: Any, request: Any, **options: Any) -> Any:
        began = time.monotonic()
        answer = await send(node, request, **options)
        if "JoinGroup" in type(request).__name__:
            joins.append(time.monotonic() - began)
        return answer

    client.send = timed
    return joins


if __name__ == "__main__":
    if sys.argv[2] == "post":
        uvloop.run(post_bodies(sys.argv[1], int(sys.argv[3])))
    elif sys.argv[2] == "read":
        uvloop.run(post_records(sys.argv[1], *sys.argv[3:6], int(sys.argv[6])))
    else:
        uvloop.run(post_messages(sys.argv[1], sys.argv[3]))
