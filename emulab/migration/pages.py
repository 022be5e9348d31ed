"""Memory pages on the wire: every distinct page crosses once.

CRIU dumps a page that prefork workers share copy-on-write once per worker; measured on Apache with 119 workers, 71 % of the pages of a
round were such copies. The sender names each page by a strong hash (BLAKE3, 256 bits, so that a guest cannot forge a collision) and sends
the content of a page only the first time; zero pages, repeats and pages that the destination kept from an earlier visit of the guest are
references. The receiver rebuilds each chunk, compares its digest with that of what the sender read, and only then writes it.

References are 32-bit numbers. ``ZERO_REF`` is the zero page. Below ``STORED`` a number means the n-th distinct page of this migration,
counted from 0; a number equal to the count so far introduces a new page, whose content is the next one in the chunk. ``STORED`` + n
introduces the n-th page of the destination's store as the next distinct page; ``CHANGED`` + n introduces one whose difference from the
n-th distinct page is the next content in the chunk.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Protocol, Self

import zstandard
from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.compression import Compressor, Decompressor
from emulab.migration.versions import Versions

PAGE = 4096
CHUNK_PAGES = 1024
STORED = 0x80000000
CHANGED = 0xC0000000
ZERO_REF = 0xFFFFFFFF
_ZERO_PAGE = bytes(PAGE)
_RUN_PAGES = 64  # compared at once
_MOST_CHANGED = PAGE // 16  # bytes of a page that may differ from its earlier version
_GIGABIT = 117e6  # bytes of payload per second


@dataclass(frozen=True)
class Part:
    """``count`` pages of one pages file from page ``first`` on."""

    name: str
    first: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """At most ``CHUNK_PAGES`` pages of one or more files.

    ``digest`` is that of all these pages one after the other, ``refs`` their references (packed), ``content`` the new pages among them as
    ``kind`` says (see compression.py).
    """

    parts: tuple[Part, ...]
    digest: bytes
    refs: bytes
    kind: int
    content: bytes


class Offer(Protocol):
    """Pages that the other side has from earlier."""

    def find(self, digest: bytes) -> int | None:
        """Number of the page in the other side's store, None if it is not there."""


class Stored(Protocol):
    """The receiver's pages from earlier."""

    def read_into(self, first: int, pages: memoryview) -> None:
        """Fill ``pages`` from page ``first`` on. Raises EmulabError for pages that were never offered."""


