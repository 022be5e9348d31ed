"""How many pages a guest has written: counted from outside while it runs, without stopping it and without dumping anything.

A dirty tracker (``emulab.criu.tracker``) marks pages as clean when they are sent; what was written since shows in ``/proc/PID/pagemap``:
under write-protect through the ioctl PAGEMAP_SCAN (kernel's Documentation/admin-guide/mm/pagemap.rst), under soft-dirty in bit 55.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

PAGE = 4096
_ADDRESSES_END = 0x7FFFFFFFF000
_WRITTEN, _FILE, _PRESENT, _SWAPPED, _PFNZERO = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_WP_MATCHING = 1 << 0
_REGIONS = 4096
# Of a pagemap entry's last two bytes: bit 55 says soft-dirty; bits 63, 62, 61 say present, swapped, not the task's own.
_SOFT_DIRTY_OF = bytes(byte >> 7 for byte in range(256))
_OWN_OF = bytes(int(bool(byte & 0xC0) and not byte & 0x20) for byte in range(256))


class _Region(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64))


class _Scan(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
            "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
        )
    )  # fmt: skip


_PAGEMAP_SCAN = (3 << 30) | (ctypes.sizeof(_Scan) << 16) | (ord("f") << 8) | 16


class DirtyPages:
    """Counts private pages written since they were last marked as clean. Tasks that end meanwhile are left out."""

    def __init__(self, *, write_protect: bool) -> None:
        self._write_protect = write_protect

    def mark_clean(self, pids: Iterable[int]) -> None:
        """Begin anew from now. Never between two rounds: what they have yet to send would be forgotten."""
        for pid in pids:
            try:
                if self._write_protect:
                    scan_written(pid, protect=True)
                else:
                    Path(f"/proc/{pid}/clear_refs").write_text("4")
            except OSError:
                continue

    def count(self, pids: Iterable[int]) -> int:
        total = 0
        for pid in pids:
            try:
                total += sum(end - start for start, end in scan_written(pid)) // PAGE if self._write_protect else _soft_dirty(pid)
            except OSError:
                continue
        return total


def scan_written(pid: int, *, protect: bool = False) -> list[tuple[int, int]]:
    """Address ranges of a task's own pages (private, not the zero page) that are not write-protected; ``protect``: they are from now on.

    Without a tracker every such page counts as written. Raises OSError.
    """
    return _scan(
        pid, 0, _ADDRESSES_END, flags=_WP_MATCHING if protect else 0,
        inverted=_FILE | _PFNZERO, mask=_WRITTEN | _FILE | _PFNZERO, any_of=_PRESENT | _SWAPPED,
    )  # fmt: skip


def scan_present(pid: int, start: int, end: int) -> list[tuple[int, int]]:
    """Parts of an address range of a task that have memory. Raises OSError."""
    return _scan(pid, start, end, flags=0, inverted=0, mask=0, any_of=_PRESENT | _SWAPPED)


def _scan(pid: int, start: int, end: int, *, flags: int, inverted: int, mask: int, any_of: int) -> list[tuple[int, int]]:
    regions = (_Region * _REGIONS)()
    scan = _Scan(
        size=ctypes.sizeof(_Scan), flags=flags, start=start, end=end, vec=ctypes.addressof(regions), vec_len=_REGIONS,
        category_inverted=inverted, category_mask=mask, category_anyof_mask=any_of, return_mask=_WRITTEN,
    )  # fmt: skip
    found: list[tuple[int, int]] = []
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while scan.start < scan.end:
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, scan)
            found += [(region.start, region.end) for region in regions[:count]]
            if scan.walk_end <= scan.start:
                break
            scan.start = scan.walk_end
    finally:
        os.close(pagemap)
    return found


def range_of(line: str) -> tuple[int, int]:
    """Addresses [start, end) of a line of /proc/PID/maps."""
    start, end = line.split(maxsplit=1)[0].split("-")
    return int(start, 16), int(end, 16)


def _soft_dirty(pid: int) -> int:
    total = 0
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            start, end = range_of(line)
            if line.split(maxsplit=2)[1][3] == "p" and end <= _ADDRESSES_END:
                total += count_soft_dirty(os.pread(pagemap, (end - start) // PAGE * 8, start // PAGE * 8))
    finally:
        os.close(pagemap)
    return total


def count_soft_dirty(entries: bytes) -> int:
    """Soft-dirty pages of a task's own among pagemap entries (8 bytes each, little endian)."""
    dirty = int.from_bytes(entries[6::8].translate(_SOFT_DIRTY_OF), "little")
    own = int.from_bytes(entries[7::8].translate(_OWN_OF), "little")
    return (dirty & own).bit_count()
