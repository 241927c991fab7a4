"""Rows read from the pages of a file, without the tree above them, which may be what is damaged.

The format is SQLite's, chapters 1.3, 1.5, 1.6 and 2.1 of https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bridge.store.schema as schema
from bridge.store.schema import BrokenRowError, Row

_TABLE_LEAF = 0x0D
_INDEX = {0x0A: (8, 0), 0x02: (12, 4)}
"""Leaves and inner pages of an index, or of a table WITHOUT ROWID: where their list of cells begins, and how
many bytes a cell has before its length."""
_PAGE_SIZES = (1, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_SPOOL_COLUMNS, _MARK_COLUMNS = 5, 3
_KEPT_COLUMNS = range(17, 21)
"""Of the first version that had the table, and of this one: others were added behind the first."""
_MARK_LENGTH = 40
"""Bytes of a mark's record at most."""


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield what may be a row of `kept`, `spools` or `entered`, from every page that is not free.

    It comes with its table's name, and has the number of columns of one; whether their values are right is
    not looked at. Raise OSError.
    """
    with path.open("rb") as file:
        pages = _Pages(file.read(100), path.stat().st_size, file.fileno())
        free = pages.free()
        for number in range(2, pages.count + 1):
            if number not in free:
                yield from pages.rows(number)


class _Pages:
    def __init__(self, header: bytes, size: int, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size, self._usable, self._trunk = 4096, 4096, 0  # SQLite's defaults, should the header be lost
        size_of_page = int.from_bytes(header[16:18], "big")
        if header.startswith(b"SQLite format 3\0") and size_of_page in _PAGE_SIZES and len(header) == 100:
            self._size = 65536 if size_of_page == 1 else size_of_page
            self._usable = self._size - header[20]
            self._trunk = int.from_bytes(header[32:36], "big")
        self.count = size // self._size

    def _page(self, number: int) -> bytes:
        return os.pread(self._descriptor, self._size, (number - 1) * self._size)

    def free(self) -> set[int]:
        """Return the pages whose rows were deleted, as far as their list can be followed."""
        free: set[int] = set()
        trunk = self._trunk
        while 0 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            page = self._page(trunk)
            trunk, length = struct.unpack_from(">II", page)
            length = min(length, len(page) // 4 - 2)
            free.update(struct.unpack_from(f">{length}I", page, 8))
        return free

    def rows(self, number: int) -> Iterator[tuple[str, Row]]:
        page = self._page(number)
        if len(page) < self._size or (page[0] != _TABLE_LEAF and page[0] not in _INDEX):
            return
        begin, skipped = _INDEX.get(page[0], (8, 0))
        cells = min(int.from_bytes(page[3:5], "big"), (len(page) - begin) // 2)
        for place in struct.unpack_from(f">{cells}H", page, begin):
            try:
                if page[0] == _TABLE_LEAF:
                    yield self._row(page, place)
                else:
                    yield "entered", _mark(page, place + skipped)
            except (IndexError, struct.error, BrokenRowError):  # no row, or of another table
                continue

    def _row(self, page: bytes, place: int) -> tuple[str, Row]:
        length, place = _varint(page, place)
        number, place = _varint(page, place)
        values = _values(self._record(page, place, length))
        values[0] = number  # an INTEGER PRIMARY KEY is stored as NULL
        if len(values) == _SPOOL_COLUMNS:
            return "spools", tuple(values)
        if len(values) not in _KEPT_COLUMNS:
            raise BrokenRowError("no row of ours")
        return "kept", tuple(values)

    def _record(self, page: bytes, place: int, length: int) -> bytes:
        """Return the record of a cell, with what overflows to other pages."""
        if length > self.count * self._size:
            raise BrokenRowError("longer than the file")
        most, least = self._usable - 35, (self._usable - 12) * 32 // 255 - 23
        if length <= most:
            return page[place : place + length]
        local = least + (length - least) % (self._usable - 4)
        local = local if local <= most else least
        parts, left = [page[place : place + local]], length - local
        (following,) = struct.unpack_from(">I", page, place + local)
        while left > 0:
            if not 0 < following <= self.count:
                raise BrokenRowError("its end is not in the file")
            overflow = self._page(following)
            following = int.from_bytes(overflow[:4], "big")
            parts.append(overflow[4 : 4 + min(left, self._usable - 4)])
            left -= self._usable - 4
        return b"".join(parts)


def _mark(page: bytes, place: int) -> Row:
    length, place = _varint(page, place)
    if length > _MARK_LENGTH:
        raise BrokenRowError("no mark")
    values = _values(page[place : place + length])
    if len(values) != _MARK_COLUMNS:
        raise BrokenRowError("no mark")
    return tuple(values)


def _values(record: bytes) -> list[Any]:
    end, place = _varint(record, 0)
    values: list[Any] = []
    body = end
    while place < end:
        kind, place = _varint(record, place)
        value, body = _value(record, kind, body)
        values.append(value)
    return values


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[place]
        place += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place
    return value << 8 | data[place], place + 1


def _value(record: bytes, kind: int, place: int) -> tuple[object, int]:
    if kind == 0:
        return None, place
    if kind in (8, 9):
        return kind - 8, place
    size = 8 if kind == 7 else _INTEGER_BYTES[kind] if kind in _INTEGER_BYTES else (kind - 12) // 2
    found = record[place : place + size]
    if size < 0 or len(found) < size:
        raise BrokenRowError("shorter than it says")
    if kind == 7:
        return struct.unpack(">d", found)[0], place + size
    if kind in _INTEGER_BYTES:
        return int.from_bytes(found, "big", signed=True), place + size
    return (schema.text(found) if kind % 2 else found), place + size