class PageSender:
    """Turns pages into chunks. One per migration: it remembers what the other side holds, and where each distinct page was read.

    ``rate``: payload bytes/s of the link as it is believed to be; asked for each chunk. ``asks``: whether the other side is still to be
    asked which pages it kept from earlier visits of the guest.
    """

    def __init__(self, rate: Callable[[], float] = lambda: _GIGABIT, *, asks: bool = False) -> None:
        self.asks = asks
        self._known: dict[bytes, int] = {}
        self._compressor = Compressor(rate)
        self._offer: Offer | None = None
        self._files: list[Path] = []
        self._number_of: dict[Path, int] = {}
        self._file_of = array("I")  # of each distinct page
        self._page_of = array("I")
        self._numbers: list[array[int]] = []  # of each file's pages
        self.pages = 0
        self.zero_pages = 0
        self.stored_pages = 0
        self.changed_pages = 0  # of which only the difference from an earlier version was sent
        self.versions = Versions()

    @property
    def distinct_pages(self) -> int:
        return len(self._known)

    @property
    def sent_pages(self) -> int:
        """Distinct pages whose content crossed the wire."""
        return len(self._known) - self.stored_pages

    def refer_to(self, offer: Offer) -> None:
        """From now on pages that the other side offers are referred to instead of sent."""
        self._offer = offer

    def distinct(self) -> Iterator[tuple[bytes, Path, int]]:
        """Digest, file and page of every distinct page seen so far."""
        for digest, file, page in zip(self._known, self._file_of, self._page_of, strict=True):
            yield digest, self._files[file], page

    def chunk(self, folder: Path, parts: Sequence[Part], data: bytes) -> Chunk:
        """Next chunk to send: ``data`` is the content of ``parts``, files of ``folder``. Memory: about three times its size."""
        refs: list[int] = []
        fresh: list[bytes] = []
        at, count = 0, len(self._known)
        with _Sources(self._files) as sources:
            for part in parts:
                file = self._file_number(folder / part.name)
                numbers = self._numbers[file]
                before = self.versions.before(part.name, part.first, part.count)
                start, done = len(numbers), 0
                while done < part.count:
                    page = data[at : at + PAGE]
                    if page == _ZERO_PAGE:
                        number = ref = ZERO_REF
                    else:
                        digest = blake3(page).digest()
                        number = ref = self._known.get(digest, -1)
                    if ref < 0:
                        number = self._known[digest] = len(self._known)
                        self._file_of.append(file)
                        self._page_of.append(part.first + done)
                        ref = self._introduce(page, number, digest, before[done], count, sources, fresh)
                        run = [ref]
                    elif ref == ZERO_REF:
                        run = [ref]
                    else:
                        # What follows is mostly what followed there: compared, not hashed.
                        run = [ref, *self._same(number, data, at + PAGE, part.count - done - 1, sources)]
                    refs += run
                    numbers.append(number)
                    numbers.extend(run[1:])
                    done += len(run)
                    at += len(run) * PAGE
                self.versions.sent(part.name, numbers[start:])
        self.pages += len(refs)
        self.zero_pages += refs.count(ZERO_REF)
        kind, content = self._compressor.pack(fresh) if fresh else (0, b"")
        return Chunk(tuple(parts), blake3(data).digest(), pack_refs(refs), kind, content)

    def _introduce(
        self, page: bytes, number: int, digest: bytes, earlier: int | None, before_chunk: int, sources: _Sources, fresh: list[bytes]
    ) -> int:
        """Reference of a page that is seen for the first time; what has to be sent of it is added to ``fresh``."""
        stored = self._offer.find(digest) if self._offer else None
        if stored is not None:
            self.stored_pages += 1
            return STORED + stored
        # Only a page of an earlier chunk is surely in its file on the other side.
        if earlier is not None and earlier < before_chunk:
            change = _change(page, sources.read(self._file_of[earlier], self._page_of[earlier]))
            if change is not None:
                self.changed_pages += 1
                fresh.append(change)
                return CHANGED + earlier
        fresh.append(page)
        return number

    def _same(self, number: int, data: bytes, at: int, most: int, sources: _Sources) -> list[int]:
        """Numbers of the pages from ``data[at:]`` on that are equal to those which follow a page in its file."""
        file, page = self._file_of[number], self._page_of[number] + 1
        there = self._numbers[file]
        count = min(most, _RUN_PAGES, len(there) - page)
        if count <= 0:
            return []
        other = sources.read(file, page, count)
        if data[at : at + count * PAGE] != other:
            equal = 0
            while equal < count and data[at + equal * PAGE : at + (equal + 1) * PAGE] == other[equal * PAGE : (equal + 1) * PAGE]:
                equal += 1
            count = equal
        return there[page : page + count].tolist()

    def _file_number(self, path: Path) -> int:
        number = self._number_of.get(path)
        if number is None:
            number = self._number_of[path] = len(self._files)
            self._files.append(path)
            self._numbers.append(array("I"))
        return number


class _Sources:
    """Pages in the files that were sent from, each opened once per chunk."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._open: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def read(self, file: int, page: int, count: int = 1) -> bytes:
        descriptor = self._open.get(file)
        if descriptor is None:
            descriptor = self._open[file] = os.open(self._files[file], os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(descriptor, count * PAGE, page * PAGE)

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


def xor(one: bytes | memoryview, other: bytes | memoryview) -> bytes:
    """Difference of two pages; of a page and a difference: the other page."""
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(PAGE, "little")


def _change(page: bytes, earlier: bytes) -> bytes | None:
    """Difference from the earlier version, if little has changed."""
    change = xor(page, earlier)
    return change if len(change.translate(None, b"\0")) <= _MOST_CHANGED else None


def pack_refs(refs: Sequence[int]) -> bytes:
    """Differences of neighbours, which are mostly 1 or 0, and zstd: 65 workers' 72 000 references shrink from 288 to about 5 kB."""
    steps = array("I", [(ref - before) & 0xFFFFFFFF for before, ref in pairwise([0, *refs])])
    return zstandard.ZstdCompressor(level=3).compress(steps.tobytes())


def unpack_refs(packed: bytes | memoryview) -> list[int]:
    """Raises EmulabError for anything that ``pack_refs`` cannot have made of one chunk's references."""
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= 4 * CHUNK_PAGES:
            raise EmulabError("a chunk carried more references than a chunk has pages")
        steps = array("I", zstandard.ZstdDecompressor().decompress(packed))
    except (zstandard.ZstdError, ValueError) as error:
        raise EmulabError(f"a chunk carried something that is not a list of references: {error}") from error
    return list(accumulate(steps, lambda before, step: (before + step) & 0xFFFFFFFF))


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
