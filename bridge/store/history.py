"""What the journal tells of events, beside a running daemon or without one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import translate
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from bridge.core.errors import StoreError
from bridge.store.segments import (
    COLUMNS,
    DIRECTORY,
    HEAD,
    KILLED,
    LOST,
    NoSegmentError,
    columns,
    cut,
    escape,
    listed,
    reading,
    unescape,
    when,
)

MOST = 10_000
"""Lines that are returned, unless another number is asked for."""
_BLOCK = 2**20
"""Bytes read at once."""
_SEARCHED = ("id", "subject", "key", "job", "into")
_LEAST = COLUMNS.index("job") + 1
"""Columns that each line about an event has."""
_TIMES = ("t", "received")
_NUMBERS = ("attempts", "number")
_WILD = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]")
"""What is no literal text in a glob."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that happened to an event. Texts are empty where nothing was told."""

    t: float
    """When, in seconds since 1970 UTC."""
    what: str
    """As `core.journal.What` has it."""
    source: str
    """The identity of the event's source."""
    id: str
    subject: str = ""
    """A path, or an object's key; of a very long one its begin and its end, as of all texts here."""
    key: str = ""
    """The attribute `key` of the event, such as the key of a record of Kafka."""
    service: str = ""
    """The lane's key; empty where the event reached none."""
    job: str = ""
    received: float | None = None
    """When the event came into the bridge's hands, or back into them from the store."""
    attempts: int = 0
    """Made by then."""
    cause: str = ""
    """Of a dead letter, a failed attempt or the end of a job; or why an event was filtered."""
    detail: str = ""
    number: int = 0
    """Of the dead letter."""
    route: str = ""
    """Of a window."""
    into: str = ""
    """The id of the event that it was sent in."""


