"""Where the time of an event goes: parts of the bridge by themselves, with as many events as go through all.

`python -m bench.pieces CONFIGURATION BOOTSTRAP TOPIC N` prints the CPU time of each in µs an event, user and
system: what aiokafka takes to read N records, what it takes to name the job and encode the payload, and what
the call takes to the service of the configuration.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaConsumer

from bench.bare import WORKERS
from bench.parked import SERVICE, some
from bridge.core.ports import Verdict
from bridge.destinations.oscar.client import OscarInvocation, OscarService
from bridge.destinations.oscar.cluster import OscarCluster
from bridge.settings.loading import load

_AT_ONCE = 32
"""Events that a lane prepares in one run."""


async def read(bootstrap: str, topic: str, amount: int) -> float:
    """Give what aiokafka takes to read a record."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        count, began = 0, time.process_time()
        while count < amount:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=500)).values():
                count += len(records)
        return (time.process_time() - began) / count * 1e6
    finally:
        await consumer.stop()


async def send(configuration: Path, amount: int) -> tuple[float, float]:
    """Give what naming and encoding takes, and the call."""
    settings = load(configuration, os.environ)
    async with OscarCluster("sink", settings.clusters["sink"]) as cluster:
        service = OscarService(SERVICE, settings.services[SERVICE], cluster, trusted_sources=frozenset())
        events = list(some(amount))
        await service.prepare(events[0]).attempt()  # has the token, and has connected
        began = time.process_time()
        invocations: list[OscarInvocation] = []
        for first in range(0, amount, _AT_ONCE):
            invocations += [service.prepare(event) for event in events[first : first + _AT_ONCE]]
        prepared = time.process_time()
        left = iter(invocations)
        await asyncio.gather(*(_work(left) for _ in range(WORKERS)))
        sent = time.process_time()
    return (prepared - began) / amount * 1e6, (sent - prepared) / amount * 1e6


async def _work(invocations: Iterator[OscarInvocation]) -> None:
    for invocation in invocations:
        answer = await invocation.attempt()
        assert answer.verdict is Verdict.ACCEPTED, answer


async def main(configuration: Path, bootstrap: str, topic: str, amount: int) -> None:
    """Measure all of them."""
    print(await read(bootstrap, topic, amount), *await send(configuration, amount))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
