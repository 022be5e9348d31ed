"""The writable layer: pass after pass, the folder at the destination becomes the one at the source. What needs root: tests/node."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulab.migration.layer import BLOCK, LayerSender, walk
from emulab.migration.layer_receiver import LayerReceiver
from emulab.migration.mapped import shared_writable

sys.path.insert(0, str(Path(__file__).parent))
from layerends import Ends, stored_through_a_mapping


@pytest.fixture
def ends(tmp_path):
    return Ends(tmp_path)


def test_a_tree_arrives_with_contents_modes_and_times(ends):
    (ends.there / "var/log").mkdir(parents=True)
    (ends.there / "var/log/a").write_bytes(b"a")
    (ends.there / "var/empty").write_bytes(b"")
    (ends.there / "var/big").write_bytes(os.urandom(3 * BLOCK + 17))
    (ends.there / "var/log/a").chmod(0o4750)
    (ends.there / "var").chmod(0o1777)
    os.utime(ends.there / "var/log/a", ns=(1_000_000_007, 1_234_567_891_234_567_891))
    os.utime(ends.there / "var/log", ns=(5, 1_111_111_111_111_111_111))
    ends.move()
    ends.same()


def test_links_arrive_as_links(ends):
    (ends.there / "file").write_text("x")
    os.link(ends.there / "file", ends.there / "hard")
    (ends.there / "soft").symlink_to("file")
    (ends.there / "dangling").symlink_to("/nowhere/at/all")
    ends.move()
    ends.same()
    assert (ends.here / "hard").stat().st_ino == (ends.here / "file").stat().st_ino


def test_fifos_keep_their_place(ends):
    os.mkfifo(ends.there / "pipe", 0o622)
    ends.move()
    ends.same()


def test_a_pass_without_changes_carries_nothing(ends):
    (ends.there / "a").write_bytes(os.urandom(BLOCK))
    ends.move()
    assert ends.move() == 0
    assert [entry for entry in ends.entries if entry.get("blocks")] == []
    ends.same()


def test_only_changed_blocks_of_a_file_are_sent(ends):
    path = ends.there / "database"
    path.write_bytes(os.urandom(8 * BLOCK))
    assert ends.move() == 8
    inode = (ends.here / "database").stat().st_ino
    with path.open("r+b") as file:
        file.seek(3 * BLOCK + 100)
        file.write(b"changed")
    assert ends.move() == 1
    ends.same()
    assert (ends.here / "database").stat().st_ino == inode


def test_growing_sends_the_tail_and_shrinking_nothing_but_the_size(ends):
    path = ends.there / "log"
    path.write_bytes(os.urandom(4 * BLOCK))
    ends.move()
    with path.open("ab") as file:
        file.write(b"more")
    assert ends.move() == 1
    ends.same()
    os.truncate(path, BLOCK)
    assert ends.move() == 0
    ends.same()


def test_what_is_deleted_goes(ends):
    (ends.there / "d/e").mkdir(parents=True)
    (ends.there / "d/e/f").write_text("x")
    (ends.there / "keep").write_text("x")
    ends.move()
    (ends.there / "d/e/f").unlink()
    (ends.there / "d/e").rmdir()
    (ends.there / "d").rmdir()
    ends.move()
    ends.same()


def test_a_replaced_file_is_another_file_at_the_destination_too(ends):
    path = ends.there / "config"
    path.write_bytes(b"old" * BLOCK)
    ends.move()
    with (ends.here / "config").open("rb") as held:
        fresh = ends.there / "config.new"
        fresh.write_bytes(b"old" * (BLOCK - 1) + b"new")
        fresh.replace(path)
        ends.move()
        ends.same()
        assert held.read() == b"old" * BLOCK  # whoever has the old one open keeps the old one


def test_changes_of_mode_and_time_alone_carry_no_content(ends):
    path = ends.there / "a"
    path.write_bytes(os.urandom(BLOCK))
    ends.move()
    path.chmod(0o600)
    os.utime(path, ns=(7, 7))
    assert ends.move() == 0
    ends.same()


@pytest.mark.parametrize("before", ["file", "folder", "link", "fifo"])
@pytest.mark.parametrize("after", ["file", "folder", "link", "fifo"])
def test_one_kind_of_entry_may_become_another(ends, before, after):
    make(ends.there / "x", before)
    ends.move()
    remove(ends.there / "x")
    make(ends.there / "x", after)
    ends.move()
    ends.same()


def test_a_folder_that_becomes_a_file_goes_before_much_else_is_sent(ends):
    """Removals must come first however large the pass is."""
    make(ends.there / "a", "folder")
    ends.move()
    remove(ends.there / "a")
    (ends.there / "a").symlink_to("elsewhere")
    (ends.there / "big").write_bytes(os.urandom(6 * 1024 * 1024))
    ends.move()
    ends.same()


def test_a_hard_link_made_later_and_one_taken_apart(ends):
    (ends.there / "a").write_text("x")
    ends.move()
    os.link(ends.there / "a", ends.there / "b")
    ends.move()
    ends.same()
    (ends.there / "a").unlink()
    (ends.there / "b").write_text("y")
    ends.move()
    ends.same()
    (ends.there / "a").write_text("z")
    ends.move()
    ends.same()


def test_user_attributes_arrive_and_go(ends):
    path = ends.there / "a"
    path.write_text("x")
    try:
        os.setxattr(path, "user.one", b"\0\1")
    except OSError:
        pytest.skip("this file system has no user attributes")
    ends.move()
    assert os.getxattr(ends.here / "a", "user.one") == b"\0\1"
    os.removexattr(path, "user.one")
    os.setxattr(path, "user.two", b"2")
    ends.move()
    assert os.listxattr(ends.here / "a") == ["user.two"]


def test_stores_through_a_mapping_are_found_by_looking_again(ends):
    """Such a store changes a file's content, but its times only now and then."""
    with stored_through_a_mapping(ends) as path:
        assert str(path) in shared_writable(Path("/proc/self/maps").read_text())
        assert ends.move(again={"mapped"}) == 1
    ends.same()


