"""A program that changes its memory while pages of it are missing: real userfaultfds, real faults, answered one by one."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading

import pytest

from emulab.migration.lazy.missing import Missing, Segment
from emulab.migration.lazy.uffd import PAGE, Uffd
from emulab.migration.lazy.watched import Scratch, Watched

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.timeout(60)]

PAGES = 64
MISSING = 48  # the rest was never there

PROGRAM = """
import ctypes, json, mmap, os, socket, struct, sys
PAGE, PAGES = 4096, 64
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
connection = socket.socket(fileno=int(sys.argv[1]))
base = libc.mmap(None, PAGES * PAGE, 3, 0x22, -1, 0)
uffd = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK)
assert uffd >= 0, os.strerror(ctypes.get_errno())
api = bytearray(struct.pack("QQQ", 0xAA, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6, 0))
assert libc.ioctl(uffd, ctypes.c_ulong(0xC018AA3F), ctypes.byref((ctypes.c_char * 24).from_buffer(api))) == 0
area = bytearray(struct.pack("QQQQ", base, PAGES * PAGE, 1, 0))
assert libc.ioctl(uffd, ctypes.c_ulong(0xC020AA00), ctypes.byref((ctypes.c_char * 32).from_buffer(area))) == 0
socket.send_fds(connection, [struct.pack("Q", base)], [uffd])
os.close(uffd)
connection.recv(1)

def found(at, pages=PAGES):
    numbers = []
    for number in range(pages):
        page = ctypes.string_at(at + number * PAGE, PAGE)
        numbers.append(page[0] if page == page[:1] * PAGE else -1)
    return numbers

def touch():
    return found(base)

def in_a_child(what=touch):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, json.dumps(what()).encode())
        os._exit(0)
    os.close(theirs)
    answer = json.loads(os.read(ours, 65536))
    os.wait()
    return answer

def in_a_grandchild():
    return in_a_child(in_a_child)

def moved():
    reserved = libc.mmap(None, 4 * PAGES * PAGE, 0, 0x22, -1, 0)
    libc.munmap(reserved, 4 * PAGES * PAGE)
    blocked = libc.mmap(base + PAGES * PAGE, PAGE, 0, 0x22, -1, 0)
    to = libc.mremap(base, PAGES * PAGE, 2 * PAGES * PAGE, 1)
    assert to != base
    return found(to, 2 * PAGES)

def forgotten():
    ctypes.string_at(base + 3 * PAGE, 1)
    libc.madvise(base, 8 * PAGE, mmap.MADV_DONTNEED)
    return touch()

def mapped_anew():
    libc.munmap(base + 8 * PAGE, 8 * PAGE)
    assert libc.mmap(base + 8 * PAGE, 8 * PAGE, 3, 0x32, -1, 0) == base + 8 * PAGE
    return touch()

def written():
    ctypes.memset(base + 5 * PAGE, 200, PAGE)
    ctypes.memset(base + 60 * PAGE, 201, PAGE)
    return touch()

answer = globals()[sys.argv[2]]()
connection.sendall(json.dumps(answer).encode())
"""


def content(number):
    return bytes([number + 1]) * PAGE


class Pager:
    """Answers faults of a program, page by page."""

    def __init__(self, ours):
        data, descriptors, _, _ = socket.recv_fds(ours, 8, 1)
        self.base = int.from_bytes(data, "little")
        segment = Segment(self.base, self.base + MISSING * PAGE, self.base)
        self.tasks = [Watched(Uffd(descriptors[0]), 1, Missing([segment]))]
        self.scratch, self.number, self.stop = Scratch(), 0, False

    def run(self):
        while not self.stop:
            ready, _, _ = select.select([task.uffd.descriptor for task in self.tasks], [], [], 0.01)
            for task in [task for task in self.tasks if task.uffd.descriptor in ready]:
                self.hear(task)

    def hear(self, task):
        for address in task.hear(self.tasks.append):
            self.answer(task, address)

    def answer(self, task, address):
        self.number += 1
        asked = task.send_for(self.number, task.missing.take(address, address + PAGE))
        pages = [content((origin - self.base) // PAGE + n) for origin, count in asked for n in range(count)]
        task.arrived(self.number, pages, asked, self.scratch, lambda: self.hear(task))

    def fill_in_all(self):
        """The rest, as the background does."""
        for task in self.tasks:
            while task.missing:
                (segment, *_) = task.missing
                self.answer(task, segment.start)


def run(what, *, ahead=False):
    """The number in each page as the program sees it, and its pager."""
    ours, theirs = socket.socketpair()
    with subprocess.Popen((sys.executable, "-c", PROGRAM, str(theirs.fileno()), what), pass_fds=(theirs.fileno(),)) as program:
        theirs.close()
        pager = Pager(ours)
        if ahead:
            pager.fill_in_all()
        thread = threading.Thread(target=pager.run)
        thread.start()
        try:
            ours.sendall(b".")
            ours.settimeout(30)
            answer = json.loads(ours.recv(65536))
        finally:
            pager.stop = True
            thread.join()
            for task in pager.tasks:
                task.uffd.close()
            ours.close()
            program.wait(10)
    return answer, pager


WHOLE = [number + 1 for number in range(MISSING)] + [0] * (PAGES - MISSING)


@pytest.mark.parametrize("what", ["touch", "in_a_child", "in_a_grandchild"])
def test_every_page_is_there_when_it_is_touched(what):
    answer, _ = run(what)
    assert answer == WHOLE


def test_each_page_is_asked_for_once_and_its_wait_is_measured():
    _, pager = run("touch")
    (task,) = pager.tasks
    assert pager.number == MISSING
    assert task.complete
    assert len(task.latencies) == MISSING
    assert not task.waiting


def test_a_child_asks_for_itself():
    _, pager = run("in_a_child")
    parent, child = pager.tasks
    assert child.complete
    assert not parent.complete  # it touched nothing
    assert child.pid == parent.pid


def test_memory_that_is_moved_is_found_where_it_is_now():
    answer, _ = run("moved")
    assert answer == WHOLE + [0] * PAGES


def test_what_the_program_gave_up_is_zero():
    answer, _ = run("forgotten")
    assert answer == [0] * 8 + WHOLE[8:]


def test_what_is_mapped_anew_is_zero():
    answer, _ = run("mapped_anew")
    assert answer == WHOLE[:8] + [0] * 8 + WHOLE[16:]


def test_what_the_program_writes_stays():
    answer, _ = run("written")
    assert (answer[5], answer[60]) == (200, 201)
    assert [answer[n] for n in range(PAGES) if n not in (5, 60)] == [WHOLE[n] for n in range(PAGES) if n not in (5, 60)]


def test_pages_that_come_before_they_are_touched_cause_no_fault():
    answer, pager = run("touch", ahead=True)
    assert answer == WHOLE
    assert pager.tasks[0].latencies == []


def test_a_program_that_has_ended_wants_nothing_more():
    ours, theirs = socket.socketpair()
    with subprocess.Popen((sys.executable, "-c", PROGRAM, str(theirs.fileno()), "touch"), pass_fds=(theirs.fileno(),)) as program:
        theirs.close()
        pager = Pager(ours)
        program.kill()
        program.wait(10)
        pager.answer(pager.tasks[0], pager.base)
        assert pager.tasks[0].gone
        assert pager.tasks[0].complete
    pager.tasks[0].uffd.close()
    ours.close()
