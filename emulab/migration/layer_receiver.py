"""The writable layer at its destination: passes are applied to the upper folder, and nothing outside of it can be reached.

A guest has thousands of small files, so a new file costs no more than its own system calls: it is made in place and finished by its
descriptor, and a parent folder that was found to be one is not looked at again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import zstandard

from emulab.errors import EmulabError
from emulab.migration.channel import Incoming
from emulab.migration.layer import BLOCK

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_NEW_NAME = ".emulab-new"  # in the layer's own folder, until it replaces another file
_NO_NAMES = frozenset({"", ".", ".."})

_Made = TypeVar("_Made")


def safe_path(root: Path, name: str) -> Path:
    """Path of a layer entry below ``root``. Raises EmulabError for names that would leave it."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise EmulabError(f"refused layer entry {name!r}")
    path = root / pure
    parent = path.parent
    while parent != root:  # a symbolic link among the parents would lead out
        if parent.is_symlink():
            raise EmulabError(f"refused layer entry {name!r}: {parent.name} is a symbolic link")
        parent = parent.parent
    return path


class LayerReceiver:
    """Applies passes to a folder. Folder times are set at the end of each pass, as creating entries changes them.

    ``give_way`` is called before each entry.
    """

    def __init__(self, root: Path, give_way: Callable[[], object] = lambda: None) -> None:
        self._root = root
        self._give_way = give_way
        # Names found to be folders that no symbolic link leads to. They stay that until `_remove` takes a folder away: nobody else is here.
        self._real: set[str] = set()
        self._folder_times: dict[str, tuple[int, int]] = {}

    def handle(self, message: Incoming) -> bool:
        """Feed messages; True at the end of a pass. Raises EmulabError for what would leave the folder, OSError for what cannot be made."""
        if message.kind == "layer-end":
            for name, times in self._folder_times.items():
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.utime(self._path(name), ns=times, follow_symlinks=False)
            self._folder_times.clear()
            return True
        if message.kind != "layer":
            raise EmulabError(f"message {message.kind!r} in the middle of a layer pass")
        size = int(message.fields["size"])
        data = memoryview(zstandard.ZstdDecompressor().decompress(message.payload, max_output_size=size) if size else b"")
        at = 0
        for entry in message.fields["entries"]:
            self._give_way()
            at = self._apply(entry, data, at)
        return False

    def _path(self, name: str) -> str:
        """Path of a layer entry. Raises EmulabError for names that would leave the folder."""
        parent, slash, last = name.rpartition("/")
        if (parent in self._real or not slash) and last not in _NO_NAMES and "\0" not in name:
            return f"{self._root}/{name}"
        path = safe_path(self._root, name)
        if _kind(path.parent) == stat.S_IFDIR:  # what does not exist yet may still become a link
            self._real.add(str(path.parent.relative_to(self._root)))
        return str(path)

    def _apply(self, entry: dict[str, Any], data: memoryview, at: int) -> int:
        if "remove" in entry:
            for name in entry["remove"]:
                self._remove(self._path(name))
            return at
        path = self._path(entry["name"])
        mode = int(entry["mode"])
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG and "link" in entry:
            first = self._path(entry["link"])
            self._make(path, lambda: os.link(first, path, follow_symlinks=False))
            return at
        if kind == stat.S_IFREG:
            return self._file(path, entry, data, at)
        if kind == stat.S_IFDIR:
            if _kind(path) != stat.S_IFDIR:
                self._make(path, lambda: os.mkdir(path))  # noqa: PTH102
            self._folder_times[entry["name"]] = (int(entry["atime"]), int(entry["mtime"]))
        elif kind == stat.S_IFLNK:
            self._make(path, lambda: os.symlink(entry["target"], path))  # noqa: PTH211
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            self._make(path, lambda: os.mknod(path, mode, int(entry["rdev"])))
        else:  # a fifo or a socket: only its place in the tree matters
            self._make(path, lambda: os.mknod(path, mode))
        _set_metadata(path, entry, mode)
        return at

    def _file(self, path: str, entry: dict[str, Any], data: memoryview, at: int) -> int:
        """Bring a regular file up to date. With ``replace`` it gets a new inode, filled from the old one where blocks are unchanged."""
        target = path
        try:
            file = os.open(path, _NEW, 0o600)
        except FileExistsError:
            if _kind(path) != stat.S_IFREG:
                file = self._make(path, lambda: os.open(path, _NEW, 0o600))
            elif entry.get("replace"):
                target = f"{self._root}/{_NEW_NAME}"
                file = self._make(target, lambda: os.open(target, _NEW, 0o600))
            else:
                file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            if target != path and entry.get("base"):
                with open(path, "rb", buffering=0) as old, open(file, "wb", buffering=0, closefd=False) as new:
                    shutil.copyfileobj(old, new, 16 * BLOCK)
            for number, length in entry["blocks"]:
                if os.pwrite(file, data[at : at + length], number * BLOCK) != length:
                    raise EmulabError(f"{entry['name']} arrived incomplete, or there is no room for it")
                at += length
            # Only the last piece of a large file has a size. To ask is a tenth of cutting to what it is already.
            if "size" in entry and os.fstat(file).st_size != entry["size"]:
                os.ftruncate(file, entry["size"])
            _set_metadata(file, entry, int(entry["mode"]))
        finally:
            os.close(file)
        if target != path:
            os.replace(target, path)  # noqa: PTH105
        return at

    def _make(self, path: str, make: Callable[[], _Made]) -> _Made:
        """Make an entry in the place of whatever is there."""
        try:
            return make()
        except FileExistsError:
            self._remove(path)
            return make()

    def _remove(self, path: str) -> None:
        """Remove an entry of any kind, a folder with all that it holds, if it is there."""
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        except IsADirectoryError:
            self._real.clear()
            shutil.rmtree(path)


def _kind(path: str | Path) -> int | None:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _set_metadata(target: str | int, entry: dict[str, Any], mode: int) -> None:
    """Of a path, not through a symbolic link, or of a descriptor. A change of owner or content drops set-id bits and capabilities."""
    follow = isinstance(target, int)
    os.chown(target, int(entry["uid"]), int(entry["gid"]), follow_symlinks=follow)
    attributes = entry.get("xattrs", {})
    for name in os.listxattr(target, follow_symlinks=follow):  # of a new file too: it may inherit some from its folder
        if name not in attributes:
            with contextlib.suppress(OSError):
                os.removexattr(target, name, follow_symlinks=follow)
    for name, value in attributes.items():
        with contextlib.suppress(OSError):  # a kind this node may not set; the overlay's own are trusted.* or user.*
            os.setxattr(target, name, bytes.fromhex(value), follow_symlinks=follow)
    if not stat.S_ISLNK(mode):
        os.chmod(target, stat.S_IMODE(mode))  # noqa: PTH101
    if not stat.S_ISDIR(mode):
        os.utime(target, ns=(int(entry["atime"]), int(entry["mtime"])), follow_symlinks=follow)
