"""A guest that changes its address space while its memory is still arriving.

Told to over a unix socket, it answers what was not as it must be.
Every page of its regions is random, so nothing of it is cheap to send; what a page must hold is known by its checksum.
"""

import ctypes
import json
import mmap
import os
import random
import signal
import socket
import sys
import zlib

PAGE = 4096
PAGES = int(os.environ.get("PAGES", "1536"))  # per region
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
READ, WRITE, PRIVATE, FIXED, ANONYMOUS = 1, 2, 2, 16, 32
ZERO = zlib.crc32(bytes(PAGE))


class Region:
    def __init__(self, seed):
        self.address = libc.mmap(None, PAGES * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
        data = random.Random(seed).randbytes(PAGES * PAGE)
        ctypes.memmove(self.address, data, len(data))
        self.sums = [zlib.crc32(data[at : at + PAGE]) for at in range(0, len(data), PAGE)]

    def wrong(self, first=0, last=None):
        """Pages that do not hold what they must."""
        return [n for n in range(first, len(self.sums) if last is None else last) if self.sum(n) != self.sums[n]]

    def sum(self, number):
        return zlib.crc32(ctypes.string_at(self.address + number * PAGE, PAGE))


def in_child(check):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return pid


def ended_well(pid):
    return os.waitpid(pid, 0)[1] == 0


def grow_and_move(region):
    """mremap() to a larger place: the old pages follow, the new ones are zero."""
    size = PAGES * PAGE
    barrier = libc.mmap(region.address + size, PAGE, READ, PRIVATE | ANONYMOUS, -1, 0)  # no room to grow where it is
    region.address = libc.mremap(region.address, size, 2 * size, 1)
    region.sums += [ZERO] * PAGES
    libc.munmap(barrier, PAGE)


def map_anew(region, first, last):
    """munmap() a part and map fresh memory there."""
    place, size = region.address + first * PAGE, (last - first) * PAGE
    libc.munmap(place, size)
    assert libc.mmap(place, size, READ | WRITE, PRIVATE | ANONYMOUS | FIXED, -1, 0) == place
    region.sums[first:last] = [ZERO] * (last - first)


def forget(region, first, last):
    libc.madvise(region.address + first * PAGE, (last - first) * PAGE, mmap.MADV_DONTNEED)
    region.sums[first:last] = [ZERO] * (last - first)


def protect_in_stripes(region):
    for page in range(0, PAGES, 8):
        libc.mprotect(region.address + page * PAGE, 4 * PAGE, READ)


def overwrite(region, page):
    data = bytes([page % 251 + 1]) * PAGE
    ctypes.memmove(region.address + page * PAGE, data, PAGE)
    region.sums[page] = zlib.crc32(data)


def change(regions):
    moved, anew, forgotten, striped, written = regions
    children = [in_child(lambda: not any(region.wrong(PAGES // 2) for region in regions))]
    grow_and_move(moved)
    map_anew(anew, 100, PAGES // 2)
    forget(forgotten, PAGES // 4, PAGES // 2)
    protect_in_stripes(striped)
    for page in range(1, PAGES, 3):
        overwrite(written, page)
    children.append(in_child(lambda: not any(region.wrong() for region in regions)))
    children.append(in_child(lambda: in_grandchild(regions)))
    started = os.posix_spawn("/bin/true", ["true"], {})
    wrong = {name: len(region.wrong()) for name, region in zip(("moved", "anew", "forgotten", "striped", "written"), regions, strict=True)}
    return {**wrong, "children": [ended_well(pid) for pid in children], "program": ended_well(started)}


def in_grandchild(regions):
    """Forked from a child whose memory is still arriving too."""
    grow_and_move(regions[4])
    return ended_well(in_child(lambda: not any(region.wrong() for region in regions)))


def main():
    regions = [Region(seed) for seed in range(5)]
    control = socket.socket(socket.AF_UNIX)
    control.bind("/run/control")
    control.listen()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        connection, _ = control.accept()
        with connection:
            order = connection.recv(16)
            answer = change(regions) if order == b"change" else [len(region.wrong()) for region in regions] if order == b"check" else []
            connection.sendall(json.dumps(answer).encode() + b"\n")


sys.exit(main())
