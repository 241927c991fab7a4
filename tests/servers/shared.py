"""What all workers of a run share: made by the first of them that asks, and ended by the run itself."""

from __future__ import annotations

import fcntl
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.servers.process import Server

_T = TypeVar("_T")
_MADE: list[object] = []
"""What this process made: others use it when its worker's fixtures are long gone."""


class Shared:
    """A folder of the run, with what was made by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, name: str, make: Callable[[], _T]) -> _T:
        """Return a copy of what `make` returned, in whichever worker: it must be something to pickle."""
        kept = self.folder / name
        with (self.folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                made = make()
                _MADE.append(made)
                kept.write_bytes(pickle.dumps(made))
        copy: _T = pickle.loads(kept.read_bytes())  # noqa: S301 - our own
        return copy

    def end(self) -> None:
        """End the servers among it."""
        for lock in self.folder.glob("*.lock"):
            kept = lock.with_suffix("")
            made = pickle.loads(kept.read_bytes()) if kept.exists() else None  # noqa: S301 - likewise
            if isinstance(made, Server):
                made.__exit__(None, None, None)
        shutil.rmtree(self.folder)
