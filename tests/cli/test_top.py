"""`oscar-bridge top`: what it shows in 80 columns, and that it leaves a terminal as it was."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from bridge.cli import main
from bridge.cli.overview import TROUBLE, lines, span
from bridge.web.socket import listen

STATUS: dict[str, Any] = {
    "version": "1.2.3",
    "started": 1796052000.0,
    "now": 1796052972.0,
    "ready": False,
    "problems": [{"part": "service plants", "reason": "unavailable: http_500 \x1b[2Jof a server"}],
    "sources": [
        {
            "key": "uploads-of-all-the-stations-of-the-north",
            "type": "kafka",
            "up": True,
            "paused": False,
            "lag": 1_234_567,
            "in_flight": 2000,
            "slots": 2000,
            "oldest_seconds": 64.0,
            "received": 123_456_789,
            "filtered": 99,
            "settled": {},
            "rate": 1234.5,
            "problems": [],
        }
    ],
    "routes": [],
    "services": [
        {
            "key": "plants",
            "cluster": "main",
            "mode": "job",
            "open": False,
            "why": "unavailable: http_500",
            "paused": False,
            "queued": 1000,
            "queue": 1000,
            "in_flight": 1,
            "limit": 16,
            "parked": 4_000_000,
            "parked_oldest_seconds": 90000.0,
            "dead_letters": 7,
            "accepted": 5,
            "failed": 9,
            "rate": 0.0,
            "drain_seconds": None,
            "active_jobs": None,
            "windows": 0,
            "problems": ["unavailable: http_500"],
        }
    ],
    "clusters": [
        {
            "key": "main",
            "endpoint": "https://oscar.example.org",
            "limit": 16,
            "paused": True,
            "credential_expires_seconds": 250.0,
            "credential_ok": False,
        }
    ],
    "limits": [
        {
            "kind": "service",
            "key": "plants",
            "name": "rate",
            "configured": "10/s",
            "in_force": "5/s",
            "found": None,
            "since": 1796052000.0,
            "until": 1796056572.0,
        }
    ],
    "store": {"used_bytes": 5 << 20, "limit_bytes": 2 << 30},
}


def test_eighty_columns_hold_what_matters() -> None:
    assert [line for _, line in lines(STATUS, 80)] == [
        "oscar-bridge 1.2.3  NOT READY: 1 problem  up 16m  store 5.0 MiB o…  15:36:12 UTC",
        "! service plants: unavailable: http_500  [2Jof a server",
        "",
        "SOURCE                IN/S    IN HAND    LAG  OLDEST  FILTERED  RECEIVED",
        "uploads-of-all-the-…  1234  2000/2000  1234k     64s        99      123M",
        "",
        "SERVICE  OUT/S  AT ONCE  QUEUED  PARKED  OLDEST  DEAD  DONE IN",
        "plants     0.0     1/16    1000   4000k     25h     7        ?  shut: unavailab…",
        "",
        "CLUSTER  LIMIT   TOKEN FOR",
        "main        16  4m, no new  paused: https://oscar.example.org",
        "",
        "CHANGED              CONFIGURED  IN FORCE   UNTIL",
        "service plants rate        10/s       5/s  in 60m",
    ]


def test_no_line_is_longer_than_the_terminal_is_wide_and_none_moves_the_cursor() -> None:
    for width in range(1, 200, 7):
        for _, line in lines(STATUS, width):
            assert width < 14 or len(line) <= width
            assert line.isprintable()


def test_what_is_not_well_is_told_apart() -> None:
    troubled = [line for kind, line in lines(STATUS, 120) if kind == TROUBLE]
    assert [line.split()[0] for line in troubled] == ["!", "plants", "main"]


def test_of_many_problems_a_few_are_told_so_that_the_rest_is_seen() -> None:
    many = [{"part": f"source s{number}", "reason": "lost"} for number in range(50)]
    shown = [line for _, line in lines({**STATUS, "problems": many}, 80)]
    assert shown[8:10] == ["! source s7: lost", "! and 42 more: /readyz tells them"]
    assert "SERVICE" in shown[14]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (119, "119s"), (120, "2m"), (7199, "120m"), (7200, "2h"), (200_000, "2d")],
)
def test_a_time_is_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


@contextmanager
def answering(state_dir: Path) -> Iterator[None]:
    """A bridge that runs, as far as its socket tells."""
    state_dir.mkdir()
    ended, begun = Event(), Event()

    async def answer(command: Mapping[str, Any]) -> Mapping[str, Any]:
        assert command == {"do": "status"}
        return STATUS

    async def serve() -> None:
        async with listen(state_dir, answer):
            begun.set()
            await asyncio.to_thread(ended.wait)

    thread = Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert begun.wait(30)
        yield
    finally:
        ended.set()
        thread.join()


class Terminal:
    """`top` in a terminal of its own."""

    def __init__(self, file: Path, columns: int = 80, rows: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bridge", "top", "-c", str(file)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**environment, "TERM": "xterm", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        self.seen = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, text: str) -> None:
        """Read until `text` is written."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < deadline, repr(self.seen[-3000:])
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536).decode()

    def leaves(self) -> None:
        """Read to its end: well, and all is as it was."""
        self.shows("\x1b[?1049l")
        assert self.process.wait(30) == 0
        assert self.seen.endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")
        assert termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_it_is_drawn_anew_and_left_as_it_was(file: Path, state_dir: Path, way: signal.Signals) -> None:
    with answering(state_dir):
        terminal = Terminal(file)
        try:
            terminal.shows("q leaves")
            assert "oscar-bridge 1.2.3  NOT READY" in terminal.seen
            assert "\x1b[2J" not in terminal.seen
            terminal.seen = ""
            terminal.shows("q leaves")
            terminal.resize(60, 6)
            os.kill(terminal.process.pid, signal.SIGWINCH)
            terminal.shows("more lines")
            terminal.process.send_signal(way)
            terminal.leaves()
        finally:
            terminal.close()


def test_a_bridge_that_ends_is_told_beside_what_was_last_known(file: Path, state_dir: Path) -> None:
    with answering(state_dir):
        terminal = Terminal(file)
        terminal.shows("q leaves")
    try:
        terminal.shows("old: no bridge runs here any more")
        terminal.seen = ""
        terminal.shows("oscar-bridge 1.2.3")
        os.write(terminal.master, b"q")
        terminal.leaves()
    finally:
        terminal.close()


def test_once_prints_once_and_plainly(
    file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(state_dir):
        assert main(["top", "--once", "-c", str(file)]) == 0
    out = capsys.readouterr().out
    assert "oscar-bridge 1.2.3" in out
    assert "\x1b" not in out
    assert out.count("plants") >= 2


def test_without_a_bridge_it_says_so(file: Path, state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "-c", str(file)]) == 1
    assert "no bridge runs in" in capsys.readouterr().err
