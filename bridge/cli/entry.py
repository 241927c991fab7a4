"""One command from its arguments to its exit status, whatever is closed, full or gone at its other end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from bridge import __version__
from bridge.cli import (
    checking,
    control,
    dead_letters,
    importing,
    parked,
    running,
    sandbox,
    schema,
    setup,
    testing,
    top,
)
from bridge.cli.lines import escaped
from bridge.cli.options import BAD_CONFIGURATION, FAILED, NOT_YET
from bridge.core.errors import BridgeError, ConfigurationError, StoreError, StoreLockedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    _open_what_is_closed()
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal without UTF-8 shows `→` as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            options = _parser().parse_args(arguments)
            return options.command(options)  # type: ignore[no-any-return] # argparse knows it as Any
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is expected
    except ConfigurationError as error:
        _say(str(error))
        return NOT_YET if error.may_pass else BAD_CONFIGURATION
    except StoreLockedError as error:
        _say(f"oscar-bridge: {error}")
        return BAD_CONFIGURATION
    except BrokenPipeError:  # `| head` has seen enough
        _let_go_of_output()
        return FAILED
    except (BridgeError, OSError, ValueError) as error:
        unwritten = _let_go_of_output() if isinstance(error, OSError) else None
        _say(f"oscar-bridge: {unwritten or _told(error)}")
        return FAILED
    except ExceptionGroup as group:
        broken, defects = group.split(StoreError)
        if broken is None or defects is not None:
            raise
        first: BaseException = broken  # a StoreError, as deep as the tasks were nested
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        _say(f"oscar-bridge: {first}")
        return FAILED
    except KeyboardInterrupt:
        return 130


def _open_what_is_closed() -> None:
    """Take the standard descriptors that were closed (`2>&-`): to read or print fails, to complain does not.

    Else the next file or socket that is opened gets the number, and what is meant for a person goes there.
    """
    for name, access, mode in (
        ("stdin", os.O_WRONLY, "r"),
        ("stdout", os.O_RDONLY, "w"),
        ("stderr", os.O_WRONLY, "w"),
    ):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, access)  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", errors="backslashreplace"))


def _let_go_of_output() -> str | None:
    """Tell why standard output can't be written, None when it can; the interpreter must not try again."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output can't be written: {error.strerror}"
    return None


def _say(text: str) -> None:
    with suppress(OSError):  # standard error is closed or full: the exit status tells what it can
        # What others wrote is in it, such as the path of a file.
        print("\n".join(map(escaped, text.split("\n"))), file=sys.stderr)


def _told(error: Exception) -> str:
    """Say what went wrong without the system's numbers, and what helps where the user has no right."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
        text += f"; this command runs as uid {os.geteuid()}: run it as the user of the bridge, or as root"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oscar-bridge",
        description="Takes events from Kafka, SQS (S3), RabbitMQ, dCache and Rucio, and invokes OSCAR "
        "services with them: none lost, none twice.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    running.add_to(commands)
    checking.add_to(commands)
    dead_letters.add_to(commands)
    parked.add_to(commands)
    control.add_to(commands)
    top.add_to(commands)
    testing.add_to(commands)
    schema.add_to(commands)
    setup.add_to(commands)
    importing.add_to(commands)
    sandbox.add_to(commands)
    return parser
