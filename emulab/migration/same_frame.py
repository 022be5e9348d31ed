"""Pages that tasks share since one was forked from the other, found by the number of the memory frame that they are in, so that each of
them is read, hashed and stored once while the guest runs. In the first round of 65 web workers that spares 81 to 93 pages in a hundred.

A page of a task may be taken for one that was read earlier in the same round, of another task, if three things hold one after the other:

1. the other task's page was write-protected, then seen in frame F (and then read);
2. this task's page was write-protected, then seen in frame F, private and not written since;
3. the other task's page is seen in frame F still, and still not written since 1.

Then the other task has mapped F all the time from 1 to 3, so that F was no other page meanwhile, and has not written to it; nor has anybody
else, for a private page that more than one task has mapped is copied by whoever writes to it. "Not written since" is the write-protect bit
of userfaultfd: only the tracker sets it, once per task and round, and the first write takes it away.
The kernel tells frames to those who hold CAP_SYS_ADMIN; to others every page is one of its own, and is read.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from operator import itemgetter
from types import TracebackType
from typing import Self

from emulab.criu.pagemap import PAGE

_ENTRY = 8
_AT_ONCE = 512  # entries looked at
_OPEN = 64  # tasks that others are like, kept at hand
_MOST = 1 << 18  # frames remembered, a gigabyte of shared memory: some 50 MB
# An entry of /proc/PID/pagemap (kernel's Documentation/admin-guide/mm/pagemap.rst).
_FRAME = (1 << 55) - 1
_ONLY_HERE, _PROTECTED, _FILE, _SWAPPED, _PRESENT = 1 << 56, 1 << 57, 1 << 61, 1 << 62, 1 << 63
_TOLD = _FRAME | _PROTECTED | _FILE | _SWAPPED | _PRESENT
_KIND = _ONLY_HERE | _PROTECTED | _FILE | _SWAPPED | _PRESENT
_MAY_BE_SHARED = _PROTECTED | _PRESENT

Place = tuple[str, int]  # pages file, and which of its pages


class Alike:
    """Stretches of the pages files of one folder that are holes, and where the same pages are. One thread adds, another one asks."""

    def __init__(self) -> None:
        self._of: dict[str, list[tuple[int, int, Place]]] = {}

    def add(self, name: str, first: int, count: int, like: Place) -> None:
        """To be called before the file grows by the hole, and in the order of its pages."""
        self._of.setdefault(name, []).append((first, count, like))

    def at(self, name: str, page: int) -> tuple[Place | None, int]:
        """What a page is like, None if its content is in the file, and the page up to which this goes on."""
        stretches = self._of.get(name, [])
        after = bisect_right(stretches, page, key=itemgetter(0))
        if after:
            first, count, (there, start) = stretches[after - 1]
            if page < first + count:
                return (there, start + page - first), first + count
        return None, stretches[after][0] if after < len(stretches) else 1 << 62


class SameFrame:
    """What was read in one round, by frame. Tasks must be announced by ``begin``, after their pages have been write-protected."""

    def __init__(self) -> None:
        self._read: dict[int, tuple[int, int, int]] = {}  # of each frame: number of the task, address, place in its pages file
        self._names: list[str] = []  # of each task's pages file
        # Descriptors of /proc/PID/pagemap: of the memory that a task had then, not of another program's, or of a new task with its number.
        self._maps: OrderedDict[int, int] = OrderedDict()
        self._seen: array[int] = array("Q")  # entries from address ``_seen_at`` on
        self._seen_at = 0

    @property
    def _task(self) -> int:
        """Number of the task that was begun last."""
        return len(self._names) - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for descriptor in self._maps.values():
            os.close(descriptor)
        self._maps.clear()

    def begin(self, pid: int, name: str) -> None:
        """The pages of this task go to the file ``name`` from now on. Raises OSError if it has ended."""
        self._names.append(name)
        self._seen = array("Q")
        self._maps[self._task] = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        if len(self._maps) > _OPEN:
            os.close(self._maps.popitem(last=False)[1])

    def split(self, start: int, end: int) -> Iterator[tuple[int, int, Place | None]]:
        """Parts of an address range of the task that was begun last, and where the same pages are; None: they have to be read.

        After each of those comes a call of ``took``.
        """
        while start < end:
            first = (start - self._seen_at) // PAGE
            if not 0 <= first < len(self._seen):
                # Also what follows: the next range is mostly near.
                self._seen, self._seen_at, first = self._entries(self._task, start, _AT_ONCE), start, 0
                if not self._seen:
                    return
            last = min(len(self._seen), first + (end - start) // PAGE)
            for one, other, like in self._stretches(first, last):
                yield self._seen_at + one * PAGE, self._seen_at + other * PAGE, like
            start = self._seen_at + last * PAGE

    def took(self, address: int, count: int, page: int) -> None:
        """The pages from ``address`` on were read, and are in the file from page ``page`` on."""
        if len(self._read) >= _MOST:
            return
        task, first = self._task, (address - self._seen_at) // PAGE
        for at, entry in enumerate(self._seen[first : first + count]):
            if entry & _KIND == _MAY_BE_SHARED and entry & _FRAME:
                self._read[entry & _FRAME] = task, address + at * PAGE, page + at

    def _stretches(self, at: int, end: int) -> Iterator[tuple[int, int, Place | None]]:
        entries, read, unknown = self._seen, self._read, at
        while at < end:
            found = read.get(entries[at] & _FRAME) if entries[at] & _KIND == _MAY_BE_SHARED else None
            if found is None:
                at += 1
                continue
            task, address, page = found
            run = 1
            while (
                at + run < end
                and entries[at + run] & _KIND == _MAY_BE_SHARED
                and read.get(entries[at + run] & _FRAME) == (task, address + run * PAGE, page + run)
            ):
                run += 1
            same = self._still(task, address, entries[at : at + run])
            if same:
                if unknown < at:
                    yield unknown, at, None
                yield at, at + same, (self._names[task], page)
                unknown = at + same
            at += max(same, 1)
        if unknown < end:
            yield unknown, end, None

    def _still(self, task: int, address: int, expected: array[int]) -> int:
        """How many pages of a task, from the first on, are in the frames expected, and not written."""
        now = self._entries(task, address, len(expected))
        for count, (entry, other) in enumerate(zip(now, expected, strict=False)):
            if (entry ^ other) & _TOLD:
                return count
        return min(len(now), len(expected))

    def _entries(self, task: int, address: int, count: int) -> array[int]:
        if task not in self._maps:
            return array("Q")
        self._maps.move_to_end(task)
        data = os.pread(self._maps[task], count * _ENTRY, address // PAGE * _ENTRY)
        return array("Q", data[: len(data) // _ENTRY * _ENTRY])
