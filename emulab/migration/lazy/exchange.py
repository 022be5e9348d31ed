"""Pages between the server of a frozen guest and the daemon at its destination: zero pages and repeated ones cross as four bytes.

References: ZERO; ONCE, a page whose content is the next one in the payload; STORED and a number, a page that the destination has kept from
an earlier visit of the guest (store.py); any other number is the n-th page of this connection that both sides remember. A number equal to
the count so far introduces one, its content is the next in the payload. What prefork workers still share copy-on-write is remembered, what
belongs to a single task is not: it would hold all memory of the guest a second time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import zstandard
from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.page_sender import Offer
from emulab.migration.pages import STORED

PAGE = 4096
ZERO, ONCE = 0xFFFFFFFF, 0xFFFFFFFE
MAX_PAGES = 1024  # per request
REMEMBERED = 49152  # 192 MiB at the destination
_ZERO_PAGE = bytes(PAGE)


class NotKeptError(EmulabError):
    """A page that should have been kept here is not, or is another one."""


class PageTeller:
    """The sending end of one connection. ``offer``: pages that the other end has kept."""

    def __init__(self, offer: Offer | None = None) -> None:
        self._offer = offer
        self._known: dict[bytes, int] = {}
        self._compressor = zstandard.ZstdCompressor(level=1)
        self.pages = self.zero_pages = self.distinct_pages = self.stored_pages = 0

    def answer(self, data: bytes, shared: Sequence[bool]) -> tuple[bytes, bytes, bytes]:
        """(references, compressed content, digest of what is referred to as kept) of pages.

        ``shared``: which of them several tasks have in common.
        """
        refs, fresh, stored = array("I"), [], []
        known = self._known
        for number, at in enumerate(range(0, len(data), PAGE)):
            page = data[at : at + PAGE]
            if page == _ZERO_PAGE:
                refs.append(ZERO)
                self.zero_pages += 1
                continue
            digest = blake3(page).digest()
            ref = known.get(digest)
            if ref is None and self._offer and (place := self._offer.find(digest)) is not None:
                stored.append(digest)
                ref = STORED + place
            if ref is None:
                fresh.append(page)
                if shared[number] and len(known) < REMEMBERED:
                    ref = known[digest] = len(known)
                else:
                    ref = ONCE
            refs.append(ref)
        self.pages += len(refs)
        self.stored_pages += len(stored)
        self.distinct_pages += len(fresh) + len(stored)
        content = self._compressor.compress(b"".join(fresh)) if fresh else b""
        return refs.tobytes(), content, blake3(b"".join(stored)).digest() if stored else b""


class PageTaker:
    """The receiving end of one connection. ``kept``: reads a page that was offered; raises OSError or EmulabError."""

    def __init__(self, kept: Callable[[int], bytes] | None = None) -> None:
        self._kept = kept
        self._known: list[bytes] = []
        self._decompressor = zstandard.ZstdDecompressor()

    def take(self, refs: bytes, content: bytes, proof: bytes, pages: int) -> list[bytes | None]:
        """The pages of an answer, None for zero pages.

        Raises EmulabError unless they are as many as were asked for and all are known, NotKeptError if one that was kept is not as it was.
        """
        if len(refs) != 4 * pages or pages > MAX_PAGES:
            raise EmulabError("an answer of the source does not fit its question")
        fresh = self._unpack(content, pages)
        taken, result, stored = 0, list[bytes | None](), list[bytes]()
        for ref in array("I", refs):
            if ref == ZERO:
                result.append(None)
                continue
            if ref < len(self._known):
                result.append(self._known[ref])
                continue
            if STORED <= ref < ONCE and self._kept:
                result.append(self._read(ref - STORED))
                stored.append(blake3(result[-1] or b"").digest())
                continue
            page = fresh[taken : taken + PAGE]
            if len(page) != PAGE or (ref != ONCE and (ref != len(self._known) or ref >= REMEMBERED)):
                raise EmulabError("a page was named that never arrived")
            taken += PAGE
            if ref != ONCE:
                self._known.append(page)
            result.append(page)
        if taken != len(fresh):
            raise EmulabError("pages arrived that nobody asked for")
        if stored and blake3(b"".join(stored)).digest() != proof:
            raise NotKeptError("a page that was kept is another one")
        return result

    def _read(self, number: int) -> bytes:
        assert self._kept is not None
        try:
            return self._kept(number)
        except (OSError, EmulabError) as error:
            raise NotKeptError(f"a page that was kept cannot be read: {error}") from error

    def _unpack(self, content: bytes, pages: int) -> bytes:
        if not content:
            return b""
        try:
            if not 0 <= zstandard.frame_content_size(content) <= pages * PAGE:
                raise EmulabError("an answer of the source does not fit its question")
            return self._decompressor.decompress(content)
        except zstandard.ZstdError as error:
            raise EmulabError(f"pages of the source cannot be unpacked: {error}") from error


def runs(pages: Sequence[bytes | None]) -> Iterable[tuple[int, int, bool]]:
    """(first, behind the last, is zero) of each run of pages that can be filled in one call."""
    start = 0
    for number in range(1, len(pages) + 1):
        if number == len(pages) or (pages[number] is None) != (pages[start] is None):
            yield start, number, pages[start] is None
            start = number
