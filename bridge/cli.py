"""The command line: `oscar-bridge run | check | where | dead-letters | sandbox`.

Exit status: 0 well, 1 failed at run time, 2 a configuration or a command line that can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import sys
from base64 import b64encode
from collections.abc import Coroutine, Iterable, Sequence, Sized
from dataclasses import asdict
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bridge import __version__
from bridge.core.errors import BridgeError, ConfigurationError, Mistake, StoreError, StoreLockedError

if TYPE_CHECKING:
    from bridge.settings import Settings

FAILED, BAD_CONFIGURATION = 1, 2
_UNKNOWN_ID = "(unknown)"
_Answer = TypeVar("_Answer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    _hold_standard_descriptors()
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal without UTF-8 shows `→` as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            options = _parser().parse_args(arguments)
            return options.command(options)  # type: ignore[no-any-return] # argparse knows it as Any
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is expected
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return BAD_CONFIGURATION
    except StoreLockedError as error:
        print(f"oscar-bridge: {error}", file=sys.stderr)
        return BAD_CONFIGURATION
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (BridgeError, OSError, ValueError) as error:
        print(f"oscar-bridge: {_told(error)}", file=sys.stderr)
        return FAILED
    except ExceptionGroup as group:
        broken, defects = group.split(StoreError)
        if broken is None or defects is not None:
            raise
        first: BaseException = broken  # a StoreError, as deep as the tasks were nested
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        print(f"oscar-bridge: {first}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130


def _hold_standard_descriptors() -> None:
    """Open what the process was started without (`2>&-`).

    Else the next socket, or the store's file, would get that number, and be written into by whatever writes
    to standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115


