"""CRIU's images of a task's memory, as far as post-copy reads them: which pages there are and where their content is.

An image is two 32-bit magics and then messages, each behind its 32-bit length. ``pagemap-PID.img``: a head with the number of the pages
file, then one entry per run of pages (criu/images/pagemap.proto). ``mm-PID.img``: one message with the mappings (mm.proto, vma.proto).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4

_LENGTH = struct.Struct("<I")
_MAGICS = 8
_NO_FLAGS = -1


@dataclass(frozen=True, slots=True)
class Run:
    """Pages [start, end) of one entry."""

    start: int
    end: int
    flags: int

    @property
    def left_out(self) -> bool:
        """Neither in these images nor in those before."""
        return self.flags & (LAZY | PRESENT | PARENT) == LAZY


def messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each message of an image begins and ends. Raises ValueError if it is cut off."""
    at = _MAGICS
    while at < len(data):
        if at + _LENGTH.size > len(data):
            raise ValueError("an image ends within a message")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            raise ValueError("an image ends within a message")
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


def parse_pagemap(data: bytes) -> list[Run]:
    """What is known of each page, in the order of addresses. Raises ValueError or IndexError for what is no pagemap image."""
    runs: list[Run] = []
    entries = messages(data)
    next(entries, None)  # the head
    for begin, end in entries:
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
        runs.append(Run(start, start + count * PAGE, flags))
    return runs


def parse_mappings(data: bytes) -> list[tuple[int, int]]:
    """[start, end) of every mapping in an ``mm`` image, in the order of their addresses."""
    found: list[tuple[int, int]] = []
    for begin, end in messages(data):
        for field, start, stop in numbers(data, begin, end):
            if field == 14:
                values = dict((number, value) for number, value, _ in numbers(data, start, stop) if number < 3)  # noqa: C402
                found.append((values[1], values[2]))
        break
    return sorted(found)


def split(run: Run, mappings: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of a run mapping by mapping: userfaultfd fills one mapping at a time."""
    at = bisect_right(mappings, run.start, key=lambda mapping: mapping[0]) - 1
    start = run.start
    while start < run.end and 0 <= at < len(mappings):
        stop = min(run.end, mappings[at][1])
        if stop > start:
            yield start, stop
            start = stop
        at += 1
        if at < len(mappings):
            start = max(start, mappings[at][0])


def tasks_in(folder: Path) -> list[int]:
    """Process numbers (the guest's own) of the tasks whose memory is in an image folder."""
    return sorted(int(path.stem.removeprefix("pagemap-")) for path in folder.glob("pagemap-[0-9]*.img"))
