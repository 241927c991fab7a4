"""`oscar-bridge limits`, `pause`, `resume` and `acknowledge`: what a person changes while the bridge runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from bridge.cli.lines import on_one_line, table, when
from bridge.cli.options import FAILED, Commands, age, load, pair, refuse_unknown, takes_configuration, wrong

if TYPE_CHECKING:
    from bridge.control import Order, Row
    from bridge.settings import Settings


def add_to(commands: Commands) -> None:
    """Add the commands."""
    limits = commands.add_parser(
        "limits", help="show the limits of services and clusters, or set others, without a restart"
    )
    takes_configuration(limits)
    limits.add_argument("kind", choices=["service", "cluster"], nargs="?", help="of which kind of thing")
    limits.add_argument("key", metavar="KEY", nargs="?", help="its key in the configuration")
    limits.add_argument(
        "limits", metavar="LIMIT=VALUE", nargs="*", type=pair, help="such as concurrency=4 rate=10/s"
    )
    limits.add_argument("--reset", action="store_true", help="have the configuration's limits again")
    _takes_time(limits)
    limits.add_argument("--json", action="store_true", help="one JSON document a line")
    limits.set_defaults(command=_limits)
    pause = commands.add_parser(
        "pause", help="stop reading a source, or calling a service or cluster, until it is resumed"
    )
    _names_one(pause)
    _takes_time(pause)
    pause.set_defaults(command=_pause, do="pause")
    resume = commands.add_parser("resume", help="end a pause")
    _names_one(resume)
    resume.set_defaults(command=_pause, do="resume", seconds=None)
    seen = commands.add_parser(
        "acknowledge", help="say that you have seen which events were lost: then /readyz tells of it no more"
    )
    takes_configuration(seen)
    seen.add_argument(
        "part", metavar="PART", nargs="*", help="of what, as /readyz names it: source uploads; else of all"
    )
    seen.set_defaults(command=_acknowledge)


def _names_one(parser: argparse.ArgumentParser) -> None:
    takes_configuration(parser)
    parser.add_argument("kind", choices=["source", "service", "cluster"], help="what kind of thing")
    parser.add_argument("key", metavar="KEY", help="its key in the configuration")


def _takes_time(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for", dest="seconds", type=age, metavar="TIME", help="how long, such as 2h; else until it is ended"
    )


def _limits(options: argparse.Namespace) -> int:
    from bridge.control import Order

    limits = dict(options.limits)
    if len(limits) < len(options.limits):
        raise wrong("LIMIT=VALUE", "names a limit twice")
    if options.kind is not None and options.key is None:
        raise wrong("KEY", f"is missing: which {options.kind} is meant?")
    if options.reset and limits:
        raise wrong("--reset", "means all limits of it: leave it out, or the limits given")
    if options.seconds is not None and not limits:
        raise wrong("--for", "is of limits that are set: say which, such as concurrency=4")
    settings = load(options)
    order = Order(
        do="limits",
        kind=options.kind,
        key=options.key,
        limits=limits,
        reset=options.reset,
        seconds=_bounded(options.seconds),
    )
    rows = _given(settings, order, "LIMIT=VALUE")
    if options.json:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        for line in table([_HEAD, *_cells(rows)]):
            print(line)
    return 0


def _pause(options: argparse.Namespace) -> int:
    from bridge.control import Order

    settings = load(options)
    order = Order(do=options.do, kind=options.kind, key=options.key, seconds=_bounded(options.seconds))
    rows = _given(settings, order, "KEY")
    (row,) = [row for row in rows if row.name == "paused"]
    named = f"{row.kind} {row.key}"
    if row.since is None:
        print(f"{named} is not paused")
    else:
        print(f"{named} is paused until {'it is resumed' if row.until is None else when(row.until)}")
    return 0


def _acknowledge(options: argparse.Namespace) -> int:
    from bridge.control import Acknowledgement, acknowledge
    from bridge.store import losses

    settings = load(options)
    wanted = Acknowledgement(part=" ".join(options.part) or None)
    try:
        wanted.refuse_unknown(settings, losses.read(settings.state_dir))
    except ValueError as error:
        raise wrong("PART", str(error)) from None
    answer, runs = acknowledge(settings, wanted)
    if not answer["acknowledged"]:
        print(f"nothing {f'of {wanted.part} ' if wanted.part else ''}is to be acknowledged")
    for said, problems in (("acknowledged", answer["acknowledged"]), ("goes on", answer["going_on"])):
        for problem in problems:
            print(on_one_line(f"{said}: {problem['part']}: {problem['reason']}"))
    if not runs:
        print(f"oscar-bridge: no bridge runs in {settings.state_dir}", file=sys.stderr)
    return FAILED if answer["going_on"] else 0


def _bounded(seconds: float | None) -> float | None:
    from bridge.control import LONGEST

    if seconds is not None and seconds > LONGEST:
        raise wrong("--for", f"expected at most {LONGEST / 86400:g}d; without it, until it is ended")
    return seconds


def _given(settings: Settings, order: Order, option: str) -> list[Row]:
    """Have `order` carried out, once it is known to be one that can be."""
    from bridge.control import Overrides, give

    if order.kind is not None and order.key is not None:
        room = f"{order.kind}s"
        refuse_unknown(order.key, "KEY", room, getattr(settings, room))
        try:
            Overrides(settings).after(order, 0.0)
        except ValueError as error:
            raise wrong(option, str(error)) from None
    rows, runs = give(settings, order)
    if not runs:
        held = "this holds from its next start" if order.changes else "this is what its next start has"
        print(f"oscar-bridge: no bridge runs in {settings.state_dir}: {held}", file=sys.stderr)
    return rows


_HEAD = ("KIND", "KEY", "LIMIT", "CONFIGURED", "IN FORCE", "FOUND", "SINCE", "UNTIL")


def _cells(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    return [
        (
            row.kind,
            row.key,
            row.name,
            row.configured,
            row.in_force,
            "-" if row.found is None else str(row.found),
            when(row.since),
            _until(row),
        )
        for row in rows
    ]


def _until(row: Row) -> str:
    if row.since is None or row.until is not None:
        return when(row.until)
    return "it is resumed" if row.name == "paused" else "it is reset"
