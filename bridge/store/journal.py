"""The journal of what happened to events: lines that a thread writes into files beside the store.

On an event's way its texts are put into a list. Lines are made of them some at a time, soon: later they would
have to be fetched from memory again, at several times the cost. The rest is the thread's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Signal
from threading import Thread
from time import monotonic
from typing import NamedTuple

import structlog

from bridge.core.event import Event
from bridge.core.journal import NoJournal, What
from bridge.core.steady import Steady
from bridge.store.config import JournalConfig
from bridge.store.lines import WIDTH, begin_line, encode, milliseconds
from bridge.store.segments import (
    CLOSED,
    DIRECTORY,
    KILLED,
    LONGEST,
    LOST,
    PARTS,
    Segments,
    columns,
    cut,
)
from bridge.telemetry.metrics import Metrics

MOST_WAITING = 20_000
"""Lines that wait to be written: those that come then are lost, and counted."""
GATHER_SECONDS = 0.1
"""For so long lines gather, and a kill loses them."""
_RUN = 64
"""Lines made at once: their texts are in the processor's caches still."""
_TOGETHER = 4096
"""Lines with which the thread is woken before the time: seldom, as that costs as much as a hundred lines."""
_LONG = 2**9
"""Bytes that few lines have: so many together stay within a segment."""
_AGAIN_SECONDS = 1.0
"""Between two tries of a disk that fails, and at most between two looks for segments that are too old."""
_HANG_SECONDS = 20.0
"""How long one write may be under way before it is a problem to be told."""
_CLOSE_SECONDS = 5.0
"""For what is being written when the process ends."""
_MILLISECOND = 0.001


class Lines(NamedTuple):
    """Lines that go to the thread."""

    runs: list[bytes]
    amount: int


_log = structlog.get_logger(__name__)


