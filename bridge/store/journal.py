"""The journal of what happened to events: lines that a thread writes into files beside the store.

On an event's way only a tuple is made; the rest is the thread's.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from threading import Event as Signal
from threading import Thread
from time import monotonic
from typing import TypeAlias

import structlog

from bridge.core.event import Event
from bridge.core.journal import NoJournal, What
from bridge.core.steady import Steady
from bridge.store.config import JournalConfig
from bridge.store.segments import CLOSED, DIRECTORY, KILLED, LONGEST, LOST, Segments, columns, cut, escape
from bridge.telemetry.metrics import Metrics

MOST_WAITING = 20_000
"""Lines that wait to be written: those that come then are lost, and counted."""
GATHER_SECONDS = 0.1
"""For so long lines gather, and a kill loses them."""
_TOGETHER = 256
"""Lines made in one run, in which nothing else in the process goes on: some 0.2 ms."""
_AGAIN_SECONDS = 1.0
"""Between two tries of a disk that fails."""
_HANG_SECONDS = 20.0
"""How long one write may be under way before it is a problem to be told."""
_CLOSE_SECONDS = 5.0
"""For what is being written when the process ends."""
_MILLISECOND = 0.001

_Noted: TypeAlias = tuple[
    float, float | None, tuple[str, str, str, str, str, str, str], tuple[int, str, str, int, str, str] | None
]
"""The columns of a line: two monotonic times, seven texts, and the others where one is not empty."""

_log = structlog.get_logger(__name__)


class JournalFiles:
    """A Journal (`core.journal`) in a state directory, which its owner holds. Made by `JournalFiles.open`."""

    def __init__(
        self, state_dir: Path, metrics: Metrics, config: JournalConfig, now: Callable[[], float]
    ) -> None:
        self._path = state_dir / DIRECTORY
        self._segments = Segments(self._path, config.max_bytes, config.keep_for, now)
        self._waiting: deque[_Noted] = deque()
        self._overflowed = 0
        """Lines for which there was no room, by the loop's count; and by the thread's."""
        self._overflow_seen = 0
        self._pending: list[_Noted] = []
        """What the thread has taken, and not yet written."""
        self._lost = 0
        """Lines lost, of which no line tells yet."""
        self._first = ""
        """What is to be said before anything else."""
        self._count_lost = metrics.journal_lines_lost.inc
        metrics.journal_bytes.set_function(lambda: self._segments.bytes)
        self._state = Steady()
        self._failing = False
        self._writing_since: float | None = None
        self._ending = Signal()
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        # A daemon thread: a disk that does not answer may hold it for ever, but not the process.
        self._thread = Thread(target=self._run, name="journal", daemon=True)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, state_dir: Path, metrics: Metrics, config: JournalConfig, now: Callable[[], float] = time.time
    ) -> AsyncIterator[JournalFiles | NoJournal]:
        """Write into `state_dir` while inside; leaving writes what waits, if the disk takes it in time.

        `now` gives the time by which a line has an age, in seconds since 1970 UTC. A journal that can't be
        written is no reason not to start: `problems` tells it.
        """
        if not config.max_bytes:
            yield NoJournal()
            return
        journal = cls(state_dir, metrics, config, now)
        journal._thread.start()
        try:
            yield journal
        finally:
            journal._ending.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await journal._closed.wait()
            if not journal._closed.is_set():
                _log.error("the journal can't be closed: the disk does not answer", path=str(journal._path))

    def problems(self) -> list[str]:
        """Return why lines can't be written, until they can be again."""
        since, told = self._writing_since, self._state.problem
        if since is not None and (seconds := monotonic() - since) >= _HANG_SECONDS:
            return [f"the disk does not answer: a write of the journal is under way for {seconds:.0f} s"]
        return [] if told is None else [told]

    def note(
        self,
        what: What,
        event: Event,
        service: str = "",
        at: float | None = None,
        since: float | None = None,
        job: str = "",
        attempts: int = 0,
        cause: str = "",
        detail: str = "",
        number: int = 0,
        route: str = "",
        into: str = "",
    ) -> None:
        """Write one line soon; see `core.journal`."""
        waiting = self._waiting
        if len(waiting) >= MOST_WAITING:
            self._overflowed += 1
            return
        name, subject, key = event.id, event.subject or "", event.attributes.get("key", "")
        if len(name) + len(subject) + len(key) > LONGEST:  # what waits must not take all memory
            name, subject, key = cut(name), cut(subject), cut(key)
        more = None
        if cause or attempts or detail or route or into or number:
            more = attempts, cause, cut(detail), number, route, cut(into)
        if at is None:
            at = monotonic()
        waiting.append((at, since, (what, event.source, name, subject, key, service, job), more))

    # The thread's side

    def _run(self) -> None:
        try:
            self._attempt(self._resume)
            while not self._ending.wait(_AGAIN_SECONDS if self._failing else GATHER_SECONDS):
                self._turn()
            self._turn()
            self._end()
        finally:
            with suppress(RuntimeError):  # the loop was closed before: nobody waits
                self._loop.call_soon_threadsafe(self._closed.set)

    def _resume(self) -> None:
        last = self._segments.resume()
        found = columns(last) or [""]
        if last and found[1:] != [CLOSED]:
            self._first = f"{_milliseconds(time.time())}\t{KILLED}\t{found[0]}\n"
        self._write()

    def _turn(self) -> None:
        overflowed = self._overflowed
        self._lose(overflowed - self._overflow_seen)
        self._overflow_seen = overflowed
        while self._waiting or self._pending or self._failing:
            while self._waiting and len(self._pending) < _TOGETHER:
                self._pending.append(self._waiting.popleft())
            if not self._attempt(self._write):
                return
        self._attempt(self._segments.look)

    def _end(self) -> None:
        self._first += f"{_milliseconds(time.time())}\t{CLOSED}\n"
        if not self._attempt(self._write):
            self._lose(len(self._pending) + len(self._waiting))
            _log.error(
                "lines of the journal are lost: it can't be written as the bridge ends", lines=self._lost
            )
        self._segments.close()

    def _write(self) -> None:
        """Write what is pending. Raise OSError; then it still is."""
        data = self._first
        if self._lost:
            data += f"{_milliseconds(time.time())}\t{LOST}\t{self._lost}\n"
        self._segments.write(data.encode() + encode(self._pending, time.time() - monotonic()))
        self._pending.clear()
        self._first, self._lost = "", 0

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Call what writes; return whether it went well. A defect costs the lines that it met."""
        self._writing_since = monotonic()
        try:
            call()
        except OSError as error:
            if self._state.problem is None:
                _log.error("the journal can't be written", path=str(self._path), error=str(error))
            self._failing = True
            self._state.failed(f"the journal {self._path} can't be written: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - they would meet it again, and the thread must go on
            _log.exception("lines of the journal can't be written", lines=len(self._pending))
            self._lose(len(self._pending))
            self._pending.clear()
            self._failing = True
            self._state.failed(f"the journal {self._path} can't be written: {type(error).__name__}")
        else:
            if self._failing:
                self._failing = False
                self._state.recovered()
                _log.info("the journal is written again", path=str(self._path))
            return True
        finally:
            self._writing_since = None
        return False

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self._count_lost(lines)


def encode(noted: Sequence[_Noted], offset: float) -> bytes:
    """Write lines, whose times are monotonic: `offset` seconds before those since 1970."""
    rows = _rows(noted, offset)
    text = "".join(rows)
    tabs = sum([8 if more is None else 14 for _, _, _, more in noted])
    if text.count("\t") != tabs or text.count("\n") != len(rows) or "\\" in text or "\0" in text:
        text = "".join(_rows([_escaped(each) for each in noted], offset))
    return text.encode("utf-8", "surrogatepass")


def _rows(noted: Sequence[_Noted], offset: float) -> list[str]:
    rows: list[str] = []
    add, join = rows.append, "\t".join
    last_at = last_since = float("-inf")
    t = received = ""
    for at, since, texts, more in noted:
        if not 0.0 <= at - last_at < _MILLISECOND:
            last_at, t = at, _milliseconds(at + offset)
        if since is None:
            last_since, received = float("-inf"), ""
        elif not 0.0 <= since - last_since < _MILLISECOND:
            last_since, received = since, _milliseconds(since + offset)
        if more is None:
            add(f"{t}\t{received}\t{join(texts)}\n")
        else:
            add(f"{t}\t{received}\t{join(texts)}\t{join([str(each or '') for each in more])}\n")
    return rows


def _escaped(noted: _Noted) -> _Noted:
    at, since, (what, *texts), more = noted
    source, name, subject, key, service, job = map(escape, texts)
    if more is not None:
        attempts, cause, detail, number, route, into = more
        more = attempts, escape(cause), escape(detail), number, escape(route), escape(into)
    return at, since, (what, source, name, subject, key, service, job), more


def _milliseconds(seconds: float) -> str:
    return str(max(0, int(seconds * 1000)))
