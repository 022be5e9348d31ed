"""Memory pages on the wire: the files arrive byte for byte, every distinct page crosses once, and nothing else is ever accepted."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.errors import EmulabError
from emulab.migration.compression import NEW_STREAM, RAW
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.page_sender import PageSender
from emulab.migration.pages import CHUNK_PAGES, CHUNK_REFS, DISTINCT, PAGE, STORED, ZERO_REF, Chunk, Part, pack_refs, unpack_refs
from emulab.migration.store import Offered, Visit, kept

sys.path.insert(0, str(Path(__file__).parents[1]))
from wire import arrived

# A few kinds of page, so that repeats are common: 0 is the zero page, from FRESH on no compressor can do anything.
KINDS = [bytes(PAGE), *(bytes([n]) * PAGE for n in range(1, 5)), b"\0" * (PAGE - 1) + b"\1", b"\1" + b"\0" * (PAGE - 1)]
FRESH = len(KINDS)
KINDS += [os.urandom(PAGE) for _ in range(4)]
FILES = st.lists(st.lists(st.integers(0, len(KINDS) - 1), max_size=12), min_size=1, max_size=4)
SLOW, FAST = 1e6, 1e12  # links at which the compressor and nothing is chosen


def pages(*kinds):
    return b"".join(KINDS[kind] for kind in kinds)


def unique(count):
    return os.urandom(count * PAGE)


class Ends:
    """A sender and a receiver of one migration, joined."""

    def __init__(self, folder, *, rate=SLOW, kept_there=None):
        self.there, self.here = folder / "there", folder / "here"
        for one in (self.there, self.here):
            one.mkdir(parents=True)
        self.visit = None
        self.sender = PageSender(lambda: rate)
        if kept_there is not None:
            write_store(folder, kept_there)
            self.visit = Visit("web", folder / "store")
            self.sender.refer_to(Offered(self.visit.offer()))
        self.distinct = folder / DISTINCT
        self.receiver = PageReceiver(self.distinct, self.visit)
        self.carried = 0

    def pack(self, *files):
        """Chunks of files (name, content) in the order of their pages."""
        parts, data = [], b""
        for name, content in files:
            (self.there / name).write_bytes(content)
            at, pages_left = 0, len(content) // PAGE
            while pages_left or not at:
                take = min(pages_left, CHUNK_PAGES - len(data) // PAGE)
                parts.append(Part(name, at, take))
                data += content[at * PAGE : (at + take) * PAGE]
                at, pages_left = at + take, pages_left - take
                if len(data) == CHUNK_PAGES * PAGE:
                    yield self.sender.pack(self.sender.name(self.there, parts, data))
                    parts, data = [], b""
                if not content:
                    break
        if parts:
            yield self.sender.pack(self.sender.name(self.there, parts, data))

    def move(self, *files):
        """Send files; returns what arrived."""
        for chunk in self.pack(*files):
            self.carried += len(chunk.content)
            self.receiver.write(self.here, chunk)
        found = self.arrived()
        return [found[name] for name, _ in files]

    def arrived(self):
        return arrived(self.here, self.distinct)

    def close(self):
        self.sender.close()
        self.receiver.close()
        if self.visit:
            self.visit.close()


def write_store(folder, content):
    source = folder / "kept-from"
    source.write_bytes(content)
    kept("web", [(source, n) for n in range(len(content) // PAGE)], folder / "store")


@pytest.fixture
def ends(tmp_path):
    ends = Ends(tmp_path)
    yield ends
    ends.close()


@settings(max_examples=80, deadline=None)
@given(FILES, st.lists(st.integers(1, len(KINDS) - 1), unique=True), st.sampled_from([SLOW, FAST]))
def test_files_arrive_byte_for_byte_and_no_page_twice(tmp_path_factory, files, stored, rate):
    ends = Ends(tmp_path_factory.mktemp("pages"), rate=rate, kept_there=pages(*stored))
    named = [(f"pages-{n}.img", pages(*kinds)) for n, kinds in enumerate(files)]
    try:
        half = len(named) // 2  # two rounds
        assert ends.move(*named[:half]) + ends.move(*named[half:]) == [content for _, content in named]
    finally:
        ends.close()
    distinct = {kind for kinds in files for kind in kinds} - {0}
    assert ends.sender.distinct_pages == len(distinct)
    assert ends.sender.stored_pages == len(distinct & set(stored))
    assert ends.sender.pages == sum(map(len, files))
    assert ends.sender.zero_pages == sum(kinds.count(0) for kinds in files)
    if rate == FAST:
        assert ends.carried == len(distinct - set(stored)) * PAGE


@settings(max_examples=60, deadline=None)
@given(FILES, st.sampled_from([1, 2, 3]))
def test_pages_of_one_name_are_not_taken_for_each_other(tmp_path_factory, files, names):
    """A name only proposes: here a few names are all there are, as a guest might wish that could foresee them."""
    ends = Ends(tmp_path_factory.mktemp("pages"))
    named = [(f"pages-{n}.img", pages(*kinds)) for n, kinds in enumerate(files)]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("emulab.migration.page_sender.xxh3_64_intdigest", lambda page, seed: sum(page[:8]) % names)
            assert ends.move(*named) == [content for _, content in named]
    finally:
        ends.close()


def test_what_was_written_a_moment_ago_is_not_looked_for_among_what_is_kept(tmp_path):
    kept_there, again = unique(20), unique(1)
    ends = Ends(tmp_path, kept_there=kept_there + again)
    try:
        assert ends.move(("pages-1.img", kept_there)) == [kept_there]
        ends.sender.look_no_more()
        assert ends.move(("pages-2.img", kept_there + again)) == [kept_there + again]
        assert ends.sender.stored_pages == 20
    finally:
        ends.close()


@settings(max_examples=120, deadline=None)
@given(FILES, st.lists(st.integers(1, len(KINDS) - 1), unique=True), st.sampled_from([SLOW, FAST]), st.data())
def test_whatever_is_changed_on_the_way_is_refused_or_changes_nothing(tmp_path_factory, files, stored, rate, data):
    ends = Ends(tmp_path_factory.mktemp("pages"), rate=rate, kept_there=pages(*stored))
    named = [(f"pages-{n}.img", pages(*kinds)) for n, kinds in enumerate(files)]
    chunks = list(ends.pack(*named))
    victim = data.draw(st.integers(0, len(chunks) - 1))
    field = data.draw(st.sampled_from(["digest", "refs", "content"]))
    value = bytearray(getattr(chunks[victim], field))
    if value:
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    chunks[victim] = replace(chunks[victim], **{field: bytes(value)})
    try:
        for chunk in chunks:
            ends.receiver.write(ends.here, chunk)
    except EmulabError:
        written = b"".join(content for _, content in sorted(ends.arrived().items()))
        assert b"".join(content for _, content in named).startswith(written)
    else:  # such as an unused bit of the compressor's own header
        assert ends.arrived() == dict(named)
        assert field != "digest"
    finally:
        ends.close()


def test_zero_pages_are_neither_sent_nor_written(ends):
    assert ends.move(("pages-1.img", bytes(300 * PAGE))) == [bytes(300 * PAGE)]
    assert ends.carried == 0
    assert ends.distinct.stat().st_size == (ends.here / "pages-1.img").stat().st_size == 0


def test_a_page_is_kept_once_however_many_files_have_it(ends):
    content = unique(3)
    assert ends.move(("1", content * 20), ("2", content), ("3", content[PAGE:])) == [content * 20, content, content[PAGE:]]
    assert ends.distinct.read_bytes() == content


def test_a_page_repeated_in_a_later_round_is_a_reference(tmp_path):
    ends = Ends(tmp_path, rate=FAST)
    first = unique(5)
    ends.move(("1", first))
    assert ends.move(("2", first[PAGE:] + first[:PAGE])) == [first[PAGE:] + first[:PAGE]]
    assert ends.carried == 5 * PAGE
    ends.close()


def test_files_of_several_chunks_and_chunks_of_several_files_arrive_whole(tmp_path):
    ends = Ends(tmp_path, rate=FAST)
    big, small = unique(7) * (CHUNK_PAGES // 3), unique(3)
    assert ends.move(("a", small), ("b", big), ("c", small), ("d", big[: 5 * PAGE])) == [small, big, small, big[: 5 * PAGE]]
    assert ends.carried == 10 * PAGE
    ends.close()


def test_a_page_may_refer_to_one_of_the_same_chunk_that_is_not_yet_written(ends):
    content = unique(2)
    again = content + content + content[PAGE:] + unique(1) + content
    assert ends.move(("twice", again)) == [again]


def test_an_empty_file_is_a_file(ends):
    assert ends.move(("empty", b"")) == [b""]


def test_a_page_that_was_changed_in_part_is_found_in_what_was_sent_before(ends):
    first = b"".join(os.urandom(PAGE // 2).hex().encode() for _ in range(900))
    ends.move(("1", first))
    before = ends.carried
    second = bytearray(first)
    for at in range(0, len(second), PAGE):
        second[at + 100 : at + 108] = os.urandom(8)
    assert ends.move(("2", bytes(second))) == [bytes(second)]
    assert ends.carried - before < len(second) * 0.05


# -- what cannot be right ------------------------------------------------------------------------------------------------------------------


def chunk(*refs, content=b"", first=0, kind=None, size=None):
    packed = zstandard.compress(content) if content and kind != RAW else content
    count = len(refs) if size is None else size
    return Chunk((Part("pages-1.img", first, count),), bytes(32), pack_refs(refs), NEW_STREAM if kind is None else kind, packed)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (chunk(3), "page 3 was never sent"),
        (chunk(0), "without its content"),
        (chunk(0, 1, content=pages(1)), "without its content"),
        (chunk(0, 1, content=pages(1), kind=RAW), "without its content"),
        (chunk(ZERO_REF, content=pages(1)), "nothing refers to"),
        (chunk(0, content=pages(1, 2)), "not what was sent"),
        (chunk(0, content=pages(1, 2), kind=RAW), "nothing refers to"),
        (chunk(0, content=pages(1)[:-1]), "without its content"),
        (chunk(0, content=pages(1), kind=1), "continues nothing"),
        (chunk(0, content=pages(1), kind=9), "continues nothing"),
        (replace(chunk(0), content=b"not zstandard"), "cannot be unpacked"),
        (replace(chunk(0), refs=b"\0\0\0"), "not a list of references"),
        (replace(chunk(0), refs=zstandard.compress(b"\0\0\0")), "not a list of references"),
        (chunk(*[ZERO_REF] * (CHUNK_REFS + 1)), "more references"),
        (chunk(0, content=pages(1), first=2), "out of order"),
        (chunk(0, content=pages(1), first=-1), "out of order"),
        (chunk(0, content=pages(1), size=2), "other pages than it names"),
        (replace(chunk(0, content=pages(1)), parts=(Part("a", 0, 2), Part("b", 0, -1))), "out of order"),
        (chunk(STORED), "never offered"),
        (chunk(0, content=pages(1)), "not what was sent"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, bad, why):
    receiver = PageReceiver(tmp_path / DISTINCT)
    with pytest.raises(EmulabError, match=why):
        receiver.write(tmp_path, bad)
    receiver.close()
    assert all(path.stat().st_size == 0 for path in tmp_path.iterdir())


def test_a_small_message_cannot_unpack_to_more_than_its_references_say(tmp_path):
    receiver = PageReceiver(tmp_path / DISTINCT)
    with pytest.raises(EmulabError, match="not what was sent"):
        receiver.write(tmp_path, chunk(0, content=bytes(256 * 1024 * 1024)))
    receiver.close()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "pages-1.img").symlink_to("elsewhere")
    receiver = PageReceiver(tmp_path / DISTINCT)
    with pytest.raises(OSError, match="symbolic link"):
        receiver.write(tmp_path, chunk(ZERO_REF))
    receiver.close()


@given(st.lists(st.integers(0, ZERO_REF), max_size=CHUNK_REFS))
def test_references_are_packed_without_loss(refs):
    assert unpack_refs(pack_refs(refs)) == refs


def test_references_that_follow_each_other_cost_next_to_nothing():
    assert len(pack_refs(range(40_000, 41_000))) < 40
