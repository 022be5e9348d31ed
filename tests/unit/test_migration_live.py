"""Rounds that do not stop the guest: their images say what CRIU's would, and a task's memory is read as it is."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulab.criu.pagemap import PAGE, PARENT, PRESENT, messages, numbers, parse_pagemap
from emulab.migration import live
from emulab.migration.live import SHARED, LiveRounds, joined, merged, open_memory, read_memory, without
from emulab.migration.same_frame import Alike

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def pages_of(ranges):
    return {page for start, end in ranges for page in range(start, end)}


@given(RANGES)
def test_merged_ranges_are_the_same_pages_in_order_and_apart(ranges):
    found = merged(ranges)
    assert pages_of(found) == pages_of(ranges)
    assert all(a < b for a, b in found)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


@given(RANGES, RANGES)
def test_without_is_the_difference(ranges, removed):
    one, other = merged(ranges), merged(removed)
    assert pages_of(without(one, other)) == pages_of(one) - pages_of(other)
    assert merged(without(one, other)) == without(one, other)


@pytest.fixture
def task():
    """A process with three pages of known content; its address."""
    program = (
        "import mmap, ctypes, sys\n"
        "m = mmap.mmap(-1, 3 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m[:] = b'1' * 4096 + b'2' * 4096 + b'3' * 4096\n"
        "print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen((sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process.pid, int(process.stdout.readline())
    process.stdin.close()
    process.wait()
    process.stdout.close()


def test_memory_is_read_in_whole_pages(task):
    pid, at = task
    with open_memory(pid) as memory:
        assert list(read_memory(memory, at + PAGE, at + 3 * PAGE)) == [(at + PAGE, b"2" * PAGE + b"3" * PAGE)]


def test_what_is_not_mapped_is_left_out(task):
    pid, _ = task
    with open_memory(pid) as memory:
        assert list(read_memory(memory, 4096, 8 * 4096)) == []
    with pytest.raises((FileNotFoundError, ProcessLookupError)):
        open_memory(4194304)


@given(RANGES, st.integers(1, 9))
def test_joined_ranges_are_the_same_pages_and_no_larger_than_allowed(ranges, most):
    apart = [(start, start + 1) for start, end in ranges for start in range(start, end)]
    found = list(joined(apart, most))
    assert [page for start, end in found for page in range(start, end)] == [start for start, _ in apart]
    assert all(end - start <= most for start, end in found)
    assert all(end != start or stop - begin + end - start > most for (begin, stop), (start, end) in pairwise(found) if stop == start)


def rounds_over(monkeypatch, tmp_path, pid, *written):
    """Take a round for each of ``written``; returns the folders."""
    folders, taker = [], LiveRounds()
    for number, ranges in enumerate(written, 1):
        monkeypatch.setattr(live, "scan_written", lambda _, *, protect, ranges=ranges: list(ranges) if protect else [])
        folder = tmp_path / str(number)
        folder.mkdir()
        taker.take(folder, [pid], Alike(), lambda: None)
        folders.append(folder)
    return folders


def runs(folder, pid):
    """What a pagemap says, but for the vDSO, which is in every round."""
    (vdso,) = live._vdso(Path(f"/proc/{pid}/maps").read_text().splitlines())
    found = [(run.start, run.end, run.flags) for run in parse_pagemap((folder / f"pagemap-{pid}.img").read_bytes()).runs]
    assert (*vdso, PRESENT) in found
    return [run for run in found if run[:2] != vdso]


def test_each_round_names_what_earlier_ones_have(task, tmp_path, monkeypatch):
    pid, at = task
    first, second, third = rounds_over(monkeypatch, tmp_path, pid, [(at, at + 3 * PAGE)], [(at + PAGE, at + 2 * PAGE)], [])
    assert runs(first, pid) == [(at, at + 3 * PAGE, PRESENT)]
    assert b"1" * PAGE + b"2" * PAGE + b"3" * PAGE in (first / "pages-1.img").read_bytes()
    assert runs(second, pid) == [(at, at + PAGE, PARENT), (at + PAGE, at + 2 * PAGE, PRESENT), (at + 2 * PAGE, at + 3 * PAGE, PARENT)]
    assert b"2" * PAGE in (second / "pages-1.img").read_bytes()
    assert b"3" * PAGE not in (second / "pages-1.img").read_bytes()
    assert runs(third, pid) == [(at, at + 3 * PAGE, PARENT)]


def test_a_page_that_could_not_be_read_is_in_no_image(task, tmp_path, monkeypatch):
    pid, at = task
    first, second, third = rounds_over(monkeypatch, tmp_path, pid, [(4096, 2 * 4096), (at, at + PAGE)], [(at, at + PAGE)], [])
    assert runs(first, pid) == runs(second, pid) == [(at, at + PAGE, PRESENT)]
    assert runs(third, pid) == [(at, at + PAGE, PARENT)]


def test_the_inventory_tells_when_so_that_newer_tasks_take_nothing_from_it(task, tmp_path, monkeypatch):
    pid, _ = task
    (folder,) = rounds_over(monkeypatch, tmp_path, pid, [])
    data = bytes(4) + (folder / "inventory.img").read_bytes()  # it has one magic number less than others
    ((begin, end),) = messages(data)
    fields = {number: value for number, value, _ in numbers(data, begin, end)}
    assert fields[1] == 2
    with open("/proc/uptime") as uptime:
        assert 0 <= float(uptime.read().split()[0]) - fields[8] / 1e6 < 60


def test_shared_memory_travels_once(tmp_path, monkeypatch):
    with mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as memory:
        memory[PAGE : 2 * PAGE] = os.urandom(16) * (PAGE // 16)
        content = memory[PAGE : 2 * PAGE]
        first, second = rounds_over(monkeypatch, tmp_path, os.getpid(), [], [])
        assert content in (first / SHARED).read_bytes()
        assert not (second / SHARED).exists()


def test_what_tasks_share_is_taken_of_the_first_and_what_only_another_has_of_that_one(tmp_path, monkeypatch):
    with mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS) as memory:
        memory[:] = os.urandom(PAGE)
        program = "import mmap, sys; m = mmap.mmap(-1, 4096); m[:] = b'S' * 4096; print('there', flush=True); sys.stdin.read()"
        other = subprocess.Popen((sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "there\n"
        monkeypatch.setattr(live, "scan_written", lambda *_, **__: [])
        LiveRounds().take(tmp_path, [os.getpid(), os.getpid(), other.pid], Alike(), lambda: None)
        other.communicate()
        found = (tmp_path / SHARED).read_bytes()
        assert found.count(memory[:]) == 1
        assert found.count(b"S" * PAGE) == 1


def test_a_task_that_has_ended_is_left_out(tmp_path, monkeypatch):
    (folder,) = rounds_over(monkeypatch, tmp_path, 4194304, [])
    assert {path.name for path in folder.glob("pages-[0-9]*")} == set()
