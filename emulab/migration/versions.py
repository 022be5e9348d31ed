"""Earlier versions of pages: which page was sent last for the same address of the same task.

A page that was rewritten in part is sent as its difference (XOR) from that version where the two are almost equal. Only for pages files of
some size: of a web server's 65 workers it saved 4 % of the bytes (the compressor's memory reaches back over the last 32 MiB anyway), and
reading all their page maps inside the freeze would cost more than it saves. A task that writes a word here and there in a large memory
sends some 20 bytes per page instead of 4096.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emulab.criu.pagemap import PRESENT, Pagemap, parse_pagemap

PAGE = 4096
LEAST_PAGES = 256  # of a pages file: of fewer, no earlier versions are looked for
NONE = 0xFFFFFFFF
_HEAD = 64  # enough of a page map for its head
_LENGTH = struct.Struct("<I")
_MAGICS = 8


def _whole(data: bytes) -> bytes:
    """As much of an image that is still being written as consists of whole messages."""
    at = _MAGICS
    while at + _LENGTH.size <= len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        if at + _LENGTH.size + size > len(data):
            break
        at += _LENGTH.size + size
    return data[:at]


@dataclass
class _Map:
    """A page map as far as it is written. ``pages``: how many of the pages file it tells about; ``starts``: where each run begins there."""

    size: int
    pagemap: Pagemap
    pages: int = 0
    starts: list[int] = field(default_factory=list)
    addresses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for run in self.pagemap.runs:
            if run.flags & PRESENT:
                self.starts.append(run.offset // PAGE)
                self.addresses.append(run.start)
                self.pages = (run.offset + run.end - run.start) // PAGE

    def address(self, page: int) -> int | None:
        if page >= self.pages:
            return None
        run = bisect_right(self.starts, page) - 1
        return self.addresses[run] + (page - self.starts[run]) * PAGE


class _Round:
    """The page maps of one image folder, read when they are needed, and what was sent for each page of its pages files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: dict[str, array[int]] = {}
        self._maps: dict[str, _Map] = {}
        self._task_of: dict[str, str] = {}  # page map of each pages file

    def task_of(self, pages_file: str) -> str | None:
        """Name of the page map that belongs to a pages file."""
        if pages_file not in self._task_of:
            known = set(self._task_of.values())
            for path in self.folder.glob("pagemap-*.img"):
                if path.name not in known:
                    with path.open("rb", buffering=0) as file:
                        head = _parsed(file.read(_HEAD))
                    if head and head.pages_file:
                        self._task_of[f"pages-{head.pages_file}.img"] = path.name
        return self._task_of.get(pages_file)

    def map(self, task: str) -> _Map | None:
        path = self.folder / task
        try:
            size = path.stat().st_size
        except OSError:
            return None
        known = self._maps.get(task)
        if known is None or known.size != size:
            found = _parsed(path.read_bytes())
            if found is None:
                return None
            known = self._maps[task] = _Map(size, found)
        return known

    def number(self, task: str, address: int) -> int | None:
        """What was sent in this round for an address: a page's number, NONE for a zero page; None if nothing was."""
        known = self._maps.get(task) or self.map(task)
        run = known.pagemap.at(address) if known else None
        if known is None or run is None or not run.flags & PRESENT:
            return None
        sent = self.sent.get(f"pages-{known.pagemap.pages_file}.img", ())
        page = (run.offset + address - run.start) // PAGE
        return sent[page] if page < len(sent) else None


def _parsed(data: bytes) -> Pagemap | None:
    try:
        return parse_pagemap(_whole(data))
    except (ValueError, IndexError, StopIteration):
        return None


class Versions:
    """Of one migration, on the sending side."""

    def __init__(self) -> None:
        self._rounds: list[_Round] = []

    def begin(self, folder: Path) -> None:
        """The pages of another folder follow."""
        self._rounds.append(_Round(folder))

    def ready(self, pages_file: str, pages: int) -> int:
        """How many of the ``pages`` that are written so far to take now: those with addresses, or those that too many wait behind."""
        if len(self._rounds) < 2 or pages < LEAST_PAGES:
            return pages
        known = self._map(pages_file)
        return min(pages, max(known.pages if known else 0, pages - 4 * LEAST_PAGES))

    def _map(self, pages_file: str) -> _Map | None:
        now = self._rounds[-1]
        task = now.task_of(pages_file)
        return now.map(task) if task else None

    def sent(self, pages_file: str, numbers: Sequence[int]) -> None:
        """The next pages of a file were sent as these distinct pages (NONE: a zero page)."""
        if self._rounds:
            self._rounds[-1].sent.setdefault(pages_file, array("I")).extend(numbers)

    def before(self, pages_file: str, first: int, count: int) -> list[int | None]:
        """Number of the earlier version of each of these pages, None where there is none."""
        nothing: list[int | None] = [None] * count
        if len(self._rounds) < 2 or first + count < LEAST_PAGES:
            return nothing
        known, task = self._map(pages_file), self._rounds[-1].task_of(pages_file)
        if known is None or task is None:
            return nothing
        return [self._last(task, known.address(page)) for page in range(first, first + count)]

    def _last(self, task: str, address: int | None) -> int | None:
        if address is not None:
            for earlier in reversed(self._rounds[:-1]):
                number = earlier.number(task, address)
                if number is not None:
                    return None if number == NONE else number
        return None
