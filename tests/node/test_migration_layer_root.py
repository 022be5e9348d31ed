"""The writable layer of a real overlay: what a guest deleted, owned, marked and made appears at the destination as it was."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emulab.migration.layer import LayerSender
from emulab.migration.layer_receiver import LayerReceiver

sys.path.insert(0, str(Path(__file__).parents[1]))
from wire import Wire

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # VFS_CAP_REVISION_2, cap_net_bind_service+ep


class Overlay:
    def __init__(self, base, lower):
        self.lower = lower
        self.upper, self.work, self.root = (base / name for name in ("upper", "work", "root"))
        for folder in (self.upper, self.work, self.root):
            folder.mkdir(parents=True)

    def mount(self):
        options = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        subprocess.run(("mount", "-t", "overlay", "overlay", "-o", options, str(self.root)), check=True)

    def unmount(self):
        subprocess.run(("umount", "--lazy", str(self.root)), check=False, stderr=subprocess.DEVNULL)


class Ends:
    def __init__(self, base):
        lower = base / "image"
        (lower / "etc").mkdir(parents=True)
        (lower / "etc/config").write_text("from the image")
        (lower / "etc/other").write_text("from the image")
        (lower / "usr/share").mkdir(parents=True)
        (lower / "usr/share/doc").write_text("from the image")
        self.there, self.here = Overlay(base / "there", lower), Overlay(base / "here", lower)
        self.there.mount()
        self.sender, self.receiver = LayerSender(self.there.upper), LayerReceiver(self.here.upper)
        self.root = self.there.root

    def move(self):
        wire = Wire()
        self.sender.send_pass(wire)
        assert wire.deliver(self.receiver) is True

    def arrive(self):
        """The last pass, and the root filesystem as the guest sees it at the destination."""
        self.move()
        self.here.mount()
        return self.here.root

    def close(self):
        self.there.unmount()
        self.here.unmount()


@pytest.fixture
def ends(tmp_path):
    ends = Ends(tmp_path)
    try:
        yield ends
    finally:
        ends.close()


def test_deleted_files_of_the_image_stay_deleted(ends):
    (ends.root / "etc/config").unlink()
    root = ends.arrive()
    assert not (root / "etc/config").exists()
    assert (root / "etc/other").read_text() == "from the image"
    assert stat.S_ISCHR((ends.here.upper / "etc/config").lstat().st_mode)


def test_a_deleted_file_may_come_back_between_passes(ends):
    (ends.root / "etc/config").unlink()
    ends.move()
    (ends.root / "etc/config").write_text("new")
    assert (ends.arrive() / "etc/config").read_text() == "new"


def test_a_changed_file_may_be_deleted_between_passes(ends):
    (ends.root / "etc/config").write_text("changed")
    ends.move()
    (ends.root / "etc/config").unlink()
    assert not (ends.arrive() / "etc/config").exists()


def test_a_folder_made_again_does_not_show_the_images_files(ends):
    (ends.root / "usr/share/doc").unlink()
    (ends.root / "usr/share").rmdir()
    (ends.root / "usr/share").mkdir()
    (ends.root / "usr/share/mine").write_text("x")
    assert sorted(path.name for path in (ends.arrive() / "usr/share").iterdir()) == ["mine"]


def test_links_that_are_made_after_the_last_look_arrive_as_links(ends):
    """As CRIU makes them through the overlay; a file of the image is copied up for it, with the folders above it."""
    (ends.root / "etc/mine").write_text("x")
    ends.move()
    with ends.sender.looking():
        time.sleep(0.1)
        for name in ("etc/mine", "etc/config", "usr/share/doc"):
            os.link(ends.root / name, ends.root / f"{name}.link_remap")
    root = ends.arrive()
    upper = ends.here.upper
    assert (upper / "etc/mine.link_remap").stat().st_ino == (upper / "etc/mine").stat().st_ino
    assert (upper / "usr/share/doc.link_remap").stat().st_ino == (upper / "usr/share/doc").stat().st_ino
    assert (root / "etc/config.link_remap").read_text() == (root / "etc/config").read_text() == "from the image"


def test_owners_and_modes(ends):
    path = ends.root / "etc/config"
    os.chown(path, 33, 44)
    path.chmod(0o2640)
    os.chown(ends.root / "usr", 7, 8)
    root = ends.arrive()
    status = (root / "etc/config").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (33, 44, 0o2640)
    assert ((root / "usr").stat().st_uid, (root / "usr").stat().st_gid) == (7, 8)


def test_a_program_keeps_its_capabilities_after_its_content_changed(ends):
    path = ends.root / "etc/program"
    path.write_bytes(b"1")
    ends.move()
    path.write_bytes(b"2" * 100)
    os.setxattr(path, "security.capability", CAPABILITY)
    root = ends.arrive()
    assert (root / "etc/program").read_bytes() == b"2" * 100
    assert os.getxattr(root / "etc/program", "security.capability") == CAPABILITY


def test_device_nodes_and_sockets_keep_their_place(ends):
    os.mknod(ends.root / "etc/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(ends.root / "etc/socket", stat.S_IFSOCK | 0o600)
    root = ends.arrive()
    assert (root / "etc/null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISSOCK((root / "etc/socket").lstat().st_mode)


def test_links_of_other_owners(ends):
    (ends.root / "etc/link").symlink_to("config")
    os.chown(ends.root / "etc/link", 5, 6, follow_symlinks=False)
    status = (ends.arrive() / "etc/link").lstat()
    assert (status.st_uid, status.st_gid) == (5, 6)
