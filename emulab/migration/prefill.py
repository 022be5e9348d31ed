"""Large tasks' memory, filled at the destination before the freeze.

To fill a gigabyte takes a second, two or more where the machine below has to find the memory first; a restore that begins with it makes the
guest stand still for as long. CRIU waits for the freeze at a gate; meanwhile it is told, page by page, what has arrived of tasks that have
many pages of their own, and puts them into memory that these tasks will be forked with (criu/native/prefill.c). Whatever is put there too
early is replaced, or removed, when CRIU reads the final images: nothing depends on this for its content.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path

from emulab.criu.pagemap import PAGE, PRESENT, entry, numbers, whole_messages
from emulab.criu.standby import Standby
from emulab.errors import EmulabError
from emulab.migration.inventory import MANY, Inventory
from emulab.migration.pages import NUMBERS, ZERO_REF
from emulab.migration.reserve import available
from emulab.migration.strategies import Strategy

log = logging.getLogger("emulab.migration")

PATIENCE_S = 10.0  # for the rest of it, just before the freeze; then CRIU begins anew and without it
_LARGE = 32 * 2**20  # bytes, in tasks that have many: a guest for which it pays
_AT_ONCE = 256  # pages that are put in a millisecond
_SHARE = 31 / 32  # of the guest's memory limit: CRIU itself needs some
_SPARE = 256 * 2**20  # bytes that the node must have left
_LOOK_EVERY_S = 0.05
_ORDER = struct.Struct("=QIIII")  # struct prefill_order: address, task, first distinct page, how many, what to do
_PUT, _REPLACE, _DROP = range(3)
_MAGICS, _HEAD = 8, 64  # bytes at the beginning of a page map


def is_worth_it(large_bytes: int) -> bool:
    """``large_bytes``: memory of a guest that is in large tasks."""
    return large_bytes >= _LARGE


def filled_before(found: Inventory, strategy: Strategy, left: int) -> int:
    """How many pages will be in memory before the freeze, if ``left`` pages are to be sent in it."""
    if not strategy.has_rounds or strategy.pages_follow or not is_worth_it(found.large_pages * PAGE):
        return 0
    return max(0, found.large_pages - left)


_Stretch = tuple[int, int, int]  # address, first distinct page or ZERO_REF for none, pages


class _Source:
    """One task's images in one folder, read as they arrive. ``head``: the first bytes of its page map; ``number``: of its pages file."""

    def __init__(self, pagemap: Path, head: bytes) -> None:
        self.pid = int(pagemap.stem.partition("-")[2])
        self._pagemap = pagemap
        self._runs: deque[tuple[int, int]] = deque()  # address, pages
        self._taken = 0  # pages of the pages file
        begin, end = next(whole_messages(head, _MAGICS))
        self.number = next(value for field, value, _ in numbers(head, begin, end) if field == 1)
        self._parsed = end  # bytes of the page map
        self._numbers = pagemap.with_name(f"pages-{self.number}.img{NUMBERS}")

    @property
    def arrived(self) -> int:
        """Pages that have numbers."""
        try:
            return self._numbers.stat().st_size // 4
        except FileNotFoundError:
            return 0

    def take(self) -> Iterator[tuple[int, array[int]]]:
        """(address, numbers) of pages that have not been taken yet, some at a time."""
        self._parse()
        arrived = self.arrived
        if self._taken == arrived or not self._runs:
            return
        with self._numbers.open("rb", buffering=0) as file:
            while self._runs and self._taken < arrived:
                start, count = self._runs.popleft()
                now = min(count, arrived - self._taken, _AT_ONCE)
                if now < count:
                    self._runs.appendleft((start + now * PAGE, count - now))
                found = array("I", os.pread(file.fileno(), now * 4, self._taken * 4))
                self._taken += now
                yield start, found

    def _parse(self) -> None:
        with self._pagemap.open("rb", buffering=0) as file:
            file.seek(self._parsed)
            data = file.read()
        end = 0
        for begin, end in whole_messages(data):
            start, count, flags = entry(data, begin, end)
            if flags & PRESENT:
                self._runs.append((start, count))
        self._parsed += end


class _Task:
    """``own``: pages that it was the first to have. ``held``: those that wait until it turns out to be a large task."""

    def __init__(self) -> None:
        self.own = 0
        self.held: list[_Stretch] = []


