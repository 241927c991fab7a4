"""The files of the journal: appended to, begun anew once one is full, deleted when they are too many or old.

A segment is a text in UTF-8: a head, then one line for each thing that happened, with `COLUMNS` parted by
tabs. Those at the end of a line that are empty are left out.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

DIRECTORY = "journal"
HEAD = b"oscar-bridge journal 1\n"
"""The first line of a segment, with the version of its form."""
COLUMNS = (
    "t", "received", "what", "source", "id", "subject", "key", "service", "job",
    "attempts", "cause", "detail", "number", "route", "into",
)  # fmt: skip
"""Times are milliseconds since 1970 UTC; what else they mean is in `core.journal`."""
LOST, KILLED, CLOSED = "lost", "killed", "closed"
"""What a line about the journal itself says in its second column. That lines were lost, with their number in
the third; that the process before was killed, with the time of its last line there, behind which some may be
missing; and, as the last line of a process, that it ended in order."""

LONGEST = 2000
"""Characters of a value; of a longer one its begin and its end are written."""
_LONGEST_END = LONGEST // 4

_NAME = re.compile(r"([0-9]{12})\.log")
PARTS = 16
_LARGEST = 16 * 2**20
"""A segment has a 16th of all that is kept, and no more bytes than this."""
_END = 2**18
"""Bytes at the end of a segment in which its last line is looked for: more than a line can have."""
_LEFT_FREE = 16 * 2**20
"""Bytes left free on the disk: they are for the store, which events wait for."""
_LOOK_SECONDS = 3600.0
"""Between two looks for segments that are too old."""
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\0": "\\0"}
_ESCAPED = str.maketrans(_ESCAPES)
_UNESCAPED = {written: read for read, written in _ESCAPES.items()}
_WRITTEN = re.compile(r"\\[\\tn0]")


class Segment(NamedTuple):
    """One file of the journal."""

    number: int
    path: Path


def cut(value: str) -> str:
    """Return `value`, or its begin and its end with a mark between that tells how long it is."""
    if len(value) <= LONGEST:
        return value
    return f"{value[: LONGEST - _LONGEST_END]}…({len(value)} characters)…{value[-_LONGEST_END:]}"


def escape(value: str) -> str:
    """Write `value` so that it parts no columns and no lines, and without zeros: a lost block has those."""
    return value.translate(_ESCAPED)


def unescape(value: str) -> str:
    """Read what `escape` wrote."""
    return _WRITTEN.sub(lambda found: _UNESCAPED[found[0]], value) if "\\" in value else value


def columns(line: bytes) -> list[str] | None:
    """Part a line into its columns, escaped as they are; None for one that is not whole."""
    try:
        found = line.decode("utf-8", "surrogatepass").split("\t")
    except UnicodeDecodeError:
        return None
    return found if len(found) > 1 and _seconds(found[0]) is not None and b"\0" not in line else None


def when(line: bytes) -> float | None:
    """Return the time of a line in seconds since 1970 UTC; None for one that is not whole."""
    found = columns(line)
    return None if found is None else _seconds(found[0])


def _seconds(column: str) -> float | None:
    return int(column) / 1000 if column.isascii() and column.isdigit() and len(column) < 16 else None


def listed(directory: Path) -> list[Segment]:
    """Return the segments in `directory`, the oldest first; none where it is not there. Raise OSError."""
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return []
    return sorted(Segment(int(name[1]), path) for path in paths if (name := _NAME.fullmatch(path.name)))


class NoSegmentError(OSError):
    """It has been deleted, or is no segment, or one of another version."""


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """Open a segment for reading while inside. Raise NoSegmentError, and OSError where it can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise NoSegmentError(error.errno, error.strerror, str(path)) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.pread(descriptor, len(HEAD), 0) != HEAD:
            raise NoSegmentError(f"{path} is no segment of a journal")
        yield descriptor
    finally:
        os.close(descriptor)


def _end(descriptor: int) -> tuple[bytes, int]:
    """Return the last whole line of a segment, and where it ends. Raise OSError."""
    size = os.fstat(descriptor).st_size
    begin = max(0, size - _END)
    rest, found, _ = os.pread(descriptor, size - begin, begin).rpartition(b"\n")
    if not found:
        raise NoSegmentError("a segment of the journal has no line at its end")
    return rest.rpartition(b"\n")[2], begin + len(rest) + 1


