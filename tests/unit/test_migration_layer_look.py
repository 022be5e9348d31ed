"""The last pass of a layer, begun while CRIU dumps: what it finds, what it looks at again, and how it ends."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from emulab.errors import EmulabError
from emulab.migration.layer import BLOCK

sys.path.insert(0, str(Path(__file__).parent))
from layerends import Ends, stored_through_a_mapping


@pytest.fixture
def ends(tmp_path):
    return Ends(tmp_path)


def contents(ends):
    return [(entry.get("name"), len(entry.get("blocks", ()))) for entry in ends.entries if "name" in entry]


def test_a_look_finds_what_changed_and_the_pass_after_it_sends_that(ends):
    (ends.there / "d").mkdir()
    for name in ("d/a", "d/b", "d/c", "e"):
        (ends.there / name).write_bytes(b"x")
    time.sleep(0.05)
    ends.move()
    (ends.there / "d/a").write_bytes(b"changed")
    (ends.there / "d/b").unlink()
    with ends.sender.looking():
        pass
    ends.move()
    ends.same()
    assert contents(ends) == [("d", 0), ("d/a", 1)]
    assert ends.move() == 0  # and nothing of the look is left over
    assert ends.entries == []


def test_what_a_look_has_read_is_not_read_again_after_it(ends, monkeypatch):
    for name in "abc":
        (ends.there / name).write_bytes(b"x")
    with ends.sender.looking():
        pass
    monkeypatch.setattr("emulab.migration.layer.os.scandir", lambda _: pytest.fail("a folder that stayed the same was listed again"))
    ends.move()
    monkeypatch.undo()
    ends.same()


def test_a_file_written_just_before_the_guest_stood_still_is_settled_for_a_look(ends):
    (ends.there / "a").write_bytes(b"x")
    with ends.sender.looking():
        pass
    ends.move()
    ends.move()
    assert ends.entries == []


def test_a_pass_without_a_look_is_a_whole_one_again(ends):
    path = ends.there / "a"
    path.write_bytes(b"old")
    with ends.sender.looking():
        pass
    ends.move()
    with path.open("r+b") as file:  # its folder shows nothing of that
        file.write(b"new")
    assert ends.move() == 1
    ends.same()


def test_a_folder_that_changed_within_the_tick_of_the_look_is_looked_at_again(ends, monkeypatch):
    """A clock too coarse to tell: only that the folder had changed just now shows that it may have done so again."""
    (ends.there / "d").mkdir()
    ends.move()
    monkeypatch.setattr("emulab.migration.layer._identity", lambda status: (status.st_mode, status.st_ino))
    monkeypatch.setattr("emulab.migration.layer._settled", lambda _: False)
    with ends.sender.looking():
        time.sleep(0.1)
        (ends.there / "d/link_remap.1").write_bytes(b"x")
    ends.move()
    ends.same()


@pytest.mark.parametrize("folder", [".", "d", "d/e"])
@pytest.mark.parametrize("pause", [0, 0.05])
def test_folders_that_changed_after_the_look_are_looked_at_again(ends, folder, pause):
    (ends.there / "d/e").mkdir(parents=True)
    for name in ("a", "d/a", "d/e/a", "gone"):
        (ends.there / name).write_bytes(name.encode())
    ends.move()
    with ends.sender.looking():
        time.sleep(0.1)
        time.sleep(pause)
        (ends.there / folder / "link_remap.1").write_bytes(b"y")
        (ends.there / folder / "new").mkdir()
        (ends.there / folder / "new/file").write_bytes(b"z")
        (ends.there / "gone").unlink()
    ends.move()
    ends.same()


@pytest.mark.parametrize("folder", ["d", "e"])
def test_a_link_made_after_the_look_is_one_to_the_file_that_is_there_already(ends, folder):
    """CRIU links a file that is open under a name it no longer has; another name of it may be in a folder that nothing happened to."""
    for name in "de":
        (ends.there / name).mkdir()
    (ends.there / "d/a").write_bytes(os.urandom(BLOCK))
    ends.move()
    with ends.sender.looking():
        time.sleep(0.1)
        os.link(ends.there / "d/a", ends.there / folder / "link_remap.1")
    assert ends.move() == 0 or folder == "d"
    ends.same()


def test_a_look_compares_the_content_of_mapped_files(ends):
    with stored_through_a_mapping(ends):
        with ends.sender.looking({"mapped"}):
            pass
        assert ends.move() == 1
    ends.same()


def test_a_look_keeps_only_so_much_and_the_pass_finds_the_rest(ends):
    for number in range(80):
        (ends.there / str(number)).write_bytes(os.urandom(400_000))
    (ends.there / "large").write_bytes(os.urandom(20 << 20))
    with ends.sender.looking():
        pass
    assert sum(message.size for message in ends.sender._ahead) <= 20 << 20
    ends.move()
    ends.same()


def test_an_error_of_a_look_comes_out(ends, monkeypatch):
    (ends.there / "a").write_bytes(b"x")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("emulab.migration.layer.os.read", broken)
    with pytest.raises(OSError, match="Input/output"), ends.sender.looking():
        pass


def test_a_look_ends_with_the_dump_that_failed(ends, monkeypatch):
    """Its thread is over before the guest may resume, however much is left to read; and what went wrong first is what is told."""
    (ends.there / "endless").write_bytes(b"x")
    reading = threading.Event()

    def endless(*_):
        reading.set()
        return bytes(BLOCK)

    monkeypatch.setattr("emulab.migration.layer._BATCH", 1 << 60)
    monkeypatch.setattr("emulab.migration.layer.os.read", endless)
    before = set(threading.enumerate())

    def fail():
        with ends.sender.looking({"endless"}):
            assert reading.wait(5)
            raise EmulabError("the dump failed")

    with pytest.raises(EmulabError, match="the dump failed"):
        fail()
    assert set(threading.enumerate()) <= before
