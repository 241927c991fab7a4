"""Batches of records that aiokafka can't read, taken apart one record at a time.

The layout is that of Kafka's message format v2 (https://kafka.apache.org/documentation/#messageformat).
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass

from aiokafka.codec import lz4_decode, snappy_decode, zstd_decode
from aiokafka.record.util import calc_crc32c

_HEADER = struct.Struct(">qiibIhiqqqhii")
_OVERHEAD = 12
"""Bytes of base offset and length, which the length does not count."""
_MAGIC = 16
_CRC_COVERS_FROM = 21
_LOG_APPEND_TIME = 0x08
_CONTROL = 0x20
"""Of a batch that marks the end of a transaction: its records are Kafka's own."""
_CODEC = 0x07
_DECODE: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: gzip.decompress,
    2: snappy_decode,
    3: lz4_decode,
    4: zstd_decode,
}


class UnreadableError(Exception):
    """A batch can't be read as a whole; says why."""


class OldFormatError(UnreadableError):
    """A batch is of a format before v2, which is not taken apart here."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a batch, with aiokafka's names; or what was received where it can't be understood."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    fault: str | None = None
    """Why it is not understood; `value` is then the whole record as received."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch taken apart."""

    records: tuple[Record, ...]
    next_offset: int
    """Where the next batch begins."""


def first_batch(raw: bytes, topic: str, partition: int, offset: int) -> Batch:
    """Take the first batch of `raw` apart, without its records before `offset`.

    Raise UnreadableError where the batch as a whole can't be relied on: cut, with a wrong checksum, in a
    compression that can't be undone, or of an old format.
    """
    if len(raw) <= _MAGIC:
        raise UnreadableError("the broker gave no batch")
    if raw[_MAGIC] != 2:
        raise OldFormatError(f"it is damaged, or compressed in a way that can't be undone (v{raw[_MAGIC]})")
    (length,) = struct.unpack_from(">i", raw, 8)
    if not _HEADER.size <= _OVERHEAD + length <= len(raw):
        raise UnreadableError(f"a batch of {_OVERHEAD + length} bytes is cut: {len(raw)} bytes came")
    batch = raw[: _OVERHEAD + length]
    base, _, _, _, crc, attributes, last, first_time, last_time, *_, count = _HEADER.unpack_from(batch)
    if calc_crc32c(batch[_CRC_COVERS_FROM:]) != crc:
        raise UnreadableError("its checksum (CRC) is wrong: what the broker keeps, or sent, is damaged")
    if base + last < offset:
        raise UnreadableError(f"the broker gave a batch that ends with offset {base + last}")
    if attributes & _CONTROL:
        return Batch((), base + last + 1)
    codec = attributes & _CODEC
    try:
        body = _DECODE[codec](batch[_HEADER.size :])
    except KeyError:
        raise UnreadableError(f"compression {codec} is unknown") from None
    except Exception as error:  # each codec raises its own
        raise UnreadableError(f"its compression can't be undone: {error}") from error
    records, at = [], 0
    for index in range(count):
        try:
            size, begin = _varint(body, at)
        except (IndexError, ValueError):
            size, begin = -1, at
        if size < 0 or begin + size > len(body):
            raise UnreadableError(f"its record {index + 1} of {count} has no end")
        at = begin + size
        record = _record(
            body[begin:at],
            topic,
            partition,
            base=base,
            index=index,
            first_time=first_time,
            time=last_time if attributes & _LOG_APPEND_TIME else None,
        )
        if record.offset >= offset:
            records.append(record)
    return Batch(tuple(records), base + last + 1)


def _record(
    raw: bytes, topic: str, partition: int, *, base: int, index: int, first_time: int, time: int | None
) -> Record:
    """Read one record; one that can't be understood is given as received, with the reason."""
    try:
        delta, after, key, value, headers = _fields(raw)
    except (IndexError, ValueError) as error:
        fault = f"the record can't be read: {error}"
        return Record(topic, partition, base + index, -1, None, raw, fault=fault)
    timestamp = first_time + delta if time is None else time
    return Record(topic, partition, base + after, timestamp, key, value, headers)


def _fields(raw: bytes) -> tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]:
    """Read a record's time and offset (both behind its batch's), key, value and headers.

    Raises IndexError, ValueError.
    """
    delta, at = _varint(raw, 1)  # behind its attributes, of which none is in use
    after, at = _varint(raw, at)
    key, at = _bytes(raw, at)
    value, at = _bytes(raw, at)
    count, at = _varint(raw, at)
    headers = []
    for _ in range(count):
        name, at = _bytes(raw, at)
        content, at = _bytes(raw, at)
        headers.append(((name or b"").decode("utf-8", "replace"), content))
    if count < 0 or at != len(raw):
        raise ValueError(f"{count} headers, and {len(raw) - at} bytes are left over")
    return delta, after, key, value, tuple(headers)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Read a zigzag varint; gives it and where it ends. Raises IndexError, ValueError."""
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")


def _bytes(raw: bytes, at: int) -> tuple[bytes | None, int]:
    """Read what stands behind its length; -1 is None. Raises IndexError, ValueError."""
    size, at = _varint(raw, at)
    if size < -1 or at + max(size, 0) > len(raw):
        raise ValueError(f"a length of {size} does not fit")
    return (None, at) if size < 0 else (raw[at : at + size], at + size)
