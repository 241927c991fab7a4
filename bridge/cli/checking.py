"""`oscar-bridge check`, `why` and `again`: what a person asks of events, and of what they go through."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Coroutine, Sized
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bridge.cli.options import FAILED, Commands, add, chosen_source, load, pair, refuse_unknown, wrong
from bridge.cli.output import complain, escaped, say, say_document

if TYPE_CHECKING:
    from bridge.settings import Settings

_NO_SERVICE = "none"
_Answer = TypeVar("_Answer")


def add_to(commands: Commands) -> None:
    """Add the commands."""
    told = "read the configuration, reach all it names, and tell what to mend; takes no event"
    check = add(commands, "check", _check, told)
    check.add_argument("--offline", action="store_true", help="only read the configuration")
    check.add_argument("--json", action="store_true", help="as one JSON document")
    one = check.add_argument_group("what would become of an event (no network)")
    one.add_argument("--event", metavar="FILE", help="the event's data; - is standard input")
    one.add_argument("--source", help="which source (a key of `sources`) it would come from")
    one.add_argument("--id", help="its id, which its jobs' names are made of")
    one.add_argument("--type", help="its type")
    one.add_argument("--subject", help="its subject")
    one.add_argument(
        "--attribute",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=VALUE",
        help="one of its attributes; may be repeated",
    )
    one.add_argument(
        "--expect",
        action="append",
        metavar="SERVICE",
        help="which service must get it; may be repeated, and `none` is for no service: else the status is 1",
    )
    told = "what became of a file, a key, an event or a job, by its name or id"
    why = add(commands, "why", _why, told, aliases=["where"])
    why.add_argument(
        "name",
        type=_named,
        metavar="FILE|KEY|ID|JOB",
        help="whole, or from a slash on, or with * ? [..]: an id, a subject, a path, a key or a job's name",
    )
    why.add_argument("--source", help="only events of this source (a key of `sources`)")
    why.add_argument("--json", action="store_true", help="as one JSON document")
    told = "have an event that is done go round its routes once more, as a new one: it makes another job"
    again = add(commands, "again", _again, told)
    again.add_argument("id", type=_named, metavar="ID", help="its id, as `why` tells it")
    again.add_argument(
        "--source", help="of which source (a key of `sources`) it is, where several have that id"
    )


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name")
    return text


def _check(options: argparse.Namespace) -> int:
    from bridge.checkup import check, json_of_findings, lines_of_findings
    from bridge.core.ports import Finding, Severity

    settings = load(options, files=options.event is None)
    if options.event is not None:
        return _preview(options, settings)
    if options.attribute or any((options.source, options.id, options.type, options.subject, options.expect)):
        more = "--source, --id, --type, --subject, --attribute and --expect tell of it"
        raise wrong("--event", f"is missing: {more}")
    findings = [Finding(Severity.WARNING, "configuration", warning) for warning in settings.warnings]
    if not options.offline:
        findings += _asking(check(settings))
    told = json_of_findings(findings)
    if options.json:
        say_document(told)
        return 0 if told["ok"] else FAILED
    parts: dict[str, Sized] = {
        "cluster": settings.clusters,
        "service": settings.services,
        "source": settings.sources,
        "route": settings.routes,
    }
    counts = ", ".join(
        f"{len(items)} {name}{'' if len(items) == 1 else 's'}" for name, items in parts.items()
    )
    say(f"{options.config}: {counts}: can be used")
    for line in lines_of_findings(findings):
        say(line)
    return 0 if told["ok"] else FAILED


def _preview(options: argparse.Namespace, settings: Settings) -> int:
    from bridge.checkup import (
        UNKNOWN_ID,
        ends_of,
        json_of_preview,
        lines_of_no_event,
        lines_of_preview,
        preview,
    )
    from bridge.core.event import Event
    from bridge.sources import NoEvent

    key = chosen_source(options, settings)
    expected = _expected(options, settings)
    event = Event(
        id=UNKNOWN_ID if options.id is None else options.id,
        source=settings.sources[key].identity or key,
        type=options.type or "unknown",
        subject=options.subject,
        time=datetime.now(UTC),
        data=sys.stdin.buffer.read() if options.event == "-" else Path(options.event).read_bytes(),
        attributes=dict(options.attribute),
    )
    found = preview(settings, key, event)
    if options.json:
        told = [json_of_preview(one) for one in found]
        say_document(told[0] if isinstance(found[0], NoEvent) and not told[1:] else told)
    else:
        for one in found:
            if isinstance(one, NoEvent):
                lines = lines_of_no_event(one)
            else:
                lines = lines_of_preview(one, with_job=not one.event.id.startswith(UNKNOWN_ID))
            for line in lines:
                say(line)
    ends = list(ends_of(found))
    gets = {end.service for end in ends if not end.dead_letter}
    if expected is not None and gets != expected:
        names = [", ".join(sorted(one)) or "no service" for one in (expected, gets)]
        complain(f"expected to go to {names[0]}, but goes to {names[1]}")
        return FAILED
    return FAILED if any(end.dead_letter for end in ends) else 0


def _expected(options: argparse.Namespace, settings: Settings) -> set[str] | None:
    """Return the services that must get the event; None where none is named."""
    if options.expect is None or (options.expect == [_NO_SERVICE] and _NO_SERVICE not in settings.services):
        return None if options.expect is None else set()
    for service in options.expect:
        refuse_unknown(service, "--expect", "services", settings.services)
    return set(options.expect)


def _why(options: argparse.Namespace) -> int:
    from bridge import why
    from bridge.web.socket import ask

    settings = load(options)
    source = None if options.source is None else chosen_source(options, settings)
    command = {"do": "events", "query": options.name, "source": source}
    try:
        told = ask(settings.state_dir, command) if settings.state_dir.is_dir() else None
        silent = "no bridge runs"
    except OSError as error:  # what it has is told all the same, but for what it has in hand
        told, silent = None, str(error)
    if told is None:
        told = _asking(why.why(settings, options.name, source)).document()
        complain(f"what is in hand is not known: {silent} in {settings.state_dir}")
    if options.json:
        say_document(told)
    else:
        for line in why.lines(told):
            say(escaped(line))
    return 0 if why.knows(told) else FAILED


def _again(options: argparse.Namespace) -> int:
    from bridge.again import Order, give

    settings = load(options)
    source = None if options.source is None else chosen_source(options, settings)
    done = _asking(give(settings, Order(id=options.id, source=source)))
    how = f"goes round its routes once more, as {done['as']}" if "as" in done else "is replayed as new"
    if letters := ", ".join(map(str, done.get("dead_letters", ()))):
        how += f", from dead letter {letters}"
    say(escaped(f"{done['source']}: event {done['id']} {how}"))
    for each in done.get("refused", ()):
        say(escaped(f"dead letter {each['dead_letter']} is left as it is: {each['reason']}"))
    for note in done.get("notes", ()):
        complain(str(note))
    return 0


def _asking(question: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Wait for what asks other systems, and log nothing: the answer tells all there is."""
    from bridge.net.loop import Loop
    from bridge.telemetry import logging as own_logging

    own_logging.configure("error")
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(question)
