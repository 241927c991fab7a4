"""Frames of STOMP 1.2: how a client's are written, and how a broker's are read from bytes in pieces.

Nothing that one frame holds keeps the next from being read: such a frame is a faulty one. And what is kept in
memory is bounded, whatever is sent.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from bridge.sources.broker.link import MOST_BODY, OVERSIZE_KEPT, LinkLost, oversize

_MOST_LINE = 2**18
"""Bytes of a header that is kept."""
_MOST_HEAD = 2**20
"""Bytes of all headers of one frame that are kept."""
_MOST_PASSED_OVER = 2**30
"""Bytes of one frame that are passed over; no broker takes a message of so many."""
_MOST_GARBAGE = 2**20
"""Bytes between two frames."""
_COMMANDS = frozenset({b"CONNECTED", b"MESSAGE", b"RECEIPT", b"ERROR"})
_NEEDED = (b"ack:", b"content-length:")
"""What is kept however many headers come before it."""
_ESCAPES = {b"\\r": b"\r", b"\\n": b"\n", b"\\c": b":", b"\\\\": b"\\"}
_ESCAPE = re.compile(rb"\\[rnc\\]")
_ESCAPED = re.compile(rb"(?:[^\\]|\\[rnc\\])*")
_TO_ESCAPES = str.maketrans({raw.decode(): escape.decode() for escape, raw in _ESCAPES.items()})


@dataclass(slots=True)
class Frame:
    """A frame of a broker."""

    command: str
    headers: dict[str, str] = field(default_factory=dict)
    """Of several with one name, the first."""
    body: bytes = b""
    fault: str | None = None
    """The first of it that can't be read, for a person."""

    def is_faulty(self, reason: str) -> None:
        """Note what can't be read, if nothing was before."""
        self.fault = self.fault or reason


Steps = Generator[Frame | None, None, None]
"""Yields a frame that is complete, and None to be given more bytes."""


def dump(command: str, headers: Mapping[str, str]) -> bytes:
    """Return a client's frame without a body; STOMP escapes nothing in a CONNECT."""
    lines = [command]
    for name, value in headers.items():
        line = (
            (name, value)
            if command == "CONNECT"
            else (name.translate(_TO_ESCAPES), value.translate(_TO_ESCAPES))
        )
        lines.append(":".join(line))
    return "\n".join([*lines, "", "\x00"]).encode()


