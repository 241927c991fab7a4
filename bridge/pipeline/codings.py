"""What a route undoes of an event's body, and does to it: base64 and gzip, in pieces, with an end."""

from __future__ import annotations

import binascii
import zlib
from base64 import b64encode
from collections.abc import Generator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator

MOST = 2**20
"""Bytes of a body, before and after each coding. What a service takes is far less (`max_event_bytes`)."""
_PIECE = 2**16
"""Bytes at once: they take a millisecond at most."""
_GZIP = 16 + zlib.MAX_WBITS
"""A zlib window that asks for gzip's header and checksum (RFC 1952)."""

_Done = TypeVar("_Done")

Coding = Literal["base64", "gzip"]
Coded = Generator[None, None, bytes]
"""Work on one body, which it returns: it stops after each piece, so that others may have their turn."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Codings = Annotated[tuple[Coding, ...], BeforeValidator(_listed)]
"""Codings in the order in which they are applied; one may be written without a list."""


class Undecodable(Exception):  # noqa: N818 - a finding about one body, not an error of the bridge
    """A body is not what a route takes it for, or is too long for it; says which and why."""

    cause = "undecodable"
    """Of the dead letter."""


def decode(body: bytes, codings: Sequence[Coding]) -> Coded:
    """Undo `codings` in their order. No body at all (a tombstone of Kafka) stays none. Raises Undecodable."""
    for coding in codings:
        if body:
            _bound(len(body), f"for `decode: {coding}`")
            body = yield from (_from_base64(body) if coding == "base64" else _from_gzip(body))
    return body


def encode(body: bytes, codings: Sequence[Coding]) -> Coded:
    """Apply `codings` in their order; the same body always comes to the same. Raises Undecodable."""
    for coding in codings:
        if body:
            _bound(len(body), f"for `encode: {coding}`")
            body = b64encode(body) if coding == "base64" else (yield from _to_gzip(body))
    return body


def at_once(work: Generator[None, None, _Done]) -> _Done:
    """Return what `work` comes to, with no turn for others."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return] # what the generator returns


def _bound(size: int, what: str) -> None:
    if size > MOST:
        raise Undecodable(f"{size} bytes are too many {what}: {MOST} at most")


def _from_base64(body: bytes) -> Coded:
    # Lines and their ends are MIME's (RFC 2045), and what the command `base64` writes by default.
    text = body.translate(None, b" \t\r\n")
    opened = bytearray()
    if b"=" in text[:-2]:
        raise Undecodable("not base64: it goes on after its padding")
    try:
        for at in range(0, len(text), _PIECE):  # which is a multiple of 4
            opened += binascii.a2b_base64(text[at : at + _PIECE], strict_mode=True)
            yield
    except binascii.Error as error:
        raise Undecodable(f"not base64: {str(error).lower()}") from None
    return bytes(opened)


def _from_gzip(body: bytes) -> Coded:
    opened = bytearray()
    member = None  # a file of gzip's is one or several, one after the other
    for at in range(0, len(body), _PIECE):
        left = body[at : at + _PIECE]
        while left:
            if member is None:
                member = zlib.decompressobj(_GZIP)
            try:
                opened += member.decompress(left, _PIECE)
            except zlib.error as error:
                raise Undecodable(f"not gzip: {_reason(error)}") from None
            if len(opened) > MOST:
                raise Undecodable(f"gzip that opens to more than {MOST} bytes")
            left = member.unconsumed_tail
            if member.eof:
                left, member = member.unused_data, None
            yield
    if member is not None:
        raise Undecodable("not gzip: it ends too early")
    return bytes(opened)


def _reason(error: zlib.error) -> str:
    """Return what zlib says behind its own `Error -3 while decompressing data: `."""
    return str(error).rpartition(": ")[2]


def _to_gzip(body: bytes) -> Coded:
    member = zlib.compressobj(wbits=_GZIP)  # writes no time into the header
    coded = bytearray()
    for at in range(0, len(body), _PIECE // 2):
        coded += member.compress(body[at : at + _PIECE // 2])
        yield
    return bytes(coded + member.flush())
