"""What is measured: one method a kind of figure, each of which measures once; `measure` interleaves them."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

from bench.bare import WORKERS
from bench.processes import (
    CONFIGURATION,
    WHEN,
    Cores,
    QueueClient,
    SinkClient,
    Watched,
    kafka_source,
    prompt_broker,
    queue,
    route,
    service,
    sink,
    sqs_source,
    watched,
)
from bench.records import PARTITIONS, create_topic, fill, steady
from bench.rucio import Session, readings
from bench.table import Effort, Table
from bridge.sandbox.kafka import broker

_SOME = 200
"""Records that are enough to see that one goes through."""
_SLOW_SECONDS = 0.2
"""What the sink takes for an answer while a backlog must stay."""
_SETTLED_SECONDS = 2.0
"""Between the last event and a bridge that is taken for idle: the last commit is made within one."""
_ONE_FAILS_IN = 4
"""Of the attempts: so few that the gate stays open, as five failures without an acceptance would shut it."""
_PACE = 1000
"""Attempts a second, far below the most."""
_PLACES = 1000
"""The most that `concurrency` allows."""
_WORK_SECONDS = 0.02
"""What the sink takes for an answer while services are compared: two of them leave the processor idle."""
_VISIBILITY_SECONDS = 30
"""SQS's default."""


