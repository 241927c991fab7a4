"""One command from its arguments to its exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bridge import __version__
from bridge.cli.checking import add_to as add_checking
from bridge.cli.control import add_to as add_control
from bridge.cli.importing import add_to as add_importing
from bridge.cli.kept import add_to as add_kept
from bridge.cli.options import BAD_CONFIGURATION, FAILED, NOT_YET
from bridge.cli.output import complain, let_go_of_output, open_output
from bridge.cli.running import add_to as add_running
from bridge.cli.sandbox import add_to as add_sandbox
from bridge.cli.schema import add_to as add_schema
from bridge.cli.setup import add_to as add_setup
from bridge.cli.testing import add_to as add_testing
from bridge.cli.top import add_to as add_top
from bridge.core.errors import BridgeError, ConfigurationError, StoreError, StoreLockedError, root_cause

_COMMANDS = (
    add_running,
    add_checking,
    add_kept,
    add_control,
    add_top,
    add_testing,
    add_schema,
    add_setup,
    add_importing,
    add_sandbox,
)
"""In the order of `--help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    open_output()
    try:
        try:
            options = _parser().parse_args(arguments)
            return options.command(options)  # type: ignore[no-any-return] # argparse knows it as Any
        finally:
            sys.stdout.flush()  # here, where a reader that has gone is expected
    except ConfigurationError as error:
        complain(str(error), speaker="")
        return NOT_YET if error.may_pass else BAD_CONFIGURATION
    except StoreLockedError as error:
        complain(str(error))
        return BAD_CONFIGURATION
    except BrokenPipeError:  # `| head` has seen enough
        let_go_of_output()
        return FAILED
    except (BridgeError, OSError, ValueError) as error:
        unwritten = let_go_of_output() if isinstance(error, OSError) else None
        complain(unwritten or _told(error))
        return FAILED
    except ExceptionGroup as group:
        broken, defects = group.split(StoreError)
        if broken is None or defects is not None:
            raise
        complain(str(root_cause(broken)))  # as deep as the tasks were nested
        return FAILED
    except KeyboardInterrupt:
        return 130


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
    for add_to in _COMMANDS:
        add_to(commands)
    return parser