class Prefill:
    """Works in a thread of its own; ``give_way`` is called before each millisecond of it. ``folder`` and ``arrived`` tell what there is.

    ``limit``: of the guest's memory, in bytes. Where that or the node's memory is used up the rest is left to CRIU.
    """

    def __init__(self, standby: Standby, give_way: Callable[[], object], limit: int) -> None:
        self._standby = standby
        self._give_way = give_way
        self._most = int(limit * _SHARE) // PAGE
        self.pages = 0  # filled so far
        self._had = bytearray()  # for each distinct page: whether some task has been the first to have it
        self._tasks: defaultdict[int, _Task] = defaultdict(_Task)
        self._folders: deque[Path] = deque()
        self._sources: dict[Path, _Source] = {}  # of the first of them
        self._more = threading.Event()
        self._complete = threading.Event()
        self._stopped = self._full = self._failed = False
        self._thread = threading.Thread(target=self._work, name="prefill", daemon=True)
        self._thread.start()

    def folder(self, folder: Path) -> None:
        """The next folder of images; those before it are complete."""
        self._folders.append(folder)

    def arrived(self) -> None:
        """There is more in the folder."""
        self._more.set()

    def finish(self, timeout_s: float) -> bool:
        """Everything is there: wait until it is where it belongs. Returns False if that takes too long, or something of it is not."""
        self._complete.set()
        self._more.set()
        self._thread.join(timeout_s)
        return not (self._thread.is_alive() or self._failed)

    def close(self) -> None:
        """Safe to repeat."""
        self._stopped = True
        self._complete.set()
        self._more.set()
        self._thread.join()

    def _work(self) -> None:
        complete = False
        try:
            while not (complete or self._stopped):
                self._more.wait()
                self._more.clear()
                complete = self._complete.is_set()
                while self._folders:
                    is_last = len(self._folders) == 1
                    self._take_from(self._folders[0])
                    if is_last:
                        break
                    self._folders.popleft()
                    self._sources.clear()
                self._complete.wait(_LOOK_EVERY_S)
        except (EmulabError, OSError, ValueError, IndexError, StopIteration) as error:  # CRIU will say what is wrong with the images
            log.warning("memory is not filled any further: %s", error)
            self._failed = True

    def _take_from(self, folder: Path) -> None:
        for pagemap in folder.glob("pagemap-[0-9]*.img"):
            if pagemap not in self._sources and (head := _head(pagemap)):
                self._sources[pagemap] = _Source(pagemap, head)
        for source in sorted(self._sources.values(), key=attrgetter("number")):  # as they are sent
            task = self._tasks[source.pid]
            if task.own < MANY and source.arrived < MANY:
                continue
            for address, found in source.take():
                self._give_way()
                for stretch in self._new(address, found):
                    task.own += stretch[2] if stretch[1] != ZERO_REF else 0
                    task.held.append(stretch)
                if task.own >= MANY:
                    self._put(source.pid, task.held)
                    task.held.clear()
                if self._stopped:
                    return

    def _new(self, address: int, found: array[int]) -> Iterator[_Stretch]:
        """Pages that nobody had before, and where others are instead: what tasks share, a forked one has from its parent."""
        at = 0
        while at < len(found):
            first, count = found[at], 1
            step = first != ZERO_REF
            while at + count < len(found) and found[at + count] == first + step * count:
                count += 1
            done = first
            for start, pages in self._not_had(first, count) if first != ZERO_REF else ():
                if done < start:
                    yield address + (at + done - first) * PAGE, ZERO_REF, start - done
                yield address + (at + start - first) * PAGE, start, pages
                done = start + pages
            if done < first + count:
                yield address + (at + done - first) * PAGE, ZERO_REF, first + count - done
            at += count

    def _not_had(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        had, end = self._had, first + count
        had.extend(bytes(max(0, end - len(had))))
        while (start := had.find(0, first, end)) >= 0:
            first = had.find(1, start, end)
            first = end if first < 0 else first
            had[start:first] = b"\1" * (first - start)
            yield start, first - start

    def _put(self, pid: int, stretches: list[_Stretch]) -> None:
        for few in _some(stretches):
            count = sum(pages for _, _, pages in few)
            if not self._full and (self.pages + count > self._most or available() < _SPARE + count * PAGE):
                log.info("%d pages filled: there is no room for more", self.pages)
                self._full = True
            put = _REPLACE if self._full else _PUT
            orders = ((address, pid, first, pages, _DROP if first == ZERO_REF else put) for address, first, pages in few)
            self.pages += self._standby.put(b"".join(_ORDER.pack(*order) for order in orders))


def _head(pagemap: Path) -> bytes | None:
    """How a page map begins; None while that has not arrived."""
    with pagemap.open("rb", buffering=0) as file:
        head = file.read(_HEAD)
    return head if len(head) == _HEAD or any(whole_messages(head, _MAGICS)) else None


def _some(stretches: list[_Stretch]) -> Iterator[list[_Stretch]]:
    """What fits into one message, and is put in a millisecond."""
    few: list[_Stretch] = []
    pages = 0
    for stretch in stretches:
        if few and pages + stretch[2] > _AT_ONCE:
            yield few
            few, pages = [], 0
        few.append(stretch)
        pages += stretch[2]
    if few:
        yield few