def _told(error: Exception) -> str:
    """Say what went wrong without the system's numbers, and what helps where the user has no right."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
        text += f"; this command runs as uid {os.geteuid()}: run it as the user of the bridge, or as root"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oscar-bridge",
        description="Takes events from Kafka, SQS (S3), dCache and Rucio, and invokes OSCAR services "
        "with them: none lost, none twice.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run the bridge until SIGTERM or Ctrl-C")
    _takes_configuration(run)
    run.add_argument(
        "--accept-loss", action="store_true", help="start with what could be saved of a damaged store"
    )
    run.add_argument(
        "--rescan",
        choices=["now", "everything"],
        help="for a dCache source that can't tell what had entered: skip the files there now, or none",
    )
    run.set_defaults(command=_run)

    check = commands.add_parser(
        "check", help="read the configuration, reach all it names, and tell what to mend; takes no event"
    )
    _takes_configuration(check)
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
        type=_pair,
        metavar="NAME=VALUE",
        help="one of its attributes; may be repeated",
    )
    check.set_defaults(command=_check)

    where = commands.add_parser("where", help="what became of an event: kept here, or its job on the cluster")
    _takes_configuration(where)
    where.add_argument("id", help="the event's id")
    where.add_argument("--source", help="only as an event of this source (a key of `sources`)")
    where.add_argument("--json", action="store_true", help="as one JSON document")
    where.set_defaults(command=_where)

    dead = commands.add_parser("dead-letters", help="look at events that were given up, and why")
    dead_commands = dead.add_subparsers(metavar="COMMAND", required=True)
    listing = dead_commands.add_parser("list", help="one line a dead letter, the newest first")
    _takes_configuration(listing)
    listing.add_argument("--service", help="only of this service (a key of `services`)")
    listing.add_argument("--cause", help="only with this cause")
    listing.add_argument("--limit", type=_at_least_1, default=100, help="the newest N (default 100)")
    listing.add_argument("--json", action="store_true", help="one JSON document a line")
    listing.set_defaults(command=_list_dead_letters)
    show = dead_commands.add_parser("show", help="one dead letter, whole")
    _takes_configuration(show)
    show.add_argument("--json", action="store_true", help="as one JSON document")
    show.add_argument("number", type=int, help="its number in `list`")
    show.set_defaults(command=_show_dead_letter)
    replay = dead_commands.add_parser("replay", help="give dead letters back to their lanes, which pace it")
    replay.add_argument(
        "--as-new",
        action="store_true",
        help="with a fresh identity, so that OSCAR makes another job (needed for cause job_failed)",
    )
    _chooses_dead_letters(replay)
    replay.set_defaults(command=_change_dead_letters, do="replay")
    discard = dead_commands.add_parser("discard", help="delete dead letters")
    _chooses_dead_letters(discard)
    discard.set_defaults(command=_change_dead_letters, do="discard", as_new=False)

    sandbox = commands.add_parser("sandbox", help="try the bridge without an OSCAR cluster")
    sandbox_commands = sandbox.add_subparsers(metavar="COMMAND", required=True)
    everything = sandbox_commands.add_parser(
        "run", help="OSCAR, Kafka, S3, dCache and the bridge on loopback, with a few events to see it by"
    )
    _takes_configuration(everything)
    everything.add_argument("--once", action="store_true", help="end when all events became jobs")
    everything.set_defaults(command=_sandbox_run)
    return parser


def _chooses_dead_letters(parser: argparse.ArgumentParser) -> None:
    _takes_configuration(parser)
    parser.add_argument("numbers", type=int, nargs="*", help="their numbers in `list`")
    parser.add_argument("--all", action="store_true", help="all there are, where nothing else chooses")
    parser.add_argument("--service", help="only of this service (a key of `services`)")
    parser.add_argument("--cause", help="only with this cause")
    parser.add_argument(
        "--older-than", type=_age, metavar="AGE", help="only those given up longer ago, such as 7d"
    )
    parser.add_argument(
        "--younger-than", type=_age, metavar="AGE", help="only those given up since, such as 2h"
    )
    parser.add_argument("--when", metavar="CEL", help="only those whose event matches, as in a route")
    parser.add_argument("--dry-run", action="store_true", help="count only")


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


def _at_least_1(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text!r}")
    return int(text)


def _age(text: str) -> float:
    from bridge.values import duration

    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, found {text!r}") from None


def _takes_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="the configuration (YAML)"
    )


def _run(options: argparse.Namespace) -> int:
    gc.disable()  # until the bridge has started: nothing of what loads is garbage
    # The log library would load a terminal library for its tracebacks: 4 MiB and 0.1 s for nothing.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # that is how an import is prevented
    # Imported here: `dead-letters` answers without loading every client library.
    from bridge import app
    from bridge.net.loop import Loop
    from bridge.telemetry import logging

    settings = _load(options)
    logging.configure(settings.log.level, settings.log.format)
    logging.take_over_standard_error()
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(app.run(settings, accept_loss=options.accept_loss, rescan=options.rescan))
    return 0


def _check(options: argparse.Namespace) -> int:
    from bridge.checkup import check, json_of_findings, lines_of_findings
    from bridge.core.ports import Finding, Severity

    settings = _load(options)
    if options.event is not None:
        return _preview(options, settings)
    if options.attribute or any((options.source, options.id, options.type, options.subject)):
        raise _wrong("--event", "is missing: --source, --id, --type, --subject and --attribute tell of it")
    findings = [Finding(Severity.WARNING, "configuration", warning) for warning in settings.warnings]
    if not options.offline:
        findings += _asking(check(settings))
    told = json_of_findings(findings)
    if options.json:
        print(json.dumps(told))
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
    print(f"{options.config}: {counts}: can be used")
    for line in lines_of_findings(findings):
        print(_on_one_line(line))
    return 0 if told["ok"] else FAILED


def _preview(options: argparse.Namespace, settings: Settings) -> int:
    from bridge.checkup import json_of_preview, lines_of_preview, preview
    from bridge.core.event import Event

    key = _source(options, settings)
    event = Event(
        id=_UNKNOWN_ID if options.id is None else options.id,
        source=settings.sources[key].identity or key,
        type=options.type or "unknown",
        subject=options.subject,
        time=datetime.now(UTC),
        data=sys.stdin.buffer.read() if options.event == "-" else Path(options.event).read_bytes(),
        attributes=dict(options.attribute),
    )
    found = preview(settings, key, event)
    if isinstance(found, str):
        print(json.dumps({"filtered": found}) if options.json else f"no event is made of it: {found}")
        return 0
    if options.json:
        print(json.dumps([json_of_preview(one) for one in found]))
        return 0
    for one in found:
        for line in lines_of_preview(one, with_job=not one.event.id.startswith(_UNKNOWN_ID)):
            print(_on_one_line(line))
    return 0


def _where(options: argparse.Namespace) -> int:
    from bridge import where
    from bridge.store.schema import FILE

    settings = _load(options)
    source = None if options.source is None else _source(options, settings)
    found = _asking(where.where(settings, options.id, source))
    if not (settings.state_dir / FILE).exists():
        print(
            f"oscar-bridge: there is no store in {settings.state_dir}: only clusters were asked",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        for line in where.lines(found):
            print(_on_one_line(line))
    return 0 if any(one.fate in (where.Fate.KEPT, where.Fate.JOB) for one in found) else FAILED


def _source(options: argparse.Namespace, settings: Settings) -> str:
    """Give the source that is asked for. Raises ConfigurationError when there is none such."""
    if options.source is None:
        raise _wrong("--source", f"is missing; there are {', '.join(settings.sources)}")
    _known(options.source, "--source", "sources", settings.sources)
    return str(options.source)


def _known(key: str, option: str, room: str, known: Iterable[str]) -> None:
    from bridge.settings.references import did_you_mean

    if key not in known:
        raise _wrong(option, f"`{key}` is not in `{room}`{did_you_mean(key, known)}")


def _wrong(option: str, message: str) -> ConfigurationError:
    return ConfigurationError([Mistake("command line", option, message)])


def _asking(question: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Wait for what asks other systems, and log nothing: the answer tells all there is."""
    from bridge.net.loop import Loop
    from bridge.telemetry import logging as own_logging

    own_logging.configure("error")
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(question)


