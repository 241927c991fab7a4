"""`oscar-bridge dead-letters`: events that were given up, and their way back."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import asdict

from bridge.cli.lines import on_one_line, table, tell_of, when
from bridge.cli.options import (
    FAILED,
    Commands,
    age,
    at_least_1,
    load,
    refuse_unknown,
    takes_configuration,
    wrong,
)


def add_to(commands: Commands) -> None:
    """Add the commands."""
    dead = commands.add_parser("dead-letters", help="look at events that were given up, and why")
    dead_commands = dead.add_subparsers(metavar="COMMAND", required=True)
    listing = dead_commands.add_parser("list", help="one line a dead letter, the newest first")
    takes_configuration(listing)
    listing.add_argument("--service", help="only of this service (a key of `services`)")
    listing.add_argument("--cause", help="only with this cause")
    listing.add_argument("--limit", type=at_least_1, default=100, help="the newest N (default 100)")
    listing.add_argument("--json", action="store_true", help="one JSON document a line")
    listing.set_defaults(command=_list_dead_letters)
    show = dead_commands.add_parser("show", help="one dead letter, whole")
    takes_configuration(show)
    show.add_argument("--json", action="store_true", help="as one JSON document")
    show.add_argument("number", type=int, help="its number in `list`")
    show.set_defaults(command=_show_dead_letter)
    replay = dead_commands.add_parser("replay", help="give dead letters back to their lanes, which pace it")
    replay.add_argument(
        "--as-new",
        action="store_true",
        help="with a fresh identity, so that OSCAR makes another job (needed for cause job_failed)",
    )
    replay.add_argument(
        "--to",
        metavar="SERVICE",
        help="to this service instead of their own, which may not be configured any more",
    )
    _chooses_dead_letters(replay)
    replay.set_defaults(command=_change_dead_letters, do="replay")
    discard = dead_commands.add_parser("discard", help="delete dead letters")
    _chooses_dead_letters(discard)
    discard.set_defaults(command=_change_dead_letters, do="discard", as_new=False, to=None)


def _chooses_dead_letters(parser: argparse.ArgumentParser) -> None:
    takes_configuration(parser)
    parser.add_argument("numbers", type=int, nargs="*", help="their numbers in `list`")
    parser.add_argument("--all", action="store_true", help="all there are, where nothing else chooses")
    parser.add_argument("--service", help="only of this service (a key of `services`)")
    parser.add_argument("--cause", help="only with this cause")
    parser.add_argument(
        "--older-than", type=age, metavar="AGE", help="only those given up longer ago, such as 7d"
    )
    parser.add_argument(
        "--younger-than", type=age, metavar="AGE", help="only those given up since, such as 2h"
    )
    parser.add_argument("--when", metavar="CEL", help="only those whose event matches, as in a route")
    parser.add_argument("--dry-run", action="store_true", help="count only")


def _list_dead_letters(options: argparse.Namespace) -> int:
    from bridge.store import read_dead_letters

    letters = read_dead_letters(
        load(options).state_dir, service=options.service, cause=options.cause, limit=options.limit
    )
    if options.json:
        for letter in letters:
            print(json.dumps(asdict(letter)))
    elif not letters:
        chosen = options.service is not None or options.cause is not None
        print("no dead letter is of that service and cause" if chosen else "no dead letters")
    else:
        rows = [("NUMBER", "KEPT", "SERVICE", "CAUSE", "TRIES", "SOURCE", "EVENT", "DETAIL")]
        rows += [
            (
                str(letter.number),
                when(letter.kept_at),
                letter.service or "-",
                letter.cause,
                str(letter.attempts),
                letter.source,
                letter.event_id,
                on_one_line(letter.detail, 100),
            )
            for letter in letters
        ]
        for line in table(rows):
            print(line)
    return 0


def _show_dead_letter(options: argparse.Namespace) -> int:
    from bridge.core.event import readable
    from bridge.store import read_dead_letter
    from bridge.store.find import members_of

    state_dir = load(options).state_dir
    found = read_dead_letter(state_dir, options.number)
    if found is None:
        print(f"oscar-bridge: there is no dead letter {options.number}", file=sys.stderr)
        return FAILED
    letter, event = found
    members = members_of(state_dir, event.source, event.id)
    text, encoding = readable(event.data)
    if options.json:
        print(
            json.dumps(
                {
                    **asdict(letter),
                    "time": event.time.isoformat() if event.time else None,
                    "attributes": dict(event.attributes),
                    "members": members,
                    "data": text,
                    "data_encoding": encoding,
                }
            )
        )
        return 0
    for name, value in (
        ("number", letter.number),
        ("service", letter.service or "-"),
        ("cause", letter.cause),
        ("detail", letter.detail),
        ("status", letter.status or "-"),
        ("attempts", letter.attempts),
        ("first attempt", when(letter.first_attempt)),
        ("last attempt", when(letter.last_attempt)),
        ("kept", when(letter.kept_at)),
        ("id", event.id),
        ("source", event.source),
        ("type", event.type),
        ("subject", event.subject or "-"),
        ("time", event.time.isoformat() if event.time else "-"),
        *((f"  {name}", value) for name, value in event.attributes.items()),
        *(("  member", member) for member in members),
        ("data", f"{len(event.data)} bytes, {encoding}"),
    ):
        print(f"{name + ':':16}{on_one_line(str(value))}")
    print(text)
    return 0


def _change_dead_letters(options: argparse.Namespace) -> int:
    from bridge.commands import Command, give
    from bridge.settings.expressions import mistakes_in

    chosen = {
        "numbers": tuple(dict.fromkeys(options.numbers)) or None,
        "service": options.service,
        "cause": options.cause,
        "older_than": options.older_than,
        "younger_than": options.younger_than,
        "when": options.when,
    }
    choosing = any(value is not None for value in chosen.values())
    if options.all and choosing:
        raise wrong("--all", "means every dead letter: leave it out, or all else that chooses")
    if not options.all and not choosing:
        raise wrong("NUMBER", "say which dead letters are meant, by number or by an option; or --all")
    if options.when is not None and (mistakes := mistakes_in(options.when)):
        raise wrong("--when", "; ".join(mistakes))
    settings = load(options)
    if options.to is not None:
        refuse_unknown(options.to, "--to", "services", settings.services)
    command = Command(do=options.do, as_new=options.as_new, to=options.to, dry_run=options.dry_run, **chosen)
    done = {"replay": "parked for their lanes", "discard": "discarded"}[options.do]
    return tell_of(asyncio.run(give(settings, command)), command, done, "dead letter")
