"""Memory pages on the wire: the files arrive byte for byte, and every distinct page crosses once."""

from __future__ import annotations

import os
from array import array

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.errors import EmulabError
from emulab.migration.pages import CHUNK_PAGES, PAGE, ZERO_REF, Chunk, PageReceiver, PageSender

# A few kinds of page, so that repeats are common: 0 is the zero page.
KINDS = [bytes(PAGE), *(bytes([n]) * PAGE for n in range(1, 5)), b"\0" * (PAGE - 1) + b"\1", b"\1" + b"\0" * (PAGE - 1)]
FILES = st.lists(st.lists(st.integers(0, len(KINDS) - 1), max_size=12), min_size=1, max_size=4)


def pages(*kinds):
    return b"".join(KINDS[kind] for kind in kinds)


def unique(count):
    return os.urandom(count * PAGE)


class Ends:
    """A sender and a receiver of one migration, joined."""

    def __init__(self, folder):
        self.folder = folder
        self.sender, self.receiver = PageSender(), PageReceiver()
        self.chunks = []

    def move(self, name, content):
        """Send a file; returns what arrived."""
        there, here = self.folder / f"there-{name}", self.folder / f"here-{name}"
        there.write_bytes(content)
        number = self.receiver.open(here, len(content) // PAGE)
        for chunk in self.sender.chunks(there):
            self.chunks.append(chunk)
            self.receiver.write(number, chunk)
        return here.read_bytes()

    @property
    def pages_carried(self):
        unpack = zstandard.ZstdDecompressor().decompress
        return sum(len(unpack(chunk.content)) for chunk in self.chunks if chunk.content) // PAGE


@pytest.fixture
def ends(tmp_path):
    ends = Ends(tmp_path)
    yield ends
    ends.receiver.close()


@settings(max_examples=60, deadline=None)
@given(FILES)
def test_files_arrive_byte_for_byte_and_no_page_twice(tmp_path_factory, files):
    ends = Ends(tmp_path_factory.mktemp("pages"))
    contents = [pages(*kinds) for kinds in files]
    try:
        assert [ends.move(n, content) for n, content in enumerate(contents)] == contents
    finally:
        ends.receiver.close()
    distinct = {kind for kinds in files for kind in kinds} - {0}
    assert ends.pages_carried == ends.sender.distinct_pages == len(distinct)
    assert ends.sender.pages == sum(map(len, files))
    assert ends.sender.zero_pages == sum(kinds.count(0) for kinds in files)


def test_zero_pages_cost_a_reference_each(ends):
    assert ends.move("zero", bytes(300 * PAGE)) == bytes(300 * PAGE)
    assert ends.pages_carried == 0


def test_a_page_repeated_in_a_later_round_is_a_reference(ends):
    first = unique(5)
    ends.move("1-pages", first)
    assert ends.move("2-pages", first[PAGE:] + first[:PAGE]) == first[PAGE:] + first[:PAGE]
    assert ends.pages_carried == 5


def test_files_of_several_chunks_arrive_whole(ends):
    content = unique(7) * (CHUNK_PAGES // 3)
    assert ends.move("big", content) == content
    assert len(ends.chunks) == 3
    assert ends.pages_carried == 7


def test_a_page_may_refer_to_one_of_the_same_chunk_that_is_not_yet_written(ends):
    content = unique(2)
    assert ends.move("twice", content + content) == content + content


def test_an_empty_file_is_a_file(ends):
    assert ends.move("empty", b"") == b""
    assert (ends.folder / "here-empty").exists()


def test_pages_written_out_of_order_land_where_they_belong(tmp_path):
    receiver = PageReceiver()
    number = receiver.open(tmp_path / "pages-1.img", 4)
    content = zstandard.compress(pages(1))
    receiver.write(number, Chunk(2, array("I", [0, ZERO_REF]).tobytes(), content))
    receiver.write(number, Chunk(0, array("I", [ZERO_REF, 0]).tobytes(), b""))
    receiver.close()
    assert (tmp_path / "pages-1.img").read_bytes() == pages(0, 1, 1, 0)


def chunk(*refs, content=b"", first=0):
    return Chunk(first, array("I", refs).tobytes(), zstandard.compress(content) if content else b"")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (chunk(3), "page 3 was never sent"),
        (chunk(0), "without its content"),
        (chunk(0, 1, content=pages(1)), "without its content"),
        (chunk(ZERO_REF, content=pages(1)), "nothing refers to"),
        (chunk(0, content=pages(1, 2)), "nothing refers to"),
        (chunk(0, content=pages(1)[:-1]), "without its content"),
        (Chunk(0, array("I", [0]).tobytes(), b"not zstandard"), "cannot be unpacked"),
        (Chunk(0, b"\0\0\0", b""), "not a list of references"),
        (chunk(0, content=pages(1), first=2), "outside of its file"),
        (chunk(0, content=pages(1), first=-1), "outside of its file"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, bad, why):
    receiver = PageReceiver()
    number = receiver.open(tmp_path / "pages-1.img", 2)
    with pytest.raises(EmulabError, match=why):
        receiver.write(number, bad)
    receiver.close()


def test_a_small_message_cannot_unpack_to_more_than_its_references_say(tmp_path):
    receiver = PageReceiver()
    number = receiver.open(tmp_path / "pages-1.img", 2)
    bomb = Chunk(0, array("I", [0]).tobytes(), zstandard.compress(bytes(256 * 1024 * 1024)))
    with pytest.raises(EmulabError, match="nothing refers to"):
        receiver.write(number, bomb)
    receiver.close()
