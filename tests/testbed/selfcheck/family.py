"""A guest of four generations of tasks, each with private mappings that it has from its parent and some of its own.

Every task keeps what must be in its mappings. The first one answers on a unix socket (``ask.py``):
{"tasks": how many said that all is well, "broken": [what others said], "private_kb": memory of all of them that nobody shares}.
"""

import ctypes
import json
import mmap
import os
import random
import signal
import socket
import sys

PAGE, BASE, GENERATIONS, CHILDREN = 4096, 0x200000000000, 4, 3
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
FIXED_NOREPLACE = 0x100000


def place(start, pages):
    """A private mapping of so many pages at this address, with content of its own; returns the content by page."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | FIXED_NOREPLACE
    if libc.mmap(start, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != start:
        raise OSError(ctypes.get_errno(), f"{start:x}")
    return {start + number * PAGE: write(start + number * PAGE) for number in range(pages)}


def write(address):
    content = os.urandom(16) * (PAGE // 16)
    ctypes.memmove(address, content, PAGE)
    return content[:16]


def change(held, dice):
    """Drop some mappings, write some pages, map something new where there is room. ``held``: {start: {page: content}}."""
    for start in list(held):
        if dice.random() < 0.2:
            libc.munmap(start, len(held[start]) * PAGE)
            del held[start]
        elif dice.random() < 0.3:
            page = dice.choice(list(held[start]))
            held[start][page] = write(page)
    for start in sorted(held):
        after = start + len(held[start]) * PAGE
        room = min((other for other in held if other >= after), default=after) - after
        if room and dice.random() < 0.5:
            held[after] = place(after, dice.randint(1, room // PAGE))


def wrong(held):
    return [
        hex(page) for pages in held.values() for page, content in pages.items() if ctypes.string_at(page, PAGE) != content * (PAGE // 16)
    ]


def mapped():
    """Pages of ours that are mapped, whoever else is their neighbour."""
    found = set()
    with open("/proc/self/maps") as lines:
        for line in lines:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if BASE <= start < BASE + (1 << 40):
                found.update(range(start, end, PAGE))
    return found


def state(held):
    expected = {page for pages in held.values() for page in pages}
    private = 0
    with open("/proc/self/smaps_rollup") as lines:
        private = sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
    return {"wrong": wrong(held), "mapped": mapped() == expected, "private_kb": private}


def live(held, generation, number):
    """Fork the next generation; then tell, whenever asked through the pipe, how this task and all below it are."""
    dice = random.Random(number)
    if generation:
        change(held, dice)
    below = []
    for child in range(CHILDREN if generation + 1 < GENERATIONS else 0):
        mine, its = socket.socketpair()
        if os.fork() == 0:
            mine.close()
            for other in below:
                other.close()
            answer(its, live(dict(held), generation + 1, number * CHILDREN + child + 1))
        its.close()
        below.append(mine)

    def tell():
        told = [state(held)]
        for other in below:
            other.sendall(b"?")
            told += json.loads(other.makefile().readline())
        return told

    return tell


def answer(pipe, tell):
    while pipe.recv(1):
        pipe.sendall(json.dumps(tell()).encode() + b"\n")
    os._exit(0)


def main():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    dice, at, held = random.Random(1), BASE, {}
    for _ in range(24):
        pages = dice.randint(1, 8)
        at += dice.choice((0, 0, 0, 3 * PAGE, 9 * PAGE))
        held[at] = place(at, pages)
        at += pages * PAGE
    tell = live(held, 0, 0)
    control = socket.socket(socket.AF_UNIX)
    control.bind("/run/control")
    control.listen()
    while True:
        connection, _ = control.accept()
        with connection:
            told = tell()
            broken = [one for one in told if one["wrong"] or not one["mapped"]]
            private = sum(one["private_kb"] for one in told)
            connection.sendall(json.dumps({"tasks": len(told) - len(broken), "broken": broken[:3], "private_kb": private}).encode())


sys.exit(main())
