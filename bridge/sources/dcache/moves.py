"""Renames: dCache sends one event where something left and one where it came, in either order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

PAIR_SECONDS = 2.0
"""The two halves of a rename come within this time of each other, or the other half is elsewhere."""
_MOST_COOKIES = 20_000
"""Renames within the watched tree that are remembered."""


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a rename."""

    path: str | None
    """Where it left, or came; None if the directory that it is in is not known."""
    at: float
    """When the event came (monotonic)."""
    keys: frozenset[str] = frozenset()
    """Keys of the watches at and below a directory that left."""


class Moves:
    """Pairs the halves of renames by their cookie."""

    def __init__(self) -> None:
        self._from: OrderedDict[str, Half] = OrderedDict()
        """What left, by cookie, while the other half has not come."""
        self._to: OrderedDict[str, Half] = OrderedDict()
        """What came, likewise."""
        self._within: OrderedDict[str, None] = OrderedDict()
        """Cookies of the last renames of which both halves have come."""

    def left(self, cookie: str, half: Half) -> Half | None:
        """Take an IN_MOVED_FROM; return the other half when that has come already."""
        return self._pair(cookie, half, self._from, self._to)

    def came(self, cookie: str, half: Half) -> Half | None:
        """Take an IN_MOVED_TO; return the other half when that has come already."""
        return self._pair(cookie, half, self._to, self._from)

    def was_within(self, cookie: str) -> bool:
        """Return whether both halves of the rename have come."""
        return cookie in self._within

    def gone(self, now: float) -> list[Half]:
        """Return what left and has not come anywhere in time, each of them once."""
        _outdated(self._to, now)
        return _outdated(self._from, now)

    def due(self) -> float | None:
        """Return when (monotonic) a half will have waited long enough; None while none waits."""
        oldest = [next(iter(halves.values())).at for halves in (self._from, self._to) if halves]
        return min(oldest) + PAIR_SECONDS if oldest else None

    def _pair(
        self, cookie: str, half: Half, mine: OrderedDict[str, Half], others: OrderedDict[str, Half]
    ) -> Half | None:
        other = others.pop(cookie, None)
        if other is None or half.at - other.at > PAIR_SECONDS:
            mine[cookie] = half
            mine.move_to_end(cookie)
            return None
        self._within[cookie] = None
        if len(self._within) > _MOST_COOKIES:
            self._within.popitem(last=False)
        return other


def _outdated(halves: OrderedDict[str, Half], now: float) -> list[Half]:
    """Take out the halves that have waited long enough; the oldest come first."""
    outdated = []
    while halves and now - next(iter(halves.values())).at > PAIR_SECONDS:
        outdated.append(halves.popitem(last=False)[1])
    return outdated
