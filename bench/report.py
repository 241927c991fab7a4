"""What was measured, as Markdown."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from bench import peer
from bench.bare import POLLERS, SESSION_SECONDS, WORKERS
from bench.interpreter import Interpreter
from bench.plot import bars
from bench.processes import Cores
from bench.table import Effort, Row, Table
from bridge import __version__

_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"
_HEAD = "| | Median | Min–max | Budget | |\n| --- | ---: | ---: | ---: | --- |"


def markdown(
    table: Table,
    parts: Collection[str],
    effort: Effort,
    cores: Cores,
    interpreter: Interpreter,
    seconds: float,
) -> str:
    """Give the table, and how it was measured."""
    what = "with all the rest" if cores.measured & cores.others else "and all the rest on the others"
    how = (
        f"oscar-event-bridge {__version__} on {machine(interpreter)}, "
        f"{', '.join(f'{name} {version}' for name, version in interpreter.libraries.items())}, SQLite "
        f"{interpreter.sqlite}. What is measured is on one core, {what}; {WORKERS} workers, bodies of "
        f"300 to 1,000 bytes, tansu in memory, a session timeout of {SESSION_SECONDS} s, all on loopback. "
        "CPU time is user and system of the one process, from the first event that comes to the sink to the "
        f"last; the sink counts that each came. Median of {effort.turns} turns, of {effort.repeats} (lanes, "
        f"latency, memory, start, the store alone), within {seconds / 60:.0f} minutes, at a load average of "
        f"{os.getloadavg()[1]:.1f}; a ratio or difference is of one turn."
    )
    notes = [note for part, note in _notes(effort).items() if part in parts]
    return "\n\n".join([how, *notes, "\n".join([_HEAD, *(_line(row) for row in table.rows())])])


def goals(table: Table, interpreter: Interpreter) -> str:
    """Give the rows that README tells."""
    rows = [
        *(table.plain.rate, table.plain.each_second, table.plain_of_peer, table.plain_of_loop),
        *(table.cel.rate, table.cel.each_second, table.cel_of_peer, table.cel_of_loop),
        *(table.sqs.rate, table.sqs.each_second, table.sqs_of_receiver),
        *(table.notifications.rate, table.notifications_of_plain),
        *(table.rabbitmq_amqp.rate, table.rabbitmq_amqp.each_second),
        *(table.rabbitmq_stomp.rate, table.rabbitmq_stomp.each_second),
        *(table.activemq_stomp.rate, table.activemq_stomp.each_second),
        *(table.back.rate, table.back_of_cel, table.failed_cpu, table.parked, table.spooled),
        *(table.p99, table.added_p99, table.small, table.big, table.after_speed),
        *(table.cold, table.join, table.own, table.idle),
    ]
    lines = [_HEAD, *(_line(row) for row in rows if row.figures or row.skipped)]
    return f"Measured on {datetime.now(UTC):%d %B %Y} on {machine(interpreter)}.\n\n" + "\n".join(lines)


def write(table: Table, interpreter: Interpreter, text: str) -> None:
    """Put what `markdown` gave into docs/performance.md, with a plot, and what `goals` gives into README."""
    _put(Path("docs/performance.md"), text)
    _put(Path("README.md"), goals(table, interpreter))
    Path("docs/performance.svg").write_text(bars(table), encoding="utf-8")


def _put(path: Path, text: str) -> None:
    """Put `text` between the marks in a document. Raises ValueError where there are none."""
    before, begin, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"no {_BEGIN} … {_END} in {path}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def instructions(counted: Mapping[str, float], interpreter: Interpreter) -> str:
    """Give the table of instructions an event."""
    lines = [f"| {name} | {figure:,.0f} |" for name, figure in counted.items()]
    head = "| | Instructions an event |\n| --- | ---: |"
    return "\n".join([f"By callgrind, of user space alone, on {machine(interpreter)}.", "", head, *lines])


def machine(interpreter: Interpreter) -> str:
    """Say what it is measured on, and with which Python."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
        f"{interpreter.name} ({interpreter.build}) in {interpreter.environment}"
    )


def _notes(effort: Effort) -> Mapping[str, str]:
    return {
        "speed": f"mq-bridge {peer.VERSION} reads the same topic and posts the same bodies to the same sink; "
        "it gives no job a name, rewrites no body, and keeps and parks nothing. The bare floor is Python "
        "that reads, posts and commits what was accepted, and does nothing else.",
        "latency": "Broker → sink is from the broker's acknowledgement at the producer (linger 5 ms) to the "
        "arrival at the sink, by one monotonic clock: the bare loop shows the broker's part and the client "
        "libraries' in it.",
        "sqs": "SQS is a stand-in of its wire protocol, made for this bench: moto serves some 60 messages a "
        f"second, and is not measured. {POLLERS} receives are under way at once. Of a bare loop's "
        "message most of the cost is aiobotocore's, around two calls for ten messages; the bridge makes them "
        "by botocore's signature and aiobotocore's connections alone.",
        "rucio": f"Rucio's brokers are those of Debian; before, stomp.py puts {effort.rucio * 3 // 2:,} "
        "messages into a queue of each (RabbitMQ's a quorum queue), as hermes does. AMQP is read with aiormq "
        "and STOMP by the bridge itself.",
        "store": f"The store alone is one process with its loop and its writer thread on the one core, its "
        f"file under {tempfile.gettempdir()}, every group of events synced. The way back is that of a bridge "
        f"that starts with {effort.parked_back:,} events parked.",
        "limits": f"Limits are measured through a lane before servers of many kinds, in virtual time, with "
        f"{effort.seeds} seeds. The model is of Vector's adaptive request concurrency.",
    }


def _line(row: Row) -> str:
    if not row.figures:
        return f"| {row.name} | skipped: {row.skipped} | | {row.budget} | |"
    median, least, most = (
        f"{figure:,.{row.digits}f}" for figure in (row.median, min(row.figures), max(row.figures))
    )
    verdict = "" if row.holds is None else "holds" if row.holds(row.median) else "**missed**"
    unit = f" {row.unit}" if row.unit else ""
    return f"| {row.name} | {median}{unit} | {least}–{most} | {row.budget} | {verdict} |"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
