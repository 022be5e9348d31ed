"""Questions about a task's pages, answered from one scan of all of them: as the kernel would answer each."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

import emulab.criu
from emulab.criu import dirty

NATIVE = Path(emulab.criu.__file__).parent / "native"
PAGE = 4096
_ASK = """
#define _GNU_SOURCE
#include "shim.h"
int scan_ask(int pagemap, struct pm_scan_arg_ *question) { return ioctl(pagemap, PAGEMAP_SCAN_, question); }
"""
_NONE = dirty._FILE | dirty._PFNZERO
_SOFT_DIRTY = 1 << 7
_KINDS = dirty._PRESENT | dirty._SWAPPED | _SOFT_DIRTY


def build(folder):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler; the node image has its own")
    (folder / "ask.c").write_text(_ASK)
    sources = (folder / "ask.c", NATIVE / "scan.c")
    subprocess.run((compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-I", NATIVE, "-o", folder / "scan.so", *sources), check=True)
    return str(folder / "scan.so")


def touched_memory(pages):
    """Of these pages some were written, some only read, some never touched."""
    area = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(pages):
        if (use := random.random()) < 0.5:
            area[page * PAGE] = 1
        elif use < 0.6:
            area[page * PAGE]
    return area


def ask(answer, start, end, room, **changed):
    """(count or None for no answer, regions, where the answer ends) of a question such as CRIU's."""
    regions = (dirty._Region * room)()
    fields = {
        "size": ctypes.sizeof(dirty._Scan), "start": start, "end": end, "vec": ctypes.addressof(regions), "vec_len": room,
        "category_inverted": _NONE, "category_mask": _NONE, "category_anyof_mask": dirty._PRESENT | dirty._SWAPPED, "return_mask": _KINDS,
    }  # fmt: skip
    question = dirty._Scan(**{**fields, **changed})
    count = answer(question)
    return count, [(region.start, region.end, region.categories) for region in regions[: count or 0]], question.walk_end


def compare(path):
    """How many of 500 answers were cut off for want of room; each is the kernel's. None where the kernel cannot be asked."""
    native = ctypes.CDLL(path, use_errno=True)
    native.scan_all.restype = ctypes.c_void_p
    native.scan_answer.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    area = touched_memory(400)
    first = ctypes.addressof(ctypes.c_char.from_buffer(area))

    def kernel(question):
        return native.scan_ask(pagemap, ctypes.byref(question))

    if ask(kernel, first, first + PAGE, 1)[0] < 0:
        return None
    everything = native.scan_all(pagemap)
    assert everything

    def prepared(question):
        result = ctypes.c_int()
        return result.value if native.scan_answer(everything, ctypes.byref(question), ctypes.byref(result)) else None

    cut_off = 0
    for _ in range(500):
        start, end = sorted(random.sample(range(401), 2))
        place = first + start * PAGE, first + end * PAGE, random.choice([1, 3, 1000])
        kinds = random.choice([_KINDS, dirty._PRESENT, dirty._PRESENT | dirty._SWAPPED])
        said = ask(prepared, *place, return_mask=kinds)
        assert said == ask(kernel, *place, return_mask=kinds)
        cut_off += said[2] < place[1]
    for other in ({"return_mask": 1 << 20}, {"flags": 1}, {"max_pages": 5}, {"category_mask": 0}):
        assert ask(prepared, first, first + PAGE, 5, **other)[0] is None  # it has to be asked
    return cut_off


def test_each_answer_is_the_kernel_s(tmp_path):
    """In a process of its own: the memory of one that ran other tests has more parts than are kept."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        cut_off = process.apply(compare, (build(tmp_path),))
    if cut_off is None:
        pytest.skip("PAGEMAP_SCAN came with Linux 6.7")
    assert 50 < cut_off < 450