@dataclass(frozen=True, slots=True)
class Needle:
    """What is looked for among ids, subjects, keys and names of jobs, and ids of what events were sent in."""

    text: str
    kind: Literal["exact", "name", "suffix", "glob"] = "suffix"
    """A `name` is the whole text, or its end behind a `/`. A `suffix` finds the whole text as well, and so
    does a `glob`, in which `*` stands for `/` too."""
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pattern = translate(self.text) if self.kind == "glob" else ""
        object.__setattr__(self, "_pattern", re.compile(pattern))

    @classmethod
    def of(cls, text: str) -> Needle:
        """Take a text with `*`, `?` or `[` in it for a glob, any other for a suffix."""
        return cls(text, "glob" if _WILD.search(text) else "suffix")

    def matches(self, value: str) -> bool:
        """Return whether `value`, as the journal has it, is meant. No empty one ever is."""
        if not value:
            return False
        if value == cut(self.text):
            return True
        if self.kind == "glob":
            return self._pattern.fullmatch(value) is not None
        ends = {"name": f"/{self.text}", "suffix": self.text}.get(self.kind)
        return ends is not None and value.endswith(ends)

    def literals(self) -> list[bytes]:
        """Return texts that every line has which is meant, as they are written there, the longest first."""
        parts = _WILD.split(self.text) if self.kind == "glob" else [cut(self.text)]
        written = [escape(part).encode("utf-8", "surrogatepass") for part in parts if part]
        return sorted(written, key=len, reverse=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the journal has."""

    lines: Sequence[Line] = ()
    """In the order in which it happened."""
    more: bool = False
    """Whether there are older ones, which were left out."""
    begins: float | None = None
    """Time of the oldest line that is kept, in seconds since 1970 UTC; None where there is none."""
    lost: int = 0
    """How many lines were lost since then, as far as is known."""
    killed: Sequence[float] = ()
    """When the bridge was killed since then, by the last line before: some behind it may be missing."""


def read(state_dir: Path, needle: Needle, limit: int = MOST, seconds: float = inf) -> Found:
    """Find the newest lines about what is meant by `needle`. Raise StoreError where it can't be read.

    Takes about half a second for 256 MiB, if few lines have its longest literal text; after `seconds` what is
    older is left out.
    """
    search = _Search(needle, limit, monotonic() + seconds)
    directory = state_dir / DIRECTORY
    begins: float | None = None
    try:
        there = [segment.path for segment in listed(directory)]
        for path in reversed(there):
            with suppress(NoSegmentError), reading(path) as descriptor:
                begins = _begins(descriptor) or begins
                search.look_at(descriptor)
    except OSError as error:
        raise StoreError(f"the journal {directory} can't be read: {error.strerror or error}") from error
    return Found(
        lines=tuple(search.lines[:limit][::-1]),
        more=search.is_over or len(search.lines) > limit,
        begins=begins,
        lost=search.lost,
        killed=tuple(search.killed[::-1]),
    )


def _begins(descriptor: int) -> float | None:
    """Return the time of the first line of a segment, if it has one. Raise OSError."""
    return when(os.pread(descriptor, _BLOCK, len(HEAD)).partition(b"\n")[0])


class _Search:
    """Goes through segments from the newest line to the oldest."""

    def __init__(self, needle: Needle, limit: int, until: float) -> None:
        self._needle = needle
        self._limit = limit
        self._until = until
        self._first, *self._others = needle.literals() or [b"\t"]
        self._at_an_end = needle.kind in ("exact", "name") and needle.text != ""
        self.lines: list[Line] = []
        """The newest first; one more than the limit where there are more."""
        self.lost = 0
        self.killed: list[float] = []
        self.is_over = False
        """Whether the time was over before all was looked at."""

    def look_at(self, descriptor: int) -> None:
        """Look for lines in one segment, unless there are enough. Raise OSError."""
        for block in _blocks(descriptor):
            self.is_over = self.is_over or monotonic() > self._until
            if self.is_over or len(self.lines) > self._limit:
                break
            for line in self._lines(block):
                if len(self.lines) <= self._limit and all(other in line for other in self._others):
                    self._take(line)
            self._look_for_gaps(block)

    def _lines(self, block: bytes) -> Iterator[bytes]:
        """Yield lines that may be meant, the last ones first."""
        if self._at_an_end and block.rfind(self._first + b"\n") < 0:
            # What ends with a column is seldom in another line: nothing has to be taken apart in vain.
            return _lines_with(self._first + b"\t", block)
        return _lines_with(self._first, block)

    def _take(self, line: bytes) -> None:
        found = columns(line)
        if found is None or len(found) < _LEAST:
            return
        values = dict(zip(COLUMNS, map(unescape, found), strict=False))
        if any(self._needle.matches(values.get(name, "")) for name in _SEARCHED):
            with suppress(ValueError):  # a number that is none: the disk has lost something
                self.lines.append(_line(values))

    def _look_for_gaps(self, block: bytes) -> None:
        for line in _lines_with(f"\t{LOST}\t".encode(), block):
            found = columns(line)
            if found is not None and found[1] == LOST and found[2].isdecimal():
                self.lost += int(found[2])
        for line in _lines_with(f"\t{KILLED}\t".encode(), block):
            found = columns(line)
            if found is not None and found[1] == KILLED and found[2].isdecimal():
                self.killed.append(int(found[2]) / 1000)


def _line(values: Mapping[str, str]) -> Line:
    read: dict[str, Any] = dict(values)
    for name in _NUMBERS:
        read[name] = int(values.get(name) or 0)
    for name in _TIMES:
        read[name] = int(values[name]) / 1000 if values[name] else None
    return Line(**read)


def _blocks(descriptor: int) -> Iterator[bytes]:
    """Yield the whole lines of a segment, some at once, the last ones first. Raise OSError."""
    end = os.fstat(descriptor).st_size
    rest = b""
    while end > len(HEAD):
        begin = max(len(HEAD), end - _BLOCK)
        block = os.pread(descriptor, end - begin, begin) + rest
        if begin > len(HEAD):
            cut_at = block.find(b"\n") + 1
            rest, block = block[:cut_at], block[cut_at:]
        yield block
        end = begin


def _lines_with(text: bytes, block: bytes) -> Iterator[bytes]:
    """Yield the lines of `block` that have `text` in them, the last ones first."""
    end = len(block)
    while (at := block.rfind(text, 0, end)) >= 0:
        begin = block.rfind(b"\n", 0, at) + 1
        close = block.find(b"\n", at)
        if close >= 0:  # else it is being written
            yield block[begin:close]
        end = begin
