"""What keeps the memory of a daemon small: what it can do without, and what it gives back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Of glibc's malloc.h."""
_LARGE = 2**18
"""Bytes: more than is read at once of a connection."""


def spare() -> None:
    """Do so, before anything else is loaded."""
    # The log library would load a terminal library for its tracebacks: 4 MiB and 0.1 s for nothing.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type] # that is how an import is prevented
    # Compiled, this small part of aiohttp brings all of the C++ library with it: 1 MiB.
    os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")
    # Kafka's compressions take 2 MiB, and a topic may have none.
    _load_later("cramjam")
    with suppress(AttributeError, OSError):  # a C library that has no such call
        libc = ctypes.CDLL(None)
        # glibc raises this bound to the largest that was ever let go, such as an answer of Kafka's, and takes
        # the next from where small things lie between: what is let go then stays with the process.
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        # Each thread would keep memory of its own; one at a time runs, but for SQLite's.
        libc.mallopt(_M_ARENA_MAX, 1)


def _load_later(name: str) -> None:
    """Have the module `name` loaded only when something of it is asked for."""
    if find_spec(name) is None:
        return

    def found(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    stand_in = ModuleType(name)
    vars(stand_in)["__getattr__"] = found
    sys.modules.setdefault(name, stand_in)
