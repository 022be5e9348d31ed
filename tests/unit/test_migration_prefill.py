"""Memory of large tasks, filled before the restore: by the shim itself, in a program that waits at its gate as CRIU would."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from waiting import wait_until

import emulab.criu
from emulab.criu.commands import CriuCall
from emulab.criu.pagemap import PAGE, PARENT, PRESENT, write_entry, write_head
from emulab.criu.standby import Standby
from emulab.migration.inventory import MANY, Inventory
from emulab.migration.pages import ZERO_REF
from emulab.migration.prefill import Prefill, filled_before
from emulab.migration.strategies import STRATEGIES

NATIVE = Path(emulab.criu.__file__).parent / "native"
BASE = 0x7F1234500000
SOMEWHERE, SEGMENT = 1 << 45, 1 << 36  # as in prefill.c
GIB = 2**30


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler; the node image has its own")
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    sources = [NATIVE / f"{name}.c" for name in ("shim", "prefetch", "premap", "prefill", "pages", "same", "scan")]
    subprocess.run((compiler, "-O1", "-shared", "-fPIC", "-o", built, *sources, "-lpthread"), check=True)
    return built


class Images:
    """What the receiver makes of a round: distinct pages, and for each task its page map and the numbers of its pages."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.distinct = base / "distinct-pages"
        self.distinct.touch()

    def introduce(self, count: int) -> list[int]:
        """Pages that nobody has had."""
        first = self.distinct.stat().st_size // PAGE
        with self.distinct.open("ab") as file:
            file.write(os.urandom(count * PAGE))
        return list(range(first, first + count))

    def folder(self, name: str) -> Path:
        (self.base / name).mkdir()
        return self.base / name

    @staticmethod
    def add(folder: Path, task: int, runs: list[tuple[int, int]], pages: list[int]) -> None:
        """``runs``: (address, pages) of what is in this folder."""
        pagemap = folder / f"pagemap-{task}.img"
        entries = b"".join(write_entry(start, start + count * PAGE, PRESENT) for start, count in runs)
        with pagemap.open("ab") as file:
            file.write(b"" if file.tell() else write_head(task))
            file.write(entries)
        with (folder / f"pages-{task}.img.numbers").open("ab") as file:
            file.write(array("I", pages).tobytes())

    def content(self, number: int) -> bytes:
        with self.distinct.open("rb") as file:
            return os.pread(file.fileno(), PAGE, number * PAGE)


@pytest.fixture
def images(tmp_path):
    return Images(tmp_path)


@pytest.fixture
def standby(shim, images):
    standby = Standby(CriuCall(("sleep", "0"), {"LD_PRELOAD": str(shim), "EMULAB_SHIM_PAGES": str(images.distinct)}))
    yield standby
    standby.close()


@pytest.fixture
def prefill(standby):
    prefill = Prefill(standby, lambda: None, GIB)
    yield prefill
    prefill.close()


def memory(standby, address, pages=1):
    """What stands for a task's memory from this address on: of the first task that was filled."""
    with open(f"/proc/{standby.process.pid}/mem", "rb", buffering=0) as file:
        return os.pread(file.fileno(), pages * PAGE, SOMEWHERE + address % SEGMENT)


def cut(data, *places):
    """As a file arrives."""
    return [data[start:end] for start, end in itertools.pairwise((0, *places, len(data)))]


def fill(prefill, *folders):
    for folder in folders:
        prefill.folder(folder)
    prefill.arrived()
    assert prefill.finish(20)
    return prefill.pages