def _list_dead_letters(options: argparse.Namespace) -> int:
    from bridge.store import read_dead_letters

    letters = read_dead_letters(
        _load(options).state_dir, service=options.service, cause=options.cause, limit=options.limit
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
                _when(letter.kept_at),
                letter.service or "-",
                letter.cause,
                str(letter.attempts),
                letter.source,
                letter.event_id,
                _on_one_line(letter.detail, 100),
            )
            for letter in letters
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        for row in rows:
            print(
                "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            )
    return 0


def _show_dead_letter(options: argparse.Namespace) -> int:
    from bridge.store import read_dead_letter

    found = read_dead_letter(_load(options).state_dir, options.number)
    if found is None:
        print(f"oscar-bridge: there is no dead letter {options.number}", file=sys.stderr)
        return FAILED
    letter, event = found
    text, encoding = _readable(event.data)
    if options.json:
        print(
            json.dumps(
                {
                    **asdict(letter),
                    "time": event.time.isoformat() if event.time else None,
                    "attributes": dict(event.attributes),
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
        ("first attempt", _when(letter.first_attempt)),
        ("last attempt", _when(letter.last_attempt)),
        ("kept", _when(letter.kept_at)),
        ("id", event.id),
        ("source", event.source),
        ("type", event.type),
        ("subject", event.subject or "-"),
        ("time", event.time.isoformat() if event.time else "-"),
        *((f"  {name}", value) for name, value in event.attributes.items()),
        ("data", f"{len(event.data)} bytes, {encoding}"),
    ):
        print(f"{name + ':':16}{_on_one_line(str(value))}")
    print(text)
    return 0


def _change_dead_letters(options: argparse.Namespace) -> int:
    from bridge.commands import Command, give
    from bridge.settings.references import mistakes_in

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
        raise _wrong("--all", "means every dead letter: leave it out, or all else that chooses")
    if not options.all and not choosing:
        raise _wrong("NUMBER", "say which dead letters are meant, by number or by an option; or --all")
    if options.when is not None and (mistakes := mistakes_in(options.when)):
        raise _wrong("--when", "; ".join(mistakes))
    command = Command(do=options.do, as_new=options.as_new, dry_run=options.dry_run, **chosen)
    count = asyncio.run(give(_load(options), command))
    done = {"replay": "parked for their lanes", "discard": "discarded"}[options.do]
    print(f"{count.changed} {'would be ' if options.dry_run else ''}{done}")
    for reason, number in count.refused.items():
        print(f"{number} left as they are: {reason}")
    missing = len(command.numbers or ()) - count.changed - sum(count.refused.values())
    if missing > 0:
        named = f"{missing} of the {len(command.numbers or ())} numbers given"
        print(f"oscar-bridge: {named}: no such dead letter among those chosen", file=sys.stderr)
        return FAILED
    return 0


def _sandbox_run(options: argparse.Namespace) -> int:
    from bridge.sandbox import demo

    return demo.run(options.config, once=options.once)


def _load(options: argparse.Namespace) -> Settings:
    from bridge.settings import load

    return load(options.config, os.environ)


def _when(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def _on_one_line(text: str, longest: int | None = None) -> str:
    """Keep what a foreign system wrote from moving the cursor or colouring the screen."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return line if longest is None or len(line) <= longest else line[: longest - 1] + "…"


def _readable(data: bytes) -> tuple[str, str]:
    """Give data as text where it is printable UTF-8, as base64 elsewhere; and which of the two."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and all(letter.isprintable() or letter in "\n\t\r" for letter in text):
        return text, "text"
    return b64encode(data).decode("ascii"), "base64"
