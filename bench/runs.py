"""Runs: one method a kind of figure, each of which starts what is measured, watches it and ends it."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from bench import peer
from bench.bare import SESSION_SECONDS, WORKERS
from bench.processes import (
    CONFIGURATION,
    WHEN,
    Cores,
    QueueClient,
    SinkClient,
    Watched,
    kafka_source,
    route,
    service,
    sqs_source,
    watched,
)
from bench.producer import create_topic, fill, steady
from bench.records import PARTITIONS
from bench.rucio import Session
from bench.table import Effort

SOME = 200
"""Records that are enough to see that one goes through."""
_SLOW_SECONDS = 0.2
"""What the sink takes for an answer while a backlog must stay."""
_SETTLED_SECONDS = 2.0
"""Between the last event and a bridge that is taken for idle: the last commit is made within one."""
ONE_FAILS_IN = 4
"""Of the attempts: so few that the gate stays open, as five failures without an acceptance would shut it."""
_PACE = 1000
"""Attempts a second, far below the most."""
PLACES = 1000
"""The most that `concurrency` allows."""
WORK_SECONDS = 0.02
"""What the sink takes for an answer while services are compared: two of them leave the processor idle."""
_PEER_TRIES = 3
_VISIBILITY_SECONDS = 30
"""SQS's default."""


class Speed(NamedTuple):
    """What a measurement of speed gives, from the first to the last POST that arrives at the sink."""

    rate: float
    """Events a second."""
    cpu: float
    """CPU time of one in µs, user and system, of the process that is measured with all its threads."""
    peak: float
    """The most resident memory by then, in MiB."""
    sink: float
    """CPU time of the sink in % of the time that passed: near 100 it would be the sink that is measured."""


