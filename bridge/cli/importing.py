"""`oscar-bridge import-dcnios`: a configuration made of a file of DCNiOS."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bridge.cli.options import Commands, at_least_1
from bridge.cli.output import say


def add_to(commands: Commands) -> None:
    """Add the command."""
    importing = commands.add_parser(
        "import-dcnios",
        help="make a configuration of a file of DCNiOS, and tell what is kept, changed and left out",
    )
    importing.add_argument("file", type=Path, metavar="FILE", help="the file of DCNiOS (YAML)")
    importing.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where bridge.yaml and the directory secrets are written; this directory by default",
    )
    importing.add_argument(
        "--nodes",
        type=at_least_1,
        default=1,
        metavar="N",
        help="nodes of the NiFi cluster, each of which called OSCAR at the pace of the file (1)",
    )
    importing.add_argument("--force", action="store_true", help="replace files that are there")
    importing.set_defaults(command=_import)


def _import(options: argparse.Namespace) -> int:
    from bridge.dcnios.importing import import_file
    from bridge.dcnios.remarks import What
    from bridge.dcnios.saving import save

    imported = import_file(options.file, nodes=options.nodes)
    written = save(imported, options.output, force=options.force)
    to_do = [remark for remark in imported.remarks if remark.what is What.TO_DO]
    for remark in imported.remarks:
        if remark.what is not What.TO_DO:
            say(str(remark))
    if to_do:
        say()
    for remark in to_do:
        say(str(remark))
    say()
    for path in written:
        say(f"written: {path}")
    configuration = shlex.quote(str(options.output / "bridge.yaml"))
    say(f"next: oscar-bridge check -c {configuration}")
    return 0
