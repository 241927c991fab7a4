"""CEL, the expression language of the routes (https://cel.dev), by PyPI `common-expression-language`."""

from __future__ import annotations

import sys
from types import ModuleType

# The package's __init__ imports its own command line, and with it a terminal library: 27 MiB and 0.2 s
# that a daemon has no use for.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))

from cel import Program, compile  # noqa: A004, E402 - the library's word; after the line above on purpose

VARIABLES = ("id", "source", "type", "subject", "time", "attributes", "data")
"""What an expression can name: the event's CloudEvents attributes, what else came with it, its data."""

__all__ = ["VARIABLES", "Program", "compile"]
