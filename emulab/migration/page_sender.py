"""The sending side of the page transport: pages named by their hash, each sent once (see ``pages``)."""

from __future__ import annotations

import os
import secrets
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from emulab.errors import EmulabError
from emulab.migration.compression import Compressor
from emulab.migration.pages import CHANGED, PAGE, STORED, ZERO_REF, Chunk, Part, little_endian, pack_refs, xor
from emulab.migration.versions import Versions

_ZERO_PAGE = bytes(PAGE)
_NO_RUN = array("I")
_PIECE = 64 * PAGE
_RUN_PAGES = 64  # compared at once
_MOST_CHANGED = PAGE // 16  # bytes of a page that may differ from its earlier version
_MOST_OPEN = 256  # files
_GIGABIT = 117e6  # bytes of payload per second


class Offer(Protocol):
    """Pages that the other side has from earlier. ``message``: in which it said so."""

    message: bytes

    def find(self, digest: bytes) -> int | None:
        """Number of the page in the other side's store, None if it is not there."""


@dataclass(frozen=True)
class Named:
    """A chunk that is not compressed yet. ``refs``: of all its pages; ``fresh``: what has to be sent of them."""

    parts: tuple[Part, ...]
    digest: bytes
    refs: array[int]
    fresh: list[bytes]


