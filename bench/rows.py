"""What is measured: one method a kind of figure, each of which measures once; `measure` interleaves them."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from bench.bare import SESSION_SECONDS, WORKERS
from bench.processes import CONFIGURATION, WHEN, Cores, SinkClient, Watched, prompt_broker, sink, watched
from bench.records import PARTITIONS, create_topic, fill, steady
from bridge.sandbox.kafka import broker

_SOME = 200
"""Records that are enough to see that one goes through."""
_SLOW_SECONDS = 0.2
"""What the sink takes for an answer while a backlog must stay."""
_SETTLED_SECONDS = 2.0
"""Between the last event and a bridge that is taken for idle: the last commit is made within one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    repeats: int
    speed_turns: int
    """Many and short: the machine's speed changes by a half within seconds, and a ratio is of one turn."""
    events: int
    """Of a measurement of speed."""
    steady_seconds: float
    backlogs: tuple[int, int]
    """Small and big, in events, of the measurement of memory."""
    memory_seconds: float
    idle_seconds: float


FULL = Effort(
    repeats=3,
    speed_turns=11,
    events=8_000,
    steady_seconds=4.0,
    backlogs=(10_000, 300_000),
    memory_seconds=6.0,
    idle_seconds=10.0,
)
QUICK = Effort(
    repeats=1,
    speed_turns=1,
    events=2_000,
    steady_seconds=1.0,
    backlogs=(1_000, 5_000),
    memory_seconds=1.0,
    idle_seconds=1.0,
)


