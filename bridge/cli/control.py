"""`oscar-bridge limits`, `pause`, `resume` and `acknowledge`: what a person changes while the bridge runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bridge.cli.columns import LIMITS, when
from bridge.cli.options import FAILED, Commands, add, age, load, pair, refuse_unknown, wrong
from bridge.cli.output import complain, say, say_items

if TYPE_CHECKING:
    from bridge.control import Order, Row
    from bridge.settings import Settings


def add_to(commands: Commands) -> None:
    """Add the commands."""
    told = "show the limits of services and clusters, or set others, without a restart"
    limits = add(commands, "limits", _limits, told)
    limits.add_argument("kind", choices=["service", "cluster"], nargs="?", help="of which kind of thing")
    limits.add_argument("key", metavar="KEY", nargs="?", help="its key in the configuration")
    limits.add_argument(
        "limits", metavar="LIMIT=VALUE", nargs="*", type=pair, help="such as concurrency=4 rate=10/s"
    )
    limits.add_argument("--reset", action="store_true", help="have the configuration's limits again")
    _takes_time(limits)
    limits.add_argument("--json", action="store_true", help="one JSON document a line")
    told = "stop reading a source, or calling a service or cluster, until it is resumed"
    pause = add(commands, "pause", _pause, told, do="pause")
    resume = add(commands, "resume", _pause, "end a pause", do="resume", seconds=None)
    for parser in (pause, resume):
        parser.add_argument("kind", choices=["source", "service", "cluster"], help="what kind of thing")
        parser.add_argument("key", metavar="KEY", help="its key in the configuration")
    _takes_time(pause)
    told = "say that you have seen which events were lost: then /readyz tells of it no more"
    seen = add(commands, "acknowledge", _acknowledge, told)
    seen.add_argument(
        "part", metavar="PART", nargs="*", help="of what, as /readyz names it: source uploads; else of all"
    )


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
    say_items(_given(settings, order, "LIMIT=VALUE"), LIMITS, as_json=options.json)
    return 0


def _pause(options: argparse.Namespace) -> int:
    from bridge.control import Order

    settings = load(options)
    order = Order(do=options.do, kind=options.kind, key=options.key, seconds=_bounded(options.seconds))
    rows = _given(settings, order, "KEY")
    (row,) = [row for row in rows if row.name == "paused"]
    named = f"{row.kind} {row.key}"
    if row.since is None:
        say(f"{named} is not paused")
    else:
        say(f"{named} is paused until {'it is resumed' if row.until is None else when(row.until)}")
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
        say(f"nothing {f'of {wanted.part} ' if wanted.part else ''}is to be acknowledged")
    for said, problems in (("acknowledged", answer["acknowledged"]), ("goes on", answer["going_on"])):
        for problem in problems:
            say(f"{said}: {problem['part']}: {problem['reason']}")
    if not runs:
        complain(f"no bridge runs in {settings.state_dir}")
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
        complain(f"no bridge runs in {settings.state_dir}: {held}")
    return rows
