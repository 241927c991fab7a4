"""`oscar-bridge top`: what a bridge does, in a terminal, drawn anew each second."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from bridge.cli.options import FAILED, Commands, add, load
from bridge.cli.output import complain, on_one_line, say, write

_EVERY = 1.0
_ANSWER_SECONDS = 5.0
_LEAST_WIDTH = 80
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""The other screen, no cursor, no wrapping of lines; and back (ECMA-48, and DEC's private modes as xterm has
them)."""
_HOME, _LINE_END, _REST = "\x1b[H", "\x1b[K\r\n", "\x1b[J"
_STYLES = {"heading": "\x1b[1m", "trouble": "\x1b[31m"}
_PLAIN = "\x1b[m"
_UP, _DOWN = (b"\x1b[A", b"\x1bOA", b"k"), (b"\x1b[B", b"\x1bOB", b"j")


def add_to(commands: Commands) -> None:
    """Add the command."""
    top = add(commands, "top", _top, "watch what the bridge that runs does, drawn anew each second")
    top.add_argument("--once", action="store_true", help="print it once, as into a pipe or a file")


def _top(options: argparse.Namespace) -> int:
    state_dir = load(options, files=False).state_dir
    status = _ask(state_dir)
    if status is None:
        complain(f"no bridge runs in {state_dir}")
        return FAILED
    if options.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        from bridge.cli.overview import lines

        width = max(_LEAST_WIDTH, shutil.get_terminal_size((200, 24)).columns)
        for _, line in lines(status, width):
            say(line)
        return 0
    _watch(state_dir, status)
    return 0


def _ask(state_dir: Path) -> Mapping[str, Any] | None:
    from bridge.web.socket import ask

    return ask(state_dir, {"do": "status"}, _ANSWER_SECONDS) if state_dir.is_dir() else None


def _watch(state_dir: Path, status: Mapping[str, Any]) -> None:
    """Draw until a person has seen enough: `q`, Ctrl-C, or a signal that ends."""
    trouble = None
    first = 0
    with _woken() as wake, _screen() as screen:
        due = monotonic() + _EVERY
        while True:
            first = screen.draw(status, trouble, first)
            ready, _, _ = select.select([sys.stdin, wake], [], [], max(0.0, due - monotonic()))
            if wake in ready:
                told = os.read(wake, 64)
                if bytes([signal.SIGTSTP]) in told:
                    screen.suspend()
                if any(number in told for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
                    return
            if sys.stdin in ready:
                keys = os.read(sys.stdin.fileno(), 64)
                if not keys or b"q" in keys or b"Q" in keys:
                    return
                first += sum(map(keys.count, _DOWN)) - sum(map(keys.count, _UP))
            if monotonic() >= due:
                due = monotonic() + _EVERY
                try:
                    found = _ask(state_dir)
                except (OSError, ValueError) as error:
                    found, trouble = None, str(error)
                else:
                    trouble = None if found is not None else "no bridge runs here any more"
                status = found or status


class _Screen:
    """A terminal while it is ours."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before = termios.tcgetattr(descriptor)

    def enter(self) -> None:
        """Take it: keys come one by one, unseen."""
        tty.setcbreak(self._descriptor)
        write(_ENTER)

    def leave(self) -> None:
        """Give it back as it was."""
        write(_LEAVE)
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def suspend(self) -> None:
        """Stop until a person goes on with it (`fg`)."""
        self.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.enter()

    def draw(self, status: Mapping[str, Any], trouble: str | None, first: int) -> int:
        """Draw what fits, from line `first` on; give the first that was drawn."""
        from bridge.cli.overview import PLAIN, TROUBLE, lines

        columns, rows = shutil.get_terminal_size()
        shown = list(lines(status, columns))
        room = max(1, rows - 1)
        first = max(0, min(first, len(shown) - room))
        hidden = max(0, len(shown) - room - first)
        foot = "q leaves" + (f"; {hidden} more lines: j and k, or the arrows" if hidden or first else "")
        last = (TROUBLE, f"old: {trouble}") if trouble else (PLAIN, foot)
        frame = [_HOME]
        for kind, line in shown[first : first + room]:
            style = _STYLES.get(kind, "")
            frame.append(f"{style}{line}{_PLAIN if style else ''}{_LINE_END}")
        kind, line = last
        frame.append(f"{_STYLES.get(kind, '')}{on_one_line(line, columns)}{_PLAIN}\x1b[K{_REST}")
        write("".join(frame))
        return first


@contextmanager
def _screen() -> Iterator[_Screen]:
    screen = _Screen(sys.stdin.fileno())
    screen.enter()
    try:
        yield screen
    finally:
        screen.leave()


@contextmanager
def _woken() -> Iterator[int]:
    """Give a descriptor from which the numbers of signals can be read; inside none of them ends anything."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGWINCH)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def heard(number: int, _frame: FrameType | None) -> None:
        os.write(writer, bytes([number]))

    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