@dataclass(slots=True)
class Row:
    """One line of the table, with what each repetition gave."""

    name: str
    unit: str = ""
    digits: int = 0
    budget: str = ""
    holds: Callable[[float], bool] | None = None
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The figure that is told."""
        return statistics.median(self.figures)


class Table:
    """The rows in their order."""

    def __init__(self, effort: Effort) -> None:
        small, big = (f"{backlog:,}" for backlog in effort.backlogs)
        self.loop = Row("bare aiohttp loop", "POST/s")
        self.loop_cpu = Row("… CPU time a POST", "µs")
        self.consumer = Row("bare aiokafka → aiohttp loop", "events/s")
        self.plain = Row("Kafka → bridge → sink, no `when`", "events/s")
        self.plain_ratio = Row("… of the bare aiohttp loop", "", 2, "≥ 0.90, later", lambda it: it >= 0.9)
        self.plain_cpu = Row("… CPU time an event", "µs")
        self.cel = Row("Kafka → bridge → sink, CEL route", "events/s")
        self.cel_ratio = Row("… of the bare aiohttp loop", "", 2, "≥ 0.60", lambda it: it >= 0.6)
        self.cel_cpu = Row("… CPU time an event", "µs")
        self.rate = Row("load while latency is measured: half of the CEL route's", "events/s")
        self.p50 = Row("broker → sink p50, bridge", "ms", 2)
        self.p99 = Row("broker → sink p99, bridge", "ms", 2)
        self.bare_p50 = Row("broker → sink p50, bare aiokafka → aiohttp loop", "ms", 2)
        self.bare_p99 = Row("broker → sink p99, bare aiokafka → aiohttp loop", "ms", 2)
        self.added_p50 = Row("added p50: the bridge less the bare loop", "ms", 2)
        self.added_p99 = Row("added p99: the bridge less the bare loop", "ms", 2, "< 10", lambda it: it < 10)
        self.after_speed = Row(f"peak RSS after {effort.events:,} events at full speed", "MiB", 1)
        self.small = Row(f"peak RSS, backlog of {small}", "MiB", 1, "≤ 80", lambda it: it <= 80)
        self.small_steady = Row(f"steady RSS, backlog of {small}", "MiB", 1)
        self.big = Row(f"peak RSS, backlog of {big}", "MiB", 1, "≤ 80", lambda it: it <= 80)
        self.big_steady = Row(f"steady RSS, backlog of {big}", "MiB", 1)
        self.memory_ratio = Row(f"peak RSS, {big} to {small}", "", 2, "≤ 1.10", lambda it: it <= 1.1)
        self.cold = Row("cold start: process start → first POST", "s", 2)
        self.join = Row("… of which the broker holds back the join of the group", "s", 2)
        self.own = Row("… the rest", "s", 2, "< 1.5", lambda it: it < 1.5)
        self.idle = Row("idle CPU", "%", 2, "< 1", lambda it: it < 1)

    def rows(self) -> Iterable[Row]:
        """Give all rows in the order in which they are told."""
        return (row for row in vars(self).values() if isinstance(row, Row))


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it is measured. Every process that is measured gets a group of its own."""

    effort: Effort
    cores: Cores
    directory: Path
    bootstrap: str
    sink: SinkClient
    table: Table
    _numbers: count[int] = field(default_factory=count)

    async def bare_loop(self) -> tuple[float, float]:
        """Give the speed without Kafka and bridge."""
        await self.sink.begin()
        async with self._watched("bench.bare", self.sink.url, "post", str(self.effort.events)) as process:
            return await self._speed(process)

    async def bare_consumer(self, topic: str) -> tuple[float, float]:
        """Give the speed of the consumer that promises nothing."""
        await self.sink.begin()
        async with self._consumer(topic) as process:
            return await self._speed(process)

    async def bridge(self, topic: str, when: str) -> tuple[float, float]:
        """Give the speed of the bridge over a backlog."""
        await self.sink.begin()
        async with self._bridge(topic, when) as process:
            speed = await self._speed(process)
            self.table.after_speed.figures.append(process.memory()[1])
            return speed

    async def latency(self, rate: float, *, bare: bool) -> tuple[float, float]:
        """Give p50 and p99 in ms, from the broker's acknowledgement to the arrival at the sink."""
        topic = await self.topic(_SOME, partitions=1)
        await self.sink.begin()
        async with self._consumer(topic) if bare else self._bridge(topic, WHEN) as process:
            await process.during(self.sink.after(_SOME))
            await self.sink.begin(arrivals=True)
            seconds = self.effort.steady_seconds
            acknowledged = await asyncio.to_thread(steady, self.bootstrap, topic, rate, seconds)
            await process.during(self.sink.after(len(acknowledged)))
            arrived = await self.sink.arrivals()
        added = [(arrived[number] - at) / 1e6 for number, at in acknowledged.items()]
        percentiles = statistics.quantiles(added, n=100, method="inclusive")
        return percentiles[49], percentiles[98]

    async def memory(self, topic: str) -> tuple[float, float]:
        """Give peak and steady RSS in MiB while a backlog stays."""
        await self.sink.begin(delay=_SLOW_SECONDS)
        async with self._bridge(topic, WHEN) as process:
            await process.during(self.sink.after(1))
            await process.during(asyncio.sleep(self.effort.memory_seconds))
            steady_now, peak = process.memory()
            return peak, steady_now

    async def cold_start(self, topic: str) -> tuple[float, float]:
        """Give the seconds to the first POST, and those of them for which the broker held the group back.

        The latter is how long a bare consumer's JoinGroup is without an answer: the same, for the broker.
        """
        await self.sink.begin()
        async with self._bridge(topic, WHEN) as process:
            seen = await process.during(self.sink.after(1))
            cold = (seen["first"] - process.began) / 1e9
        async with self._consumer(topic) as process:
            assert process.process.stdout is not None
            join = float(await process.during(process.process.stdout.readline()))
        return cold, join

    async def idle(self, topic: str) -> float:
        """Give the CPU time in % of a bridge that is connected and has nothing to do."""
        await self.sink.begin()
        async with self._bridge(topic, WHEN) as process:
            await process.during(self.sink.after(_SOME))
            await process.during(asyncio.sleep(_SETTLED_SECONDS))
            before = process.cpu_seconds()
            await process.during(asyncio.sleep(self.effort.idle_seconds))
            return (process.cpu_seconds() - before) / self.effort.idle_seconds * 100

    async def topic(self, events: int, partitions: int = PARTITIONS) -> str:
        """Make a topic with so many events."""
        topic = f"events-{next(self._numbers)}"
        await asyncio.to_thread(create_topic, self.bootstrap, topic, partitions)
        await asyncio.to_thread(fill, self.bootstrap, topic, events, partitions)
        return topic

    async def _speed(self, process: Watched) -> tuple[float, float]:
        """Give events/s from the first to the last that arrive, and the CPU time of one in µs."""
        events = self.effort.events
        await process.during(self.sink.after(1))
        before = process.cpu_seconds()
        seen = await process.during(self.sink.after(events))
        used = process.cpu_seconds() - before
        return (events - 1) / ((seen["last"] - seen["first"]) / 1e9), used / events * 1e6

    def _watched(self, *arguments: str) -> AbstractAsyncContextManager[Watched]:
        return watched(self.cores, *arguments, log=self.directory / "log")

    def _consumer(self, topic: str) -> AbstractAsyncContextManager[Watched]:
        group = f"group-{next(self._numbers)}"
        return self._watched("bench.bare", self.sink.url, "read", self.bootstrap, topic, group)

    @asynccontextmanager
    async def _bridge(self, topic: str, when: str) -> AsyncIterator[Watched]:
        number = next(self._numbers)
        configuration = self.directory / f"{number}.yaml"
        configuration.write_text(
            CONFIGURATION.format(
                state=self.directory / f"state-{number}",
                sink=self.sink.url,
                workers=WORKERS,
                bootstrap=self.bootstrap,
                topic=topic,
                group=f"group-{number}",
                session=SESSION_SECONDS,
                when=when,
            ),
            encoding="utf-8",
        )
        async with self._watched("bridge", "run", "-c", str(configuration)) as process:
            yield process


