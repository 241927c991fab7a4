"""One log line a minute of those that say the same: an outage is no reason to write thousands."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping
from time import monotonic

WINDOW_SECONDS = 60.0
"""How long lines like one that was written are held back."""
MOST_WINDOWS = 500
"""Different lines that are remembered; of more the oldest is forgotten."""

_MOST_OF_A_TEMPLATE = 200
_VOLATILE = re.compile(r"0x[0-9a-f]+|\d+")
"""What differs between lines that say the same: addresses, ports, counts, numbers of tasks."""
_SAYING_WHY = ("reason", "error", "detail")


def likeness(record: logging.LogRecord) -> Hashable:
    """Return what `record` has in common with those that say the same; None for one that stands alone.

    Of a library these are the logger, the level and the template, whatever is filled in. Of the bridge's own
    (structlog's, whose message is a dictionary) only warnings and errors are ever alike, by their texts: one
    that names an event (`id`) stands alone, and numbers tell nothing apart.
    """
    if not isinstance(record.msg, Mapping):
        return record.name, record.levelno, _without_numbers(str(record.msg))
    if record.levelno < logging.WARNING or "id" in record.msg:
        return None
    texts = [
        (name, _without_numbers(str(value)) if name in _SAYING_WHY else str(value))
        for name, value in record.msg.items()
        if name not in ("timestamp", "exc_info", "message") and not isinstance(value, (int, float))
    ]
    return record.name, record.levelno, tuple(texts)


def _without_numbers(text: str) -> str:
    return _VOLATILE.sub("#", text[:_MOST_OF_A_TEMPLATE])


class _Window:
    """What followed one line that was written."""

    __slots__ = ("held", "last", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.held = 0
        self.last: logging.LogRecord | None = None


class Damper:
    """Decides which lines are written; those held back are counted, and the last of them is told with it."""

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}  # in the order in which they end
        self._forgotten: list[_Window] = []
        self.holding = 0
        """Windows in which something is held back."""

    def admits(self, record: logging.LogRecord) -> bool:
        """Return whether `record` is to be written, else count it; to be asked once nothing is `due`."""
        alike = likeness(record)
        if alike is None:
            return True
        window = self._windows.get(alike)
        if window is not None:
            self.holding += not window.held
            window.held += 1
            window.last = _without_references(record)
            return False
        if len(self._windows) >= MOST_WINDOWS:
            self._forgotten.append(self._end(next(iter(self._windows))))
        self._windows[alike] = _Window(monotonic() + WINDOW_SECONDS)
        return True

    def due(self, *, at_once: bool = False) -> list[tuple[logging.LogRecord, int]]:
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


def _without_references(record: logging.LogRecord) -> logging.LogRecord:
    """Copy `record` without what would keep a traceback's frames, and all that they hold, in memory."""
    message = record.msg if isinstance(record.msg, dict) else record.getMessage()
    if isinstance(message, dict):
        message = {name: value for name, value in message.items() if name != "exc_info"}
    return logging.makeLogRecord(
        record.__dict__ | {"msg": message, "args": (), "exc_info": None, "exc_text": None}
    )