def test_a_large_tasks_pages_are_in_memory_where_they_belong(prefill, standby, images):
    folder, pages = images.folder("1"), images.introduce(MANY + 300)
    images.add(folder, 1, [(BASE, MANY), (BASE + GIB // 2, 300)], pages)
    assert fill(prefill, folder) == MANY + 300
    for at, number in ((0, pages[0]), (MANY - 1, pages[MANY - 1])):
        assert memory(standby, BASE + at * PAGE) == images.content(number)
    assert memory(standby, BASE + GIB // 2 + 299 * PAGE) == images.content(pages[-1])
    assert memory(standby, BASE + MANY * PAGE) == bytes(PAGE)  # between the two


def test_it_keeps_up_with_what_arrives(prefill, standby, images):
    folder, pages = images.folder("1"), images.introduce(3 * MANY)
    (folder / "pages-1.img.numbers").write_bytes(array("I", pages[: 2 * MANY]).tobytes())
    entries = [write_entry(BASE, BASE + MANY * PAGE, PRESENT), write_entry(BASE + MANY * PAGE, BASE + 3 * MANY * PAGE, PRESENT)]
    prefill.folder(folder)
    for part in cut(write_head(1) + entries[0] + entries[1], 5, 10, len(write_head(1)) + 4, len(write_head(1) + entries[0]) + 3):
        with (folder / "pagemap-1.img").open("ab") as file:
            file.write(part)
        prefill.arrived()
        time.sleep(0.15)  # it looks
    wait_until(lambda: prefill.pages == 2 * MANY, 20)
    images.add(folder, 1, [], pages[2 * MANY :])
    assert fill(prefill) == 3 * MANY
    assert memory(standby, BASE, 3 * MANY) == images.distinct.read_bytes()


def test_pages_written_again_replace_what_was_there(prefill, standby, images):
    first, second = images.folder("1"), images.folder("2")
    images.add(first, 1, [(BASE, MANY)], images.introduce(MANY))
    again = images.introduce(2)
    with (second / "pagemap-1.img").open("wb") as file:
        file.write(write_head(1) + write_entry(BASE, BASE + 5 * PAGE, PARENT))
    images.add(second, 1, [(BASE + 5 * PAGE, 1), (BASE + MANY * PAGE, 1)], again)
    assert fill(prefill, first, second) == MANY + 1
    assert memory(standby, BASE + 4 * PAGE) == images.content(4)
    assert memory(standby, BASE + 5 * PAGE) == images.content(again[0])
    assert memory(standby, BASE + MANY * PAGE) == images.content(again[1])


def test_a_page_that_became_like_others_is_there_no_longer(prefill, standby, images):
    first, second = images.folder("1"), images.folder("2")
    images.add(first, 1, [(BASE, MANY)], images.introduce(MANY))
    images.add(second, 1, [(BASE, 2), (BASE + 7 * PAGE, 2), (BASE + 20 * PAGE, 1)], [ZERO_REF, ZERO_REF, 100, 101, *images.introduce(1)])
    assert fill(prefill, first, second) == MANY
    for page in (0, 1, 7, 8):
        assert memory(standby, BASE + page * PAGE) == bytes(PAGE)
    assert memory(standby, BASE + 9 * PAGE) == images.content(9)
    assert memory(standby, BASE + 20 * PAGE) == images.content(MANY)


def test_small_tasks_and_what_tasks_share_are_left_to_criu(prefill, standby, images):
    folder, pages = images.folder("1"), images.introduce(MANY)
    images.add(folder, 1, [(BASE, MANY)], pages)
    images.add(folder, 2, [(BASE, MANY)], pages)  # forked
    images.add(folder, 3, [(BASE, MANY - 1)], images.introduce(MANY - 1))
    images.add(folder, 4, [(BASE, MANY + 1)], [ZERO_REF] * (MANY + 1))
    assert fill(prefill, folder) == MANY
    assert memory(standby, BASE, MANY) == b"".join(map(images.content, pages))


def test_it_does_not_matter_whose_page_map_comes_first(prefill, images):
    folder, pages = images.folder("1"), images.introduce(2 * MANY)
    images.add(folder, 2, [(BASE, MANY)], pages[MANY:])
    prefill.folder(folder)
    prefill.arrived()
    wait_until(lambda: prefill.pages == MANY, 20)
    images.add(folder, 1, [(BASE, MANY)], pages[:MANY])
    assert fill(prefill) == 2 * MANY


def test_what_is_too_far_away_is_left_out_and_the_rest_is_not(prefill, standby, images):
    folder, pages = images.folder("1"), images.introduce(MANY + 2)
    images.add(folder, 1, [(BASE, MANY), (BASE + 3 * GIB, 1), (BASE + MANY * PAGE, 1)], pages)
    assert fill(prefill, folder) == MANY + 1
    assert memory(standby, BASE + MANY * PAGE) == images.content(pages[-1])


def test_it_ends_where_the_guests_memory_does(standby, images):
    folder = images.folder("1")
    images.add(folder, 1, [(BASE, 2 * MANY)], images.introduce(2 * MANY))
    prefill = Prefill(standby, lambda: None, int(1.5 * MANY * PAGE))
    try:
        again = images.folder("2")
        images.add(again, 1, [(BASE, 1), (BASE + (2 * MANY - 1) * PAGE, 1)], images.introduce(2))
        assert MANY <= fill(prefill, folder, again) <= 1.5 * MANY
        assert memory(standby, BASE) == images.content(2 * MANY)  # what is there does not become stale
        assert memory(standby, BASE + (2 * MANY - 1) * PAGE) == bytes(PAGE)
    finally:
        prefill.close()


@pytest.mark.parametrize("damage", ["killed", "short", "no image"])
def test_it_stops_without_harm_where_something_is_not_as_it_should_be(prefill, standby, images, damage):
    folder = images.folder("1")
    images.add(folder, 1, [(BASE, MANY)], [number + (damage == "short") for number in images.introduce(MANY)])
    if damage == "killed":
        standby.process.kill()
        standby.process.wait()
    elif damage == "no image":
        (folder / "pagemap-1.img").write_bytes(os.urandom(1000))
    prefill.folder(folder)
    prefill.arrived()
    assert not prefill.finish(20)
    assert (standby.process.poll() is None) == (damage != "killed")


def test_criu_begins_when_it_is_told(prefill, standby, images):
    folder = images.folder("1")
    images.add(folder, 1, [(BASE, MANY)], images.introduce(MANY))
    fill(prefill, folder)
    assert standby.go().wait(10) == 0


def test_what_will_be_filled_is_known_before():
    found = Inventory(tasks=2, mappings=40, own_pages=300_000, distinct_pages=280_000, shared_pages=0, large_pages=262_144)
    assert filled_before(found, STRATEGIES["pre-copy"], 1000) == 261_144
    assert filled_before(found, STRATEGIES["hybrid"], 0) == 0
    assert filled_before(found, STRATEGIES["stop-and-copy"], 0) == 0
    assert filled_before(Inventory(2, 40, 3000, 3000, 0, large_pages=3000), STRATEGIES["pre-copy"], 0) == 0