async def measure(effort: Effort, cores: Cores, say: Callable[[str], None]) -> Table:
    """Measure everything `effort.repeats` times, the things that are compared in turns.

    Raises RuntimeError with the last log lines when something that is measured ends by itself.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        try:
            async with sink() as client, broker() as bootstrap:
                bench = Bench(effort, cores, directory, bootstrap, client, Table(effort))
                await _speed(bench, say)
                await _latency(bench, say)
                await _memory(bench, say)
                await _start_and_rest(bench, say)
                return bench.table
        except RuntimeError as error:
            log = directory / "log"
            last = log.read_text(encoding="utf-8").splitlines()[-20:] if log.exists() else []
            raise RuntimeError("\n".join([str(error), *last])) from error


async def _speed(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    backlog = await bench.topic(effort.events)
    for turn in range(effort.speed_turns):
        say(f"speed, {turn + 1} of {effort.speed_turns}")
        loop, loop_cpu = await bench.bare_loop()
        plain, plain_cpu = await bench.bridge(backlog, "")
        cel, cel_cpu = await bench.bridge(backlog, WHEN)
        consumer, _ = await bench.bare_consumer(backlog)
        table.loop.figures.append(loop)
        table.loop_cpu.figures.append(loop_cpu)
        table.consumer.figures.append(consumer)
        table.plain.figures.append(plain)
        table.plain_ratio.figures.append(plain / loop)
        table.plain_cpu.figures.append(plain_cpu)
        table.cel.figures.append(cel)
        table.cel_ratio.figures.append(cel / loop)
        table.cel_cpu.figures.append(cel_cpu)


async def _latency(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    rate = table.cel.median / 2
    table.rate.figures.append(rate)
    async with prompt_broker() as bootstrap:
        bench = replace(bench, bootstrap=bootstrap)
        for turn in range(effort.repeats):
            say(f"latency at {rate:,.0f} events/s, {turn + 1} of {effort.repeats}")
            for bare, rows in ((False, (table.p50, table.p99)), (True, (table.bare_p50, table.bare_p99))):
                for row, figure in zip(rows, await bench.latency(rate, bare=bare), strict=True):
                    row.figures.append(figure)
            table.added_p50.figures.append(table.p50.figures[-1] - table.bare_p50.figures[-1])
            table.added_p99.figures.append(table.p99.figures[-1] - table.bare_p99.figures[-1])


async def _memory(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    small, big = [await bench.topic(events) for events in effort.backlogs]
    for turn in range(effort.repeats):
        say(f"memory, {turn + 1} of {effort.repeats}")
        small_peak, small_steady = await bench.memory(small)
        big_peak, big_steady = await bench.memory(big)
        table.small.figures.append(small_peak)
        table.small_steady.figures.append(small_steady)
        table.big.figures.append(big_peak)
        table.big_steady.figures.append(big_steady)
        table.memory_ratio.figures.append(big_peak / small_peak)


async def _start_and_rest(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    few = await bench.topic(_SOME)
    for turn in range(effort.repeats):
        say(f"start and rest, {turn + 1} of {effort.repeats}")
        cold, join = await bench.cold_start(few)
        table.cold.figures.append(cold)
        table.join.figures.append(join)
        table.own.figures.append(cold - join)
        table.idle.figures.append(await bench.idle(few))
