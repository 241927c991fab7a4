"""How fast events are parked, and come back: the store alone, in one process with its writer thread.

`python -m bench.parked rates DIRECTORY N` prints the durable events parked a second, and those read and
forgotten a second. `python -m bench.parked fill DIRECTORY N` leaves N events for a bridge to bring back.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from bench.records import PARTITIONS, key, numbered
from bridge.core.event import Event
from bridge.store import Store
from bridge.telemetry.metrics import Metrics

SERVICE = "plants"
_LANES = 4


def some(amount: int, first: int = 0) -> Iterator[Event]:
    """Give events as the Kafka source makes them of the bench's records."""
    now = datetime.now(UTC)
    for number in range(first, first + amount):
        partition, offset = str(number % PARTITIONS), str(number // PARTITIONS)
        yield Event(
            id=f"uploads/{partition}/{offset}@1700000000000",
            source="uploads",
            type="org.apache.kafka.record",
            subject=key(number),
            time=now,
            data=numbered(number),
            attributes={"topic": "uploads", "partition": partition, "offset": offset, "key": key(number)},
        )


async def park(store: Store, events: Iterable[Event], at_once: int = 500) -> int:
    """Park all of `events` as lanes do, by chunks of which each waits for the one before."""
    left = iter(events)

    async def lane() -> int:
        count = 0
        while chunk := list(islice(left, at_once)):
            await asyncio.gather(*(store.park(event, SERVICE) for event in chunk))
            count += len(chunk)
        return count

    return sum(await asyncio.gather(*(lane() for _ in range(_LANES))))


async def bring_back(store: Store, at_once: int = 500) -> tuple[int, float]:
    """Read and forget all that is parked; give how many they were, and the longest read in seconds."""
    count, longest = 0, 0.0
    while True:
        began = time.perf_counter()
        rows = await store.parked(SERVICE, without=(), limit=at_once)
        longest = max(longest, time.perf_counter() - began)
        if not rows:
            return count, longest
        for row in rows:
            store.forget(row.number)
        count += len(rows)


async def fill(state_dir: Path, amount: int) -> float:
    """Park so many events; give how many were durable a second."""
    events = list(some(amount))
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        began = time.perf_counter()
        await park(store, events)
        return amount / (time.perf_counter() - began)


async def rates(state_dir: Path, amount: int) -> tuple[float, float]:
    """Give the durable events parked a second, and those read and durably forgotten a second."""
    parking = await fill(state_dir, amount)
    began = time.perf_counter()
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        count, _ = await bring_back(store)
        assert count == amount
    return parking, amount / (time.perf_counter() - began)


if __name__ == "__main__":
    what, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "rates":
        print(*uvloop.run(rates(directory, count)))
    else:
        uvloop.run(fill(directory, count))
