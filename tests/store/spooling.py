"""How fast occurrences are spooled: for the tests, and for the bench."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from bridge.core.ports import Spooled
from bridge.store import Store
from bridge.telemetry.metrics import Metrics

_DATA = os.urandom(300)


def occurrences(amount: int, first: int = 0) -> Iterator[Spooled]:
    """Give occurrences of 300 bytes, with keys as those of a dCache channel."""
    for number in range(first, first + amount):
        yield Spooled(key=f"KrkKGCOgTvm3QTQc8YyBWQ/{number}", data=_DATA)


async def spooling_rate(state_dir: Path, amount: int, batch: int = 200) -> float:
    """Give the durable occurrences a second, in batches of which each waits for the one before."""
    batches = [(list(occurrences(batch, first)), str(first)) for first in range(0, amount, batch)]
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        spool = store.spool("arrivals")
        began = time.perf_counter()
        for some, position in batches:
            await spool.append(some, position)
        rate = len(batches) * batch / (time.perf_counter() - began)
        assert spool.waiting == len(batches) * batch
    return rate
