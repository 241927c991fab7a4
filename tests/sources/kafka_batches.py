"""Batches of Kafka's message format v2 that no producer would make, with a right checksum."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

TIMESTAMP = 1_700_000_000_000
Header = tuple[str, bytes | None]


def batch(
    *values: bytes | None,
    headers: Sequence[Header] = (),
    compression: int = 0,
    first_offset: int = 0,
    key: bytes | None = None,
    attributes: int = 0,
    replacing: tuple[bytes, bytes] = (b"", b""),
) -> bytes:
    """Make one batch of `values`, with `attributes` beside its compression.

    Of its bytes, the `replacing` first is replaced by the second.
    """
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, -1, 10**6)
    for number, value in enumerate(values):
        builder.append(number, TIMESTAMP + number, key or b"k%d" % number, value, list(headers))
    made = bytes(builder.build())
    old, new = replacing
    assert len(old) == len(new)
    if old:
        assert old in made
        made = made.replace(old, new)
    made = struct.pack(">q", first_offset) + made[8:22] + bytes([made[22] | attributes]) + made[23:]
    return made[:17] + struct.pack(">I", calc_crc32c(made[21:])) + made[21:]


def with_a_header_name_that_is_no_text(*values: bytes) -> bytes:
    """Make a batch that aiokafka can't read, and Java's client can."""
    return batch(*values, headers=[("name", b"v")], replacing=(b"name", b"n\xffm\xfe"))
