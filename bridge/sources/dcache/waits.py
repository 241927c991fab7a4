"""Since when occurrences wait for something that should come soon."""

from __future__ import annotations

import time
from typing import Literal, get_args

Awaited = Literal["path", "other half", "move", "size"]
"""What an occurrence may wait for: the path of its watch, the other half of its rename, the event that its
directory was moved, or the size of its file, which is still being written."""
UPLOAD_SECONDS = 86400.0
"""For which a file that was moved, or found unfinished by a listing, is looked up again while it has no size:
the event of its end gives the name it had when it was opened."""
_MOST_UPLOADS = 1000
"""Files waited for so long at once, as they take room in the hands of `SpoolReader`."""
_MOST_WAITS = 30_000
"""Waits that are remembered: more than `SpoolReader` holds, as those forgotten would begin again."""


class Waits:
    """Lets each occurrence wait once for each thing, and for so long."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, Awaited], float] = {}
        """When they began (monotonic), by the occurrence's key and by what is waited for."""
        self._uploads: dict[str, float] = {}
        """When waiting for the end of an upload began, by the occurrence's key."""

    def __len__(self) -> int:
        return len(self._waits) + len(self._uploads)

    def goes_on(self, key: str, what: Awaited, seconds: float) -> bool:
        """Return whether `key` has waited less than `seconds` for `what`; the first call begins."""
        now = time.monotonic()
        since = self._waits.setdefault((key, what), now)
        if now - since < seconds:
            while len(self._waits) > _MOST_WAITS:
                del self._waits[next(iter(self._waits))]
            return True
        del self._waits[key, what]
        return False

    def goes_on_for_upload(self, key: str) -> bool:
        """Return whether `key` is still to wait for the end of an upload."""
        since, now = self._uploads.get(key), time.monotonic()
        if since is None and len(self._uploads) < _MOST_UPLOADS:
            since = self._uploads[key] = now
        if since is not None and now - since < UPLOAD_SECONDS:
            return True
        self._uploads.pop(key, None)
        return False

    def end(self, key: str, what: Awaited) -> None:
        """Forget since when `key` has waited for `what`: it has come."""
        self._waits.pop((key, what), None)

    def end_all(self, key: str) -> None:
        """Forget all that `key` has waited for."""
        for what in get_args(Awaited):
            self._waits.pop((key, what), None)
        self._uploads.pop(key, None)
