"""A guest's root filesystem: an overlay of a read-only image below and the guest's own writable layer above.

The image folder must not itself lie on an overlay: a file mapped through two overlays has a mount id that exists nowhere, and CRIU
refuses it ("Can't lookup mount"). The node keeps images and layers on volumes for that reason.

A shared layer lies on a volume that all hosts mount, as on a file server: a guest that moves finds it there, and only one host at a time
has tasks that may write to it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from emulab.command import Runner
from emulab.errors import EmulabError

IMAGES = Path("/var/lib/emulab/images")
GUESTS = Path("/var/lib/emulab/guests")
SHARED = Path("/var/lib/emulab/shared")
STORAGES = ("local", "shared")

_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Rootfs:
    """Folders of one guest on this node. ``shared``: folder of its layer, if that is not on this node alone."""

    folder: Path
    lower: Path
    shared: Path | None = None

    @property
    def upper(self) -> Path:
        return (self.shared or self.folder) / "upper"

    @property
    def work(self) -> Path:
        """The overlay's scratch folder, on the layer's own filesystem; each mount empties it, so every node has its own."""
        return self.shared / f"work-{os.uname().nodename}" if self.shared else self.folder / "work"

    @property
    def merged(self) -> Path:
        return self.folder / "root"

    def make_folders(self) -> None:
        for folder in (self.upper, self.work, self.merged):
            folder.mkdir(parents=True, exist_ok=True)

    def mounted(self) -> bool:
        return any(line.split()[1] == str(self.merged) for line in Path("/proc/self/mounts").read_text().splitlines())

    def mount(self) -> None:
        """By the system call: within a freeze, to start a program that does it takes longer. Raises EmulabError."""
        if self.mounted():
            return
        self.make_folders()
        options = f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"
        if _LIBC.mount(b"overlay", os.fsencode(self.merged), b"overlay", ctypes.c_ulong(0), os.fsencode(options)):
            code = ctypes.get_errno()
            raise EmulabError(
                f"cannot mount the root filesystem {self.merged}: {os.strerror(code)}", hint="dmesg may say more about overlayfs"
            )

    def unmount(self, runner: Runner) -> None:
        if self.mounted():
            runner.run(("umount", "--lazy", str(self.merged)))

    def remove_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def remove(self, runner: Runner) -> None:
        self.unmount(runner)
        shutil.rmtree(self.folder, ignore_errors=True)


def image_rootfs(image: str, images: Path = IMAGES) -> Path:
    """Folder of an unpacked guest image on this node. Raises EmulabError if it is not here."""
    folder = images / image / "rootfs"
    if not folder.is_dir():
        raise EmulabError(f"guest image {image} is not on this node", hint="emulab up unpacks the images of a scenario")
    return folder
