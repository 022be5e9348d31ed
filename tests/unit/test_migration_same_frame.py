"""Pages that are read once for all who share them: nobody's image may hold what another task had, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from array import array
from pathlib import Path

import pytest

import emulab.criu
from emulab.criu.dirty import scan_written
from emulab.criu.pagemap import PAGE, PRESENT, parse_pagemap
from emulab.criu.tracker import WriteProtect, has_write_protect
from emulab.migration.live import LiveRounds
from emulab.migration.same_frame import Alike, SameFrame

PAGES = 600
PROTECTED, FRAME = 1 << 57, (1 << 55) - 1

# A family: two tasks with the same memory. Orders come on standard input: "0 write 7", "1 drop 7", "0 fork", "1 busy".
FAMILY = f"""
import mmap, os, random, sys, time
m = mmap.mmap(-1, {PAGES} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_NOHUGEPAGE)
for n in range({PAGES}):
    m[n * 4096 : (n + 1) * 4096] = n.to_bytes(8, "little") * 512
def write(n, what):
    m[n * 4096 : n * 4096 + 16] = what.to_bytes(8, "little") * 2
def busy():
    count = 0
    while True:
        count += 1
        write(random.randrange({PAGES}), os.getpid() << 32 | count)
        if count % 50 == 0:
            time.sleep(0.001)
        if count % 500 == 0 and os.fork() == 0:
            for n in range(0, {PAGES}, 7):
                write(n, os.getpid() << 32 | n)
            os._exit(0)
        while count % 500 == 0:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
def obey(order, number="0"):
    if order == "write":
        write(int(number), 12345)
    if order == "drop":
        m.madvise(mmap.MADV_DONTNEED, int(number) * 4096, 4096)
    if order == "fork" and os.fork() == 0:
        time.sleep(1000)
    if order == "busy" and os.fork() == 0:
        busy()
inward, outward = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.close(inward[1])
    orders = os.fdopen(inward[0])
    for line in orders:
        obey(*line.split())
        os.write(outward[1], b"+")
    os._exit(0)
os.close(inward[0])
import ctypes
print(os.getpid(), child, ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)
for line in sys.stdin:
    who, order = line.split(maxsplit=1)
    if who == "0":
        obey(*order.split())
    else:
        os.write(inward[1], order.encode())
        os.read(outward[0], 1)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler; the node image has its own")
    if not has_write_protect() or os.geteuid() != 0:
        pytest.skip("needs userfaultfd write-protect, and root to see frames")
    folder = tmp_path_factory.mktemp("native")
    subprocess.run((compiler, "-O1", "-o", folder / "tracker", Path(emulab.criu.__file__).parent / "native/tracker.c"), check=True)
    return folder


