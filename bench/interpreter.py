"""Which interpreter it is, how it was built, and which libraries it has.

`python -m bench.interpreter` prints it as JSON, by the standard library alone: any interpreter can be asked.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

_LIBRARIES = ("aiohttp", "aiokafka", "aiobotocore", "aiormq", "uvloop")
_ASK_SECONDS = 20.0


class Interpreter(NamedTuple):
    """One that may be measured."""

    python: Path
    name: str
    """Such as `CPython 3.11.2`."""
    build: str
    """For a person: how it was built. Profile-guided and link-time optimisation make a tenth and more."""
    profiled: bool
    """It was built with profile-guided optimisation."""
    recent: bool
    """The bridge runs in it."""
    sqlite: str
    libraries: Mapping[str, str]
    """The versions of those that cost most, as far as they are there."""
    environment: str = "its environment as it is"
    """For a person: what is installed beside those."""


def ask(python: Path) -> Interpreter:
    """Ask the interpreter at `python`. Raises OSError and subprocess.SubprocessError."""
    command = [str(python), "-m", "bench.interpreter"]
    told = subprocess.run(command, check=True, capture_output=True, timeout=_ASK_SECONDS).stdout
    return Interpreter(python, **json.loads(told))


def _told() -> Mapping[str, Any]:
    given = sysconfig.get_config_var("CONFIG_ARGS") or ""
    # Debian's rules build it so by targets of their own, of which the arguments tell nothing.
    debian = sys.base_prefix == "/usr" and Path("/etc/debian_version").exists()
    profiled, linked = debian or "--enable-optimizations" in given, debian or "--with-lto" in given
    pgo, lto = (
        f"{'with' if there else 'without'} {what}" for there, what in ((profiled, "PGO"), (linked, "LTO"))
    )
    return {
        "name": f"{platform.python_implementation()} {platform.python_version()}",
        "build": f"{'of Debian, ' if debian else ''}built {pgo}, {lto}",
        "profiled": profiled,
        "recent": sys.version_info >= (3, 11),
        "sqlite": sqlite3.sqlite_version,
        "libraries": dict(_versions()),
    }


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            pass
    return found


if __name__ == "__main__":
    print(json.dumps(_told()))
