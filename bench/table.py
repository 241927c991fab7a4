"""What is told: how much is measured, the rows, and what each is held to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

SPOOLED_AT_ONCE = 200
"""Occurrences that a stream which is not idle has read while the store wrote those before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    repeats: int
    turns: int
    """Of what is compared by its CPU time. Many and short: the machine's speed changes by a half within
    seconds, and a ratio is of one turn."""
    events: int
    """Of a measurement of speed. Half as many more are there, so that it reads as much as it sends: as much
    has been read ahead at its end as at its begin."""
    messages: int
    """Of a measurement of the queue."""
    rucio: int
    """Events of a measurement of Rucio's brokers, of which half as many more are there too."""
    paced: int
    """Events of a measurement at a rate."""
    beside: int
    """Events that a service takes beside another."""
    steady_seconds: float
    backlogs: tuple[int, int]
    """Small and big, in events, of the measurement of memory."""
    memory_seconds: float
    idle_seconds: float
    parked: int
    """Events of a measurement of the store alone."""
    parked_back: int
    """Events that a bridge brings back."""
    seeds: int
    """Of each scenario of a limit."""

    @property
    def backlog(self) -> int:
        """Events that are there for a measurement of speed."""
        return self.events * 3 // 2


FULL = Effort(
    repeats=3,
    turns=7,
    events=16_000,
    messages=4_000,
    rucio=3_000,
    paced=2_000,
    beside=2_000,
    steady_seconds=4.0,
    backlogs=(10_000, 300_000),
    memory_seconds=6.0,
    idle_seconds=10.0,
    parked=40_000,
    parked_back=10_000,
    seeds=5,
)
QUICK = Effort(
    repeats=1,
    turns=1,
    events=4_000,
    messages=1_000,
    rucio=500,
    paced=500,
    beside=1_000,
    steady_seconds=1.0,
    backlogs=(1_000, 5_000),
    memory_seconds=1.0,
    idle_seconds=1.0,
    parked=5_000,
    parked_back=4_000,
    seeds=1,
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
    skipped: str = ""
    """Why there are no figures, if there can be none."""

    @property
    def median(self) -> float:
        """The figure that is told."""
        return statistics.median(self.figures)


class Throughput:
    """The rows of one path that events take: how many a second, how many a CPU second, and what one costs."""

    def __init__(self, name: str, unit: str = "event", *, least: int | None = None) -> None:
        """`least` is the budget of the events that a second of CPU time must be enough for."""
        self.rate = Row(name, f"{unit}s/s")
        self.each_second = Row(f"… {unit}s a CPU second", unit="", digits=0)
        if least is not None:
            self.each_second.budget = f"≥ {least:,}"
            self.each_second.holds = lambda it: it >= least
        self.cpu = Row("… CPU time of each", "µs", 1)

    def note(self, rate: float, cpu: float) -> None:
        """Take what one run gave: events a second, and the CPU time of one in µs."""
        self.rate.figures.append(rate)
        self.each_second.figures.append(1e6 / cpu)
        self.cpu.figures.append(cpu)


def ratio(what: str, least: float | None = None) -> Row:
    """Give a row of how many events a path takes a CPU second, to those that `what` does."""
    row = Row(f"… of {what}, by CPU time", "", 2)
    if least is not None:
        row.budget, row.holds = f"≥ {least:.2f}", lambda it: it >= least
    return row


class Scene:
    """The rows of one scenario of the limit `concurrency: auto`."""

    def __init__(
        self,
        name: str,
        *,
        of_model: float = 1.0,
        wasted: float | None = None,
        back: float | None = None,
        calls: float | None = None,
    ) -> None:
        """`wasted` bounds the attempts that made no job, of the model's; `calls` those for each job.

        `back` is the least of the model's work in the ten seconds after an outage.
        """
        self.auto = Row(f"`concurrency: auto`, {name}", "events/s", 2)
        self.of_fixed = Row("… of 16 at once", "", 2)
        self.of_model = Row(
            "… of a model of Vector's", "", 2, f"≥ {of_model:.2f}", lambda it: it >= 0.999 * of_model
        )
        self.wasted: Row | None = None
        if wasted is not None:
            self.wasted = Row(
                "… attempts wasted, of the model's", "", 2, f"≤ {wasted:.2f}", lambda it: it <= wasted
            )
        self.back: Row | None = None
        if back is not None:
            self.back = Row(
                "… accepted in the 10 s after, of the model's", "", 2, f"≥ {back:.2f}", lambda it: it >= back
            )
        self.calls: Row | None = None
        if calls is not None:
            self.calls = Row("… calls a job", "", 2, f"≤ {calls:.2f}", lambda it: it <= calls)


class Table:
    """The rows in their order."""

    def __init__(self, effort: Effort) -> None:
        small, big = (f"{backlog:,}" for backlog in effort.backlogs)
        self.loop = Throughput("bare aiohttp loop", "POST")
        self.consumer = Throughput("bare aiokafka → aiohttp loop")
        self.floor = Throughput("bare floor: aiokafka → lean POST → commit")
        self.peer = Throughput("mq-bridge, 16 at once")
        self.peer_filter = Throughput("mq-bridge, 16 at once, `filter`")
        self.peer_batched = Throughput("mq-bridge, batches of 512")
        self.plain = Throughput("Kafka → bridge → sink, no `when`")
        self.plain_of_peer = ratio("mq-bridge, 16 at once", 1.0)
        self.plain_of_loop = ratio("the bare aiohttp loop", 1.4)
        self.plain_of_floor = ratio("the bare floor")
        self.cel = Throughput("Kafka → bridge → sink, CEL route")
        self.cel_of_peer = ratio("mq-bridge with `filter`", 1.0)
        self.cel_of_loop = ratio("the bare aiohttp loop", 1.3)
        self.read = Row("of an event: read by aiokafka alone", "µs", 1)
        self.prepared = Row("of an event: its job named, its payload encoded", "µs", 1)
        self.call = Row("of an event: the call", "µs", 1)
        self.rest = Row("of an event: the rest (route, lane, queues, metrics, journal, commit)", "µs", 1)
        self.condition = Row("of an event: the condition of the CEL route", "µs", 1)
        self.sink = Row("load of the sink meanwhile", "%", 0, "≤ 80", lambda it: it <= 80)
        self.secure = Throughput("Kafka → bridge → sink by TLS")
        self.secure_of_plain = ratio("that without")
        self.two = Throughput("Kafka → bridge → two services", "POST")
        self.two_of_plain = ratio("those of one service")
        self.failed_cpu = Row(
            "CPU time that an attempt which fails adds", "µs", 0, "≤ 100", lambda it: it <= 100
        )
        self.failed_more = Row("… less that of an event that is accepted", "µs", 0)
        self.paced_cpu = Row("CPU time an event, `rate: 1000/s`, `concurrency: 1000`", "µs")
        self.paced_ratio = Row("… of that with `concurrency: 16`", "", 2, "≤ 1.20", lambda it: it <= 1.2)
        self.alone = Row("one service that takes 20 ms", "events/s")
        self.beside_equal = Row("… of that beside its equal", "", 2, "≥ 0.95", lambda it: it >= 0.95)
        self.beside_slow = Row("… beside one ten times as slow", "", 2, "≥ 0.95", lambda it: it >= 0.95)
        self.beside_dead = Row("… beside one that is dead", "", 2, "≥ 0.95", lambda it: it >= 0.95)
        self.rate = Row("load while latency is measured: half of the CEL route's", "events/s")
        self.p50 = Row("broker → sink p50, bridge", "ms", 2)
        self.p99 = Row("broker → sink p99, bridge", "ms", 2)
        self.bare_p50 = Row("broker → sink p50, bare aiokafka → aiohttp loop", "ms", 2)
        self.bare_p99 = Row("broker → sink p99, bare aiokafka → aiohttp loop", "ms", 2)
        self.added_p50 = Row("added p50: the bridge less the bare loop", "ms", 2)
        self.added_p99 = Row("added p99: the bridge less the bare loop", "ms", 2, "< 10", lambda it: it < 10)
        self.after_speed = Row(
            f"peak RSS after {effort.events:,} events at full speed", "MiB", 1, "≤ 80", lambda it: it <= 80
        )
        self.small = Row(f"peak RSS, backlog of {small}", "MiB", 1, "≤ 80", lambda it: it <= 80)
        self.small_steady = Row(f"steady RSS, backlog of {small}", "MiB", 1)
        self.big = Row(f"peak RSS, backlog of {big}", "MiB", 1, "≤ 80", lambda it: it <= 80)
        self.big_steady = Row(f"steady RSS, backlog of {big}", "MiB", 1)
        self.memory_ratio = Row(f"peak RSS, {big} to {small}", "", 2, "≤ 1.10", lambda it: it <= 1.1)
        self.cold = Row("cold start: process start → first POST", "s", 2)
        self.join = Row("… of which the broker holds back the join of the group", "s", 2)
        self.own = Row("… the rest", "s", 2, "≤ 0.70", lambda it: it <= 0.7)
        self.idle = Row("idle CPU", "%", 2, "≤ 0.50", lambda it: it <= 0.5)
        self.receiver = Throughput("bare aiobotocore → aiohttp loop, its deletes included", "message")
        self.sqs = Throughput("SQS → bridge → sink, plain bodies, its deletes included", "message")
        self.sqs_of_receiver = ratio("the bare aiobotocore → aiohttp loop", 1.2)
        self.notifications = Throughput("SQS → bridge → sink, notifications of S3", "message")
        self.notifications_of_plain = ratio("plain bodies", 0.9)
        self.rabbitmq_amqp = Throughput("RabbitMQ (AMQP) → bridge → sink", least=7_000)
        self.rabbitmq_stomp = Throughput("RabbitMQ (STOMP) → bridge → sink", least=12_000)
        self.activemq_stomp = Throughput("ActiveMQ (STOMP) → bridge → sink", least=12_000)
        self.parked = Row("store: parked", "events/s", 0, "≥ 20,000", lambda it: it >= 20_000)
        self.returned = Row("store: read back and forgotten", "events/s")
        self.spooled = Row(
            f"store: spooled, {SPOOLED_AT_ONCE} at a time", "events/s", 0, "≥ 20,000", lambda it: it >= 20_000
        )
        self.journal_cpu = Row(
            "journal: CPU time of a line, its thread included", "µs", 2, "≤ 1.0", lambda it: it <= 1.0
        )
        self.journal_search = Row("journal: search of all of it", "s", 2, "≤ 2", lambda it: it <= 2)
        self.back = Throughput("parked → lane → sink")
        self.back_of_cel = ratio("Kafka → bridge → sink, CEL route", 0.9)

        self.limits = {
            "ramp": Scene("no limit at 100 ms", of_model=2),
            "jitter": Scene("100 ms ± 50 %"),
            "knee": Scene("slower beyond 10"),
            "hard limit": Scene("429 above 5 at once", wasted=0.5),
            "silent drop": Scene("no answer above 5"),
            "rate": Scene("429 above 100/s", wasted=0.5),
            "outage": Scene("gone for a minute", wasted=0.5, back=2),
            "drift": Scene("10 times slower within 2 minutes"),
            "slowdown": Scene("10 times slower for a minute"),
            "throttle": Scene("2.5/s in order", calls=1.3),
            "quota": Scene("quota of 2 jobs of 1 s", calls=1.3),
        }

    def all(self) -> Iterable[Row]:
        """Give every row there is, in the order in which they are told."""
        for value in [*vars(self).values(), *self.limits.values()]:
            if isinstance(value, Row):
                yield value
            elif isinstance(value, Throughput | Scene):
                yield from rows_of(value)

    def of_the_peer(self) -> Iterable[Row]:
        """Give the rows that need mq-bridge."""
        for path in (self.peer, self.peer_filter, self.peer_batched):
            yield from rows_of(path)
        yield from (self.plain_of_peer, self.cel_of_peer)

    def rows(self) -> Iterable[Row]:
        """Give what was measured, and what could not be."""
        return (row for row in self.all() if row.figures or row.skipped)


def rows_of(some: Throughput | Scene) -> Iterable[Row]:
    """Give the rows of one path or scene."""
    return (row for row in vars(some).values() if isinstance(row, Row))
