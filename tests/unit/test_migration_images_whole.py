"""However pages files grow while they are sent, and whatever they share with one another: what arrives is the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.errors import EmulabError
from emulab.migration.images import FolderReceiver, FolderSender
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.page_sender import PageSender
from emulab.migration.pages import DISTINCT, PAGE
from emulab.migration.same_frame import Alike

sys.path.insert(0, str(Path(__file__).parents[1]))
from wire import Wire, content, content_there, fill


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(0, 5)), max_size=8), st.data())
def test_however_files_grow_they_arrive_whole(tmp_path_factory, growth, data):
    base = tmp_path_factory.mktemp("growing")
    (base / "there" / "1").mkdir(parents=True)
    (base / "here").mkdir()
    pages = PageReceiver(base / "here" / DISTINCT)
    wire, receiver = Wire(), FolderReceiver(base / "here", pages)
    stream = FolderSender(wire, base / "there" / "1", PageSender())
    for number, count, kind in growth:
        with (base / "there" / "1" / f"pages-{number}.img").open("ab", buffering=0) as file:
            part = bytes([kind]) * (PAGE * count)
            cut = data.draw(st.integers(0, len(part)))
            file.write(part[:cut])
            file.write(part[cut:])
    stream.finish()
    assert wire.deliver(receiver) is True
    pages.close()
    assert content_there(base / "here" / "1") == content(base / "there" / "1")


STRETCH = st.tuples(st.integers(0, 2), st.integers(1, 400), st.booleans(), st.integers(0, 10**6))


@settings(max_examples=25, deadline=None)
@given(st.lists(STRETCH, max_size=12))
def test_holes_arrive_as_the_pages_that_they_are_like(tmp_path_factory, stretches):
    base = tmp_path_factory.mktemp("holes")
    there = base / "there" / "1"
    there.mkdir(parents=True)
    (base / "here").mkdir()
    pages, alike = PageReceiver(base / "here" / DISTINCT), Alike()
    wire, receiver = Wire(), FolderReceiver(base / "here", pages)
    stream = FolderSender(wire, there, PageSender(), alike=alike)
    whole, taken = {}, []  # taken: where there is content that others may be like
    for number, count, repeats, seed in sorted(stretches, key=lambda one: one[0]):  # one file after the other, as tasks are
        name = f"pages-{number}.img"
        content = whole.setdefault(name, b"")
        with (there / name).open("ab", buffering=0) as file:
            if repeats and taken:
                like, first, length = taken[seed % len(taken)]
                first += seed % length
                same = min(count, length - seed % length)
                alike.add(name, len(content) // PAGE, same, (like, first))
                file.truncate(len(content) + same * PAGE)
                part = whole[like][first * PAGE : (first + same) * PAGE]
            else:
                part = b"".join((seed % 7 * (n % 3)).to_bytes(8, "little") * (PAGE // 8) for n in range(count))
                file.write(part)
                taken.append((name, len(content) // PAGE, count))
        whole[name] = content + part
    stream.finish()
    assert wire.deliver(receiver) is True
    pages.close()
    assert content_there(base / "here" / "1") == whole


def test_a_hole_that_is_like_nothing_is_an_error(tmp_path):
    alike = Alike()
    alike.add("pages-2.img", 0, 5, ("pages-1.img", 3))
    fill(tmp_path, pages_1=os.urandom(4 * PAGE), pages_2=bytes(5 * PAGE))
    with pytest.raises(EmulabError, match="never came"):
        FolderSender(Wire(), tmp_path, PageSender(), alike=alike).finish()
