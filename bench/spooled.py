"""How fast what a stream tells is spooled: the store alone, in one process with its writer thread.

`python -m bench.spooled DIRECTORY N` prints the occurrences that are durable a second.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from bench.table import SPOOLED_AT_ONCE
from bridge.core.ports import Spooled
from bridge.store import Store
from bridge.telemetry.metrics import Metrics

_DATA = os.urandom(300)


def occurrences(amount: int, first: int = 0) -> Iterator[Spooled]:
    """Give occurrences of 300 bytes, with keys as those of a dCache channel."""
    for number in range(first, first + amount):
        yield Spooled(key=f"KrkKGCOgTvm3QTQc8YyBWQ/{number}", data=_DATA)


async def spooling_rate(state_dir: Path, amount: int, at_once: int = SPOOLED_AT_ONCE) -> float:
    """Give the durable occurrences a second, in batches of which each waits for the one before."""
    batches = [(list(occurrences(at_once, first)), str(first)) for first in range(0, amount, at_once)]
    async with Store.open(state_dir, Metrics(CollectorRegistry())) as store:
        spool = store.spool("arrivals")
        began = time.perf_counter()
        for some, position in batches:
            await spool.append(some, position)
        rate = len(batches) * at_once / (time.perf_counter() - began)
        assert spool.waiting == len(batches) * at_once
    return rate


if __name__ == "__main__":
    print(uvloop.run(spooling_rate(Path(sys.argv[1]), int(sys.argv[2]))))