class JournalFiles:
    """A Journal (`core.journal`) in a state directory, which its owner holds. Made by `JournalFiles.open`."""

    def __init__(
        self, state_dir: Path, metrics: Metrics, config: JournalConfig, now: Callable[[], float]
    ) -> None:
        self._path = state_dir / DIRECTORY
        self._segments = Segments(self._path, config.max_bytes, config.keep_for, now)
        self._waiting: list[str] = []
        """What is noted and not yet made into lines, as `encode` takes it; and the next is that too."""
        self._more: dict[int, Sequence[object]] = {}
        self._made = Lines([], 0)
        """What the thread was not given yet."""
        self._together = min(_TOGETHER, config.max_bytes // PARTS // _LONG)
        self._full = 0
        """With so many texts lines are made of them, and it is looked whether more may wait."""
        self._at = self._since = float("-inf")
        """Since when the times in `_times` are true, for a millisecond."""
        self._times = ""
        self._giving: asyncio.TimerHandle | None = None
        self._given: SimpleQueue[Lines | None] = SimpleQueue()
        self._lines_given = self._lines_done = 0
        """How many lines the thread was given; and by its own count, how many of them wait no more."""
        self._overflowed = 0
        """Lines for which there was no room, by the loop's count; and by the thread's."""
        self._overflow_seen = 0
        self._pending: list[Lines] = []
        """What the thread has taken, and not yet written; one at most."""
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
            journal._make()
            journal._give()
            journal._ending.set()
            journal._given.put(None)
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
        if len(self._waiting) >= self._full and not self._may_wait():
            self._overflowed += 1
            return
        name, subject, key = event.id, event.subject or "", event.attributes.get("key", "")
        if len(name) + len(subject) + len(key) > LONGEST:  # what waits must not take all memory
            name, subject, key = cut(name), cut(subject), cut(key)
        if at is None:
            at = monotonic()
        if since is None:
            times = begin_line(at, None)
        elif 0.0 <= at - self._at < _MILLISECOND and 0.0 <= since - self._since < _MILLISECOND:
            times = self._times
        else:
            times = self._times = begin_line(at, since)
            self._at, self._since = at, since
        texts = self._waiting
        texts += (
            times,
            what,
            "\t",
            event.source,
            "\t",
            name,
            "\t",
            subject,
            "\t",
            key,
            "\t",
            service,
            "\t",
            job,
        )
        if cause or attempts or detail or route or into or number:
            self._more[len(texts) - 1] = attempts, cause, cut(detail), number, route, cut(into)

    def _may_wait(self) -> bool:
        """Return whether one line more may wait; have those there are written soon, and many at once."""
        self._make()
        if self._made.amount >= self._together:
            self._give()
        room = MOST_WAITING - self._made.amount - (self._lines_given - self._lines_done)
        self._full = min(_RUN, room) * WIDTH
        if self._giving is None:
            self._giving = self._loop.call_later(GATHER_SECONDS, self._give_gathered)
        return room > 0

    def _give_gathered(self) -> None:
        self._giving = None
        self._make()
        self._give()
        self._full = 0

    def _make(self) -> None:
        """Make lines of what is noted."""
        texts, more = self._waiting, self._more
        if not texts:
            return
        self._waiting, self._more = [], {}
        runs, amount = self._made
        try:
            runs.append(encode(texts, more))
        except Exception:  # noqa: BLE001 - whatever it is, the event goes on
            _log.exception("lines of the journal can't be made", lines=len(texts) // WIDTH)
            self._overflowed += len(texts) // WIDTH
        else:
            self._made = Lines(runs, amount + len(texts) // WIDTH)

    def _give(self) -> None:
        if self._made.amount:
            self._lines_given += self._made.amount
            self._given.put(self._made)
            self._made = Lines([], 0)

    # The thread's side

    def _run(self) -> None:
        try:
            self._attempt(self._resume)
            while not self._ending.is_set():
                self._wait()
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
            self._first = f"{milliseconds(monotonic())}\t{KILLED}\t{found[0]}\n"
        self._write()

    def _wait(self) -> None:
        """Wait for lines, and for the time of another try where the disk has failed."""
        if self._failing:
            self._ending.wait(_AGAIN_SECONDS)
        else:
            self._take(_AGAIN_SECONDS)

    def _take(self, seconds: float = 0.0) -> bool:
        """Have lines that are to be written, if there are any; return whether there are."""
        while not self._pending:
            try:
                lines = self._given.get(seconds > 0, seconds)
            except Empty:
                return False
            if lines is None:  # that it ends
                return self._take()
            self._pending.append(lines)
        return True

    def _turn(self) -> None:
        overflowed = self._overflowed
        self._lose(overflowed - self._overflow_seen)
        self._overflow_seen = overflowed
        while self._take() or self._failing:
            if not self._attempt(self._write):
                return
        self._attempt(self._segments.look)

    def _end(self) -> None:
        if left := self._lines_given - self._lines_done:
            self._lose(left)
            self._pending.clear()
            _log.error("lines of the journal are lost: it can't be written as the bridge ends", lines=left)
        self._first += f"{milliseconds(monotonic())}\t{CLOSED}\n"
        self._attempt(self._write)
        self._segments.close()

    def _write(self) -> None:
        """Write what is pending. Raise OSError; then it still is."""
        head = self._first
        if self._lost:
            head += f"{milliseconds(monotonic())}\t{LOST}\t{self._lost}\n"
        runs = [run for lines in self._pending for run in lines.runs]
        self._segments.write(b"".join([head.encode(), *runs]))
        self._let_go()
        self._first, self._lost = "", 0

    def _let_go(self) -> int:
        """Let what is pending wait no more; return how many lines it was."""
        lines = sum([lines.amount for lines in self._pending])
        self._lines_done += lines
        self._pending.clear()
        return lines

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
            lines = self._let_go()
            _log.exception("lines of the journal can't be written", lines=lines)
            self._lose(lines)
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
