"""Pre-copy rounds that do not stop the guest: its written pages are found, protected and read while it runs.

CRIU's pre-dump freezes every task and puts its parasite into each, 0.4 s for 65 web workers in each round. Asynchronous write-protect needs
neither: PAGEMAP_SCAN tells which pages were written and protects them again in one step, so whatever a task writes afterwards, also while
its page is being read, is in the next round. The images are such as pre-dump leaves: CRIU's final dump takes them for its parent's.

Images are written as criu/images/{pagemap,inventory}.proto say. Each pagemap also names the pages of earlier rounds, as CRIU looks for a
page only in the last one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from emulab import clock
from emulab.criu.dirty import range_of, scan_present, scan_written
from emulab.criu.pagemap import PAGE, PARENT, PRESENT, write_entry, write_head, write_message, write_number
from emulab.migration.same_frame import Alike, SameFrame
from emulab.node.guest import start_ticks

SHARED = "pages-shared.img"  # content that the destination will need, and nothing that CRIU knows of
_INVENTORY_MAGIC = 0x58313116
_IMAGES_V1_1 = 2
_AT_ONCE = 128 * PAGE
_MAP_PIECE = 1024  # bytes of a page map that are written together
_SHARED_MEMORY = ("/dev/zero", "/SYSV", "/memfd:")

Ranges = list[tuple[int, int]]  # [start, end) in bytes, ascending, apart from each other


@dataclass
class _Task:
    """``image``: its number inside the guest, by which CRIU names images; ``held``: what earlier rounds have of it."""

    image: int
    started: int
    held: Ranges = field(default_factory=list)


class LiveRounds:
    """The rounds of one migration under write-protect."""

    def __init__(self) -> None:
        self._tasks: dict[int, _Task] = {}
        self._shared: set[tuple[str, str]] = set()  # device and inode of shared memory that has been sent

    def take(self, images: Path, pids: Iterable[int], alike: Alike, check: Callable[[], None]) -> float:
        """Fill ``images`` with what was written since the last round. Tasks must be covered by the tracker.

        Pages that tasks share are there once, for the others there are holes: ``alike`` learns what is in their place.
        Returns the instant from which on writes are for the next round. ``check`` is called often, and may raise to give up.
        """
        since = clock.now()
        # CRIU takes no page of an earlier image for a task that has started since.
        told = write_number(1, _IMAGES_V1_1) + write_number(8, _uptime_us()) + write_number(9, 0)
        (images / "inventory.img").write_bytes(struct.pack("=I", _INVENTORY_MAGIC) + write_message(told))  # the only image with one magic
        with SameFrame() as same:
            for number, pid in enumerate(pids, 1):
                check()
                try:
                    maps = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
                    _TaskImages(images, pid, number, same, alike, check).take(self._task(pid), maps)
                    self._take_shared(images, pid, maps, check)
                except (FileNotFoundError, ProcessLookupError):  # it has ended; CRIU will not ask for it
                    continue
        return since

    def _take_shared(self, images: Path, pid: int, maps: Iterable[str], check: Callable[[], None]) -> None:
        """Shared memory is saved in the freeze, whole: what of it crosses the wire now is only referred to then."""
        for line in maps:
            fields = line.split(maxsplit=5)
            if fields[1][3] != "s" or len(fields) < 6 or not fields[5].startswith(_SHARED_MEMORY) or (fields[3], fields[4]) in self._shared:
                continue
            self._shared.add((fields[3], fields[4]))
            with (images / SHARED).open("ab", buffering=0) as pages, open_memory(pid) as memory:
                for first, last in merged(scan_present(pid, *range_of(line))):
                    for _, data in read_memory(memory, first, last):
                        check()
                        pages.write(data)

    def _task(self, pid: int) -> _Task:
        started = start_ticks(pid)
        task = self._tasks.get(pid)
        if task is None or task.started != started:
            task = self._tasks[pid] = _Task(_inner_number(pid), started)
        return task


class _TaskImages:
    """The two images of one task in one round: its page map and its pages."""

    def __init__(self, images: Path, pid: int, number: int, same: SameFrame, alike: Alike, check: Callable[[], None]) -> None:
        self._images = images
        self._pid = pid
        self._number = number
        self._name = f"pages-{number}.img"
        self._same = same
        self._alike = alike
        self._check = check
        self._count = 0  # pages taken

    def take(self, task: _Task, maps: Iterable[str]) -> None:
        written = merged([*scan_written(self._pid, protect=True), *_vdso(maps)])
        self._same.begin(self._pid, self._name)
        kept, present = without(task.held, written), []
        with (
            (self._images / f"pagemap-{task.image}.img").open("wb", buffering=_MAP_PIECE) as pagemap,
            (self._images / self._name).open("wb", buffering=0) as pages,
            open_memory(self._pid) as memory,
        ):
            pagemap.write(write_head(self._number))
            # CRIU reads its maps in the order of addresses.
            for start, end, is_new in sorted([*((a, b, True) for a, b in written), *((a, b, False) for a, b in kept)]):
                if not is_new:
                    pagemap.write(write_entry(start, end, PARENT))
                    continue
                for begin, stop in joined(self._take_range(memory, pages, start, end), _AT_ONCE):
                    pagemap.write(write_entry(begin, stop, PRESENT))
                    present.append((begin, stop))
            pages.truncate(self._count * PAGE)  # behind the last page that is not a hole
        task.held = merged([*kept, *present])

    def _take_range(self, memory: FileIO, pages: FileIO, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Addresses of what is in the pages file, one stretch after another."""
        for begin, stop, like in self._same.split(start, end):
            self._check()
            if like:
                count = (stop - begin) // PAGE
                self._alike.add(self._name, self._count, count, like)
                self._count += count
                yield begin, stop
                continue
            for address, data in read_memory(memory, begin, stop):
                self._check()
                os.pwrite(pages.fileno(), data, self._count * PAGE)
                self._same.took(address, len(data) // PAGE, self._count)
                self._count += len(data) // PAGE
                yield address, address + len(data)


def _vdso(maps: Iterable[str]) -> Ranges:
    """CRIU saves it too, and no tracker covers it: a new program may have it at another address."""
    return [range_of(line) for line in maps if line.endswith("[vdso]")]


def open_memory(pid: int) -> FileIO:
    """Raises OSError if the task has ended."""
    return FileIO(f"/proc/{pid}/mem", "rb")


def read_memory(memory: FileIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(address, whole pages) of a range of a task's memory, without what is not mapped any more. Raises OSError if it has ended."""
    while start < end:
        data = _read(memory, start, min(end - start, _AT_ONCE))
        if data:
            yield start, data
        start += len(data) or PAGE


def _read(memory: FileIO, address: int, size: int) -> bytes:
    try:
        data = os.pread(memory.fileno(), size, address)
    except OSError as error:
        if isinstance(error, ProcessLookupError):
            raise
        return b""
    return data[: len(data) // PAGE * PAGE]


# -- ranges ----------------------------------------------------------------------------------------------------------------------------


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: Ranges = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return found


def joined(ranges: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """The same, neighbours as one up to a size; none is waited for longer than that takes."""
    last: tuple[int, int] | None = None
    for start, end in ranges:
        if last and last[1] == start and end - last[0] <= most:
            last = last[0], end
            continue
        if last:
            yield last
        last = start, end
    if last:
        yield last


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """What of ``ranges`` is not in ``removed``."""
    found: Ranges = []
    at = 0
    for start, end in ranges:
        while at < len(removed) and removed[at][1] <= start:
            at += 1
        left, i = start, at
        while i < len(removed) and removed[i][0] < end:
            if left < removed[i][0]:
                found.append((left, removed[i][0]))
            left = removed[i][1]
            i += 1
        if left < end:
            found.append((left, end))
    return found


# -- what the kernel tells --------------------------------------------------------------------------------------------------------------


def _uptime_us() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]) * 1e6)


def _inner_number(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise ProcessLookupError(pid)
