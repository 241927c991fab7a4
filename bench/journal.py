"""What the journal costs an event, and how fast it is searched: alone, in one process with its thread.

`python -m bench.journal DIRECTORY N` prints the CPU time of a line in µs, its thread's included, over N lines
that come at about the pace of Kafka's; and the seconds that a search of a journal of 6.7 KB times N takes,
which is `max_bytes` for 40,000, for a name that it has once, at its begin.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from bench.records import key
from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.core.journal import Journal
from bridge.store import JournalConfig, JournalFiles
from bridge.store.history import Needle, read
from bridge.store.journal import encode
from bridge.store.segments import Segments
from bridge.telemetry.metrics import Metrics

_RUN, _PAUSE = 64, 0.005
"""Events that come at once, and the seconds before the next."""
_BYTES = 6_710
_AT_ONCE = 256


def events(amount: int) -> Iterator[tuple[Event, str]]:
    """Give events as Kafka's are, with the names of their jobs."""
    for number in range(amount):
        name, job_key = f"uploads/2/{number}/1764500000000", key(number)
        event = Event(
            id=name, source="uploads", type="kafka", data=b"", subject="uploads", attributes={"key": job_key}
        )
        yield event, invocation_name("uploads", name, "plants")


async def _cpu(given: Sequence[tuple[Event, str]], journal: Journal | None) -> float:
    """Give the CPU time of so many events that come and, where there is a journal, are noted."""
    began = time.process_time()
    for first in range(0, len(given), _RUN):
        now = time.monotonic()
        some = given[first : first + _RUN]
        for event, job in some:  # as the attempt just before has done: they are in the processor's caches
            assert event.id
            assert event.attributes["key"]
            assert job
        if journal is not None:
            for event, job in some:
                journal.note("accepted", event, "plants", now, now - 0.002, job, 0)
        await asyncio.sleep(_PAUSE)
    if journal is not None:
        await asyncio.sleep(0.3)  # until all is written
    return time.process_time() - began


async def cost(state_dir: Path, amount: int) -> float:
    """Give the CPU time of one line in µs."""
    given = list(events(amount))
    gc.freeze()  # and the next, as the bridge does
    gc.set_threshold(10_000, 20, 20)
    metrics = Metrics(CollectorRegistry())
    async with JournalFiles.open(state_dir, metrics, JournalConfig()) as journal:
        without, with_it = await _cpu(given, None), await _cpu(given, journal)
    assert not metrics.journal_lines_lost.value
    return (with_it - without) / amount * 1e6


def search(state_dir: Path, size: int) -> float:
    """Fill a journal, and give the seconds in which the oldest of its lines is found."""
    segments = Segments(state_dir / "journal", 2 * size, 1e9, time.time)
    number = 0
    while segments.bytes < size:
        some = [
            (0.0, 0.0, ("accepted", each.source, each.id, "", each.attributes["key"], "plants", job), None)
            for each, job in events(_AT_ONCE)
        ]
        if not number:
            some[0] = 0.0, 0.0, ("accepted", "uploads", "first", "", "sought.nc", "plants", ""), None
        segments.write(encode(some, time.time()))
        number += _AT_ONCE
    segments.close()
    began = time.perf_counter()
    found = read(state_dir, Needle.of("sought.nc"))
    seconds = time.perf_counter() - began
    assert [line.id for line in found.lines] == ["first"]
    return seconds


def main() -> None:
    """Measure both, in directories of their own."""
    state_dir, amount = Path(sys.argv[1]), int(sys.argv[2])
    for name in ("cost", "search"):
        (state_dir / name / "journal").mkdir(parents=True)
    print(uvloop.run(cost(state_dir / "cost", amount)), search(state_dir / "search", amount * _BYTES))


if __name__ == "__main__":
    main()
