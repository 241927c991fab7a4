"""What is measured: `measure` runs the parts, each of which takes the things that are compared in turns."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from bench import peer
from bench.bare import WORKERS
from bench.environments import NotMadeError
from bench.processes import WHEN, Cores, prompt_broker, queue, sink
from bench.rucio import readings
from bench.runs import PLACES, SOME, WORK_SECONDS, Bench, Speed, failures
from bench.table import Effort, Table
from bridge.sandbox.kafka import broker

Say = Callable[[str], None]


@asynccontextmanager
async def started(
    effort: Effort, cores: Cores, python: Path, kind: type[Bench] = Bench
) -> AsyncIterator[Bench]:
    """Run what is measured against while inside; gives a bench of that `kind`, which measures in `python`.

    Raises RuntimeError with the last log lines when something that is measured ends by itself.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        try:
            async with sink(directory) as asked, queue() as messages, broker() as bootstrap:
                yield kind(effort, cores, python, directory, bootstrap, asked, messages)
        except RuntimeError as error:
            log = directory / "log"
            last = log.read_text(encoding="utf-8").splitlines()[-20:] if log.exists() else []
            raise RuntimeError("\n".join([str(error), *last])) from error


async def measure(effort: Effort, cores: Cores, python: Path, parts: Collection[str], say: Say) -> Table:
    """Measure the `parts` (of PARTS), each several times. Takes `python` and raises as `started` does."""
    table = Table(effort)
    async with started(effort, cores, python) as bench:
        for part, measured in PARTS.items():
            if part in parts:
                await measured(bench, table, say)
    return table


def _by_cpu(one: Speed, *others: Speed) -> float:
    """Give how many events `one` takes a CPU second, to those that the others take."""
    return statistics.fmean(other.cpu for other in others) / one.cpu


