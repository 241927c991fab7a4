"""What the journal costs an event, and how fast it is searched: alone, in one process with its thread.

`python -m bench.journal DIRECTORY N` prints the CPU time of a line in µs over N lines, its thread's included.
Each is of an event that is made, and its job named, just before. It prints the seconds, too, that a search
takes of a journal of 6.7 KB times N, which is `max_bytes` for 40,000, for a name that it has once, at its
begin.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry

from bench.records import key
from bridge.core.event import Event
from bridge.core.identity import invocation_name
from bridge.store import JournalConfig, JournalFiles
from bridge.store.history import Needle, read
from bridge.store.lines import encode
from bridge.store.segments import Segments
from bridge.telemetry.metrics import Metrics

_RUN = 64
"""Events between two turns of the loop."""
_TURNS = 10
"""Of each four measurements: with lines, twice without, and with them again."""
_WRITTEN_SECONDS = 0.2
"""Until all is written."""
_BYTES = 6_710
_AT_ONCE = 256
_TEXTS = 14
"""Of a line (`store.lines.encode`)."""


def event(number: int) -> tuple[Event, str]:
    """Give an event as Kafka's are, with the name of its job."""
    name = f"uploads/2/{number}/1764500000000"
    made = Event(
        id=name, source="uploads", type="kafka", data=b"", subject="uploads", attributes={"key": key(number)}
    )
    return made, invocation_name("uploads", name, "plants")


async def _cpu(numbers: Iterable[int], journal: JournalFiles | None) -> float:
    """Give the CPU time of events that come and, where there is a journal, are noted."""
    began = time.process_time()
    for number in numbers:
        made, job = event(number)
        if journal is not None:
            now = time.monotonic()
            journal.note("accepted", made, "plants", now, now - 0.002, job, 0)
        if not number % _RUN:
            await asyncio.sleep(0)
    await asyncio.sleep(_WRITTEN_SECONDS)
    return time.process_time() - began


async def cost(state_dir: Path, amount: int) -> float:
    """Give the CPU time of one line in µs."""
    gc.freeze()  # and the next, as the bridge does
    gc.set_threshold(10_000, 20, 20)
    metrics = Metrics(CollectorRegistry())
    found = []
    some = amount // (2 * _TURNS)
    async with JournalFiles.open(state_dir, metrics, JournalConfig()) as journal:
        assert isinstance(journal, JournalFiles)
        for _ in range(_TURNS):
            with_it, without, again_without, again = [
                await _cpu(range(some), wanted) for wanted in (journal, None, None, journal)
            ]
            found.append((with_it + again - without - again_without) / (2 * some))
    assert not metrics.journal_lines_lost.value
    return statistics.median(found) * 1e6


def search(state_dir: Path, size: int) -> float:
    """Fill a journal, and give the seconds in which the oldest of its lines is found."""
    segments = Segments(state_dir / "journal", 2 * size, 1e9, time.time)
    number, times = 0, f"\n{int(time.time() * 1000)}\t\t"
    while segments.bytes < size:
        texts: list[str] = []
        for each, job in map(event, range(_AT_ONCE)):
            noted = "accepted", each.source, each.id, "", each.attributes["key"], "plants", job
            texts += (part for text in noted for part in ("\t", text))
            texts[-_TEXTS] = times
        if not number:
            texts[5], texts[9], texts[13] = "first", "sought.nc", ""
        segments.write(encode(texts, {}))
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
