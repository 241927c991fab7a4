"""Lines to a descriptor that may block: nobody waits, and what is dropped is counted."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from bridge.telemetry import writer as module
from bridge.telemetry.writer import Stream, Writer
from bridge.testing import until


@dataclass
class Pipe:
    reading: int
    writing: int

    def fill(self) -> int:
        """Fill it so that the next write blocks; give how many bytes that took."""
        size = fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, 4096)
        return os.write(self.writing, b"." * size)

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := os.read(self.reading, count - len(data))):
            data += more
        return data

    def read_lines(self, count: int) -> list[bytes]:
        data = b""
        while data.count(b"\n") < count and (more := os.read(self.reading, 1)):
            data += more
        return data.splitlines()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """A pipe whose writers have ended with it: another test's may have the same descriptors."""
    made: list[Writer] = []

    def remembered(writer: Writer, *arguments: Any) -> None:
        made.append(writer)
        begin(writer, *arguments)

    begin = Writer.__init__
    monkeypatch.setattr(Writer, "__init__", remembered)
    pipe = Pipe(*os.pipe())
    yield pipe
    with suppress(OSError):  # the test may have closed it
        os.close(pipe.reading)
    for writer in made:
        writer.close()
        if writer._thread is not None:
            writer._thread.join(30)
    os.close(pipe.writing)


class Dropped:
    """How many lines a writer says it dropped."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, more: int) -> None:
        self.count += more


def writer_to(descriptor: int) -> tuple[Writer, Dropped]:
    writer, dropped = Writer(descriptor, lambda lines: b"%d dropped\n" % lines, lambda: None), Dropped()
    writer.count_dropped(dropped)
    return writer, dropped


def test_lines_are_written_in_their_order_and_flush_waits_for_the_last(pipe: Pipe) -> None:
    writer, dropped = writer_to(pipe.writing)
    for number in range(100):
        writer.put(b"%d\n" % number)
    assert writer.flush(30)
    assert pipe.read_lines(100) == [b"%d" % number for number in range(100)]
    assert dropped.count == 0
    writer.close()


def test_a_descriptor_that_nobody_reads_holds_nobody_up_and_what_is_dropped_is_told(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LINES", 10)
    filled = pipe.fill()
    writer, dropped = writer_to(pipe.writing)
    writer.put(b"0\n")
    while not writer._writing:  # the thread has it in hand, and can't write it
        time.sleep(0.001)
    for number in range(1, 100):
        writer.put(b"%d\n" % number)
    assert not writer.flush(0.01)
    lost = dropped.count
    assert lost == 89
    assert pipe.read(filled) == b"." * filled
    lines = pipe.read_lines(12)
    kept = [b"%d" % number for number in range(90, 100)]
    assert lines == [b"0", b"89 dropped", *kept], "it is told where they are missing"
    assert writer.flush(30)
    assert dropped.count == lost
    writer.close()


def test_what_waits_is_bounded_in_bytes_too(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    pipe.fill()
    writer, _ = writer_to(pipe.writing)
    for _ in range(100):
        writer.put(b"x" * 3_000 + b"\n")
        assert sum(map(len, writer._lines)) <= 10_000
    writer.put(b"y" * 30_000 + b"\n")
    assert [len(line) for line in writer._lines] == [30_001], "one line is always let in"
    os.close(pipe.reading)  # lets go of the thread


def test_what_a_reader_that_goes_away_has_not_read_is_counted_line_by_line(pipe: Pipe) -> None:
    writer, _ = writer_to(pipe.writing)
    assert writer._write([b"one\n", b"two\n"]) == 0
    assert pipe.read_lines(2) == [b"one", b"two"]
    os.close(pipe.reading)
    assert writer._write([b"three\n", b"four\nwith a traceback\n"]) == 2


async def test_lines_to_a_reader_that_has_gone_are_counted(pipe: Pipe) -> None:
    writer, dropped = writer_to(pipe.writing)
    os.close(pipe.reading)
    for _ in range(10):
        writer.put(b"line\n")
    assert writer.flush(30)
    assert dropped.count == 10
    writer.close()


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    filled = pipe.fill()
    writer, dropped = writer_to(pipe.writing)
    writer.put(b"x" * 10_000 + b"\n")
    assert not writer.flush(0.05)
    pipe.read(filled)
    assert pipe.read_lines(1) == [b"x" * 10_000]
    assert writer.flush(30)
    assert dropped.count == 0
    writer.close()


async def test_what_is_due_is_told_in_time_without_another_line(pipe: Pipe) -> None:
    calls: list[None] = []

    def idle() -> float | None:
        calls.append(None)
        return 0.01 if len(calls) < 5 else None

    writer = Writer(pipe.writing, lambda _: b"", idle)
    writer.put(b"line\n")
    await until(lambda: len(calls) == 5, what="it is asked five times")
    writer.wake()
    await until(lambda: len(calls) == 6, what="it is asked again")
    writer.close()


def test_a_stream_gives_whole_lines_and_bounds_those_without_an_end(pipe: Pipe) -> None:
    lines: list[str] = []
    stream = Stream(lines.append, pipe.writing)
    print("Traceback", "one", file=stream)
    stream.write("half")
    assert lines == ["Traceback one\n"]
    stream.write(" done\nrest")
    assert lines == ["Traceback one\n", "half done\n"]
    stream.write("x" * 100_000)
    assert lines[2] == "rest" + "x" * 100_000 + "\n"
    assert not stream.isatty()
    assert stream.fileno() == pipe.writing
