"""Pages between source and destination of a post-copy: what crosses once, what is remembered, what is refused."""

from __future__ import annotations

import os
from array import array

import pytest
import zstandard
from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.lazy.exchange import ONCE, PAGE, STORED, ZERO, NotKeptError, PageTaker, PageTeller, runs


def page(number):
    return number.to_bytes(4, "big") * (PAGE // 4)


def send(teller, taker, pages, *, shared=True):
    refs, content, proof = teller.answer(b"".join(pages), [shared] * len(pages))
    assert [one or bytes(PAGE) for one in taker.take(refs, content, proof, len(pages))] == pages
    return len(refs) + len(content)


def test_what_arrives_is_what_was_sent():
    teller, taker = PageTeller(), PageTaker()
    pages = [page(1), bytes(PAGE), page(2), page(1), os.urandom(PAGE)]
    send(teller, taker, pages)
    send(teller, taker, list(reversed(pages)))
    assert (teller.pages, teller.zero_pages, teller.distinct_pages) == (10, 2, 3)


def test_a_page_that_tasks_share_crosses_once():
    teller, taker = PageTeller(), PageTaker()
    pages = [os.urandom(PAGE) for _ in range(50)]
    assert send(teller, taker, pages) > 50 * PAGE
    for _ in range(5):
        assert send(teller, taker, pages) == 4 * 50


def test_a_page_of_one_task_is_not_remembered():
    teller, taker = PageTeller(), PageTaker()
    for _ in range(2):
        assert send(teller, taker, [os.urandom(PAGE)] * 2, shared=False) > 2 * 4
    assert taker._known == []


def test_a_page_that_is_remembered_serves_one_of_a_single_task_too():
    teller, taker = PageTeller(), PageTaker()
    one = os.urandom(PAGE)
    send(teller, taker, [one])
    assert send(teller, taker, [one], shared=False) == 4


class Kept:
    """Pages that the destination has kept, and how it offers them."""

    def __init__(self, pages):
        self.pages = list(pages)
        self._places = {blake3(one).digest(): n for n, one in enumerate(pages)}
        self.message = b""

    def find(self, digest):
        return self._places.get(digest)

    def read(self, number):
        if number >= len(self.pages):
            raise OSError("cut off")
        return self.pages[number]


def test_a_page_that_the_destination_has_kept_crosses_as_its_number():
    kept = Kept([os.urandom(PAGE) for _ in range(40)])
    teller, taker = PageTeller(kept), PageTaker(kept.read)
    assert send(teller, taker, [*kept.pages, bytes(PAGE)], shared=False) == 4 * 41
    assert send(teller, taker, [kept.pages[7], os.urandom(PAGE), kept.pages[3]]) > PAGE
    assert (teller.stored_pages, teller.distinct_pages, teller.pages) == (42, 43, 44)


def test_a_kept_page_that_is_not_as_it_was_is_not_used():
    kept = Kept([os.urandom(PAGE) for _ in range(4)])
    answer = PageTeller(kept).answer(b"".join(kept.pages), [False] * 4)
    PageTaker(kept.read).take(*answer, 4)
    kept.pages[2] = os.urandom(PAGE)
    with pytest.raises(NotKeptError, match="another one"):
        PageTaker(kept.read).take(*answer, 4)
    del kept.pages[2:]
    with pytest.raises(NotKeptError, match="cannot be read"):
        PageTaker(kept.read).take(*answer, 4)


def compressed(*pages):
    return zstandard.ZstdCompressor().compress(b"".join(pages))


@pytest.mark.parametrize(
    ("refs", "content", "asked"),
    [
        pytest.param([5], compressed(page(1)), 1, id="a page that was never introduced"),
        pytest.param([0], b"", 1, id="a new page without content"),
        pytest.param([STORED], b"", 1, id="a page that was never kept"),
        pytest.param([ONCE, ONCE], compressed(page(1)), 2, id="less content than pages"),
        pytest.param([ZERO, ZERO], compressed(page(1)), 2, id="more content than pages"),
        pytest.param([ZERO], b"", 2, id="fewer pages than were asked for"),
        pytest.param([ONCE], compressed(page(1), page(2)), 1, id="content larger than the question"),
        pytest.param([ONCE], b"no frame", 1, id="content that cannot be unpacked"),
        pytest.param([ZERO] * 2000, b"", 2000, id="more than anybody asks for"),
    ],
)
def test_an_answer_that_does_not_add_up_is_refused(refs, content, asked):
    with pytest.raises(EmulabError):
        PageTaker().take(array("I", refs).tobytes(), content, b"", asked)


def test_runs_of_pages_that_can_be_filled_in_one_call():
    assert list(runs([b"a", b"b", None, None, b"c"])) == [(0, 2, False), (2, 4, True), (4, 5, False)]
    assert list(runs([None])) == [(0, 1, True)]
    assert list(runs([])) == []
