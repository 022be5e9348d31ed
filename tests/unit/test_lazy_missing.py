"""The map of a task's missing pages, kept up while the task changes its address space; compared with a page-by-page model."""

from __future__ import annotations

import random

import pytest

from emulab.migration.lazy.missing import Missing, Segment

PAGE = 4096


def pages(missing):
    """{page now: page at the freeze}"""
    found = {}
    for segment in missing:
        for at in range(0, segment.size, PAGE):
            assert segment.start + at not in found
            found[segment.start + at] = segment.origin + at
    return found


def segment(first, last):
    return Segment(first * PAGE, last * PAGE, first * PAGE)


def test_a_page_is_found_by_its_address_until_it_is_taken():
    missing = Missing([segment(10, 20), segment(30, 31)])
    assert missing.find(10 * PAGE).origin == 10 * PAGE
    assert missing.find(30 * PAGE)
    for outside in (9, 20, 29, 31):
        assert missing.find(outside * PAGE) is None
    assert [one.size for one in missing.take(15 * PAGE, 16 * PAGE)] == [PAGE]
    assert missing.find(15 * PAGE) is None
    assert (missing.find(14 * PAGE).end, missing.find(16 * PAGE).origin) == (15 * PAGE, 16 * PAGE)
    assert missing.size == 10 * PAGE


def test_what_was_moved_keeps_its_origin():
    """mremap() in the task: the source still knows the page by its old address."""
    missing = Missing([segment(10, 20)])
    missing.remap(12 * PAGE, 100 * PAGE, 4 * PAGE)
    assert missing.find(12 * PAGE) is None
    moved = missing.find(101 * PAGE)
    assert (moved.start, moved.origin) == (100 * PAGE, 12 * PAGE)
    assert missing.size == 10 * PAGE


def test_what_is_moved_to_takes_the_place_of_what_was_there():
    missing = Missing([segment(10, 12), segment(20, 24)])
    missing.remap(10 * PAGE, 21 * PAGE, 2 * PAGE)
    assert [(now // PAGE, then // PAGE) for now, then in pages(missing).items()] == [(20, 20), (21, 10), (22, 11), (23, 23)]


def test_the_next_pages_begin_where_the_last_fault_was_and_go_round():
    missing = Missing([segment(10, 12), segment(20, 30)])
    assert [(one.start // PAGE, one.end // PAGE) for one in missing.take_next(25 * PAGE, 3 * PAGE)] == [(25, 28)]
    assert [(one.start // PAGE, one.end // PAGE) for one in missing.take_next(26 * PAGE, 9 * PAGE)] == [(28, 30)]
    assert [(one.start // PAGE, one.end // PAGE) for one in missing.take_next(30 * PAGE, 4 * PAGE)] == [(10, 12), (20, 22)]
    assert missing.size == 3 * PAGE


def test_a_child_has_its_own_copy():
    missing = Missing([segment(0, 4)])
    child = missing.copy()
    missing.take(0, 2 * PAGE)
    assert (missing.size, child.size) == (2 * PAGE, 4 * PAGE)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_a_list_of_pages_would_be(seed):
    chance = random.Random(seed)
    missing = Missing([segment(0, 40), segment(50, 51), segment(60, 130)])
    model = pages(missing)
    for _ in range(300):
        start, size = chance.randrange(140), chance.randrange(1, 30)
        match chance.randrange(4):
            case 0:
                taken = pages(missing.take(start * PAGE, (start + size) * PAGE))
                assert taken == {at: model.pop(at) for at in sorted(model) if start * PAGE <= at < (start + size) * PAGE}
                if chance.random() < 0.8:  # lost on the way: back it goes
                    missing.put(part for one in [taken] for part in as_segments(one))
                    model |= taken
            case 1:
                to = chance.choice([start + size + chance.randrange(40), 300 + chance.randrange(40)])
                missing.remap(start * PAGE, to * PAGE, size * PAGE)
                moved = {at: model.pop(at) for at in sorted(model) if start * PAGE <= at < (start + size) * PAGE}
                model = {at: value for at, value in model.items() if not to * PAGE <= at < (to + size) * PAGE}
                model |= {at + (to - start) * PAGE: value for at, value in moved.items()}
            case 2:
                taken = pages(missing.take_next(start * PAGE, size * PAGE))
                assert len(taken) <= size
                assert all(model.pop(at) == value for at, value in taken.items())
                missing.put(as_segments(taken))
                model |= taken
            case 3:
                address = start * PAGE
                found = missing.find(address)
                assert (found is not None) == (address in model)
        assert pages(missing) == model


def as_segments(some):
    return [Segment(at, at + PAGE, origin) for at, origin in some.items()]
