"""How much may be kept of one kind of row, and what is told once that is reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

_REFUSED_SECONDS = 20.0
"""For how long a refusal is told though something smaller would fit: who tries again does so sooner."""


class Budget:
    """Bytes on the disk up to which one kind of row is kept; what is refused is told until there is room."""

    def __init__(self, most: int, why: str, what: str) -> None:
        """Keep up to `most` bytes; a refusal says `why`, and that `what` is not kept any more."""
        self.refusal: str | None = None
        """Why a row of this kind was refused; None while there is room again."""
        self._most = most
        self._why = why
        self._what = what
        self._disk_is_short = False
        """Whether the disk, not the budget, leaves the least room."""
        self._wanted = 0
        self._refused_at = 0.0

    def left(self, used: int, disk: int) -> int:
        """Return the bytes left beside those `used`, at most what `disk` has, below 0 if overdrawn."""
        budget = self._most - used
        self._disk_is_short = disk < budget
        return min(budget, disk)

    def refuse(self, path: Path, wanted: int) -> None:
        """Note that there was no room for a row of about `wanted` bytes."""
        self._wanted, self._refused_at = wanted, monotonic()
        why = "has a disk that is nearly full" if self._disk_is_short else self._why
        self.refusal = f"the store {path} {why}: {self._what} until some of it goes"

    def look(self, capacity: int, room: Callable[[int], int]) -> None:
        """Withdraw the refusal if `room`, which is asked for so many bytes, has enough of them again.

        Enough is what was refused, and at least a hundredth of the budget or of the `capacity`, if that is
        less: so readiness does not flap with every event that goes. After a while a tenth is enough, for a
        batch may be larger than whatever becomes free, and whoever asks again may ask for less.
        """
        most = min(self._most, capacity)
        wanted = max(min(self._wanted, most // 10), most // 100)
        found = room(max(wanted, self._wanted))
        held = monotonic() - self._refused_at >= _REFUSED_SECONDS
        if found >= wanted and (found >= self._wanted or held):
            self.refusal = None
