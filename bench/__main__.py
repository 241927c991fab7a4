"""`python -m bench [--quick] [--only NAME…]`: measure, and print one Markdown table with the machine told.

`python -m bench --write` puts it into the documents too; `python -m bench --instructions [NAME…]` counts the
instructions of an event instead.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import environments, instructions, report
from bench.interpreter import ask
from bench.processes import Cores
from bench.rows import PARTS, QUICK_PARTS, measure
from bench.table import FULL, QUICK


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
    parser.add_argument(
        "--instructions",
        nargs="*",
        choices=list(instructions.COUNTED),
        metavar="NAME",
        help=f"count instructions by callgrind instead, of all or of {', '.join(instructions.COUNTED)}",
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the figures into README.md and docs/performance.md too, and draw docs/performance.svg",
    )
    parser.add_argument(
        "--python",
        type=Path,
        metavar="FILE",
        help="measure in the environment of this interpreter, as it is, and make none",
    )
    given = parser.parse_args()
    if given.write and (given.quick or given.only or given.instructions is not None):
        parser.error("--write takes the figures of a whole run")
    effort = QUICK if given.quick else FULL
    parts = given.only or (QUICK_PARTS if given.quick else list(PARTS))
    cores = Cores.of_this_machine()
    os.sched_setaffinity(0, cores.others)  # and so all that is started here
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it ends what it started
    began = time.monotonic()
    try:
        interpreter = ask(given.python) if given.python else asyncio.run(environments.deployed())
    except (OSError, subprocess.SubprocessError) as error:
        parser.error(f"{given.python or sys.executable} can't be asked what it is: {error}")
    _say(f"measured on {report.machine(interpreter)}: {interpreter.python}")
    try:
        if given.instructions is not None:
            names = given.instructions or instructions.COUNTED
            counted = asyncio.run(instructions.count(names, cores, interpreter.python, _say))
            print(report.instructions(counted, interpreter))
            return 0
        table = asyncio.run(measure(effort, cores, interpreter.python, parts, _say))
    except RuntimeError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    text = report.markdown(table, parts, effort, cores, interpreter, time.monotonic() - began)
    print(text)
    if given.write:
        report.write(table, interpreter, text)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
