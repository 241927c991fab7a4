"""`oscar-bridge schema`: what an editor needs to know of the configuration."""

from __future__ import annotations

import argparse
from importlib.resources import files

from bridge.cli.options import Commands
from bridge.cli.output import write


def add_to(commands: Commands) -> None:
    """Add the command."""
    schema = commands.add_parser(
        "schema", help="print the configuration's JSON Schema, by which an editor completes and checks it"
    )
    schema.set_defaults(command=_schema)


def _schema(_options: argparse.Namespace) -> int:
    write(files("bridge.settings").joinpath("schema.json").read_text(encoding="utf-8"))
    return 0
