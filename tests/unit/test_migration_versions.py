"""Pages rewritten in part: only the difference crosses, whatever the page maps say."""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.migration.images import FolderReceiver, FolderSender, send_folder
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.page_sender import PageSender
from emulab.migration.pages import CHUNK_PAGES, DISTINCT, PAGE
from emulab.migration.versions import LEAST_PAGES, NONE, Versions

sys.path.insert(0, str(Path(__file__).parents[1]))
from wire import Wire, arrived

PARENT, PRESENT = 1, 4
BASE = 0x7F0000000000


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def pagemap(number, runs):
    """Image of a page map: (address, pages, flags) per run, as CRIU writes it."""
    messages = [b"\x08" + varint(number)]
    messages += [
        b"\x08" + varint(address) + b"\x10" + varint(count) + b"\x20" + varint(flags) + b"\x28" + varint(count)
        for address, count, flags in runs
    ]
    return struct.pack("<II", 0x54564319, 0x56084025) + b"".join(struct.pack("<I", len(one)) + one for one in messages)


def write(folder, pages, runs, *, task=17, number=1):
    folder.mkdir(parents=True)
    (folder / f"pagemap-{task}.img").write_bytes(pagemap(number, runs))
    (folder / f"pages-{number}.img").write_bytes(b"".join(pages))


class Move:
    """Rounds of one migration over one connection."""

    def __init__(self, base):
        self.there, self.here = base / "there", base / "here"
        self.here.mkdir(parents=True)
        self.sender, self.pages, self.wire = PageSender(), PageReceiver(self.here / DISTINCT), Wire()
        self.receiver = FolderReceiver(self.here, self.pages)

    def round(self, name):
        """Send a folder; returns how many bytes it took."""
        before = self.wire.bytes_out
        send_folder(self.wire, self.there / name, self.sender)
        assert self.wire.deliver(self.receiver) is True
        found = arrived(self.here / name, self.here / DISTINCT)
        for path in (self.there / name).iterdir():
            assert found[path.name] == path.read_bytes()
        return self.wire.bytes_out - before


@pytest.fixture
def move(tmp_path):
    move = Move(tmp_path)
    yield move
    move.pages.close()


def touched(page, count=8):
    changed = bytearray(page)
    at = random.Random(page[:8]).randrange(PAGE - count)
    changed[at : at + count] = os.urandom(count)
    return bytes(changed)


def test_only_what_has_changed_in_a_page_crosses(move):
    first = [os.urandom(PAGE) for _ in range(1500)]
    write(move.there / "1", first, [(BASE, 1500, PRESENT)])
    second = [touched(page) for page in first[100:900]]
    write(move.there / "2", second, [(BASE, 100, PARENT), (BASE + 100 * PAGE, 800, PRESENT), (BASE + 900 * PAGE, 600, PARENT)])
    third = [touched(page) for page in second[:400]] + [touched(page) for page in first[900:1000]]
    write(move.there / "3", third, [(BASE + 100 * PAGE, 400, PRESENT), (BASE + 900 * PAGE, 100, PRESENT)], number=3)
    assert move.round("1") > 1500 * PAGE
    assert move.round("2") < 800 * 60
    assert move.sender.changed_pages == 800
    assert move.round("3") < 500 * 60
    assert move.sender.changed_pages == 1300


def test_a_page_that_was_rewritten_is_sent_whole(move):
    write(move.there / "1", [os.urandom(PAGE) for _ in range(300)], [(BASE, 300, PRESENT)])
    write(move.there / "2", [os.urandom(PAGE) for _ in range(300)], [(BASE, 300, PRESENT)])
    move.round("1")
    move.round("2")
    assert move.sender.changed_pages == 0


def test_a_page_that_was_zero_has_no_earlier_version(move):
    write(move.there / "1", [bytes(PAGE)] * 300, [(BASE, 300, PRESENT)])
    write(move.there / "2", [touched(bytes(PAGE)) for _ in range(300)], [(BASE, 300, PRESENT)])
    move.round("1")
    move.round("2")
    assert move.sender.changed_pages == 0