class PageSender:
    """Turns pages into chunks. One per migration: it remembers what the other side holds, and where each distinct page was read.

    ``rate``: payload bytes/s of the link as it is believed to be; asked for each chunk. ``asks``: whether the other side is still to be
    asked which pages it kept from earlier visits of the guest.
    """

    def __init__(self, rate: Callable[[], float] = lambda: _GIGABIT, *, asks: bool = False) -> None:
        self.asks = asks
        self._known: dict[int, int] = {}  # distinct pages by name
        self._seed = secrets.randbits(64)  # of the names: no guest can prepare pages that have the same
        self._compressor = Compressor(rate)
        self._offer: Offer | None = None
        self._looks = False
        self._files: list[Path] = []
        self._number_of: dict[tuple[Path, str], int] = {}  # by folder and name
        self._name_of = array("Q")  # of each distinct page
        self._file_of = array("I")
        self._page_of = array("I")
        self._numbers: list[array[int]] = []  # of each file's pages
        self._holds: list[bytearray] = []  # for each of them, whether its content is in the file
        self._sources = _Sources(self._files)
        self.pages = 0
        self.zero_pages = 0
        self.stored_pages = 0
        self.changed_pages = 0  # of which only the difference from an earlier version was sent
        self.versions = Versions()

    @property
    def distinct_pages(self) -> int:
        return len(self._page_of)

    @property
    def sent_pages(self) -> int:
        """Distinct pages whose content crossed the wire."""
        return self.distinct_pages - self.stored_pages

    @property
    def offer(self) -> Offer | None:
        return self._offer

    def refer_to(self, offer: Offer) -> None:
        """From now on pages that the other side offers are referred to instead of sent."""
        self._offer, self._looks = offer, True

    def look_no_more(self) -> None:
        """What follows was written a moment ago, and is not looked for in the offer: a look takes longer than all else for a page."""
        self._looks = False

    def distinct(self) -> Iterator[tuple[Path, int]]:
        """File and page of every distinct page seen so far."""
        for file, page in zip(self._file_of, self._page_of, strict=True):
            yield self._files[file], page

    def close(self) -> None:
        """No more pages follow. Safe to repeat."""
        self._sources.close()

    def name(self, folder: Path, parts: Sequence[Part], data: bytes, give_way: Callable[[], object] = lambda: None) -> Named:
        """Next chunk to ``pack``: ``data`` is the content of ``parts``, files of ``folder``, but for those that are like others.

        Memory: about twice its size. ``give_way`` is called every other millisecond or so.
        """
        refs = array("I")
        fresh: list[bytes] = []  # to be sent
        new: list[bytes] = []  # the pages themselves
        at, pause, count = 0, 0, self.distinct_pages
        for part in parts:
            file = self._file_number(folder, part.name)
            numbers = self._numbers[file]
            if part.like:
                there, first = part.like
                run = self._numbers[self._file_number(folder, there)][first : first + part.count]
                if len(run) != part.count:
                    raise EmulabError(f"pages that were to be like those of {there} came before them")
                refs.extend(run)
                numbers.extend(run)
                self._holds[file] += bytes(part.count)
                self.versions.sent(part.name, run)
                continue
            before = self.versions.before(part.name, part.first, part.count)
            start, done = len(numbers), 0
            while done < part.count:
                if at >= pause:
                    give_way()
                    pause = at + _PIECE
                page = data[at : at + PAGE]
                done += 1
                if page == _ZERO_PAGE:
                    refs.append(ZERO_REF)
                    numbers.append(ZERO_REF)
                    at += PAGE
                    continue
                name = xxh3_64_intdigest(page, self._seed)
                number = self._known.get(name, -1)
                # A name only proposes a page. What follows it is mostly what followed there: compared, without looking for it.
                run = self._same(number, data, at, part.count - done + 1) if number >= 0 else _NO_RUN
                if not run:
                    number = self.distinct_pages
                    self._known.setdefault(name, number)
                    self._name_of.append(name)
                    self._file_of.append(file)
                    self._page_of.append(part.first + done - 1)
                    refs.append(self._introduce(page, number, before[done - 1], count, fresh))
                    numbers.append(number)
                    new.append(page)
                    at += PAGE
                    continue
                refs.extend(run)
                numbers.extend(run)
                done += len(run) - 1
                at += len(run) * PAGE
            self._holds[file] += b"\1" * part.count
            self.versions.sent(part.name, numbers[start:])
        give_way()
        told = blake3(b"".join(new))  # at once: twice as quick as page by page
        told.update(little_endian(refs))
        self.pages += len(refs)
        self.zero_pages += refs.count(ZERO_REF)
        return Named(tuple(parts), told.digest(), refs, fresh)

    def pack(self, named: Named) -> Chunk:
        """Compress a chunk. In the order in which they were named; another thread may do it."""
        kind, content = self._compressor.pack(named.fresh) if named.fresh else (0, b"")
        return Chunk(named.parts, named.digest, pack_refs(named.refs), kind, content)

    def _introduce(self, page: bytes, number: int, earlier: int | None, before_chunk: int, fresh: list[bytes]) -> int:
        """Reference of a page that is seen for the first time; what has to be sent of it is added to ``fresh``."""
        stored = self._offer.find(blake3(page).digest()) if self._offer and self._looks else None
        if stored is not None:
            self.stored_pages += 1
            return STORED + stored
        # Only a page of an earlier chunk is surely in its file on the other side.
        if earlier is not None and earlier < before_chunk:
            change = _change(page, self._sources.read(self._file_of[earlier], self._page_of[earlier]))
            if change is not None:
                self.changed_pages += 1
                fresh.append(change)
                return CHANGED + earlier
        fresh.append(page)
        return number

    def _same(self, number: int, data: bytes, at: int, most: int) -> array[int]:
        """Numbers of the pages from ``data[at:]`` on that are equal to a page and those which follow it in its file.

        Read in steps that double: most repeats are short in a late round, and long in the first.
        """
        file, page = self._file_of[number], self._page_of[number]
        there = self._numbers[file]
        most = min(most, len(there) - page)
        hole = self._holds[file].find(0, page, page + most)
        most = hole - page if hole >= 0 else most
        equal, step = 0, 1
        while equal < most:
            begin = at + equal * PAGE
            if equal and not self._may_be(there[page + equal], data[begin : begin + PAGE]):
                break
            count = min(step, most - equal)
            other = self._sources.read(file, page + equal, count)
            if data[begin : begin + count * PAGE] != other:
                equal += next(
                    n for n in range(count) if data[begin + n * PAGE : begin + (n + 1) * PAGE] != other[n * PAGE : (n + 1) * PAGE]
                )
                break
            equal += count
            step = min(2 * step, _RUN_PAGES)
        return there[page : page + equal]

    def _may_be(self, number: int, page: bytes) -> bool:
        return number != ZERO_REF and self._name_of[number] == xxh3_64_intdigest(page, self._seed)

    def _file_number(self, folder: Path, name: str) -> int:
        number = self._number_of.get((folder, name))
        if number is None:
            number = self._number_of[folder, name] = len(self._files)
            self._files.append(folder / name)
            self._numbers.append(array("I"))
            self._holds.append(bytearray())
        return number


class _Sources:
    """Pages in the files that were sent from, which stay open: a late round looks into all of them again and again."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._open: dict[int, int] = {}  # descriptors by file

    def read(self, file: int, page: int, count: int = 1) -> bytes:
        descriptor = self._open.get(file)
        if descriptor is None:
            if len(self._open) == _MOST_OPEN:
                self.close()
            descriptor = self._open[file] = os.open(self._files[file], os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(descriptor, count * PAGE, page * PAGE)

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _change(page: bytes, earlier: bytes) -> bytes | None:
    """Difference from the earlier version, if little has changed."""
    change = xor(page, earlier)
    return change if len(change.translate(None, b"\0")) <= _MOST_CHANGED else None