class Speed(NamedTuple):
    """What a measurement of speed gives."""

    rate: float
    """Events a second, from the first to the last that arrive at the sink."""
    cpu: float
    """CPU time of one, in µs."""
    peak: float
    """The most resident memory by then, in MiB."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it is measured. Every process that is measured gets a group of its own."""

    effort: Effort
    cores: Cores
    directory: Path
    bootstrap: str
    sink: SinkClient
    queue: QueueClient
    table: Table
    _numbers: count[int] = field(default_factory=count)

    async def bare_loop(self) -> Speed:
        """Give the speed without Kafka and bridge."""
        await self.sink.begin()
        async with self._watched("bench.bare", self.sink.url, "post", str(self.effort.events)) as process:
            return await self._speed(process, self.effort.events)

    async def bare_consumer(self, topic: str) -> Speed:
        """Give the speed of the consumer that promises nothing."""
        await self.sink.begin()
        async with self._consumer(topic) as process:
            return await self._speed(process, self.effort.events)

    async def bridge(self, topic: str, when: str) -> Speed:
        """Give the speed of the bridge over a backlog."""
        await self.sink.begin()
        async with self._bridge(self._topic_source(topic), when) as process:
            return await self._speed(process, self.effort.events)

    async def failing(self, topic: str) -> Speed:
        """Give the speed of the bridge over a backlog of which one attempt in `_ONE_FAILS_IN` fails."""
        await self.sink.begin(one_fails_in=_ONE_FAILS_IN)
        async with self._bridge(self._topic_source(topic), "") as process:
            await process.during(self.sink.after(1))
            return await self._speed(process, self.effort.events, failed=self.failures)

    @property
    def failures(self) -> int:
        """Attempts that fail by the time that a backlog is through."""
        return (self.effort.events - 1) // (_ONE_FAILS_IN - 1)

    async def paced(self, topic: str, workers: int) -> float:
        """Give the CPU time of an event in µs, with a rate and so many places of which few are used."""
        await self.sink.begin()
        plants = service("plants", workers, f"{_PACE}/s")
        async with self._bridge(self._topic_source(topic), "", services=[plants]) as process:
            return (await self._speed(process, self.effort.paced)).cpu

    async def beside(self, topic: str, others: float | None) -> float:
        """Give the events a second of a service beside one that takes `others` seconds, None for alone."""
        await self.sink.begin(delay=_WORK_SECONDS, others=others or 0.0)
        keys = ["plants"] if others is None else ["plants", "flood"]
        services = [service(key, WORKERS) for key in keys]
        async with self._bridge(self._topic_source(topic), "", services=services, keys=keys) as process:
            return (await self._speed(process, self.effort.beside)).rate

    async def bare_receiver(self) -> Speed:
        """Give the speed of the plainest loop over a queue: it deletes, and keeps nothing invisible."""
        await self._fill_queue()
        async with self._watched("bench.bare", self.sink.url, "receive", self.queue.url) as process:
            return await self._speed(process, self.effort.messages, deleted=self.effort.messages)

    async def sqs(self) -> Speed:
        """Give the speed of the bridge over a queue."""
        await self._fill_queue()
        async with self._bridge(sqs_source(self.queue.url), "") as process:
            return await self._speed(process, self.effort.messages, deleted=self.effort.messages)

    async def rucio(self, reading: Session) -> Speed:
        """Give the speed of the bridge over a queue of its own, of a broker that Rucio sends to."""
        queue = f"rucio-{next(self._numbers)}"
        await reading.fill(queue, self.effort.rucio)
        await self.sink.begin()
        async with self._bridge(reading.source(queue), "") as process:
            return await self._speed(process, self.effort.rucio)

    async def store(self) -> tuple[float, float]:
        """Give the events that a store parks a second, and those that it reads and forgets a second."""
        parked, returned = await self._store_alone("bench.parked", "rates")
        return parked, returned

    async def spooled(self) -> float:
        """Give the occurrences that a store spools a second."""
        (rate,) = await self._store_alone("bench.spooled")
        return rate

    async def journal(self) -> tuple[float, float]:
        """Give the CPU time of a journal's line in µs, and the seconds of a search."""
        cpu, seconds = await self._store_alone("bench.journal")
        return cpu, seconds

    async def back(self, empty: str) -> Speed:
        """Give the speed at which a bridge that starts empties its store; no event is in its topic."""
        state = self.directory / f"store-{next(self._numbers)}"
        async with self._watched("bench.parked", "fill", str(state), str(self.effort.parked_back)) as process:
            assert process.process.stdout is not None
            await process.during(process.process.stdout.read())
        await self.sink.begin()
        async with self._bridge(self._topic_source(empty), "", state) as process:
            return await self._speed(process, self.effort.parked_back)

    async def latency(self, rate: float, *, bare: bool) -> tuple[float, float]:
        """Give p50 and p99 in ms, from the broker's acknowledgement to the arrival at the sink."""
        topic = await self.topic(_SOME, partitions=1)
        await self.sink.begin()
        async with (
            self._consumer(topic) if bare else self._bridge(self._topic_source(topic), WHEN) as process
        ):
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
        async with self._bridge(self._topic_source(topic), WHEN) as process:
            await process.during(self.sink.after(1))
            await process.during(asyncio.sleep(self.effort.memory_seconds))
            steady_now, peak = process.memory()
            return peak, steady_now

    async def cold_start(self, topic: str) -> tuple[float, float]:
        """Give the seconds to the first POST, and those of them for which the broker held the group back.

        The latter is how long a bare consumer's JoinGroup is without an answer: the same, for the broker.
        """
        await self.sink.begin()
        async with self._bridge(self._topic_source(topic), WHEN) as process:
            seen = await process.during(self.sink.after(1))
            cold = (seen["first"] - process.began) / 1e9
        async with self._consumer(topic) as process:
            assert process.process.stdout is not None
            join = float(await process.during(process.process.stdout.readline()))
        return cold, join

    async def idle(self, topic: str) -> float:
        """Give the CPU time in % of a bridge that is connected and has nothing to do."""
        await self.sink.begin()
        async with self._bridge(self._topic_source(topic), WHEN) as process:
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

    async def _fill_queue(self) -> None:
        await self.sink.begin()
        await self.queue.begin(self.effort.messages, _VISIBILITY_SECONDS)

    async def _speed(self, process: Watched, events: int, *, failed: int = 0, deleted: int = 0) -> Speed:
        """Watch so many events accepted, after so many failed attempts.

        CPU time counts until so many messages are deleted, too.
        """
        await process.during(self.sink.after(1))
        before = process.cpu_seconds()
        seen = await process.during(self.sink.after(events + failed))
        await process.during(self.queue.after(deleted))
        used = process.cpu_seconds() - before
        rate = (events - 1) / ((seen["last"] - seen["first"]) / 1e9)
        return Speed(rate, used / events * 1e6, process.memory()[1])

    async def _store_alone(self, *what: str) -> list[float]:
        """Give the figures that a process prints which has a store, and nothing else."""
        state = str(self.directory / f"store-{next(self._numbers)}")
        async with self._watched(*what, state, str(self.effort.parked)) as process:
            assert process.process.stdout is not None
            line = await process.during(process.process.stdout.readline())
        return [float(figure) for figure in line.split()]

    def _watched(self, *arguments: str) -> AbstractAsyncContextManager[Watched]:
        return watched(self.cores, *arguments, log=self.directory / "log")

    def _consumer(self, topic: str) -> AbstractAsyncContextManager[Watched]:
        group = f"group-{next(self._numbers)}"
        return self._watched("bench.bare", self.sink.url, "read", self.bootstrap, topic, group)

    def _topic_source(self, topic: str) -> str:
        return kafka_source(self.bootstrap, topic, f"group-{next(self._numbers)}")

    @asynccontextmanager
    async def _bridge(
        self,
        source: str,
        when: str,
        state: Path | None = None,
        *,
        services: Collection[str] = (service("plants", WORKERS),),
        keys: Collection[str] = ("plants",),
    ) -> AsyncIterator[Watched]:
        number = next(self._numbers)
        configuration = self.directory / f"{number}.yaml"
        configuration.write_text(
            CONFIGURATION.format(
                state=state or self.directory / f"state-{number}",
                sink=self.sink.url,
                services="\n".join(services),
                source=source,
                routes="\n".join(route(key, when) for key in keys),
            ),
            encoding="utf-8",
        )
        async with self._watched("bridge", "run", "-c", str(configuration)) as process:
            yield process