def test_another_task_at_the_same_address_is_another_page(move):
    first = [os.urandom(PAGE) for _ in range(300)]
    write(move.there / "1", first, [(BASE, 300, PRESENT)], task=17)
    write(move.there / "2", [touched(page) for page in first], [(BASE, 300, PRESENT)], task=18)
    move.round("1")
    move.round("2")
    assert move.sender.changed_pages == 0


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"\xff" * 200, os.urandom(500)])
def test_a_page_map_that_cannot_be_read_costs_only_bytes(move, damage):
    first = [os.urandom(PAGE) for _ in range(300)]
    write(move.there / "1", first, [(BASE, 300, PRESENT)])
    write(move.there / "2", [touched(page) for page in first], [(BASE, 300, PRESENT)])
    (move.there / "2" / "pagemap-17.img").write_bytes(damage)
    move.round("1")
    move.round("2")
    assert move.sender.changed_pages == 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(256, 700), st.sampled_from(["touch", "rewrite", "zero", "copy"])), max_size=4))
def test_whatever_is_written_between_rounds_arrives(tmp_path_factory, rounds):
    move = Move(tmp_path_factory.mktemp("versions"))
    memory = [os.urandom(PAGE) for _ in range(1300)]
    write(move.there / "0", memory, [(BASE, len(memory), PRESENT)])
    move.round("0")
    for n, (first, count, kind) in enumerate(rounds, 1):
        for at in range(first, first + count):
            old = memory[at]
            memory[at] = {
                "touch": touched,
                "rewrite": lambda _: os.urandom(PAGE),
                "zero": lambda _: bytes(PAGE),
                "copy": lambda _: memory[0],
            }[kind](old)
        write(move.there / str(n), memory[first : first + count], [(BASE + first * PAGE, count, PRESENT)])
        move.round(str(n))
    move.pages.close()


def test_pages_wait_for_their_addresses_but_not_for_ever(tmp_path):
    versions = Versions()
    for name in ("1", "2"):
        versions.begin(tmp_path / name)
        (tmp_path / name).mkdir()
    name = "pages-1.img"
    assert versions.ready(name, LEAST_PAGES - 1) == LEAST_PAGES - 1  # too few to be worth it
    assert versions.ready(name, 1000) == 0
    assert versions.ready(name, 5000) == 5000 - 4 * LEAST_PAGES
    whole = pagemap(1, [(BASE, 700, PRESENT), (BASE + 4096 * PAGE, 300, PRESENT)])
    (tmp_path / "2" / "pagemap-9.img").write_bytes(whole[:-3])
    assert versions.ready(name, 1000) == 700
    (tmp_path / "2" / "pagemap-9.img").write_bytes(whole)
    assert versions.ready(name, 1000) == 1000


def test_the_newest_version_counts(tmp_path):
    versions = Versions()
    for name, numbers in (("1", range(300)), ("2", [NONE, *range(1000, 1299)]), ("3", ())):
        folder = tmp_path / name
        write(folder, [], [(BASE, 300, PRESENT)])
        versions.begin(folder)
        versions.sent("pages-1.img", list(numbers))
    assert versions.before("pages-1.img", 0, 300) == [None, *range(1000, 1299)]


def test_a_stream_without_an_earlier_round_waits_for_nothing(tmp_path):
    folder = tmp_path / "1"
    folder.mkdir()
    (folder / "pages-1.img").write_bytes(os.urandom(600 * PAGE))
    wire = Wire()
    stream = FolderSender(wire, folder, PageSender())
    stream.finish()
    sizes = [sum(count for _, _, count in message.fields["parts"]) for message in wire.sent if message.kind == "chunk"]
    assert sizes == [CHUNK_PAGES, CHUNK_PAGES, 600 - 2 * CHUNK_PAGES]
