"""`oscar-bridge dead-letters` and `parked`: events that are kept in the store, and their way out of it."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from typing import Any

from bridge.cli.columns import LETTERS, WAITING, when
from bridge.cli.options import FAILED, Commands, add, age, at_least_1, load, refuse_unknown, wrong
from bridge.cli.output import complain, say, say_document, say_items, write


def add_to(commands: Commands) -> None:
    """Add the commands."""
    dead = commands.add_parser("dead-letters", help="look at events that were given up, and why")
    _add_dead_letters(dead.add_subparsers(metavar="COMMAND", required=True))
    parked = commands.add_parser("parked", help="look at events that wait in the store for a service")
    _add_parked(parked.add_subparsers(metavar="COMMAND", required=True))


def _add_dead_letters(commands: Commands) -> None:
    listing = add(commands, "list", _list_letters, "one line a dead letter, the newest first")
    listing.add_argument("--service", help=_OF_SERVICE)
    listing.add_argument("--cause", help=_OF_CAUSE)
    _takes_limit(listing, "the newest N")
    show = add(commands, "show", _show, "one dead letter, whole")
    show.add_argument("--json", action="store_true", help="as one JSON document")
    show.add_argument("number", type=int, help="its number in `list`")
    told = "give dead letters back to their lanes, which pace it"
    replay = add(commands, "replay", _change_letters, told, do="replay")
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
    told = "delete dead letters"
    discard = add(commands, "discard", _change_letters, told, do="discard", as_new=False, to=None)
    for parser in (replay, discard):
        _chooses(parser, "all there are, where nothing else chooses", _OF_SERVICE)
        parser.add_argument("--cause", help=_OF_CAUSE)
        parser.add_argument(
            "--older-than", type=age, metavar="AGE", help="only those given up longer ago, such as 7d"
        )
        parser.add_argument(
            "--younger-than", type=age, metavar="AGE", help="only those given up since, such as 2h"
        )
        parser.add_argument("--when", metavar="CEL", help="only those whose event matches, as in a route")
        parser.add_argument("--dry-run", action="store_true", help="count only")


def _add_parked(commands: Commands) -> None:
    listing = add(commands, "list", _list_waiting, "one line an event, the oldest of each service first")
    listing.add_argument("--service", help="only those for this service, configured or not")
    listing.add_argument("--source", help=_UNREAD)
    _takes_limit(listing, "the first N")
    told = "give events of a service that is not configured any more to another one"
    move = add(commands, "move", _change_waiting, told, do="move", source=None)
    told = "make dead letters of events whose service or source is not configured any more"
    bury = add(commands, "bury", _change_waiting, told, do="bury", to=None)
    for parser in (move, bury):
        _chooses(parser, "all whose service or source is not configured", "only those for this service")
        parser.add_argument("--dry-run", action="store_true", help="count only")
    move.add_argument("--to", required=True, metavar="SERVICE", help="the service (a key of `services`)")
    bury.add_argument("--source", help=_UNREAD)


_OF_SERVICE = "only of this service (a key of `services`)"
_OF_CAUSE = "only with this cause"
_UNREAD = "only what this source (by `identity`) keeps unread"


def _takes_limit(parser: argparse.ArgumentParser, told: str) -> None:
    parser.add_argument("--limit", type=at_least_1, default=100, help=f"{told} (default 100)")
    parser.add_argument("--json", action="store_true", help="one JSON document a line")


def _chooses(parser: argparse.ArgumentParser, everything: str, service: str) -> None:
    parser.add_argument("numbers", type=int, nargs="*", help="their numbers in `list`")
    parser.add_argument("--all", action="store_true", help=everything)
    parser.add_argument("--service", help=service)


def _list_letters(options: argparse.Namespace) -> int:
    from bridge.store import read_dead_letters

    letters = read_dead_letters(
        load(options).state_dir, service=options.service, cause=options.cause, limit=options.limit
    )
    chosen = options.service is not None or options.cause is not None
    none = "no dead letter is of that service and cause" if chosen else "no dead letters"
    say_items(letters, LETTERS, as_json=options.json, none=none)
    return 0


def _list_waiting(options: argparse.Namespace) -> int:
    from bridge.store import Choice, list_waiting

    if options.service is not None and options.source is not None:
        raise wrong("--source", "is of events that have no service yet: leave out --service")
    chosen = Choice(service=options.service, source=options.source)
    events = list_waiting(load(options).state_dir, chosen, options.limit)
    none = "no events are parked" if chosen == Choice() else "no such events are parked"
    say_items(events, WAITING, as_json=options.json, none=none)
    return 0


def _show(options: argparse.Namespace) -> int:
    from bridge.core.event import readable
    from bridge.store import read_dead_letter
    from bridge.store.find import members_of

    state_dir = load(options).state_dir
    found = read_dead_letter(state_dir, options.number)
    if found is None:
        complain(f"there is no dead letter {options.number}")
        return FAILED
    letter, event = found
    members = members_of(state_dir, event.source, event.id)
    text, encoding = readable(event.data)
    if options.json:
        of_event = {
            "time": event.time.isoformat() if event.time else None,
            "attributes": dict(event.attributes),
            "members": members,
            "data": text,
            "data_encoding": encoding,
        }
        say_document(asdict(letter) | of_event)
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
        say(f"{name + ':':16}{value}")
    write(f"{text}\n")
    return 0


def _change_letters(options: argparse.Namespace) -> int:
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
    done = "parked for their lanes" if options.do == "replay" else "discarded"
    return _change(options, chosen | {"as_new": options.as_new}, done, "dead letter")


def _change_waiting(options: argparse.Namespace) -> int:
    chosen = {
        "numbers": tuple(dict.fromkeys(options.numbers)) or None,
        "service": options.service,
        "source": options.source,
    }
    if options.all + sum(value is not None for value in chosen.values()) != 1:
        raise wrong("NUMBER", "say which events are meant: by number, by one option, or --all")
    done = f"parked for {options.to}" if options.do == "move" else "made dead letters"
    return _change(options, chosen, done, "event")


def _change(options: argparse.Namespace, chosen: dict[str, Any], done: str, thing: str) -> int:
    """Have what is `chosen` changed, and tell what was `done` to how many things."""
    from bridge.commands import Command, give

    settings = load(options)
    if options.to is not None:
        refuse_unknown(options.to, "--to", "services", settings.services)
    command = Command(do=options.do, to=options.to, dry_run=options.dry_run, **chosen)
    count = asyncio.run(give(settings, command))
    say(f"{count.changed} {'would be ' if options.dry_run else ''}{done}")
    for reason, number in count.refused.items():
        say(f"{number} left as they are: {reason}")
    given = len(command.numbers or ())
    missing = given - count.changed - sum(count.refused.values())
    if missing > 0:
        named = f"{missing} of the {given} numbers given"
        complain(f"{named}: no such {thing} among those chosen")
        return FAILED
    return 0
