"""Both folders of one migration of a writable layer, and what a program in the guest can see of them."""

from __future__ import annotations

import mmap
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from emulab.migration.layer import BLOCK, LayerSender
from emulab.migration.layer_receiver import LayerReceiver

sys.path.insert(0, str(Path(__file__).parents[1]))
from wire import Wire


class Ends:
    """Both folders of one migration."""

    def __init__(self, base):
        self.there, self.here = base / "there", base / "here"
        for folder in (self.there, self.here):
            folder.mkdir()
        self.sender, self.receiver = LayerSender(self.there), LayerReceiver(self.here)
        self.last = Wire()

    def move(self, **options):
        """One pass; returns how many blocks of files it carried."""
        self.last = Wire()
        self.sender.send_pass(self.last, **options)
        assert self.last.deliver(self.receiver) is True
        return sum(len(entry.get("blocks", ())) for entry in self.entries)

    @property
    def entries(self):
        return [entry for message in self.last.sent if message.kind == "layer" for entry in message.fields["entries"]]

    def same(self):
        assert snapshot(self.here) == snapshot(self.there)


@contextmanager
def stored_through_a_mapping(ends):
    """A file that the other side has, and that has since been changed by a store; its times may say nothing of it."""
    path = ends.there / "mapped"
    path.write_bytes(bytes(4 * BLOCK))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[2 * BLOCK] = 1
        time.sleep(0.05)
        ends.move()
        mapping[2 * BLOCK] = 2
        yield path


def snapshot(root):
    """Everything about a tree that a program in the guest can see."""
    found = {}
    inodes = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        first = inodes.setdefault(status.st_ino, name)
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, first)
    return found
