"""`oscar-bridge parked`: events that wait in the store, and a way out for those that nothing will take."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict

from bridge.cli.lines import on_one_line, table, tell_of, when
from bridge.cli.options import Commands, at_least_1, load, refuse_unknown, takes_configuration, wrong


def add_to(commands: Commands) -> None:
    """Add the commands."""
    parked = commands.add_parser("parked", help="look at events that wait in the store for a service")
    parked_commands = parked.add_subparsers(metavar="COMMAND", required=True)
    listing = parked_commands.add_parser("list", help="one line an event, the oldest of each service first")
    takes_configuration(listing)
    listing.add_argument("--service", help="only those for this service, configured or not")
    listing.add_argument("--source", help="only what this source (by `identity`) keeps unread")
    listing.add_argument("--limit", type=at_least_1, default=100, help="the first N (default 100)")
    listing.add_argument("--json", action="store_true", help="one JSON document a line")
    listing.set_defaults(command=_list)
    move = parked_commands.add_parser(
        "move", help="give events of a service that is not configured any more to another one"
    )
    _chooses(move)
    move.add_argument("--to", required=True, metavar="SERVICE", help="the service (a key of `services`)")
    move.set_defaults(command=_change, do="move", source=None)
    bury = parked_commands.add_parser(
        "bury", help="make dead letters of events whose service or source is not configured any more"
    )
    _chooses(bury)
    bury.add_argument("--source", help="only what this source (by `identity`) keeps unread")
    bury.set_defaults(command=_change, do="bury", to=None)


def _chooses(parser: argparse.ArgumentParser) -> None:
    takes_configuration(parser)
    parser.add_argument("numbers", type=int, nargs="*", help="their numbers in `list`")
    parser.add_argument("--all", action="store_true", help="all whose service or source is not configured")
    parser.add_argument("--service", help="only those for this service")
    parser.add_argument("--dry-run", action="store_true", help="count only")


def _list(options: argparse.Namespace) -> int:
    from bridge.store import Choice, list_waiting

    if options.service is not None and options.source is not None:
        raise wrong("--source", "is of events that have no service yet: leave out --service")
    chosen = Choice(service=options.service, source=options.source)
    events = list_waiting(load(options).state_dir, chosen, options.limit)
    if options.json:
        for event in events:
            print(json.dumps(asdict(event)))
    elif not events:
        print("no events are parked" if chosen == Choice() else "no such events are parked")
    else:
        rows = [("NUMBER", "KEPT", "SERVICE", "REASON", "TRIES", "SOURCE", "EVENT")]
        rows += [
            (
                str(event.number),
                when(event.kept_at),
                event.service or "-",
                event.reason,
                str(event.attempts),
                event.source,
                on_one_line(event.event_id),
            )
            for event in events
        ]
        for line in table(rows):
            print(line)
    return 0


def _change(options: argparse.Namespace) -> int:
    from bridge.commands import Command, give

    numbers = tuple(dict.fromkeys(options.numbers)) or None
    ways = [numbers is not None, options.all, options.service is not None, options.source is not None]
    if sum(ways) != 1:
        raise wrong("NUMBER", "say which events are meant: by number, by one option, or --all")
    settings = load(options)
    if options.to is not None:
        refuse_unknown(options.to, "--to", "services", settings.services)
    command = Command(
        do=options.do,
        to=options.to,
        dry_run=options.dry_run,
        numbers=numbers,
        service=options.service,
        source=options.source,
    )
    done = {"move": f"parked for {options.to}", "bury": "made dead letters"}[options.do]
    return tell_of(asyncio.run(give(settings, command)), command, done, "event")