def failures(events: int) -> int:
    """Give the attempts that fail by the time that so many events are accepted, where one in some does."""
    return (events - 1) // (ONE_FAILS_IN - 1)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where it is measured. Every process that is measured gets a group of its own."""

    effort: Effort
    cores: Cores
    python: Path
    """In which all runs that is measured."""
    directory: Path
    bootstrap: str
    sink: SinkClient
    queue: QueueClient
    session_seconds: int = SESSION_SECONDS
    """Until the broker takes a member of a group for dead."""
    _numbers: count[int] = field(default_factory=count)

    async def bare_loop(self) -> Speed:
        """Give the speed without Kafka and bridge."""
        await self.sink.begin()
        async with self._python("bench.bare", self.sink.url, "post", str(self.effort.backlog)) as process:
            return await self._backlog(process)

    async def floor(self, topic: str) -> Speed:
        """Give the speed of the chain that keeps the promises and does nothing else."""
        await self.sink.begin()
        async with self._python("bench.floor", self.sink.url, *self._member(topic)) as process:
            return await self._backlog(process)

    async def peer(self, python: Path, topic: str, *, batch: int = 1, condition: str = "") -> Speed:
        """Give the speed of the peer that `python` has over a backlog, as `bench.peer.command` runs it.

        A run in which it sends some events twice is made again, as the figure would be another work's.
        Raises RuntimeError when that goes on.
        """
        for _ in range(_PEER_TRIES - 1):
            with suppress(RuntimeError):
                return await self._peer(python, topic, batch, condition)
        return await self._peer(python, topic, batch, condition)

    async def _peer(self, python: Path, topic: str, batch: int, condition: str) -> Speed:
        await self.sink.begin()
        kafka = self.bootstrap, topic, self._group()
        command = peer.command(python, self.sink.url, kafka, batch=batch, condition=condition)
        async with self._watched(*command) as process:
            return await self._backlog(process)

    async def bare_consumer(self, topic: str) -> Speed:
        """Give the speed of the consumer that promises nothing."""
        await self.sink.begin()
        async with self._consumer(topic) as process:
            return await self._backlog(process)

    async def bridge(self, topic: str, when: str, *, secure: bool = False) -> Speed:
        """Give the speed of the bridge over a backlog, where it is `secure` by TLS."""
        await self.sink.begin()
        async with self._bridge(self._topic_source(topic), when, secure=secure) as process:
            return await self._backlog(process)

    async def two_services(self, topic: str) -> Speed:
        """Give the speed of the bridge over a backlog that goes to two services: the POSTs of both count."""
        await self.sink.begin(every_service=True)
        keys = ["plants", "animals"]
        services = [service(key, WORKERS) for key in keys]
        async with self._bridge(self._topic_source(topic), "", services=services, keys=keys) as process:
            return await self._speed(process, 2 * self.effort.events, of=2 * self.effort.backlog)

    async def failing(self, topic: str) -> Speed:
        """Give the speed of the bridge over a backlog of which one attempt in `ONE_FAILS_IN` fails."""
        await self.sink.begin(one_fails_in=ONE_FAILS_IN)
        async with self._bridge(self._topic_source(topic), "") as process:
            return await self._backlog(process, fails=True)

    async def paced(self, topic: str, workers: int) -> float:
        """Give the CPU time of an event in µs, with a rate and so many places of which few are used."""
        await self.sink.begin()
        plants = service("plants", workers, f"{_PACE}/s")
        async with self._bridge(self._topic_source(topic), "", services=[plants]) as process:
            return (await self._speed(process, self.effort.paced)).cpu

    async def beside(self, topic: str, others: float | None) -> float:
        """Give the events a second of a service beside one that takes `others` seconds, None for alone."""
        await self.sink.begin(delay=WORK_SECONDS, others=others or 0.0)
        keys = ["plants"] if others is None else ["plants", "flood"]
        services = [service(key, WORKERS) for key in keys]
        async with self._bridge(self._topic_source(topic), "", services=services, keys=keys) as process:
            return (await self._speed(process, self.effort.beside)).rate

    async def bare_receiver(self) -> Speed:
        """Give the speed of the plainest loop over a queue: it deletes, and keeps nothing invisible."""
        await self._fill_queue()
        async with self._python("bench.bare", self.sink.url, "receive", self.queue.url) as process:
            return await self._speed(process, self.effort.messages, deletes=True)

    async def sqs(self, *, notifications: bool = False) -> Speed:
        """Give the speed of the bridge over a queue, of plain bodies or of S3's notifications."""
        await self._fill_queue(notifications=notifications)
        async with self._bridge(sqs_source(self.queue.url), "") as process:
            return await self._speed(process, self.effort.messages, deletes=True)

    async def rucio(self, reading: Session) -> Speed:
        """Give the speed of the bridge over a queue of its own, of a broker that Rucio sends to."""
        queue = f"rucio-{next(self._numbers)}"
        await reading.fill(queue, self.effort.rucio * 3 // 2)
        await self.sink.begin()
        async with self._bridge(reading.source(queue), "") as process:
            return await self._speed(process, self.effort.rucio, of=self.effort.rucio * 3 // 2)

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
        async with self._python("bench.parked", "fill", str(state), str(self.effort.parked_back)) as process:
            assert process.process.stdout is not None
            await process.during(process.process.stdout.read())
        await self.sink.begin()
        async with self._bridge(self._topic_source(empty), "", state) as process:
            return await self._speed(process, self.effort.parked_back)

    async def pieces(self, topic: str) -> list[float]:
        """Give what reading, preparing and sending an event takes, each alone, as CPU time in µs."""
        await self.sink.begin()
        configuration = self._configuration(self._topic_source(topic))
        what = configuration, self.bootstrap, topic, str(self.effort.events)
        async with self._python("bench.pieces", *what) as process:
            return await self._printed(process)

    async def latency(self, rate: float, *, bare: bool) -> tuple[float, float]:
        """Give p50 and p99 in ms, from the broker's acknowledgement to the arrival at the sink."""
        topic = await self.topic(SOME, partitions=1)
        await self.sink.begin()
        async with (
            self._consumer(topic) if bare else self._bridge(self._topic_source(topic), WHEN) as process
        ):
            await process.during(self.sink.after(SOME))
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
            await process.during(self.sink.after(SOME))
            await process.during(asyncio.sleep(_SETTLED_SECONDS))
            before = process.cpu_ns()
            await process.during(asyncio.sleep(self.effort.idle_seconds))
            return (process.cpu_ns() - before) / self.effort.idle_seconds / 1e7

    async def topic(self, events: int, partitions: int = PARTITIONS) -> str:
        """Make a topic with so many events."""
        topic = f"events-{next(self._numbers)}"
        await asyncio.to_thread(create_topic, self.bootstrap, topic, partitions)
        await asyncio.to_thread(fill, self.bootstrap, topic, events, partitions)
        return topic

    async def _fill_queue(self, *, notifications: bool = False) -> None:
        await self.sink.begin()
        await self.queue.begin(self.effort.messages, _VISIBILITY_SECONDS, notifications=notifications)

    async def _backlog(self, process: Watched, *, fails: bool = False) -> Speed:
        """Watch a backlog sent; takes what `_speed` does."""
        return await self._speed(process, self.effort.events, of=self.effort.backlog, fails=fails)

    async def _speed(
        self, process: Watched, events: int, *, of: int = 0, fails: bool = False, deletes: bool = False
    ) -> Speed:
        """Watch so many events accepted, and then the rest where there are more: `of` so many in all.

        If it `fails`, one attempt in `ONE_FAILS_IN` does. If it `deletes` messages, CPU time counts until all
        are. Raises RuntimeError when it was not each event that came.
        """
        await self.sink.watch(process.process.pid)
        seen = await process.during(self.sink.after(events + (failures(events) if fails else 0)))
        peak = process.memory()[1]
        used = seen["cpu_last"] - seen["cpu_first"]
        if deletes:
            await process.during(self.queue.after(events))
            used = process.cpu_ns() - seen["cpu_first"]
        total = of or events
        end = await process.during(self.sink.after(total + (failures(total) if fails else 0)))
        if end["bodies"] < total:
            raise RuntimeError(f"{end['bodies']} of {total} events came in {end['posts']} POSTs")
        if process.has_children():
            raise RuntimeError("what was measured has child processes, whose CPU time does not count")
        nanoseconds = seen["last"] - seen["first"]
        return Speed(
            rate=(events - 1) / nanoseconds * 1e9,
            cpu=used / (events - 1) / 1e3,
            peak=peak,
            sink=seen["own"] / nanoseconds * 100,
        )

    async def _store_alone(self, *what: str) -> list[float]:
        """Give the figures that a process prints which has a store, and nothing else."""
        state = str(self.directory / f"store-{next(self._numbers)}")
        async with self._python(*what, state, str(self.effort.parked)) as process:
            return await self._printed(process)

    async def _printed(self, process: Watched) -> list[float]:
        """Give the figures in the line that a process prints."""
        assert process.process.stdout is not None
        line = await process.during(process.process.stdout.readline())
        return [float(figure) for figure in line.split()]

    def _watched(self, *command: str) -> AbstractAsyncContextManager[Watched]:
        return watched(self.cores, *command, log=self.directory / "log")

    def _python(self, *arguments: str) -> AbstractAsyncContextManager[Watched]:
        return self._watched(str(self.python), "-m", *arguments)

    def _consumer(self, topic: str) -> AbstractAsyncContextManager[Watched]:
        return self._python("bench.bare", self.sink.url, "read", *self._member(topic))

    def _topic_source(self, topic: str) -> str:
        return kafka_source(self.bootstrap, topic, self._group(), self.session_seconds)

    def _member(self, topic: str) -> tuple[str, ...]:
        """Give the arguments of who reads a topic in a group of its own."""
        return self.bootstrap, topic, self._group(), str(self.session_seconds)

    def _group(self) -> str:
        return f"group-{next(self._numbers)}"

    def _bridge(
        self, source: str, when: str = "", state: Path | None = None, **more: Any
    ) -> AbstractAsyncContextManager[Watched]:
        """Run the bridge; takes what `_configuration` does."""
        return self._python("bridge", "run", "-c", self._configuration(source, when, state, **more))

    def _configuration(
        self,
        source: str,
        when: str = "",
        state: Path | None = None,
        *,
        services: Collection[str] = (service("plants", WORKERS),),
        keys: Collection[str] = ("plants",),
        secure: bool = False,
    ) -> str:
        """Write a configuration, and give where it is."""
        number = next(self._numbers)
        configuration = self.directory / f"{number}.yaml"
        configuration.write_text(
            CONFIGURATION.format(
                state=state or self.directory / f"state-{number}",
                sink=self.sink.secure_url if secure else self.sink.url,
                trust=f", tls: {{ca_file: {self.sink.authority}}}" if secure else "",
                services="\n".join(services),
                source=source,
                routes="\n".join(route(key, when) for key in keys),
            ),
            encoding="utf-8",
        )
        return str(configuration)