async def measure(effort: Effort, cores: Cores, parts: Collection[str], say: Callable[[str], None]) -> Table:
    """Measure the `parts` (of PARTS), each several times, the things that are compared in turns.

    Raises RuntimeError with the last log lines when something that is measured ends by itself.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        try:
            async with sink() as asked, queue() as messages, broker() as bootstrap:
                bench = Bench(effort, cores, directory, bootstrap, asked, messages, Table(effort))
                for part, measured in PARTS.items():
                    if part in parts:
                        await measured(bench, say)
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
        loops = [await bench.bare_loop()]
        plain = await bench.bridge(backlog, "")
        loops.append(await bench.bare_loop())
        cel = await bench.bridge(backlog, WHEN)
        loops.append(await bench.bare_loop())
        consumer = await bench.bare_consumer(backlog)
        table.loop.figures += [loop.rate for loop in loops]
        table.loop_cpu.figures += [loop.cpu for loop in loops]
        table.consumer.figures.append(consumer.rate)
        table.plain.figures.append(plain.rate)
        table.plain_ratio.figures.append(plain.rate / statistics.fmean(loop.rate for loop in loops[:2]))
        table.plain_cpu.figures.append(plain.cpu)
        table.cel.figures.append(cel.rate)
        table.cel_ratio.figures.append(cel.rate / statistics.fmean(loop.rate for loop in loops[1:]))
        table.cel_cpu.figures.append(cel.cpu)
        table.after_speed.figures += [plain.peak, cel.peak]


async def _latency(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    if not table.cel.figures:
        table.cel.figures.append((await bench.bridge(await bench.topic(effort.events), WHEN)).rate)
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


async def _sqs(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    for turn in range(effort.turns):
        say(f"sqs, {turn + 1} of {effort.turns}")
        receiver = await bench.bare_receiver()
        sqs = await bench.sqs()
        table.receiver.figures.append(receiver.rate)
        table.receiver_cpu.figures.append(receiver.cpu)
        table.sqs.figures.append(sqs.rate)
        table.sqs_ratio.figures.append(sqs.rate / receiver.rate)
        table.sqs_cpu.figures.append(sqs.cpu)


async def _rucio(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    rows = {
        "RabbitMQ (AMQP)": (table.rabbitmq_amqp, table.rabbitmq_amqp_cpu),
        "RabbitMQ (STOMP)": (table.rabbitmq_stomp, table.rabbitmq_stomp_cpu),
        "ActiveMQ (STOMP)": (table.activemq_stomp, table.activemq_stomp_cpu),
    }
    with readings(say) as found:
        for turn in range(effort.repeats):
            say(f"rucio, {turn + 1} of {effort.repeats}")
            for reading in found:
                rate, cpu = rows[reading.name]
                speed = await bench.rucio(reading)
                rate.figures.append(speed.rate)
                cpu.figures.append(speed.cpu)


async def _store(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    backlog, empty = await bench.topic(effort.events), await bench.topic(0)
    for turn in range(effort.turns):
        say(f"store, {turn + 1} of {effort.turns}")
        parked, returned = await bench.store()
        spooled = await bench.spooled()
        journal_cpu, journal_search = await bench.journal()
        before = await bench.bridge(backlog, WHEN)
        back = await bench.back(empty)
        after = await bench.bridge(backlog, WHEN)
        table.parked.figures.append(parked)
        table.returned.figures.append(returned)
        table.spooled.figures.append(spooled)
        table.journal_cpu.figures.append(journal_cpu)
        table.journal_search.figures.append(journal_search)
        table.back.figures.append(back.rate)
        table.back_ratio.figures.append(back.rate / statistics.fmean((before.rate, after.rate)))
        table.back_cpu.figures.append(back.cpu)


async def _limits(bench: Bench, say: Callable[[str], None]) -> None:
    say("limits, in virtual time")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.limits", str(bench.effort.seeds), stdout=PIPE
    )
    told, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the scenarios of the limits failed")
    found = json.loads(told)
    assert found.keys() == bench.table.limits.keys()
    for name, scene in bench.table.limits.items():
        for seed in found[name]:
            auto, fixed, model = seed["auto"], seed["fixed"], seed["model"]
            scene.auto.figures.append(auto["goodput"])
            scene.of_fixed.figures.append(auto["goodput"] / fixed["goodput"])
            scene.of_model.figures.append(auto["goodput"] / model["goodput"])
            if scene.wasted is not None:
                scene.wasted.figures.append(auto["wasted"] / model["wasted"])
            if scene.back is not None:
                scene.back.figures.append(auto["back"] / model["back"])
            if scene.calls is not None:
                scene.calls.figures.append(auto["calls"])


async def _failing(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    backlog = await bench.topic(effort.events)
    for turn in range(effort.repeats):
        say(f"failing, {turn + 1} of {effort.repeats}")
        before = await bench.bridge(backlog, "")
        failing = await bench.failing(backlog)
        after = await bench.bridge(backlog, "")
        accepted = statistics.fmean((before.cpu, after.cpu))
        failed = (failing.cpu - accepted) * effort.events / bench.failures
        table.failed_cpu.figures.append(failed)
        table.failed_ratio.figures.append(failed / accepted)


async def _lanes(bench: Bench, say: Callable[[str], None]) -> None:
    effort, table = bench.effort, bench.table
    backlog = await bench.topic(max(effort.beside, effort.paced))
    for turn in range(effort.repeats):
        say(f"lanes, {turn + 1} of {effort.repeats}")
        few = await bench.paced(backlog, WORKERS)
        many = await bench.paced(backlog, _PLACES)
        table.paced_cpu.figures.append(many)
        table.paced_ratio.figures.append(many / few)
        alone = await bench.beside(backlog, None)
        table.alone.figures.append(alone)
        for row, others in (
            (table.beside_equal, _WORK_SECONDS),
            (table.beside_slow, 10 * _WORK_SECONDS),
            (table.beside_dead, -1.0),
        ):
            row.figures.append(await bench.beside(backlog, others) / alone)


PARTS = {
    "speed": _speed,
    "failing": _failing,
    "lanes": _lanes,
    "latency": _latency,
    "memory": _memory,
    "start": _start_and_rest,
    "sqs": _sqs,
    "rucio": _rucio,
    "store": _store,
    "limits": _limits,
}
"""What can be measured, by name, in the order in which it is."""
QUICK_PARTS = [part for part in PARTS if part != "rucio"]
"""What takes no server but those that come with the bench: two brokers start for as long as all the rest."""
