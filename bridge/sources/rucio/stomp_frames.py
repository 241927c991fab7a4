"""Frames of STOMP 1.2: how a client's are written, and how a broker's are read from bytes in pieces.

Nothing that one frame holds keeps the next from being read: such a frame is a faulty one. And what is kept in
memory is bounded, whatever is sent.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field

from bridge.sources.broker.link import MOST_BODY, MOST_PASSED_OVER, OVERSIZE_KEPT, LinkLost, oversize

_MOST_LINE = 2**18
"""Bytes of a header that is kept."""
_MOST_HEAD = 2**20
"""Bytes of all headers of one frame that are kept."""
_MOST_GARBAGE = 2**20
"""Bytes between two frames."""
_COMMAND = re.compile(rb"(?:\A|[\n\x00])(CONNECTED|MESSAGE|RECEIPT|ERROR)\r?(?:\n|\Z)")
"""A line that begins a frame, whatever is left before it of a body that somebody has miscounted."""
_BLANK_LINE = re.compile(rb"\n\r?\n")
_NEEDED = (b"ack:", b"content-length:")
"""What is kept however many headers come before it."""
_ESCAPE = re.compile(r"\\.?")
_ESCAPES = {r"\r": "\r", r"\n": "\n", r"\c": ":", r"\\": "\\"}
_TO_ESCAPES = [("\\", r"\\"), ("\r", r"\r"), ("\n", r"\n"), (":", r"\c")]
"""In the order in which they are put in."""


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
    written = str if command == "CONNECT" else _escaped
    lines = [f"{written(name)}:{written(value)}\n" for name, value in headers.items()]
    return f"{command}\n{''.join(lines)}\n\x00".encode()


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
            frame = yield from self._head()
            yield from self._body(frame)
            yield frame

    def _head(self) -> Generator[None, None, Frame]:
        """Return the next frame with its headers. Heart-beats are empty lines before it.

        Nearly every head is read in one piece, as far as its blank line. Of one that is longer than what is
        kept, the whole lines there are get read, and of a line without end the rest is dropped.
        """
        buffer, searched, passed, garbage = self._buffer, 0, 0, 0
        frame: Frame | None = None
        while True:
            blank = _BLANK_LINE.search(buffer, searched)
            if blank is not None:
                end, after = blank.span()
            elif len(buffer) <= _MOST_HEAD:
                searched = max(0, len(buffer) - 2)
                yield None
                continue
            elif (end := buffer.rfind(b"\n")) > 0:
                after = end  # the line end stays: with one that is still to come it makes a blank line
            else:
                searched = _MOST_LINE
                passed += len(buffer) - 2 - _MOST_LINE
                del buffer[_MOST_LINE + 2 :]
                if passed > MOST_PASSED_OVER:
                    raise LinkLost(f"sends a line of more than {MOST_PASSED_OVER} bytes")
                continue
            lines, searched = bytes(buffer[:end]), 0
            del buffer[:after]
            if frame is None:
                command = _COMMAND.search(lines)
                before = command.start() if command else len(lines)
                if before > 1:  # there is more than the end of a line, which a heart-beat has too
                    garbage += passed + len(lines[:before].strip())
                passed = 0
                if garbage > _MOST_GARBAGE:
                    raise LinkLost("sends what is no STOMP")
                if command is None:
                    continue
                frame, lines = Frame(command[1].decode()), lines[command.end() :]
            _add_headers(frame, lines, passed)
            passed += len(lines)
            if passed > MOST_PASSED_OVER:
                raise LinkLost(f"sends headers of more than {MOST_PASSED_OVER} bytes")
            if blank is not None:
                return frame

    def _body(self, frame: Frame) -> Steps:
        buffer = self._buffer
        length = _content_length(frame)
        if length is not None:
            if length > MOST_PASSED_OVER:
                raise LinkLost(f"sends a body of {length} bytes")
            self._counts = True
            while self._counts and len(buffer) <= min(length, MOST_BODY):
                yield None
            if self._counts and length > MOST_BODY:
                self._counts = False
                yield from self._oversize_body(frame, length)
                return
            self._counts = False
            if len(buffer) > length and buffer[length] == 0:
                frame.body = bytes(buffer[:length])
                del buffer[: length + 1]
                return
            # Somebody has miscounted. A body of JSON has no zero byte, so the next one ends it.
            frame.is_faulty(f"its content-length of {length} is not the length of its body")
        searched = 0
        while (end := buffer.find(b"\x00", searched)) < 0 and len(buffer) <= MOST_BODY:
            searched = len(buffer)
            yield None
        if 0 <= end <= MOST_BODY:
            frame.body = bytes(buffer[:end])
            del buffer[: end + 1]
            return
        yield from self._oversize_body(frame, None)

    def _oversize_body(self, frame: Frame, length: int | None) -> Steps:
        """Keep the beginning, and pass over the rest of a body: as far as `length`, or to a zero byte."""
        buffer, passed = self._buffer, 0
        frame.body = bytes(buffer[:OVERSIZE_KEPT])
        if length is None:
            while (end := buffer.find(b"\x00")) < 0:
                passed += len(buffer)
                buffer.clear()
                if passed > MOST_PASSED_OVER:
                    raise LinkLost(f"sends a body of more than {MOST_PASSED_OVER} bytes")
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


def _add_headers(frame: Frame, lines: bytes, passed: int) -> None:
    """Add the headers of `lines`; `passed` bytes of headers came before them."""
    if not lines:
        return
    # All at once, where there is nothing in them to be told.
    if not passed and len(lines) <= _MOST_LINE and b"\r" not in lines and frame.command != "CONNECTED":
        try:
            frame.headers = _headers(lines.decode())
        except (ValueError, KeyError):  # UnicodeDecodeError is a ValueError
            pass
        else:
            return
    for line in lines.split(b"\n"):
        line = line.removesuffix(b"\r")
        passed += len(line)
        if not line:
            continue
        if len(line) > _MOST_LINE:
            frame.is_faulty(f"one of its headers has more than {_MOST_LINE} bytes: {_excerpt(line)}")
        elif passed > _MOST_HEAD and not line.startswith(_NEEDED):
            frame.is_faulty(f"its headers have more than {_MOST_HEAD} bytes")
        else:
            _add_header(frame, line)


def _headers(text: str) -> dict[str, str]:
    """Return the headers in `text`. Raises ValueError for a line without colon, KeyError for an escape."""
    lines = text.split("\n")
    pairs = [_unescaped(line) if "\\" in line else line.split(":", 1) for line in lines]
    headers = dict(pairs)
    return headers if len(headers) == len(pairs) else dict(reversed(pairs))


def _add_header(frame: Frame, line: bytes) -> None:
    try:
        text = line.decode()
        name, value = text.split(":", 1) if frame.command == "CONNECTED" else _unescaped(text)
    except UnicodeDecodeError:
        frame.is_faulty(f"one of its headers is not UTF-8: {_excerpt(line)}")
    except ValueError:
        frame.is_faulty(f"one of its headers has no colon: {_excerpt(line)}")
    except KeyError:
        frame.is_faulty(f"one of its headers has an escape that STOMP has not: {_excerpt(line)}")
    else:
        frame.headers.setdefault(name, value)


def _unescaped(line: str) -> list[str]:
    """Return the parts of `line`, as far as a colon and after it. Raises KeyError for an unknown escape."""
    parts = line.split(":", 1)
    if line.count("\\") == parts[-1].count(r"\c"):  # as in all that ActiveMQ writes
        parts[-1] = parts[-1].replace(r"\c", ":")
        return parts
    return [_ESCAPE.sub(lambda found: _ESCAPES[found[0]], part) if "\\" in part else part for part in parts]


def acknowledge(tags: Iterable[object]) -> bytes:
    """Return an ACK for each of `tags`."""
    return "".join([f"ACK\nid:{_escaped(str(tag))}\n\n\0" for tag in tags]).encode()


def _escaped(text: str) -> str:
    for raw, escape in _TO_ESCAPES:
        text = text.replace(raw, escape)
    return text


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
