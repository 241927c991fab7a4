"""`python -m bench [--quick] [--only NAME…]`: measure, and print one Markdown table with the machine told."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

from bench.bare import POLLERS, SESSION_SECONDS, WORKERS
from bench.processes import Cores
from bench.rows import PARTS, QUICK_PARTS, measure
from bench.table import FULL, QUICK, Effort, Row, Table
from bridge import __version__


def main() -> int:
    """Run it all; give 0 when every row has a figure, whatever it is, and 1 when one can't be had."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="The bridge against its budgets.")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="once, and little of it: to see that it works, not how well; rucio only if --only names it",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        metavar="NAME",
        help=f"measure these parts alone, of {', '.join(PARTS)}; what they are compared with is measured too",
    )
    given = parser.parse_args()
    effort = QUICK if given.quick else FULL
    parts = given.only or (QUICK_PARTS if given.quick else list(PARTS))
    cores = Cores.of_this_machine()
    os.sched_setaffinity(0, cores.others)  # and so all that is started here
    began = time.monotonic()
    try:
        table = asyncio.run(measure(effort, cores, parts, say=_say))
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(_markdown(table, parts, effort, cores, time.monotonic() - began))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _markdown(table: Table, parts: Collection[str], effort: Effort, cores: Cores, seconds: float) -> str:
    what = "with all the rest" if cores.measured & cores.others else "and all the rest on the others"
    machine = (
        f"oscar-event-bridge {__version__} on {_processor()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}; {platform.python_implementation()} "
        f"{platform.python_version()}, aiohttp {version('aiohttp')}, aiokafka {version('aiokafka')}, "
        f"aiobotocore {version('aiobotocore')}, uvloop {version('uvloop')}, SQLite {sqlite3.sqlite_version}. "
        f"What is measured is on one core, {what}; {WORKERS} workers, bodies of 300 to 1,000 bytes, tansu in "
        f"memory, a session timeout of {SESSION_SECONDS} s, all on loopback. Median of {effort.speed_turns} "
        f"turns (speed), {effort.turns} (SQS, store) or {effort.repeats}, within {seconds:.0f} s, at a load "
        f"average of {os.getloadavg()[1]:.1f}; a ratio or difference is of one turn, "
        "the ratio of a speed to the mean of what it is compared with, run before and after it."
    )
    notes = {
        "latency": "Broker → sink is from the broker's acknowledgement at the producer (linger 5 ms) to the "
        "arrival at the sink, by one monotonic clock: the bare loop shows the broker's part and the client "
        "libraries' in it.",
        "sqs": "SQS is a stand-in of its wire protocol, made for this bench: moto serves some 60 messages a "
        f"second, and is not measured. {POLLERS} receives are under way at once. Most of a message's cost is "
        "aiobotocore's (signing and parsing of two calls for ten messages): the bare loop pays it too.",
        "rucio": f"Rucio's brokers are those of Debian; before, stomp.py puts {effort.rucio:,} messages "
        f"into a queue of each (RabbitMQ's a quorum queue), as hermes does. AMQP is read with aiormq "
        f"{version('aiormq')}, STOMP by the bridge itself.",
        "store": f"The store alone is one process with its loop and its writer thread on the one core, its "
        f"file under {tempfile.gettempdir()}, every group of events synced. The way back is that of a bridge "
        f"that starts with {effort.parked_back:,} events parked.",
        "limits": f"Limits are measured through a lane before servers of many kinds, in virtual time, with "
        f"{effort.seeds} seeds. The model is of Vector's adaptive request concurrency.",
    }
    told = [note for part, note in notes.items() if part in parts]
    head = "| | Median | Min–max | Budget | |\n| --- | ---: | ---: | ---: | --- |"
    return "\n".join([" ".join([machine, *told]), "", head, *(_line(row) for row in table.rows())])


def _line(row: Row) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