class Family:
    """Tasks, and one round over them."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            (sys.executable, "-c", FAMILY), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.parent, self.child, self.at = map(int, self.process.stdout.readline().split())
        self.tracker = WriteProtect()
        self.alike = Alike()

    def tell(self, order):
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def tasks(self):
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if session(path) == self.process.pid]

    def round(self, tasks, meanwhile=lambda: None):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.alike = Alike()
        self.tracker.arm(tasks)
        LiveRounds().take(self.folder, tasks, self.alike, meanwhile)

    def image(self, pid):
        """Address and content of each page that the round has of a task, its holes filled."""
        pagemap = parse_pagemap((self.folder / f"pagemap-{pid}.img").read_bytes())
        found = {}
        for run in pagemap.runs:
            assert run.flags == PRESENT
            for address in range(run.start, run.end, PAGE):
                found[address] = self._page(f"pages-{pagemap.pages_file}.img", (run.offset + address - run.start) // PAGE)
        return found

    def _page(self, name, number):
        like, _ = self.alike.at(name, number)
        if like:
            assert self.alike.at(*like)[0] is None
            name, number = like
        with (self.folder / name).open("rb") as file:
            return os.pread(file.fileno(), PAGE, number * PAGE)

    def holes(self):
        return sum(count for stretches in self.alike._of.values() for _, count, _ in stretches)

    def close(self):
        self.tracker.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def session(path):
    try:
        return int((path / "stat").read_text().rpartition(") ")[2].split()[3])
    except OSError:
        return None


def unwritten(pid):
    """Address and content of each page that a task has not written since it was protected."""
    found = {}
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(one, 16) for one in line.split()[0].split("-"))
            if end > 1 << 47:
                continue
            entries = array("Q", os.pread(pagemap.fileno(), (end - start) // PAGE * 8, start // PAGE * 8))
            for at, entry in enumerate(entries):
                if entry & PROTECTED and entry & FRAME:
                    found[start + at * PAGE] = os.pread(memory.fileno(), PAGE, start + at * PAGE)
    return found


@pytest.fixture
def family(native, tmp_path, monkeypatch):
    monkeypatch.setattr("emulab.criu.tracker.NATIVE", native)
    family = Family(tmp_path / "round")
    yield family
    family.close()


def differing(family, pid):
    image = family.image(pid)
    return [address for address, content in unwritten(pid).items() if address in image and image[address] != content]


def test_what_two_tasks_share_is_read_once(family):
    family.round([family.parent, family.child])
    assert family.holes() > PAGES
    size = sum(path.stat().st_blocks * 512 for path in family.folder.glob("pages-*.img"))
    length = sum(path.stat().st_size for path in family.folder.glob("pages-*.img"))
    assert size < 0.75 * length
    for pid in (family.parent, family.child):
        image = family.image(pid)
        assert all(image[family.at + n * PAGE] == n.to_bytes(8, "little") * 512 for n in range(PAGES))
        assert differing(family, pid) == []


def test_a_page_that_one_of_them_wrote_is_its_own(family):
    family.tell("1 write 5")
    family.tell("0 write 9")
    family.round([family.parent, family.child])
    for pid in (family.parent, family.child):
        assert differing(family, pid) == []
    assert family.image(family.child)[family.at + 5 * PAGE] != family.image(family.parent)[family.at + 5 * PAGE]


def frame_passes_on(family, monkeypatch):
    """The first task gives up a page that was read already; the other one, alone with the frame now, writes to it in place."""
    frames = []

    def scan(pid, *, protect):
        if pid == family.child:
            frames.append(frame(pid, family.at + 33 * PAGE))
            family.tell("0 drop 33")
            family.tell("1 write 33")
            family.tell("1 fork")  # and shares it again
            frames.append(frame(pid, family.at + 33 * PAGE))
        return scan_written(pid, protect=protect)

    monkeypatch.setattr("emulab.migration.live.scan_written", scan)
    family.round([family.parent, family.child])
    assert frames[0] == frames[1] != 0
    return differing(family, family.child)


def frame(pid, address):
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        return int.from_bytes(os.pread(pagemap.fileno(), 8, address // PAGE * 8), "little") & FRAME


def test_a_frame_that_has_passed_on_is_read_again(family, monkeypatch):
    assert frame_passes_on(family, monkeypatch) == []


def test_a_mistake_would_be_noticed(family, monkeypatch):
    monkeypatch.setattr(SameFrame, "_still", lambda self, task, address, expected: len(expected))
    assert family.at + 33 * PAGE in frame_passes_on(family, monkeypatch)


def test_tasks_that_write_and_fork_all_the_time_keep_what_is_theirs(family):
    for _ in range(3):
        family.tell("0 busy")
        family.tell("1 busy")
    holes = 0
    for _ in range(8):
        tasks = family.tasks()
        family.round(tasks)
        holes += family.holes()
        os.killpg(family.process.pid, signal.SIGSTOP)
        try:
            checked = 0
            for pid in tasks:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                    assert differing(family, pid) == []
                    checked += 1
        finally:
            os.killpg(family.process.pid, signal.SIGCONT)
        assert checked >= 8  # those that stay
    assert holes > PAGES


def test_at_says_up_to_where_a_stretch_goes():
    alike = Alike()
    alike.add("b", 10, 5, ("a", 100))
    alike.add("b", 15, 2, ("a", 0))
    alike.add("b", 30, 1, ("b", 3))
    assert alike.at("b", 0) == (None, 10)
    assert alike.at("b", 12) == (("a", 102), 15)
    assert alike.at("b", 16) == (("a", 1), 17)
    assert alike.at("b", 17) == (None, 30)
    assert alike.at("b", 30) == (("b", 3), 31)
    assert alike.at("b", 31)[0] is alike.at("c", 0)[0] is None
