"""The directories that can't be watched or listed now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.core.steady import Steady

_MOST_RETRIED = 20
"""Unreadable directories that are tried again at once."""
_MOST_SHOWN = 5
"""Unreadable directories that readiness names; it counts the others."""


class UnreadableDirectories:
    """Knows them and why, for readiness, for the log, and for trying them again."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._reasons: dict[str, str] = {}
        self._last = Steady()

    def add(self, path: str, reason: str) -> None:
        """Note that `path` can't be watched or listed, for `reason`."""
        if self._reasons.get(path) != reason:
            self._log.warning("dcache: a directory can't be watched", path=path, reason=reason)
        self._reasons[path] = reason
        self._last.failed(_sentence(path, reason))

    def remove(self, path: str) -> None:
        """Note that `path` was watched and listed, or is not there and need not be."""
        self._reasons.pop(path, None)
        if not self._reasons:
            self._last.recovered()

    def next_to_try(self) -> Sequence[str]:
        """Return those that are tried again now; each has its turn, however many there are."""
        paths = list(self._reasons)[:_MOST_RETRIED]
        for path in paths:
            self._reasons[path] = self._reasons.pop(path)
        return paths

    def problems(self) -> list[str]:
        """Return what readiness shows, also for a moment after the last of them could be read."""
        shown = [_sentence(path, reason) for path, reason in self._reasons.items()]
        if not shown and self._last.problem is not None:
            shown = [self._last.problem]
        more = len(shown) - _MOST_SHOWN
        return [*shown[:_MOST_SHOWN], *([f"and {more} more directories"] if more > 0 else [])]


def _sentence(path: str, reason: str) -> str:
    return f"{path} can't be watched: {reason}"
