"""How fast events are parked, and come back: for the tests, and for the bench."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from prometheus_client import CollectorRegistry

from bridge.core.event import Event
from bridge.store import Store
from bridge.telemetry.metrics import Metrics

SERVICE = "plants"
_DATA = os.urandom(1000)
_LANES = 4


def some(amount: int, first: int = 0) -> Iterator[Event]:
    """Give events of 1 KB, with ids as those of a Kafka topic with four partitions."""
    for number in range(first, first + amount):
        yield Event(
            id=f"uploads/{number % 4}/{number}@1700000000000",
            source="uploads",
            type="org.apache.kafka.record",
            subject="uploads",
            data=_DATA,
            attributes={"topic": "uploads", "partition": str(number % 4), "key": "a.nc"},
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


async def rates(state_dir: Path, amount: int) -> tuple[float, float]:
    """Give the durable events parked a second, and those read and forgotten a second."""
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        began = time.perf_counter()
        await park(store, some(amount))
        parking = amount / (time.perf_counter() - began)
    began = time.perf_counter()
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        count, _ = await bring_back(store)
        assert count == amount
    return parking, amount / (time.perf_counter() - began)
