"""Memory pages on the wire: every distinct page crosses once.

CRIU dumps a page that prefork workers share copy-on-write once per worker; measured on Apache with 119 workers, 71 % of the pages of a
round were such copies. The sender names each page by a strong hash (BLAKE3, 256 bits, so that a guest cannot forge a collision) and sends
the content of a page only the first time, compressed; zero pages and repeats are sent as 4-byte references. The receiver rebuilds the
image files byte by byte.

References: 0xFFFFFFFF is the zero page, any other number the n-th distinct page of this migration, counted from 0. A number equal to the
count so far introduces a new page, whose content is the next one in the chunk's payload.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3

from emulab.errors import EmulabError

PAGE = 4096
CHUNK_PAGES = 1024
ZERO_REF = 0xFFFFFFFF
_ZERO_PAGE = bytes(PAGE)


@dataclass(frozen=True)
class Chunk:
    """Part of one pages file: ``refs`` are 32-bit page references, ``content`` the new pages among them, compressed."""

    first_page: int
    refs: bytes
    content: bytes


class PageSender:
    """Splits pages files into chunks. One per migration: it remembers what the other side holds."""

    def __init__(self, *, level: int = 1) -> None:
        self._known: dict[bytes, int] = {}
        self._compressor = zstandard.ZstdCompressor(level=level)
        self.pages = 0
        self.zero_pages = 0

    @property
    def distinct_pages(self) -> int:
        return len(self._known)

    def chunks(self, path: Path) -> Iterator[Chunk]:
        """Read a pages file in order. Memory: one chunk (4 MiB) and its compressed content."""
        with path.open("rb", buffering=0) as file:
            first = 0
            while data := file.read(CHUNK_PAGES * PAGE):
                yield self._chunk(first, data)
                first += len(data) // PAGE

    def _chunk(self, first: int, data: bytes) -> Chunk:
        known, refs, fresh = self._known, array("I"), []
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            if page == _ZERO_PAGE:
                refs.append(ZERO_REF)
                self.zero_pages += 1
                continue
            digest = blake3(page).digest()
            ref = known.get(digest)
            if ref is None:
                ref = known[digest] = len(known)
                fresh.append(page)
            refs.append(ref)
        self.pages += len(refs)
        return Chunk(first, refs.tobytes(), self._compressor.compress(b"".join(fresh)) if fresh else b"")


class PageReceiver:
    """Rebuilds pages files from chunks. Distinct pages are found again in the files they were first written to."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()
        self._file_of = array("I")
        self._page_of = array("Q")
        self._files: list[int] = []
        self._sizes: list[int] = []  # in pages

    def open(self, path: Path, pages: int) -> int:
        """Create a file of so many pages; returns its number for ``write``."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, pages * PAGE)
        self._files.append(descriptor)
        self._sizes.append(pages)
        return len(self._files) - 1

    def write(self, number: int, chunk: Chunk) -> None:
        """Raises EmulabError for references that were never introduced or content that does not match them."""
        target = self._files[number]
        refs, content = self._unpack(number, chunk)
        taken = 0
        run_at = 0
        run: list[bytes] = []
        for offset, ref in enumerate(refs):
            page_number = chunk.first_page + offset
            if ref == ZERO_REF:
                page = b""
            elif ref == len(self._file_of):
                page = content[taken : taken + PAGE]
                if len(page) != PAGE:
                    raise EmulabError("a page arrived without its content")
                taken += PAGE
                self._file_of.append(number)
                self._page_of.append(page_number)
            elif ref < len(self._file_of):
                if run:  # the page may be among those not yet written
                    os.pwrite(target, b"".join(run), run_at * PAGE)
                    run = []
                page = os.pread(self._files[self._file_of[ref]], PAGE, self._page_of[ref] * PAGE)
            else:
                raise EmulabError(f"page {ref} was never sent")
            if page:
                if not run or run_at + len(run) != page_number:
                    if run:
                        os.pwrite(target, b"".join(run), run_at * PAGE)
                    run_at, run = page_number, []
                run.append(page)
        if run:
            os.pwrite(target, b"".join(run), run_at * PAGE)
        if taken != len(content):
            raise EmulabError("a chunk carried pages that nothing refers to")

    def _unpack(self, number: int, chunk: Chunk) -> tuple[array[int], bytes]:
        """References and new pages of a chunk, if they can be what they say."""
        if len(chunk.refs) % 4:
            raise EmulabError("a chunk carried something that is not a list of references")
        refs = array("I", chunk.refs)
        if not 0 <= chunk.first_page <= self._sizes[number] - len(refs):
            raise EmulabError("a chunk of pages lies outside of its file")
        if not chunk.content:
            return refs, b""
        try:
            if not 0 <= zstandard.frame_content_size(chunk.content) <= len(refs) * PAGE:
                raise EmulabError("a chunk carried pages that nothing refers to")
            return refs, self._decompressor.decompress(chunk.content)
        except zstandard.ZstdError as error:
            raise EmulabError(f"a chunk of pages cannot be unpacked: {error}") from error

    def close(self) -> None:
        for descriptor in self._files:
            os.close(descriptor)
        self._files.clear()