def test_a_file_written_just_before_a_pass_is_looked_at_again_in_the_next(ends):
    """Its time may not tell a write of the same moment that came after the pass."""
    (ends.there / "a").write_bytes(b"x")
    ends.move()
    ends.move()
    assert [entry["name"] for entry in ends.entries] == ["a"]
    time.sleep(0.05)
    ends.move()
    ends.move()
    assert ends.entries == []


def test_only_shared_writable_files_count_as_mapped():
    maps = """\
7f0000000000-7f0000001000 rw-s 00000000 fe:00 1234                       /var/lib/mysql/tc.log
7f0000002000-7f0000003000 r--s 00000000 fe:00 1235                       /usr/lib/locale/C.utf8/x
7f0000004000-7f0000005000 rw-p 00000000 fe:00 1236                       /usr/lib/libc.so.6
7f0000006000-7f0000007000 rw-s 00000000 00:01 1024                       /dev/zero (deleted)
7f0000008000-7f0000009000 rw-p 00000000 00:00 0                          [heap]
7f000000a000-7f000000b000 rw-s 00000000 fe:00 1237                       /var/a name with spaces
"""
    assert shared_writable(maps) == {"/var/lib/mysql/tc.log", "/dev/zero", "/var/a name with spaces"}


def test_many_files_arrive_in_several_messages(ends):
    for number in range(40):
        (ends.there / str(number)).write_bytes(os.urandom(200_000))
    ends.move()
    assert len([message for message in ends.last.sent if message.kind == "layer"]) > 1
    ends.same()


