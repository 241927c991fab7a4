"""What AMQP 0-9-1 tells of a message beside its body, read from its bytes without ever raising.

pamqp raises on a whole frame for one text that is not UTF-8, a time that no calendar has or a type it does
not know, though nothing here wants any of these. A publisher may send whatever it likes, so what can't be
read makes its message unreadable, and no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

Scalar = str | int | float

_PROPERTIES = (
    ("content_type", "s"),
    ("content_encoding", "s"),
    ("headers", "F"),
    ("delivery_mode", "B"),
    ("priority", "B"),
    ("correlation_id", "s"),
    ("reply_to", "s"),
    ("expiration", "s"),
    ("message_id", "s"),
    ("timestamp", "T"),
    ("type", "s"),
    ("user_id", "s"),
    ("app_id", "s"),
    ("cluster_id", "s"),
)
"""Of class basic, in the order of their flags, highest first: a short text, a table, an octet, a time."""
_SIZES = {b"D": 5, b"T": 8, b"V": 0, b"\x00": 0}
"""Types of fields whose values are passed over: decimals, times, nothing."""
_OCTET, _SHORT, _LONG, _LONG_LONG = (struct.Struct(form) for form in (">B", ">H", ">I", ">Q"))
_FORMATS = {
    b"b": struct.Struct(">b"),
    b"B": _OCTET,
    b"s": struct.Struct(">h"),
    b"u": _SHORT,
    b"I": struct.Struct(">i"),
    b"i": _LONG,
    b"l": struct.Struct(">q"),
    b"L": struct.Struct(">q"),
    b"f": struct.Struct(">f"),
    b"d": struct.Struct(">d"),
}
"""Types of fields that are numbers, as RabbitMQ has them (its "AMQP 0-9-1 Errata", as pamqp does)."""


@dataclass(slots=True)
class Foreign:
    """What of one delivery the publisher chose."""

    headers: dict[str, Scalar] = field(default_factory=dict)
    """The texts and numbers of the header table; what else it may hold is left out."""
    properties: dict[str, str] = field(default_factory=dict)
    """All others, by their names in the specification: texts, and numbers as text."""
    exchange: str = ""
    routing_key: str = ""
    fault: str | None = None
    """The first that can't be read, for a person."""


class _End(Exception):  # noqa: N818 - how reading ends, not an error of the bridge
    """The rest can't be read; carries why."""


def read(envelope: bytes, properties: bytes) -> Foreign:
    """Read the exchange and the routing key of a `basic.deliver`, and the flags and properties of its header.

    Never raises, whatever the bytes are.
    """
    found = Foreign()
    try:
        cursor = _Cursor(envelope, found)
        found.exchange = cursor.short_text("exchange")
        found.routing_key = cursor.short_text("routing key")
        _read_properties(_Cursor(properties, found), found)
    except _End as end:
        found.fault = found.fault or str(end)
    return found


def _read_properties(cursor: _Cursor, found: Foreign) -> None:
    flags = cursor.number(_SHORT)
    more = flags
    while more & 1:  # a further word of flags: class basic has none, so they say nothing
        more = cursor.number(_SHORT)
    for at, (name, kind) in enumerate(_PROPERTIES):
        if not flags & (0x8000 >> at):
            continue
        if kind == "F":
            _read_table(_Cursor(cursor.long_bytes(), found), found)
        elif kind == "s":
            found.properties[name] = cursor.short_text(name)
        else:
            found.properties[name] = str(cursor.number(_OCTET if kind == "B" else _LONG_LONG))


def _read_table(cursor: _Cursor, found: Foreign) -> None:
    while not cursor.is_at_end:
        name = cursor.short_text("name of a header")
        value = cursor.field()
        if value is not None:
            found.headers[name] = value
        else:
            found.headers.pop(name, None)  # of two with one name, the last holds


class _Cursor:
    """A place in `data`, which moves on as it is read."""

    def __init__(self, data: bytes, found: Foreign) -> None:
        self._data = data
        self._found = found
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes. Raises _End."""
        end = self._at + count
        if end > len(self._data):
            raise _End("its header ends too early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, form: struct.Struct) -> int:
        """Return the next integer, of the format `form`. Raises _End."""
        number: int = form.unpack(self.take(form.size))[0]
        return number

    def long_bytes(self) -> bytes:
        """Return bytes that begin with their length in four. Raises _End."""
        return self.take(self.number(_LONG))

    def short_text(self, what: str) -> str:
        """Return a text that begins with its length in one byte; one that is none is a fault. Raises _End."""
        raw = self.take(self.take(1)[0])
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._found.fault = self._found.fault or f"its {what} is not UTF-8: {raw[:32].hex(' ')}"
            return raw.decode("utf-8", "backslashreplace")

    def field(self) -> Scalar | None:
        """Return the next value of a table; None for what is neither text nor number. Raises _End."""
        kind = self.take(1)
        if kind == b"S":
            return _text(self.long_bytes())
        if (form := _FORMATS.get(kind)) is not None:
            value: Scalar = form.unpack(self.take(form.size))[0]
            return value
        if kind == b"t":
            return self.take(1) != b"\x00"
        if kind in b"AFx":  # arrays, tables and bytes are passed over, however deep they are
            self.long_bytes()
            return None
        if (size := _SIZES.get(kind)) is not None:
            self.take(size)
            return None
        raise _End(f"one of its headers has an unknown type: {kind.hex()}")


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:  # a long text of AMQP may as well be bytes
        return None
