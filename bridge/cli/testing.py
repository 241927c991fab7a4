"""`oscar-bridge test`: whether events become what a site expects of its configuration, for its own CI."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli.options import FAILED, Commands, add, load
from bridge.cli.output import say


def add_to(commands: Commands) -> None:
    """Add the command."""
    told = "compare what the configuration makes of events with what a file expects (no network)"
    test = add(commands, "test", _test, told)
    test.add_argument("files", type=Path, nargs="+", metavar="FILE", help="events, and what comes of them")


def _test(options: argparse.Namespace) -> int:
    from bridge.checkup import run_cases

    settings = load(options, files=False)
    done = failed = 0
    for path in options.files:
        for result in run_cases(settings, path):
            done += 1
            failed += bool(result.difference)
            where = f"  ({result.place})" if result.difference else ""
            say(f"{'FAILED' if result.difference else 'ok':6}  {result.name}{where}")
            for line in result.difference:
                say(f"        {line}")
    say(f"{done} {'test' if done == 1 else 'tests'}, {failed} failed; - is expected, + is found")
    return FAILED if failed else 0
