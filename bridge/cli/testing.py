"""`oscar-bridge test`: whether events become what a site expects of its configuration, for its own CI."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli.lines import on_one_line
from bridge.cli.options import FAILED, Commands, load, takes_configuration


def add_to(commands: Commands) -> None:
    """Add the command."""
    test = commands.add_parser(
        "test", help="compare what the configuration makes of events with what a file expects (no network)"
    )
    takes_configuration(test)
    test.add_argument("files", type=Path, nargs="+", metavar="FILE", help="events, and what comes of them")
    test.set_defaults(command=_test)


def _test(options: argparse.Namespace) -> int:
    from bridge.checkup import run_cases

    settings = load(options, files=False)
    done = failed = 0
    for path in options.files:
        for result in run_cases(settings, path):
            done += 1
            failed += bool(result.difference)
            where = f"  ({result.place})" if result.difference else ""
            print(on_one_line(f"{'FAILED' if result.difference else 'ok':6}  {result.name}{where}"))
            for line in result.difference:
                print(f"        {on_one_line(line)}")
    print(f"{done} {'test' if done == 1 else 'tests'}, {failed} failed; - is expected, + is found")
    return FAILED if failed else 0
