"""The receiving side of the page transport: pages kept once each, and which of them the pages files consist of (see ``pages``)."""

from __future__ import annotations

import fcntl
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.compression import Decompressor
from emulab.migration.pages import CHANGED, NUMBERS, PAGE, STORED, ZERO_REF, Chunk, Part, little_endian, unpack_refs, xor

_NEW_FILE = os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class Stored(Protocol):
    """The receiver's pages from earlier."""

    def read_into(self, first: int, pages: memoryview) -> None:
        """Fill ``pages`` from page ``first`` on. Raises EmulabError for pages that were never offered."""


class PageReceiver:
    """Keeps what chunks bring. ``distinct``: the file of the distinct pages; pages files lie wherever ``write`` is told.

    Memory: the new pages of a chunk, twice.
    """

    def __init__(self, distinct: Path, stored: Stored | None = None) -> None:
        self._stored = stored
        self._path = distinct
        self._distinct = -1
        self._count = 0  # of distinct pages
        self._decompressor = Decompressor()
        self._files: dict[Path, int] = {}  # descriptor of each pages file's numbers
        self._sizes: dict[Path, int] = {}  # in pages
        self._expected: dict[Path, int] = {}  # pages of each pages file that is not complete

    def expect(self, pages: Mapping[Path, int]) -> None:
        """How many pages these files will have. From now on they and ``distinct`` may be read: the numbers of a file that is not complete
        are locked until it is, or given up (criu/native/pages.c).
        """
        for path, count in pages.items():
            self._open(path)
            fcntl.flock(self._files[path], fcntl.LOCK_EX)
            self._expected[path] = count
            self._unlock_if_complete(path)
        left = sum(count - self._sizes[path] for path, count in self._expected.items())
        if self._distinct >= 0:
            os.ftruncate(self._distinct, (self._count + left) * PAGE)  # it may be mapped now, and has to be as large as it will be

    def check_complete(self, folder: Path) -> None:
        """Nothing follows in a folder. Raises EmulabError if something is missing."""
        if any(path.parent == folder for path in self._expected):
            raise EmulabError("pages that were expected have not arrived")

    def _unlock_if_complete(self, path: Path) -> None:
        if self._sizes[path] > self._expected[path]:
            raise EmulabError(f"{path.name} has more pages than it should have")
        if self._sizes[path] == self._expected[path]:
            del self._expected[path]
            fcntl.flock(self._files[path], fcntl.LOCK_UN)

    def write(self, folder: Path, chunk: Chunk) -> None:
        """Append a chunk to its files in ``folder``. Raises EmulabError, with no page written, unless it is exactly what was sent."""
        refs = array("I", unpack_refs(chunk.refs))
        if len(refs) != sum(part.count for part in chunk.parts):
            raise EmulabError("a chunk carried references of other pages than it names")
        for part in chunk.parts:
            self._open(folder / part.name)
        self._check_order(folder, chunk.parts)
        new, numbers = self._introduced(refs)
        content = self._decompressor.unpack(chunk.kind, chunk.content, sum(ref < STORED or ref >= CHANGED for ref in new) * PAGE)
        pages = self._rebuilt(new, memoryview(content))
        told = blake3(pages)
        told.update(little_endian(refs))
        if told.digest() != chunk.digest:
            raise EmulabError("a page arrived that is not what was sent", hint="the migration can be tried again")
        if new:
            _write_all(self._distinct, memoryview(pages), self._count * PAGE)
            self._count += len(new)
        at = 0
        for part in chunk.parts:
            path = folder / part.name
            data = little_endian(numbers[at : at + part.count])
            _write_all(self._files[path], memoryview(data), part.first * numbers.itemsize)
            self._sizes[path] += part.count
            at += part.count
            if path in self._expected:
                self._unlock_if_complete(path)

    def _open(self, path: Path) -> None:
        """A pages file, empty, and its numbers, at its first part."""
        if path in self._files:
            return
        if self._distinct < 0:
            self._distinct = os.open(self._path, os.O_RDWR | _NEW_FILE, 0o600)
        os.close(os.open(path, os.O_WRONLY | _NEW_FILE, 0o600))
        self._files[path] = os.open(path.with_name(path.name + NUMBERS), os.O_WRONLY | _NEW_FILE, 0o600)
        self._sizes[path] = 0

    def _check_order(self, folder: Path, parts: Sequence[Part]) -> None:
        ends: dict[str, int] = {}
        for part in parts:
            end = ends.get(part.name, self._sizes[folder / part.name])
            if part.count < 0 or part.first != end:
                raise EmulabError(f"pages of {part.name} arrived out of order")
            ends[part.name] = end + part.count

    def _introduced(self, refs: array[int]) -> tuple[list[int], array[int]]:
        """References of the pages that are new to this migration, and the number of every page."""
        new: list[int] = []
        known = count = self._count
        numbers = array("I", refs)
        for at, ref in enumerate(refs):
            if ref < count or ref == ZERO_REF:
                continue
            if ref >= CHANGED and ref - CHANGED >= known:
                raise EmulabError(f"page {ref - CHANGED} that has changed was never sent")
            if count < ref < STORED:
                raise EmulabError(f"page {ref} was never sent")
            new.append(ref)
            numbers[at] = count
            count += 1
        return new, numbers

    def _rebuilt(self, new: Sequence[int], content: memoryview) -> memoryview | bytearray:
        """The new pages, one after the other; what was sent of them is ``content``."""
        if max(new, default=0) < STORED:
            return content
        pages = bytearray(len(new) * PAGE)
        view = memoryview(pages)
        taken = at = 0
        while at < len(new):
            ref, run = new[at], 1
            while at + run < len(new) and STORED <= ref < CHANGED and new[at + run] == ref + run:
                run += 1
            target = view[at * PAGE : (at + run) * PAGE]
            if STORED <= ref < CHANGED:
                if self._stored is None:
                    raise EmulabError("a page arrived that refers to a store which was never offered")
                self._stored.read_into(ref - STORED, target)
            else:
                sent = content[taken : taken + PAGE]
                target[:] = xor(sent, _read_page(self._distinct, ref - CHANGED)) if ref >= CHANGED else sent
                taken += PAGE
            at += run
        return pages

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        if self._distinct >= 0:
            os.close(self._distinct)
            self._distinct = -1


def _read_page(descriptor: int, number: int) -> bytes:
    page = os.pread(descriptor, PAGE, number * PAGE)
    if len(page) != PAGE:
        raise EmulabError("a page that was sent before is gone from its file")
    return page


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