def test_a_large_file_arrives_in_pieces_of_bounded_size(ends):
    path = ends.there / "database"
    path.write_bytes(os.urandom(10 << 20))
    ends.move()
    ends.same()
    assert len(ends.entries) == 3
    assert max(message.fields["size"] for message in ends.last.sent if message.kind == "layer") <= 5 << 20
    inode = (ends.here / "database").stat().st_ino
    with path.open("r+b") as file:  # what follows a change of many pieces must stay as it is
        file.write(os.urandom(5 << 20))
    assert ends.move() == 80
    ends.same()
    assert (ends.here / "database").stat().st_ino == inode
    fresh = ends.there / "fresh"
    fresh.write_bytes(os.urandom(9 << 20) + path.read_bytes()[9 << 20 :])
    fresh.replace(path)
    assert ends.move() == 9 * 16
    ends.same()
    assert (ends.here / "database").stat().st_ino != inode


def test_many_entries_without_content_arrive_and_go_in_several_messages(ends, monkeypatch):
    monkeypatch.setattr("emulab.migration.layer._ENTRIES", 20)
    for number in range(50):
        (ends.there / str(number)).touch()
    ends.move()
    ends.same()
    assert max(len(message.fields["entries"]) for message in ends.last.sent if message.kind == "layer") == 20
    for number in range(50):
        (ends.there / str(number)).unlink()
    ends.move()
    ends.same()
    assert max(len(entry["remove"]) for entry in ends.entries) == 20


def test_a_pass_that_was_interrupted_can_be_repeated(ends):
    """By another receiver, on what the first one left: all of it, a part of it, or half a file."""
    for name in "abc":
        (ends.there / name).write_bytes(os.urandom(2 * BLOCK))
    (ends.there / "d").mkdir()
    (ends.there / "d/link").symlink_to("../a")
    (ends.there / "d/file").write_bytes(b"x")
    os.link(ends.there / "a", ends.there / "d/hard")
    os.mkfifo(ends.there / "d/pipe")
    ends.move()
    (ends.here / "b").write_bytes(b"half")
    for _ in range(2):
        for message in ends.last.sent:
            if message.kind == "layer":
                LayerReceiver(ends.here).handle(message)
    for message in ends.last.sent:
        ends.receiver.handle(message)
    ends.same()
    assert sorted(path.name for path in ends.here.iterdir()) == ["a", "b", "c", "d"]


def test_a_name_that_vanishes_while_it_is_sent_leaves_its_file_to_another_name(ends, monkeypatch):
    """As a program does that writes a file under one name, links it to another and removes the first."""
    (ends.there / "a").write_bytes(b"content")
    os.link(ends.there / "a", ends.there / "b")
    first = next(name for name, _ in walk(ends.there))
    real = LayerSender._file

    def vanishing(self, name, *rest):
        if name == first:
            (ends.there / name).unlink(missing_ok=True)
        return real(self, name, *rest)

    monkeypatch.setattr(LayerSender, "_file", vanishing)
    ends.move()
    ends.same()


def test_a_file_that_becomes_a_link_while_it_is_sent_is_not_followed(ends, tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    (ends.there / "a").write_text("mine")
    real = LayerSender._file

    def turning(self, name, *rest):
        (ends.there / name).unlink()
        (ends.there / name).symlink_to(secret)
        return real(self, name, *rest)

    monkeypatch.setattr(LayerSender, "_file", turning)
    ends.move()
    assert ends.entries == []


KINDS = ("file", "folder", "link", "fifo")


def make(path, kind, content=b"x"):
    if kind == "file":
        path.write_bytes(content)
    elif kind == "folder":
        path.mkdir()
        (path / "inside").write_bytes(content)
    elif kind == "link":
        path.symlink_to("target")
    else:
        os.mkfifo(path)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from((*KINDS, "gone", "append")), st.binary(max_size=40)), max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=4), st.booleans())
def test_after_any_history_both_folders_are_the_same(tmp_path_factory, rounds, look):
    ends = Ends(tmp_path_factory.mktemp("layer"))
    for steps in rounds:
        for name, action, content in steps:
            path = ends.there / name
            if action == "append":
                if path.is_file() and not path.is_symlink():
                    with path.open("ab") as file:
                        file.write(content)
                continue
            remove(path)
            if action != "gone":
                make(path, action, content)
        if look:
            with ends.sender.looking():
                pass
        ends.move()
        ends.same()
