"""What the receiver of a layer refuses: nothing that is sent reaches outside of its folder."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from emulab.errors import EmulabError
from emulab.migration.layer_receiver import LayerReceiver, safe_path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from layerends import snapshot
from wire import Wire


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\0b"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(EmulabError, match="refused"):
        safe_path(tmp_path, name)


def test_a_name_below_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(EmulabError, match="symbolic link"):
        safe_path(tmp_path, "link/passwd")


@pytest.mark.parametrize(
    "entry",
    [
        {"remove": ["../outside"]},
        {"name": "../outside", "mode": 0o100644, "uid": 0, "gid": 0, "mtime": 0, "atime": 0, "size": 0, "blocks": [], "replace": True},
        {"name": "inside", "mode": 0o100644, "link": "../outside"},
    ],
)
def test_no_kind_of_entry_reaches_outside(tmp_path, entry):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "here").mkdir()
    wire = Wire()
    wire.send("layer", b"", entries=[entry], size=0)
    with pytest.raises(EmulabError, match="refused"):
        wire.deliver(LayerReceiver(tmp_path / "here"))
    assert outside.read_text() == "mine"
    assert list((tmp_path / "here").iterdir()) == []


META = {"uid": os.geteuid(), "gid": os.getegid(), "mtime": 0, "atime": 0}
LINK = {"name": "d", "mode": 0o120777, "target": "../outside", **META}
FOLDER = {"name": "d", "mode": 0o040755, **META}
FILE = {"mode": 0o100644, "size": 0, "blocks": [], "replace": True, **META}
BELOW = {
    "file": {**FILE, "name": "d/x"},
    "known file": {**FILE, "name": "d/mine", "replace": False},
    "folder": {**FOLDER, "name": "d/x"},
    "link": {**LINK, "name": "d/x"},
    "hard link": {**FILE, "name": "d/x", "link": "known"},
    "hard link from": {**FILE, "name": "x", "link": "d/mine"},
    "whiteout": {**META, "name": "d/x", "mode": 0o020000, "rdev": 0},
    "fifo": {**META, "name": "d/x", "mode": 0o010644},
    "removal": {"remove": ["d/mine"]},
    "deeper": {**FILE, "name": "d/e/x"},
}


@pytest.mark.parametrize("below", BELOW)
@pytest.mark.parametrize(
    "before", ["nothing", "missing, yet named", "an empty folder", "a folder in use", "a folder of folders", "removed"]
)
def test_a_link_made_earlier_in_the_pass_is_not_passed_through(tmp_path, before, below):
    """Also where its place was a folder before, that entries of this pass have gone through."""
    outside = tmp_path / "outside"
    (outside / "e").mkdir(parents=True)
    (outside / "mine").write_text("mine")
    there = snapshot(outside)
    steps = [{**FILE, "name": "known"}]
    if before == "missing, yet named":
        steps.append({"remove": ["d/x"]})
    elif before != "nothing":
        steps.append(FOLDER)
    if before in ("a folder in use", "a folder of folders", "removed"):
        steps += [{**FILE, "name": "d/first"}, {**FILE, "name": "d/second"}]
    if before == "a folder of folders":
        steps += [{**FOLDER, "name": "d/e"}, {**FILE, "name": "d/e/first"}]
    if before == "removed":
        steps.append({"remove": ["d"]})
    (tmp_path / "here").mkdir()
    wire = Wire()
    wire.send("layer", b"", entries=[*steps, LINK, BELOW[below]], size=0)
    with pytest.raises(EmulabError, match="symbolic link"):
        wire.deliver(LayerReceiver(tmp_path / "here"))
    assert snapshot(outside) == there


def test_times_of_a_folder_do_not_go_to_what_a_link_in_its_place_leads_to(tmp_path):
    outside = tmp_path / "outside"
    (outside / "e").mkdir(parents=True)
    there = snapshot(tmp_path)["outside"], snapshot(outside)
    (tmp_path / "here").mkdir()
    for entries in ([FOLDER, LINK], [FOLDER, {**FOLDER, "name": "d/e"}, LINK]):
        wire = Wire()
        wire.send("layer", b"", entries=entries, size=0)
        wire.send("layer-end")
        with contextlib.suppress(EmulabError):
            wire.deliver(LayerReceiver(tmp_path / "here"))
        assert (snapshot(tmp_path)["outside"], snapshot(outside)) == there


@pytest.mark.parametrize("name", ["d/.", "d/./x", "d//x", "./d/x"])
def test_names_written_otherwise_are_no_way_around(tmp_path, name):
    """Whatever becomes of such an entry itself, it must not make the link that it names pass for a folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    (here / "d").symlink_to("../outside")
    receiver = LayerReceiver(here)
    for entry in ({**FILE, "name": name, "link": "nothing"}, {**FILE, "name": "d/x"}):
        wire = Wire()
        wire.send("layer", b"", entries=[entry], size=0)
        with contextlib.suppress(EmulabError, FileNotFoundError):
            wire.deliver(receiver)
    assert list(outside.iterdir()) == []


def test_what_is_gone_already_can_be_removed_again(tmp_path):
    """As when a pass is repeated that had made a file of a folder."""
    (tmp_path / "d").write_text("x")
    wire = Wire()
    wire.send("layer", b"", entries=[{"remove": ["d/e/f", "d/e", "nothing/x", "nothing"]}], size=0)
    wire.deliver(LayerReceiver(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_file_whose_content_did_not_arrive_is_refused(tmp_path):
    wire = Wire()
    wire.send("layer", b"", entries=[{**FILE, "name": "x", "blocks": [(0, 10)], "size": 10}], size=0)
    with pytest.raises(EmulabError, match="incomplete"):
        wire.deliver(LayerReceiver(tmp_path))


def test_other_messages_in_a_pass_are_refused(tmp_path):
    wire = Wire()
    wire.send("pages")
    with pytest.raises(EmulabError, match="in the middle of a layer pass"):
        wire.deliver(LayerReceiver(tmp_path))
