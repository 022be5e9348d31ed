"""The receiving side of the page transport: pages files rebuilt from chunks, each checked before it is written (see ``pages``)."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.compression import Decompressor
from emulab.migration.pages import CHANGED, PAGE, STORED, ZERO_REF, Chunk, Part, unpack_refs, xor


class Stored(Protocol):
    """The receiver's pages from earlier."""

    def read_into(self, first: int, pages: memoryview) -> None:
        """Fill ``pages`` from page ``first`` on. Raises EmulabError for pages that were never offered."""


class PageReceiver:
    """Rebuilds pages files from chunks. Distinct pages are found again in the files they were first written to."""

    def __init__(self, stored: Stored | None = None) -> None:
        self._stored = stored
        self._decompressor = Decompressor()
        self._numbers: dict[Path, int] = {}
        self._files: list[int] = []
        self._sizes: list[int] = []  # in pages
        self._pages = bytearray()
        self._file_of = array("I")  # of each distinct page
        self._page_of = array("I")

    def write(self, folder: Path, chunk: Chunk) -> None:
        """Append a chunk to its files in ``folder``. Raises EmulabError, with no page written, unless it is exactly what was sent."""
        refs = unpack_refs(chunk.refs)
        if len(refs) != sum(part.count for part in chunk.parts):
            raise EmulabError("a chunk carried references of other pages than it names")
        files = [self._open(folder / part.name) for part in chunk.parts]
        ends = {file: self._sizes[file] for file in files}
        for part, file in zip(chunk.parts, files, strict=True):
            if part.count < 0 or part.first != ends[file]:
                raise EmulabError(f"pages of {part.name} arrived out of order")
            ends[file] += part.count
        new = self._introduced(refs)
        content = memoryview(
            self._decompressor.unpack(chunk.kind, chunk.content, sum(ref < STORED or ref >= CHANGED for _, ref in new) * PAGE)
        )
        if len(refs) * PAGE > len(self._pages):
            self._pages = bytearray(len(refs) * PAGE)  # kept: to make one anew for each chunk costs as much as to fill it
        pages = memoryview(self._pages)[: len(refs) * PAGE]
        self._rebuild(refs, new, content, pages)
        if blake3(pages).digest() != chunk.digest:
            raise EmulabError("a page arrived that is not what was sent", hint="the migration can be tried again")
        starts = list(accumulate((part.count for part in chunk.parts), initial=0))
        for at, _ in new:
            which = bisect_right(starts, at) - 1
            self._file_of.append(files[which])
            self._page_of.append(chunk.parts[which].first + at - starts[which])
        self._append(chunk.parts, files, refs, pages)

    def _open(self, path: Path) -> int:
        """Number of a pages file, created at its first part."""
        number = self._numbers.get(path)
        if number is None:
            number = self._numbers[path] = len(self._files)
            self._files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._sizes.append(0)
        return number

    def _introduced(self, refs: Sequence[int]) -> list[tuple[int, int]]:
        """(place in the chunk, reference) of each page that is new to this migration."""
        new = []
        known = count = len(self._file_of)
        for at, ref in enumerate(refs):
            if CHANGED <= ref < ZERO_REF and ref - CHANGED >= known:
                raise EmulabError(f"page {ref - CHANGED} that has changed was never sent")
            if ref == count or STORED <= ref < ZERO_REF:
                new.append((at, ref))
                count += 1
            elif ref > count and ref != ZERO_REF:
                raise EmulabError(f"page {ref} was never sent")
        return new

    def _rebuild(self, refs: Sequence[int], new: Sequence[tuple[int, int]], content: memoryview, pages: memoryview) -> None:
        fresh = bytearray(len(refs))
        for at, _ in new:
            fresh[at] = 1
        taken = 0
        for start, count in _runs(refs, fresh):
            ref, target = refs[start], pages[start * PAGE : (start + count) * PAGE]
            if ref == ZERO_REF:
                target[:] = bytes(count * PAGE)
            elif ref >= CHANGED:
                self._repeat(ref - CHANGED, count, (), pages, target)
                for page in range(0, count * PAGE, PAGE):
                    target[page : page + PAGE] = xor(target[page : page + PAGE], content[taken : taken + PAGE])
                    taken += PAGE
            elif ref >= STORED:
                if self._stored is None:
                    raise EmulabError("a page arrived that refers to a store which was never offered")
                self._stored.read_into(ref - STORED, target)
            elif fresh[start]:
                target[:] = content[taken : taken + count * PAGE]
                taken += count * PAGE
            else:
                self._repeat(ref, count, new, pages, target)

    def _repeat(self, ref: int, count: int, new: Sequence[tuple[int, int]], pages: memoryview, target: memoryview) -> None:
        """Pages that were sent before: from the files they are in, or from this very chunk."""
        known = len(self._file_of)
        at = 0
        while at < count:
            number = ref + at
            if number >= known:
                there = new[number - known][0] * PAGE
                target[at * PAGE : (at + 1) * PAGE] = pages[there : there + PAGE]
                at += 1
                continue
            file, page = self._file_of[number], self._page_of[number]
            run = 1
            while (
                at + run < count
                and number + run < known
                and self._file_of[number + run] == file
                and self._page_of[number + run] == page + run
            ):
                run += 1
            _read_exactly(self._files[file], target[at * PAGE : (at + run) * PAGE], page * PAGE)
            at += run

    def _append(self, parts: Sequence[Part], files: Sequence[int], refs: Sequence[int], pages: memoryview) -> None:
        """Zero pages stay holes."""
        at = 0
        for part, number in zip(parts, files, strict=True):
            descriptor = self._files[number]
            for start, count, zero in _stretches(refs[at : at + part.count]):
                if not zero:
                    _write_all(descriptor, pages[(at + start) * PAGE : (at + start + count) * PAGE], (part.first + start) * PAGE)
            self._sizes[number] = part.first + part.count
            if part.count and refs[at + part.count - 1] == ZERO_REF:
                os.ftruncate(descriptor, self._sizes[number] * PAGE)
            at += part.count

    def close(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)
        self._files.clear()


def _runs(refs: Sequence[int], fresh: bytearray) -> Iterator[tuple[int, int]]:
    """(place, count) of stretches whose references count up by one, all new or none, or are all zero pages."""
    start = 0
    for at in range(1, len(refs) + 1):
        if at < len(refs) and fresh[at] == fresh[start] and refs[at] == (ZERO_REF if refs[start] == ZERO_REF else refs[at - 1] + 1):
            continue
        if refs:
            yield start, at - start
        start = at


def _stretches(refs: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """(place, count, are they zero pages) of stretches of zero pages and of other pages."""
    start = 0
    for at in range(1, len(refs) + 1):
        if at == len(refs) or (refs[at] == ZERO_REF) != (refs[start] == ZERO_REF):
            yield start, at - start, refs[start] == ZERO_REF
            start = at


def _read_exactly(descriptor: int, target: memoryview, offset: int) -> None:
    while target:
        got = os.preadv(descriptor, [target], offset)
        if not got:
            raise EmulabError("a page that was sent before is gone from its file")
        target, offset = target[got:], offset + got


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
