"""Memory pages on the wire: every distinct page crosses once.

CRIU dumps a page that prefork workers share copy-on-write once per worker; measured on Apache with 119 workers, 71 % of the pages of a
round were such copies. The sender names each page by a hash with a secret seed, compares it with the one that it knows by that name (so
that a guest that forges a collision gains nothing), and sends the content of a page only the first time; zero pages, repeats and pages that
the destination kept from an earlier visit of the guest are references. The receiver rebuilds the new pages of each chunk, compares their
BLAKE3 digest and that of all references with the sender's, and only then keeps them.

References are 32-bit numbers. ``ZERO_REF`` is the zero page. Below ``STORED`` a number means the n-th distinct page of this migration,
counted from 0; a number equal to the count so far introduces a new page, whose content is the next one in the chunk. ``STORED`` + n
introduces the n-th page of the destination's store as the next distinct page; ``CHANGED`` + n introduces one whose difference from the
n-th distinct page is the next content in the chunk.

At the destination, repeats stay references: the file ``DISTINCT`` holds each distinct page once, and beside each pages file, which is
empty, a file with ``NUMBERS`` added to its name holds the number of each page (32 bits, little endian; ``ZERO_REF`` for the zero page).
CRIU reads its pages files through criu/native/pages.c, which puts them together. It may begin before the last pages are there: the numbers
of a pages file that is not complete are locked, and whoever opens it waits.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import zstandard

from emulab.errors import EmulabError

PAGE = 4096
CHUNK_PAGES = 256  # read and hashed in a millisecond: nothing else waits longer for the CPU
CHUNK_REFS = 2048
DISTINCT = "distinct-pages"
NUMBERS = ".numbers"
STORED = 0x80000000
CHANGED = 0xC0000000
ZERO_REF = 0xFFFFFFFF


@dataclass(frozen=True)
class Part:
    """``count`` pages of one pages file from page ``first`` on.

    ``like``: file of the same folder and first page of earlier ones that are known to be the same; the file itself has a hole.
    """

    name: str
    first: int
    count: int
    like: tuple[str, int] | None = None


@dataclass(frozen=True)
class Chunk:
    """Pages of one or more files: at most ``CHUNK_REFS``, and of these ``CHUNK_PAGES`` that were read.

    ``refs`` are their references (packed), ``content`` the new pages among them as ``kind`` says (see compression.py), ``digest`` that of
    the new pages as they are, one after the other, and of the references.
    """

    parts: tuple[Part, ...]
    digest: bytes
    refs: bytes
    kind: int
    content: bytes


def xor(one: bytes | memoryview, other: bytes | memoryview) -> bytes:
    """Difference of two pages; of a page and a difference: the other page."""
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(PAGE, "little")


def little_endian(refs: array[int]) -> bytes:
    if sys.byteorder == "big":
        refs = array("I", refs)
        refs.byteswap()
    return refs.tobytes()


def pack_refs(refs: Sequence[int]) -> bytes:
    """Differences of neighbours, which are mostly 1 or 0, and zstd: 65 workers' 72 000 references shrink from 288 to about 5 kB."""
    steps = array("I", [(ref - before) & 0xFFFFFFFF for before, ref in pairwise([0, *refs])])
    return zstandard.ZstdCompressor(level=3).compress(steps.tobytes())


def unpack_refs(packed: bytes | memoryview) -> list[int]:
    """Raises EmulabError for anything that ``pack_refs`` cannot have made of one chunk's references."""
    try:
        if not 0 <= zstandard.frame_content_size(packed) <= 4 * CHUNK_REFS:
            raise EmulabError("a chunk carried more references than a chunk has pages")
        steps = array("I", zstandard.ZstdDecompressor().decompress(packed))
    except (zstandard.ZstdError, ValueError) as error:
        raise EmulabError(f"a chunk carried something that is not a list of references: {error}") from error
    return [ref & 0xFFFFFFFF for ref in accumulate(steps)]
