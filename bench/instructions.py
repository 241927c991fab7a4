"""How many instructions an event takes: CPU time moves by a third within an hour, instructions do not.

callgrind counts those of user space, and nothing of the kernel. What is measured starts without being
counted; the sink keeps answers back while the counting is turned on and read, so that it is of a known number
of POSTs. A program is some 50 times slower meanwhile, so what happens by the clock (heartbeats, commits)
would count 50 times too often: what it takes while nothing is sent is measured as well, and taken off.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.bare import WORKERS
from bench.processes import WHEN, Cores, Watched, watched
from bench.rows import started
from bench.runs import ONE_FAILS_IN, Bench, Speed, failures
from bench.table import QUICK

_COUNTED = 2000
"""POSTs."""
_WARM = 500
"""POSTs before the first that counts: pools are full by then, and what is read ahead is."""
_EFFORT = replace(QUICK, events=4_000, messages=4_000, parked_back=4_000)
"""More than what counts and what is read ahead."""
_SETTLED_SECONDS = 2.0
_IDLE_SECONDS = 10.0
_SESSION_SECONDS = 20
"""So slow a member of a group takes long to say that it is there."""
_ASK_SECONDS = 60.0
_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)


class Counting(Bench):
    """Runs everything below callgrind: what `Speed` gives as CPU time is instructions."""

    def _watched(self, *command: str) -> AbstractAsyncContextManager[Watched]:
        valgrind = ("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no")
        files = f"--callgrind-out-file={self.directory}/callgrind.%p"
        return watched(self.cores, *valgrind, files, *command, log=self.directory / "log")

    async def _speed(
        self, process: Watched, events: int, *, of: int = 0, fails: bool = False, deletes: bool = False
    ) -> Speed:
        """Count what `_COUNTED` POSTs take, after the first `_WARM`."""
        sink = self.sink
        await process.during(sink.after(_WARM))
        before = await process.during(sink.hold(WORKERS))
        await self._ask(process, "instrumentation", "on")
        began = time.monotonic()
        await sink.release()
        await process.during(sink.after(_WARM + _COUNTED))
        after = await process.during(sink.hold(WORKERS))
        seconds = time.monotonic() - began
        counted = await self._dumped(process, 1)
        await self._ask(process, "instrumentation", "off")
        await sink.release()
        there = of or events
        await process.during(sink.after(there + (failures(there) if fails else 0)))
        await process.during(self.queue.after(there if deletes else 0))
        await process.during(asyncio.sleep(_SETTLED_SECONDS))
        await self._ask(process, "instrumentation", "on")
        began = time.monotonic()
        await process.during(asyncio.sleep(_IDLE_SECONDS))
        idle = await self._dumped(process, 2) / (time.monotonic() - began)
        posts = after - before
        accepted = posts - (posts // ONE_FAILS_IN if fails else 0)
        return Speed(rate=0.0, cpu=(counted - idle * seconds) / accepted, peak=0.0, sink=0.0)

    async def _dumped(self, process: Watched, number: int) -> int:
        """Give the instructions since the last dump, which was the one before `number`."""
        await self._ask(process, "dump")
        found = _TOTAL.search(_text(self.directory / f"callgrind.{process.process.pid}.{number}"))
        assert found is not None
        return int(found[1])

    async def _ask(self, process: Watched, *what: str) -> None:
        asking = await asyncio.create_subprocess_exec(
            "vgdb", f"--pid={process.process.pid}", *what, stdout=DEVNULL, stderr=DEVNULL
        )
        async with asyncio.timeout(_ASK_SECONDS):
            if await asking.wait():
                raise RuntimeError(f"callgrind did not take `{' '.join(what)}`")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


async def _bridge(bench: Bench, when: str = "") -> float:
    return (await bench.bridge(await bench.topic(bench.effort.backlog), when)).cpu


async def _loop(bench: Bench) -> float:
    return (await bench.bare_loop()).cpu


async def _floor(bench: Bench) -> float:
    return (await bench.floor(await bench.topic(bench.effort.backlog))).cpu


async def _failing(bench: Bench) -> float:
    """Give what one failed attempt adds."""
    topic = await bench.topic(bench.effort.backlog)
    failing, accepted = await bench.failing(topic), await bench.bridge(topic, "")
    return (failing.cpu - accepted.cpu) * bench.effort.events / failures(bench.effort.events)


async def _sqs(bench: Bench, *, notifications: bool = False) -> float:
    return (await bench.sqs(notifications=notifications)).cpu


async def _back(bench: Bench) -> float:
    return (await bench.back(await bench.topic(0))).cpu


COUNTED: Mapping[str, Callable[[Bench], Awaitable[float]]] = {
    "loop": _loop,
    "floor": _floor,
    "plain": _bridge,
    "cel": partial(_bridge, when=WHEN),
    "failing": _failing,
    "sqs": _sqs,
    "notifications": partial(_sqs, notifications=True),
    "back": _back,
}
"""What is counted, by name."""


async def count(
    names: Collection[str], cores: Cores, python: Path, say: Callable[[str], None]
) -> Mapping[str, float]:
    """Count what `names` (of COUNTED) take in `python`.

    Raises RuntimeError as `rows.started` does, and where there is no valgrind.
    """
    absent = [name for name in ("valgrind", "vgdb") if shutil.which(name) is None]
    if absent:
        raise RuntimeError(f"{' and '.join(absent)} not found: the Debian package valgrind has them")
    os.environ["PYTHONHASHSEED"] = "0"  # or every run has sets and dictionaries of its own
    counted = {}
    async with started(_EFFORT, cores, python, Counting) as started_bench:
        bench = replace(started_bench, session_seconds=_SESSION_SECONDS)
        for name in names:
            say(f"instructions, {name}")
            counted[name] = await COUNTED[name](bench)
    return counted
