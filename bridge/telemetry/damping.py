"""One log line a minute of those that say the same: an outage is no reason to write thousands."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, MutableMapping
from time import monotonic
from typing import Any

Line = MutableMapping[str, Any]
"""What one log line tells: `event`, `level`, `logger`, `timestamp`, and whatever more."""
WINDOW_SECONDS = 60.0
"""How long lines like one that was written are held back."""
MOST_WINDOWS = 500
"""Different lines that are remembered; of more the oldest is forgotten."""

_MOST_OF_A_TEMPLATE = 200
_VOLATILE = re.compile(r"0x[0-9a-f]+|\d+")
"""What differs between lines that say the same: addresses, ports, counts, numbers of tasks."""
_SAYING_WHY = ("reason", "error", "detail")


def likeness_of_our_own(line: Line) -> Hashable:
    """Return what `line` has in common with those that say the same; None for one that stands alone.

    Only warnings and errors are ever alike, by their texts: one that names an event (`id`) stands alone, and
    numbers tell nothing apart.
    """
    if line["level"] in ("debug", "info") or "id" in line:
        return None
    return tuple(
        (name, _without_numbers(str(value)) if name in _SAYING_WHY else str(value))
        for name, value in line.items()
        if name not in ("timestamp", "exc_info", "message") and not isinstance(value, (int, float))
    )


def likeness_of_a_librarys(record: logging.LogRecord) -> Hashable:
    """Return the same of what a library said: its logger, level and template, whatever is filled in."""
    return record.name, record.levelno, _without_numbers(str(record.msg))


def _without_numbers(text: str) -> str:
    return _VOLATILE.sub("#", text[:_MOST_OF_A_TEMPLATE])


class _Window:
    """What followed one line that was written."""

    __slots__ = ("held", "last", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.held = 0
        self.last: Line | None = None


class Damper:
    """Decides which lines are written; those held back are counted, and the last of them is told with it."""

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}  # in the order in which they end
        self._forgotten: list[_Window] = []
        self.holding = 0
        """Windows in which something is held back."""

    def admits(self, line: Line, alike: Hashable) -> bool:
        """Return whether `line` is to be written, else count it; to be asked once nothing is `due`.

        `alike` is what it has in common with those that say the same, None for one that stands alone.
        """
        if alike is None:
            return True
        window = self._windows.get(alike)
        if window is not None:
            self.holding += not window.held
            window.held += 1
            # A traceback's frames would keep all that they hold in memory.
            window.last = {name: value for name, value in line.items() if name != "exc_info"}
            return False
        if len(self._windows) >= MOST_WINDOWS:
            self._forgotten.append(self._end(next(iter(self._windows))))
        self._windows[alike] = _Window(monotonic() + WINDOW_SECONDS)
        return True

    def due(self, *, at_once: bool = False) -> list[tuple[Line, int]]:
        """Return the last line of each window that has ended, with how many were held back in it.

        It counts as written: a new window begins. With `at_once` all windows end.
        """
        now = monotonic()
        ended, self._forgotten = self._forgotten, []
        while self._windows:
            alike, window = next(iter(self._windows.items()))
            if window.until > now and not at_once:
                break
            ended.append(self._end(alike))
            if window.held and not at_once:
                self._windows[alike] = _Window(now + WINDOW_SECONDS)
        return [(window.last, window.held) for window in ended if window.last is not None]

    def _end(self, alike: Hashable) -> _Window:
        window = self._windows.pop(alike)
        self.holding -= bool(window.held)
        return window

    def seconds(self) -> float | None:
        """Return how long nothing is due; None where nothing is held back."""
        if not self.holding:
            return None
        end = next(window.until for window in self._windows.values() if window.held)
        return max(0.0, end - monotonic())
