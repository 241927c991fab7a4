"""`oscar-bridge run`."""

from __future__ import annotations

import argparse
import asyncio
import gc

from bridge.cli.memory import spare
from bridge.cli.options import Commands, add, load


def add_to(commands: Commands) -> None:
    """Add the command."""
    run = add(commands, "run", _run, "run the bridge until SIGTERM or Ctrl-C")
    run.add_argument(
        "--accept-loss", action="store_true", help="start with what could be saved of a damaged store"
    )
    run.add_argument(
        "--rescan",
        choices=["now", "everything"],
        help="for a dCache source that can't tell what had entered: skip the files there now, or none",
    )


def _run(options: argparse.Namespace) -> int:
    gc.disable()  # until the bridge has started: nothing of what loads is garbage
    spare()
    # Imported here: `dead-letters` answers without loading every client library.
    from bridge import app
    from bridge.net.loop import Loop
    from bridge.telemetry import logging

    settings = load(options)
    logging.configure(settings.log.level, settings.log.format)
    logging.take_over_standard_error()
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(app.run(settings, accept_loss=options.accept_loss, rescan=options.rescan))
    return 0
