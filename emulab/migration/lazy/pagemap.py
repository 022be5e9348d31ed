"""CRIU's images of a task's memory, as far as post-copy reads them: which pages there are and where their content is.

``pagemap-PID.img`` is read as ``emulab.criu.pagemap`` does; ``mm-PID.img`` is one message with the mappings (mm.proto, vma.proto).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emulab.criu.pagemap import PAGE, PARENT, PRESENT, entry, messages, numbers

LAZY = 2


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


def parse_pagemap(data: bytes) -> list[Run]:
    """What is known of each page, in the order of addresses. Raises ValueError or IndexError for what is no pagemap image."""
    runs: list[Run] = []
    entries = messages(data)
    next(entries, None)  # the head
    for begin, end in entries:
        start, count, flags = entry(data, begin, end)
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
