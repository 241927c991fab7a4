"""The floor: what Python costs that keeps the bridge's promises about Kafka, and does nothing else.

aiokafka reads, a bounded queue, one POST an event by a client as lean as can be, and a commit of what was
accepted without a gap before it. There is no configuration, route, identity, payload, metric or journal in
it, and no second try: an answer that is not 201 ends it, and its successor begins at the last commit.

`python -m bench.floor URL BOOTSTRAP TOPIC GROUP SECONDS` runs until it is killed; its session lasts so long.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop
from aiokafka import TopicPartition
from yarl import URL

from bench.bare import WORKERS, consumer_of

_QUEUED = 1000
_COMMIT_SECONDS = 1.0
_ANSWER_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class _Record:
    offset: int
    value: bytes
    accepted: bool = False


class _Connection(asyncio.Protocol):
    """One connection, with one POST at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._answer is not None:
            self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("no answer came"))

    async def post(self, head: bytes, body: bytes) -> int:
        """Give the status of the answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._since = time.monotonic()
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        status = await self._answer
        self._answer = None
        return status

    def sweep(self, now: float) -> None:
        """Give up what has waited for too long."""
        if self._answer is not None and now - self._since > _ANSWER_SECONDS and self._transport is not None:
            self._transport.abort()


async def run(url: str, bootstrap: str, topic: str, group: str, session_seconds: int) -> None:
    """Post what a group reads, and commit it, until cancelled."""
    consumer = consumer_of(bootstrap, topic, group, session_seconds, enable_auto_commit=False)
    queue: asyncio.Queue[_Record] = asyncio.Queue(_QUEUED)
    unsettled: dict[TopicPartition, deque[_Record]] = {}
    where = URL(url)
    assert where.host is not None
    assert where.port is not None
    head = (
        f"POST /job/plants HTTP/1.1\r\nHost: {where.authority}\r\nAuthorization: Bearer {'f' * 64}\r\n"
        "Content-Type: application/json\r\nContent-Length: "
    ).encode()
    connections = [
        (await asyncio.get_running_loop().create_connection(_Connection, where.host, where.port))[1]
        for _ in range(WORKERS)
    ]

    async def read() -> None:
        while True:
            for partition, records in (await consumer.getmany(timeout_ms=1000, max_records=500)).items():
                waiting = unsettled.setdefault(partition, deque())
                for record in records:
                    item = _Record(record.offset, record.value)
                    waiting.append(item)
                    await queue.put(item)

    async def work(connection: _Connection) -> None:
        while True:
            record = await queue.get()
            status = await connection.post(head, record.value)
            if status != 201:
                raise RuntimeError(f"the sink answered {status}")
            record.accepted = True

    async def commit() -> None:
        while True:
            await asyncio.sleep(_COMMIT_SECONDS)
            if positions := _settled(unsettled):
                await consumer.commit(positions)
            now = time.monotonic()
            for connection in connections:
                connection.sweep(now)

    await consumer.start()
    async with asyncio.TaskGroup() as group_of_tasks:
        group_of_tasks.create_task(read())
        group_of_tasks.create_task(commit())
        for connection in connections:
            group_of_tasks.create_task(work(connection))


def _settled(unsettled: Mapping[TopicPartition, deque[_Record]]) -> dict[TopicPartition, int]:
    """Give where each partition's next record is that is not accepted, and forget those before it."""
    positions = {}
    for partition, waiting in unsettled.items():
        while waiting and waiting[0].accepted:
            positions[partition] = waiting.popleft().offset + 1
    return positions


if __name__ == "__main__":
    uvloop.run(run(*sys.argv[1:5], int(sys.argv[5])))
