"""`python -m bench [--quick] [--only NAME…]`: measure, and print one Markdown table with the machine told."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from bench.bare import SESSION_SECONDS, WORKERS
from bench.processes import Cores
from bench.rows import PARTS, measure
from bench.table import FULL, QUICK, Effort, Row, Table
from bridge import __version__


def main() -> int:
    """Run it all; give 0 when every row has a figure, whatever it is, and 1 when one can't be had."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="The bridge against its budgets.")
    parser.add_argument(
        "--quick", action="store_true", help="once, and little of it: to see that it works, not how well"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        metavar="NAME",
        help=f"measure these parts alone, of {', '.join(PARTS)}; what they are compared with is measured too",
    )
    given = parser.parse_args()
    effort = QUICK if given.quick else FULL
    cores = Cores.of_this_machine()
    os.sched_setaffinity(0, cores.others)  # and so all that is started here
    began = time.monotonic()
    try:
        table = asyncio.run(measure(effort, cores, given.only, say=_say))
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(_markdown(table, effort, cores, time.monotonic() - began))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _markdown(table: Table, effort: Effort, cores: Cores, seconds: float) -> str:
    what = "with all the rest" if cores.measured & cores.others else "and all the rest on the others"
    machine = (
        f"oscar-event-bridge {__version__} on {_processor()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}; {platform.python_implementation()} "
        f"{platform.python_version()}, aiohttp {version('aiohttp')}, aiokafka {version('aiokafka')}, "
        f"uvloop {version('uvloop')}. What is measured is on one core, {what}; {WORKERS} workers, bodies "
        f"of 300 to 1,000 bytes, tansu in memory, a session timeout of {SESSION_SECONDS} s, all on "
        f"loopback. Median of {effort.speed_turns} turns (speed) or {effort.repeats}, within "
        f"{seconds:.0f} s, at a load average of {os.getloadavg()[1]:.1f}; a ratio or difference is of one "
        "turn. Broker → sink is from the broker's acknowledgement at the producer (linger 5 ms) to the "
        "arrival at the sink, by one monotonic clock: the bare loop shows the broker's part and the client "
        "libraries' in it."
    )
    head = "| | Median | Min–max | Budget | |\n| --- | ---: | ---: | ---: | --- |"
    return "\n".join([machine, "", head, *(_line(row) for row in table.rows())])


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
