"""CRIU's page maps, read and written: which pages of a task an image folder holds, and where their content is.

An image is two 32-bit magics and then messages, each behind its 32-bit length. ``pagemap-PID.img``: a head with the number of the pages
file, then one entry per run of pages (criu/images/pagemap.proto).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = 4096
PARENT, PRESENT = 1, 4

_LENGTH = struct.Struct("<I")
_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)  # of images of the service, and of page maps
_MAGICS = len(_MAGIC)
_NO_FLAGS = -1
_BYTES = [bytes((value,)) for value in range(0x80)]


@dataclass(frozen=True, slots=True)
class Run:
    """Pages [start, end) of one entry; ``offset``: where they lie in the pages file, if they are there."""

    start: int
    end: int
    flags: int
    offset: int


@dataclass(frozen=True)
class Pagemap:
    """The memory of one task in one image folder; ``runs`` in the order of their addresses."""

    pages_file: int
    runs: list[Run]

    def at(self, address: int) -> Run | None:
        index = bisect_right(self.runs, address, key=lambda run: run.start) - 1
        return self.runs[index] if index >= 0 and address < self.runs[index].end else None


def messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each message of an image begins and ends. Raises ValueError if it is cut off."""
    end = _MAGICS
    for begin, end in whole_messages(data, _MAGICS):
        yield begin, end
    if end < len(data):
        raise ValueError("an image ends within a message")


def whole_messages(data: bytes, at: int = 0) -> Iterator[tuple[int, int]]:
    """The same of what is there of an image so far, from a place at which a message begins."""
    while at + _LENGTH.size <= len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            return
        yield at, at + size
        at += size


def numbers(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of a message: (field, value, 0) for numbers, (field, begin, end) for what has a length. Raises ValueError."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value, 0
        elif kind == 2:
            size, at = _varint(data, at)
            yield key >> 3, at, at + size
            at += size
        else:
            raise ValueError(f"an image field of kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7


def entry(data: bytes, begin: int, end: int) -> tuple[int, int, int]:
    """(address, pages, flags) of one run of pages. Older images tell only whether the pages are in the parent."""
    start = count = 0
    flags = _NO_FLAGS
    inherited = False
    for field, value, _ in numbers(data, begin, end):
        if field == 1:
            start = value
        elif field == 5 or (field == 2 and not count):
            count = value
        elif field == 4:
            flags = value
        elif field == 3:
            inherited = bool(value)
    if flags == _NO_FLAGS:
        flags = PARENT if inherited else PRESENT
    return start, count, flags


def parse_pagemap(data: bytes) -> Pagemap:
    """Raises ValueError or IndexError for what is no pagemap image."""
    runs: list[Run] = []
    pages_file, offset, first = 0, 0, True
    for begin, end in messages(data):
        if first:
            pages_file, first = next(value for field, value, _ in numbers(data, begin, end) if field == 1), False
            continue
        start, count, flags = entry(data, begin, end)
        size = count * PAGE
        runs.append(Run(start, start + size, flags, offset))
        if flags & PRESENT:
            offset += size
    return Pagemap(pages_file, runs)


# -- writing -------------------------------------------------------------------------------------------------------------------------------


def write_head(pages_file: int) -> bytes:
    """How a page map begins: the number of its pages file."""
    return _MAGIC + write_message(write_number(1, pages_file))


def write_entry(start: int, end: int, flags: int) -> bytes:
    return write_message(b"\x08%b\x10\x00\x20%b\x28%b" % (_write_varint(start), _write_varint(flags), _write_varint((end - start) // PAGE)))


def write_message(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def write_number(field: int, value: int) -> bytes:
    return _write_varint(field << 3) + _write_varint(value)


def _write_varint(value: int) -> bytes:
    if value < 0x80:
        return _BYTES[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