async def _speed(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    backlog = await bench.topic(effort.backlog)
    try:
        python = await peer.interpreter()
    except NotMadeError as error:
        python = None
        for row in table.of_the_peer():
            row.skipped = str(error)
    for turn in range(effort.turns):
        say(f"speed, {turn + 1} of {effort.turns}")
        first = await bench.bare_loop()
        if python:
            rival = await bench.peer(python, backlog)
        plain = await bench.bridge(backlog, "")
        second = await bench.bare_loop()
        if python:
            rival_filter = await bench.peer(python, backlog, condition=peer.FILTER)
        cel = await bench.bridge(backlog, WHEN)
        third = await bench.bare_loop()
        floor = await bench.floor(backlog)
        consumer = await bench.bare_consumer(backlog)
        for path, speed in (
            (table.loop, first),
            (table.loop, second),
            (table.loop, third),
            (table.consumer, consumer),
            (table.floor, floor),
            (table.plain, plain),
            (table.cel, cel),
        ):
            path.note(speed.rate, speed.cpu)
            table.sink.figures.append(speed.sink)
        read, prepared, call = await bench.pieces(backlog)
        table.read.figures.append(read)
        table.prepared.figures.append(prepared)
        table.call.figures.append(call)
        table.rest.figures.append(plain.cpu - read - prepared - call)
        table.condition.figures.append(cel.cpu - plain.cpu)
        table.plain_of_loop.figures.append(_by_cpu(plain, first, second))
        table.plain_of_floor.figures.append(_by_cpu(plain, floor))
        table.cel_of_loop.figures.append(_by_cpu(cel, second, third))
        table.after_speed.figures += [plain.peak, cel.peak]
        if python:
            batched = await bench.peer(python, backlog, batch=peer.BATCH)
            table.peer.note(rival.rate, rival.cpu)
            table.peer_filter.note(rival_filter.rate, rival_filter.cpu)
            table.peer_batched.note(batched.rate, batched.cpu)
            table.sink.figures += [rival.sink, rival_filter.sink, batched.sink]
            table.plain_of_peer.figures.append(_by_cpu(plain, rival))
            table.cel_of_peer.figures.append(_by_cpu(cel, rival_filter))


async def _ways(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    backlog = await bench.topic(effort.backlog)
    for turn in range(effort.turns):
        say(f"ways, {turn + 1} of {effort.turns}")
        secure = await bench.bridge(backlog, "", secure=True)
        plain = await bench.bridge(backlog, "")
        two = await bench.two_services(backlog)
        table.secure.note(secure.rate, secure.cpu)
        table.secure_of_plain.figures.append(_by_cpu(secure, plain))
        table.two.note(two.rate, two.cpu)
        table.two_of_plain.figures.append(_by_cpu(two, plain))


async def _latency(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    if not table.cel.rate.figures:
        cel = await bench.bridge(await bench.topic(effort.backlog), WHEN)
        table.cel.note(cel.rate, cel.cpu)
    rate = table.cel.rate.median / 2
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


async def _memory(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
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


async def _start_and_rest(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    few = await bench.topic(SOME)
    for turn in range(effort.repeats):
        say(f"start and rest, {turn + 1} of {effort.repeats}")
        cold, join = await bench.cold_start(few)
        table.cold.figures.append(cold)
        table.join.figures.append(join)
        table.own.figures.append(cold - join)
        table.idle.figures.append(await bench.idle(few))


async def _sqs(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    for turn in range(effort.turns):
        say(f"sqs, {turn + 1} of {effort.turns}")
        receiver = await bench.bare_receiver()
        sqs = await bench.sqs()
        notifications = await bench.sqs(notifications=True)
        table.receiver.note(receiver.rate, receiver.cpu)
        table.sqs.note(sqs.rate, sqs.cpu)
        table.sqs_of_receiver.figures.append(_by_cpu(sqs, receiver))
        table.notifications.note(notifications.rate, notifications.cpu)
        table.notifications_of_plain.figures.append(_by_cpu(notifications, sqs))


async def _rucio(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    rows = {
        "RabbitMQ (AMQP)": table.rabbitmq_amqp,
        "RabbitMQ (STOMP)": table.rabbitmq_stomp,
        "ActiveMQ (STOMP)": table.activemq_stomp,
    }
    with readings(say) as found:
        for turn in range(effort.turns):
            say(f"rucio, {turn + 1} of {effort.turns}")
            for reading in found:
                speed = await bench.rucio(reading)
                rows[reading.name].note(speed.rate, speed.cpu)


async def _store(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    backlog, empty = await bench.topic(effort.backlog), await bench.topic(0)
    for turn in range(effort.repeats):
        say(f"store alone, {turn + 1} of {effort.repeats}")
        parked, returned = await bench.store()
        spooled = await bench.spooled()
        journal_cpu, journal_search = await bench.journal()
        table.parked.figures.append(parked)
        table.returned.figures.append(returned)
        table.spooled.figures.append(spooled)
        table.journal_cpu.figures.append(journal_cpu)
        table.journal_search.figures.append(journal_search)
    for turn in range(effort.turns):
        say(f"store, {turn + 1} of {effort.turns}")
        before = await bench.bridge(backlog, WHEN)
        back = await bench.back(empty)
        after = await bench.bridge(backlog, WHEN)
        table.back.note(back.rate, back.cpu)
        table.back_of_cel.figures.append(_by_cpu(back, before, after))


async def _limits(bench: Bench, table: Table, say: Say) -> None:
    say("limits, in virtual time")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.limits", str(bench.effort.seeds), stdout=PIPE
    )
    told, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the scenarios of the limits failed")
    found = json.loads(told)
    assert found.keys() == table.limits.keys()
    for name, scene in table.limits.items():
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


async def _failing(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    backlog = await bench.topic(effort.backlog)
    for turn in range(effort.turns):
        say(f"failing, {turn + 1} of {effort.turns}")
        before = await bench.bridge(backlog, "")
        failing = await bench.failing(backlog)
        after = await bench.bridge(backlog, "")
        accepted = statistics.fmean((before.cpu, after.cpu))
        added = (failing.cpu - accepted) * effort.events / failures(effort.events)
        table.failed_cpu.figures.append(added)
        table.failed_more.figures.append(added - accepted)


async def _lanes(bench: Bench, table: Table, say: Say) -> None:
    effort = bench.effort
    backlog = await bench.topic(max(effort.beside, effort.paced))
    for turn in range(effort.repeats):
        say(f"lanes, {turn + 1} of {effort.repeats}")
        few = await bench.paced(backlog, WORKERS)
        many = await bench.paced(backlog, PLACES)
        table.paced_cpu.figures.append(many)
        table.paced_ratio.figures.append(many / few)
        alone = await bench.beside(backlog, None)
        table.alone.figures.append(alone)
        for row, others in (
            (table.beside_equal, WORK_SECONDS),
            (table.beside_slow, 10 * WORK_SECONDS),
            (table.beside_dead, -1.0),
        ):
            row.figures.append(await bench.beside(backlog, others) / alone)


PARTS: Mapping[str, Callable[[Bench, Table, Say], Awaitable[None]]] = {
    "speed": _speed,
    "ways": _ways,
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
