"""Files that are waited for until they have been left alone for a while (the option `settle`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bridge.sources.dcache.rest.namespace import Entry
from bridge.sources.dcache.site import Site

MOST_SETTLING = 5000
"""Files that are waited for in memory; more are laid aside in the store meanwhile."""


@dataclass(slots=True)
class _Restless:
    """A file that is not quiet yet."""

    key: str
    """The key of the occurrence that waits for it."""
    version: tuple[str, int | None, int]
    since: float
    """When this version was seen first (monotonic)."""
    is_waiting: bool = True
    """The occurrence has not had its turn again."""


class Settling:
    """Knows of each file when it has been quiet for long enough; without `settle` it always has been."""

    def __init__(self, site: Site) -> None:
        self._seconds = site.config.settle or 0.0
        self._connection = site.connection
        self._files: dict[str, _Restless] = {}
        """Files that are not quiet yet, by path."""
        self._looked_up: set[str] = set()
        """Paths that are being looked up, to see whether they are quiet."""

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def __len__(self) -> int:
        return len(self._files)

    def is_awaited(self, path: str, key: str) -> bool:
        """Return whether another occurrence waits until `path` is quiet; the one that waits has its turn."""
        file = self._files.get(path)
        if file is not None and file.is_waiting and file.key == key:
            file.is_waiting = False
        return file is not None and file.is_waiting

    def seconds_left(self, path: str, entry: Entry, key: str) -> float | None:
        """Return for how long `path` is to be left alone, None when it has been quiet for long enough.

        Its time of change is compared with dCache's own clock. A writer may set that time as it likes: what
        is the same after a whole wait is quiet too.
        """
        if not self._seconds:
            return None
        now, version = time.monotonic(), (entry.pnfsid, entry.size, entry.mtime)
        age = self._connection.now() - entry.mtime / 1000
        before = self._files.pop(path, None)
        since = before.since if before is not None and before.version == version else now
        if age >= self._seconds or now - since >= self._seconds:
            return None
        if len(self._files) < MOST_SETTLING:
            self._files[path] = _Restless(key, version, since)
        return min(max(self._seconds - age, 0.0), self._seconds - (now - since)) + 0.01

    def is_looked_up(self, path: str) -> bool:
        """Return whether `path` is being looked up: in a moment it will be known whether it is waited for."""
        return path in self._looked_up

    @contextmanager
    def looking_up(self, path: str) -> Iterator[None]:
        """Have it known meanwhile that `path` is being looked up."""
        if self._seconds:
            self._looked_up.add(path)
        try:
            yield
        finally:
            self._looked_up.discard(path)

    def forget(self, path: str) -> None:
        """Wait for `path` no longer."""
        self._files.pop(path, None)