class Segments:
    """Writes to the newest segment, and deletes the oldest. Each call may take as long as the disk does."""

    def __init__(self, directory: Path, max_bytes: int, keep_for: float, now: Callable[[], float]) -> None:
        """Keep up to `max_bytes`, and no line for much longer than `keep_for` seconds by the clock `now`."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._keep_for = keep_for
        self._now = now
        self._most = min(max_bytes // PARTS, _LARGEST)
        self._descriptor: int | None = None
        self._path = directory
        self._size = 0
        self._newest: dict[int, float] = {}
        """When the last line was written into segments that are full, by number."""
        self._look_at = 0.0
        self.bytes = 0
        """On the disk, as last counted."""

    def resume(self) -> bytes:
        """Go on in the newest segment; return its last line, empty where there is none. Raise OSError.

        What of a line stands behind that, without an end, was being written when the process was killed.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        there = listed(self._directory)
        if not there:
            return b""
        path = there[-1].path
        try:
            with reading(path) as descriptor:
                last, size = _end(descriptor)
        except NoSegmentError:
            return b""
        if size < self._most:
            self._use(path, os.O_APPEND)
            try:
                os.ftruncate(self._fd, size)
            except OSError:  # it would be written to as if it were empty
                self.close()
                raise
            self._size = size
        return b"" if last + b"\n" == HEAD else last

    def write(self, lines: bytes) -> None:
        """Append whole lines. Raise OSError: then they are not there, and may be given again."""
        if self._descriptor is not None and not self._is_in_place():
            self.close()  # somebody has deleted or emptied it, or put another file there
        if self._descriptor is None or self._size + len(lines) > self._most:
            self._begin(len(lines))
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < len(lines) + _LEFT_FREE:
            raise OSError(errno.ENOSPC, "the disk is nearly full")
        try:
            self._append(lines)
        except OSError:
            # A piece of a line may be there. Where it can't be taken away, another segment is begun.
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:
                self.close()
            raise

    def look(self) -> None:
        """Delete what is too old, once an hour, and count the bytes. Raise OSError."""
        if monotonic() >= self._look_at:
            self._look_at = monotonic() + _LOOK_SECONDS
            self._make_room(0)

    def close(self) -> None:
        """Let go of the newest segment; the next line begins another."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @property
    def _fd(self) -> int:
        assert self._descriptor is not None  # noqa: S101 - who asks has opened it
        return self._descriptor

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self._size += len(data)
        self.bytes += len(data)

    def _is_in_place(self) -> bool:
        try:
            there, ours = self._path.lstat(), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        return same and ours.st_size >= self._size

    def _begin(self, wanted: int) -> None:
        """Begin another segment, with room for `wanted` bytes and more."""
        self.close()
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._make_room(max(wanted + len(HEAD), self._most))
        there = listed(self._directory)
        number = there[-1].number + 1 if there else 1
        self._use(self._directory / f"{number:012}.log", os.O_APPEND | os.O_CREAT | os.O_EXCL)
        try:
            self._append(HEAD)
        except OSError:  # one would be left behind at each try
            self.close()
            self._path.unlink(missing_ok=True)
            raise

    def _use(self, path: Path, flags: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        self._path, self._size = path, 0

    def _make_room(self, wanted: int) -> None:
        """Delete what is too old, and the oldest until `wanted` bytes more have room."""
        sizes: dict[Segment, int] = {}
        for segment in listed(self._directory):
            with suppress(FileNotFoundError):
                there = segment.path.lstat()
                if stat.S_ISREG(there.st_mode):  # else somebody has put it there, and it is left alone
                    sizes[segment] = there.st_size
        self.bytes = sum(sizes.values())
        oldest = self._now() - self._keep_for
        for segment, size in sizes.items():
            if self.bytes + wanted > self._max_bytes or self._last_written(segment) < oldest:
                if segment.path == self._path:
                    self.close()
                segment.path.unlink(missing_ok=True)
                self._newest.pop(segment.number, None)
                self.bytes -= size

    def _last_written(self, segment: Segment) -> float:
        """Return when the newest line of a segment was written, in seconds since 1970 UTC."""
        if segment.number in self._newest:
            return self._newest[segment.number]
        found = None
        with suppress(NoSegmentError), reading(segment.path) as descriptor:
            found = when(_end(descriptor)[0])
        if found is None:  # only its head, or it is something else
            return segment.path.lstat().st_mtime
        if segment.path != self._path:
            self._newest[segment.number] = found
        return found
