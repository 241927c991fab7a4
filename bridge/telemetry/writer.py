"""Lines on their way to a descriptor that may block: nobody waits for whoever reads there."""

from __future__ import annotations

import io
import os
import select
from collections import deque
from collections.abc import Callable
from threading import Condition, Event, Thread

MOST_LINES = 1000
MOST_BYTES = 2**20
"""What waits to be written; of more the oldest is dropped, and counted."""
_AT_ONCE = 2**16
"""Bytes of one write: while the loop is busy, the thread gets its turn every few milliseconds only."""
_LONGEST_LINE = 2**16
"""Characters that are printed without an end, before they are taken for a line."""
_WRITABLE_MILLISECONDS = 1000
_GATHER_SECONDS = 0.05
"""Lines gather so long after each write, unless they become many: a thread that wakes for each of them takes
the processor from the loop, which costs more than the line."""


class Writer:
    """A bounded queue of lines, and one thread that writes them to `descriptor`.

    The thread is a daemon: a descriptor that nobody reads from can hold it for ever, but not the process.
    """

    def __init__(
        self, descriptor: int, gap: Callable[[int], bytes], idle: Callable[[], float | None]
    ) -> None:
        """Take `gap`, which makes a line that tells how many were dropped, and `idle`.

        That is called in the thread whenever all is written; it returns the seconds after which to call it
        again even if nothing is written meanwhile, None for never.
        """
        self._descriptor = descriptor
        self._gap = gap
        self._idle = idle
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._count: Callable[[int], object] = lambda _more: None
        self._untold = 0
        """Lines dropped that no line has told of."""
        self._writing = False
        self._closed = False
        self._woken = False
        self._thread: Thread | None = None
        self._changed = Condition()
        self._hurry = Event()
        """Lines are not to gather: half of what may wait does, or somebody waits for the last one."""

    def put(self, line: bytes) -> None:
        """Have `line`, which ends with a newline, written. Never blocks on the descriptor."""
        with self._changed:
            if self._closed:
                return
            if self._thread is None:
                self._thread = Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._lines.append(line)
            self._bytes += len(line)
            while len(self._lines) > MOST_LINES or (self._bytes > MOST_BYTES and len(self._lines) > 1):
                self._bytes -= len(self._lines.popleft())
                self._drop()
            if len(self._lines) > MOST_LINES // 2 or self._bytes > MOST_BYTES // 2:
                self._hurry.set()
            self._changed.notify_all()

    def wake(self) -> None:
        """Have `idle` called, and asked anew when to call it again."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait for the last line to be written, but `seconds` at most; return whether it was."""
        self._hurry.set()
        with self._changed:
            return self._changed.wait_for(lambda: not (self._lines or self._writing), seconds)

    def close(self) -> None:
        """Take no more lines; the thread ends when it has written what there is."""
        with self._changed:
            self._closed = True
            self._hurry.set()
            self._changed.notify_all()

    def count_dropped(self, count: Callable[[int], object]) -> None:
        """Call `count` with each number of lines dropped more, from those so far on."""
        with self._changed:
            count(self._dropped)
            self._count = count

    def _drop(self) -> None:
        self._dropped += 1
        self._count(1)
        self._untold += 1

    def _run(self) -> None:
        while (lines := self._next()) is not None:
            dropped = self._untold
            if dropped and not self._write([self._gap(dropped)]):
                with self._changed:
                    self._untold -= dropped
            unwritten = self._write(lines)
            with self._changed:
                self._writing = False
                for _ in range(unwritten):
                    self._drop()
                self._changed.notify_all()
            self._hurry.wait(_GATHER_SECONDS)
            self._hurry.clear()

    def _next(self) -> list[bytes] | None:
        """Return the next lines, once there are some; None when closed."""
        while True:
            with self._changed:
                if self._lines:
                    self._writing = True
                    lines = [self._lines.popleft()]
                    size = len(lines[0])
                    while self._lines and size + len(self._lines[0]) <= _AT_ONCE:
                        lines.append(self._lines.popleft())
                        size += len(lines[-1])
                    self._bytes -= size
                    return lines
                if self._closed:
                    return None
                self._woken = False
            pause = self._idle()
            with self._changed:
                self._changed.wait_for(self._has_to_do, pause)

    def _has_to_do(self) -> bool:
        return bool(self._lines) or self._closed or self._woken

    def _write(self, lines: list[bytes]) -> int:
        """Write `lines`, however long that takes; return how many can't be."""
        rest = memoryview(b"".join(lines))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody who shares it has made it so
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_WRITABLE_MILLISECONDS)
            except OSError:  # nobody has it open for reading any more, or the disk is full
                break
        unwritten, left = 0, len(rest)
        while left > 0:
            unwritten += 1
            left -= len(lines[-unwritten])
        return unwritten


class Stream(io.TextIOBase):
    """A text stream in place of standard error, whose whole lines go to `put`."""

    def __init__(self, put: Callable[[str], None], descriptor: int) -> None:
        self._put = put
        self._descriptor = descriptor
        self._begun = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str, /) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._put(f"{line}\n")
        if len(self._begun) > _LONGEST_LINE:
            self._put(f"{self._begun}\n")
            self._begun = ""
        return len(text)