class Parser:
    """Takes what a broker sends, and gives its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._steps = self._read()
        self._counts = False
        """A body is read by its content-length, and is not complete."""

    def feed(self, data: bytes) -> list[Frame]:
        """Take `data`; return the frames that are complete by it. Raises LinkLost when no end is in sight."""
        self._buffer += data
        return list(iter(self._steps.__next__, None))  # None ends it, and is none of them

    @property
    def is_in_doubt(self) -> bool:
        """Whether a body that is not complete may have ended: it has a zero byte, as JSON never has."""
        return self._counts and 0 in self._buffer

    def end_body(self) -> list[Frame]:
        """Take a body in doubt to have ended at its zero byte; return the frames that are complete so."""
        self._counts = False
        return self.feed(b"")

    def _read(self) -> Steps:
        while True:
            frame = Frame((yield from self._command()))
            yield from self._headers(frame)
            yield from self._body(frame)
            yield frame

    def _command(self) -> Generator[None, None, str]:
        """Return the next command. Heart-beats are empty lines before it."""
        garbage = 0
        while True:
            line, size = yield from self._line()
            command = line.rpartition(b"\x00")[2]
            if command in _COMMANDS:
                return command.decode()
            garbage += size if line else 0
            if garbage > _MOST_GARBAGE:
                raise LinkLost("sends what is no STOMP")

    def _headers(self, frame: Frame) -> Steps:
        total = 0
        while True:
            line, size = yield from self._line()
            if not line:
                return
            total += size
            if total > _MOST_PASSED_OVER:
                raise LinkLost(f"sends headers of more than {_MOST_PASSED_OVER} bytes")
            if size > _MOST_LINE:
                frame.is_faulty(f"one of its headers has more than {_MOST_LINE} bytes: {_excerpt(line)}")
            elif total > _MOST_HEAD and not line.startswith(_NEEDED):
                frame.is_faulty(f"its headers have more than {_MOST_HEAD} bytes")
            else:
                _add_header(frame, line)

    def _line(self) -> Generator[None, None, tuple[bytes, int]]:
        """Return a line without its end, and how many bytes it had; of a long one, only the beginning."""
        buffer, searched, size = self._buffer, 0, 0
        kept: bytes | None = None
        while (end := buffer.find(b"\n", searched)) < 0:
            if len(buffer) > _MOST_LINE:
                kept = kept or bytes(buffer[:_MOST_LINE])
                size += len(buffer)
                buffer.clear()
                if size > _MOST_PASSED_OVER:
                    raise LinkLost(f"sends a line of more than {_MOST_PASSED_OVER} bytes")
            searched = len(buffer)
            yield None
        line = bytes(buffer[:end]) if kept is None else kept
        del buffer[: end + 1]
        return line.removesuffix(b"\r"), size + end

    def _body(self, frame: Frame) -> Steps:
        buffer = self._buffer
        length = _content_length(frame)
        if length is not None and length <= MOST_BODY:
            self._counts = True
            while self._counts and len(buffer) <= length:
                yield None
            self._counts = False
            if len(buffer) > length and buffer[length] == 0:
                frame.body = bytes(buffer[:length])
                del buffer[: length + 1]
                return
            # Somebody has miscounted. A body of JSON has no zero byte, so the next one ends it.
            frame.is_faulty(f"its content-length of {length} is not the length of its body")
            length = None
        if length is None:
            searched = 0
            while (end := buffer.find(b"\x00", searched)) < 0 and len(buffer) <= MOST_BODY:
                searched = len(buffer)
                yield None
            if 0 <= end <= MOST_BODY:
                frame.body = bytes(buffer[:end])
                del buffer[: end + 1]
                return
        yield from self._oversize_body(frame, length)

    def _oversize_body(self, frame: Frame, length: int | None) -> Steps:
        """Keep the beginning of a body, and pass over the rest: as far as `length`, or to a zero byte."""
        buffer, passed = self._buffer, 0
        if length is not None and length > _MOST_PASSED_OVER:
            raise LinkLost(f"sends a body of {length} bytes")
        while len(buffer) < OVERSIZE_KEPT:
            yield None
        frame.body = bytes(buffer[:OVERSIZE_KEPT])
        if length is None:
            while (end := buffer.find(b"\x00")) < 0:
                passed += len(buffer)
                buffer.clear()
                if passed > _MOST_PASSED_OVER:
                    raise LinkLost(f"sends a body of more than {_MOST_PASSED_OVER} bytes")
                yield None
        else:
            while passed + len(buffer) <= length:
                passed += len(buffer)
                buffer.clear()
                yield None
            end = length - passed
            if buffer[end] != 0:
                raise LinkLost(f"sends a body that has not the {length} bytes of its content-length")
        frame.is_faulty(oversize(passed + end))
        del buffer[: end + 1]


def _add_header(frame: Frame, line: bytes) -> None:
    raw_name, colon, raw_value = line.partition(b":")
    if not colon:
        frame.is_faulty(f"one of its headers has no colon: {_excerpt(line)}")
        return
    if b"\\" in line and frame.command != "CONNECTED":
        if not _ESCAPED.fullmatch(line):
            frame.is_faulty(f"one of its headers has an escape that STOMP has not: {_excerpt(line)}")
            return
        raw_name, raw_value = (_ESCAPE.sub(_unescape, part) for part in (raw_name, raw_value))
    try:
        name, value = raw_name.decode("utf-8"), raw_value.decode("utf-8")
    except UnicodeDecodeError:
        frame.is_faulty(f"one of its headers is not UTF-8: {_excerpt(line)}")
        return
    frame.headers.setdefault(name, value)


def _unescape(found: re.Match[bytes]) -> bytes:
    return _ESCAPES[found[0]]


def _content_length(frame: Frame) -> int | None:
    told = frame.headers.get("content-length")
    if told is None:
        return None
    if not told.isascii() or not told.isdigit() or len(told) > 18:
        frame.is_faulty(f"its content-length is no number: {told[:40]!r}")
        return None
    return int(told)


def _excerpt(raw: bytes) -> str:
    return raw[:40].decode("utf-8", "backslashreplace")
