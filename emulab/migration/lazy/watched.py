"""One restored task whose pages are still arriving: what is missing, what is on its way, who waits."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable, Sequence

from emulab import clock
from emulab.migration.lazy.exchange import MAX_PAGES, PAGE, runs
from emulab.migration.lazy.missing import Missing, Segment
from emulab.migration.lazy.uffd import FAULT, FORK, REMAP, Event, Filled, Uffd

_GONE = (errno.ESRCH, errno.ENOSPC)
# A task that grows its memory faults on pages that never were: some more at once.
_FRESH_PAGES = 8


class Scratch:
    """Memory of ours from which pages are copied into tasks: the kernel wants an address."""

    def __init__(self, pages: int = MAX_PAGES) -> None:
        self._memory = mmap.mmap(-1, pages * PAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def load(self, pages: Sequence[bytes | None], first: int, last: int) -> None:
        """Pages [first, last) to their own place."""
        self._memory[first * PAGE : last * PAGE] = b"".join(page or bytes(PAGE) for page in pages[first:last])


class Watched:
    """``pid``: the task's number inside the guest, by which the source knows its memory (a child's: that of its parent)."""

    def __init__(self, uffd: Uffd, pid: int, missing: Missing) -> None:
        self.uffd = uffd
        self.pid = pid
        self.missing = missing
        self.on_their_way: dict[int, Missing] = {}
        self.waiting: dict[int, float] = {}  # fault address to when it was heard
        self.latencies: list[float] = []
        self.cursor = 0
        self.gone = False

    @property
    def complete(self) -> bool:
        return self.gone or not (self.missing or self.on_their_way)

    # -- what the task does ------------------------------------------------------------------------------------------------------------

    def hear(self, born: Callable[[Watched], None]) -> list[int]:
        """Take in all that has happened to the task's memory. Returns addresses of faults on pages that are missing here."""
        wanted = []
        while events := self.uffd.events():
            for event in events:
                if event.kind == FAULT:
                    wanted += self._fault(event.start)
                elif event.kind == FORK:
                    born(self._child(event.start))
                else:
                    self._change(event)
        return wanted

    def _fault(self, address: int) -> list[int]:
        if any(one.find(address) for one in self.on_their_way.values()):
            self.waiting.setdefault(address, clock.now())
            return []
        if self.missing.find(address) is None:
            self._fresh(address)
            return []
        self.waiting.setdefault(address, clock.now())
        self.cursor = address
        return [address]

    def _fresh(self, address: int) -> None:
        """A page that was never there."""
        end = address + PAGE
        while end < address + _FRESH_PAGES * PAGE and not self._expected(end):
            end += PAGE
        if self.uffd.zero(address, end - address).size == 0 and end > address + PAGE:
            self.uffd.zero(address, PAGE)  # the mapping ends there, or a page is there

    def _expected(self, address: int) -> bool:
        return self.missing.find(address) is not None or any(one.find(address) for one in self.on_their_way.values())

    def _child(self, descriptor: int) -> Watched:
        missing = self.missing.copy()
        for one in self.on_their_way.values():
            missing.put(one)
        return Watched(Uffd(descriptor), self.pid, missing)

    def _change(self, event: Event) -> None:
        for one in (self.missing, *self.on_their_way.values()):
            if event.kind == REMAP:
                one.remap(event.start, event.to, event.size)
            else:
                one.take(event.start, event.start + event.size)

    # -- what is done for it -----------------------------------------------------------------------------------------------------------

    def send_for(self, number: int, segments: list[Segment]) -> list[tuple[int, int]]:
        """Note that these segments, taken out of ``missing``, are on their way; returns [(address at the source, pages)]."""
        self.on_their_way[number] = Missing(segments)
        return [(segment.origin, segment.size // PAGE) for segment in segments]

    def arrived(
        self, number: int, pages: Sequence[bytes | None], asked: Sequence[tuple[int, int]], scratch: Scratch, hear: Callable[[], None]
    ) -> int:
        """Fill in an answer: ``pages`` of the ranges that were asked for. Returns how many of them the task had use for."""
        filled = first = 0
        for address, count in asked:
            for start, end, zero in runs(pages[first : first + count]):
                if not zero:
                    scratch.load(pages, first + start, first + end)
                filled += self._fill(
                    number, address + start * PAGE, address + end * PAGE, 0 if zero else scratch.address + (first + start) * PAGE, hear
                )
            first += count
        del self.on_their_way[number]
        return filled

    def _fill(self, number: int, start: int, end: int, source: int, hear: Callable[[], None]) -> int:
        """Put the pages with origins [start, end) where the task has them now, from ``source`` (0: zero pages). What the task does
        meanwhile moves the goal, so it is looked up anew after each call.
        """
        filled = 0
        while not self.gone:
            segment = next((one for one in self.on_their_way[number] if one.origin < end and one.origin + one.size > start), None)
            if segment is None:
                break
            low, high = max(start, segment.origin), min(end, segment.origin + segment.size)
            place = segment.start + low - segment.origin
            done = self._put(place, source + low - start if source else 0, high - low, hear)
            filled += done // PAGE
            if done:
                self.on_their_way[number].take(place, place + done)
                self._no_longer_waiting(place, place + done)
        return filled

    def _put(self, place: int, source: int, size: int, hear: Callable[[], None]) -> int:
        """One call. Returns how many bytes need no more care."""
        done = self.uffd.copy(place, source, size) if source else self.uffd.zero(place, size)
        if done.size:
            return done.size
        return self._refused(place, source, size, done, hear)

    def _refused(self, place: int, source: int, size: int, done: Filled, hear: Callable[[], None]) -> int:
        if done.error in _GONE:
            self.gone = True
            return 0
        if done.error == errno.EAGAIN:  # its memory is just being changed: that comes first
            hear()
            return 0
        if done.error == errno.EEXIST:
            return PAGE
        if done.error in (errno.ENOENT, errno.EINVAL):
            if size > PAGE:  # over the border of two mappings
                return self._put(place, source, PAGE, hear)
            return PAGE  # nothing is mapped there any more
        raise OSError(done.error, f"a page cannot be filled in at {place:#x}")

    def _no_longer_waiting(self, start: int, end: int) -> None:
        now = clock.now()
        for address in [address for address in self.waiting if start <= address < end]:
            self.latencies.append(now - self.waiting.pop(address))
