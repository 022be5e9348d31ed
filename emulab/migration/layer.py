"""The guest's writable layer: pre-copied while it runs, only the rest inside the freeze.

The layer is the upper folder of an overlay, so it holds whole changed files, whiteouts (character devices 0/0) and the overlay's own
extended attributes; all are carried over as they are. A pass compares each entry's identity (inode, size, times) with the pass before and
sends what changed; of a regular file only the blocks whose digest changed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import zstandard
from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.channel import Incoming, Peer

BLOCK = 65536
_BATCH = 4 * 1024 * 1024
# File times advance in steps of a tick (10 ms at most): within one, a second write leaves them as they are.
_TICKS_NS = 20_000_000

Identity = tuple[int, ...]


@dataclass
class _Known:
    """What the other side holds of one path. ``settled``: an equal identity means equal content."""

    identity: Identity
    settled: bool = True
    blocks: list[bytes] = field(default_factory=list)


def _xattrs(path: str) -> dict[str, str]:
    """Extended attributes of the trusted, user and security kind, hex encoded."""
    attributes = {}
    for name in os.listxattr(path, follow_symlinks=False):
        with contextlib.suppress(OSError):
            attributes[name] = os.getxattr(path, name, follow_symlinks=False).hex()
    return attributes


def _identity(status: os.stat_result) -> Identity:
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_rdev,
    )


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below a folder, parents first, relative names in a stable order. Entries that vanish meanwhile are left out."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield name, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(name)


class LayerSender:
    """One per migration: remembers what the other side already holds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Known] = {}
        self._compressor = zstandard.ZstdCompressor(level=1)

    def send_pass(self, peer: Peer, again: Collection[str] = ()) -> int:
        """Send what changed since the last pass; returns bytes put on the wire. The other side answers nothing until ``layer-end``.

        ``again``: files whose content is compared even if nothing about them seems to have changed.
        """
        before = peer.bytes_out
        entries = list(walk(self._root))
        links: dict[int, str] = {}
        content = bytearray()
        # Removals first: a name may have been a folder and be something else now.
        gone = sorted(self._known.keys() - {name for name, _ in entries}, reverse=True)
        batch: list[dict[str, Any]] = [{"remove": gone}] if gone else []
        for name in gone:
            del self._known[name]
        for name, status in entries:
            first = links.setdefault(status.st_ino, name) if status.st_nlink > 1 and stat.S_ISREG(status.st_mode) else name
            identity = _identity(status)
            known = self._known.get(name)
            if known and known.settled and known.identity == identity and name not in again:
                continue
            entry = self._entry(name, status, first, known, content)
            if entry is None:
                continue
            batch.append(entry)
            if len(content) >= _BATCH:
                self._flush(peer, batch, content)
        if batch:
            self._flush(peer, batch, content)
        peer.send("layer-end")
        return peer.bytes_out - before

    def _flush(self, peer: Peer, batch: list[dict[str, Any]], content: bytearray) -> None:
        peer.send("layer", self._compressor.compress(bytes(content)), entries=batch, size=len(content))
        batch.clear()
        content.clear()

    def _entry(self, name: str, status: os.stat_result, first: str, known: _Known | None, content: bytearray) -> dict[str, Any] | None:
        path = f"{self._root}/{name}"
        entry: dict[str, Any] = {
            "name": name, "mode": status.st_mode, "uid": status.st_uid, "gid": status.st_gid, "mtime": status.st_mtime_ns,
            "atime": status.st_atime_ns,
        }  # fmt: skip
        fresh = _Known(_identity(status), settled=time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TICKS_NS)
        try:
            entry["xattrs"] = _xattrs(path)
            if stat.S_ISLNK(status.st_mode):
                entry["target"] = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                entry["rdev"] = status.st_rdev
            elif stat.S_ISREG(status.st_mode) and first != name:
                entry["link"] = first
            elif stat.S_ISREG(status.st_mode):
                same_file = known is not None and stat.S_ISREG(known.identity[0])
                old = known.blocks if known and same_file else []
                entry["size"], entry["blocks"], fresh.blocks = self._blocks(path, old, content)
                # A file that was replaced by another of its name must not keep the old one's inode there: open files refer to it.
                entry["replace"] = not (same_file and known is not None and known.identity[3] == status.st_ino)
                if entry["replace"] and old:
                    entry["base"] = True
        except FileNotFoundError:
            return None
        self._known[name] = fresh
        return entry

    @staticmethod
    def _blocks(path: str, old: list[bytes], content: bytearray) -> tuple[int, list[tuple[int, int]], list[bytes]]:
        """Append the changed blocks to ``content``; returns size, [(block number, length)] and the digests of all blocks."""
        changed: list[tuple[int, int]] = []
        digests: list[bytes] = []
        size = 0
        with open(path, "rb", buffering=0) as file:
            while data := file.read(BLOCK):
                number = len(digests)
                digest = blake3(data).digest()
                digests.append(digest)
                if number >= len(old) or old[number] != digest:
                    changed.append((number, len(data)))
                    content += data
                size += len(data)
                if len(data) < BLOCK:
                    break
        return size, changed, digests


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
    """Applies passes to a folder. Folder times are set at the end of each pass, as creating entries changes them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder_times: dict[Path, tuple[int, int]] = {}

    def handle(self, message: Incoming) -> bool:
        """Feed messages; True at the end of a pass."""
        if message.kind == "layer-end":
            for folder, times in self._folder_times.items():
                with contextlib.suppress(FileNotFoundError):
                    os.utime(folder, ns=times)
            self._folder_times.clear()
            return True
        if message.kind != "layer":
            raise EmulabError(f"message {message.kind!r} in the middle of a layer pass")
        size = int(message.fields["size"])
        data = zstandard.ZstdDecompressor().decompress(message.payload, max_output_size=size) if size else b""
        at = 0
        for entry in message.fields["entries"]:
            at = self._apply(entry, data, at)
        return False

    def _apply(self, entry: dict[str, Any], data: bytes, at: int) -> int:
        if "remove" in entry:
            for name in entry["remove"]:
                _remove(safe_path(self._root, name))
            return at
        path = safe_path(self._root, entry["name"])
        mode = int(entry["mode"])
        kind = stat.S_IFMT(mode)
        if _kind(path) not in (None, kind):
            _remove(path)
        if kind == stat.S_IFDIR:
            path.mkdir(exist_ok=True)
        elif kind == stat.S_IFLNK:
            _remove(path)
            path.symlink_to(entry["target"])
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            _remove(path)
            os.mknod(path, mode, int(entry["rdev"]))
        elif kind == stat.S_IFREG and "link" in entry:
            _remove(path)
            os.link(safe_path(self._root, entry["link"]), path)
            return at
        elif kind == stat.S_IFREG:
            at = _write_blocks(path, entry, data, at)
        else:  # a fifo or a socket: only its place in the tree matters
            _remove(path)
            os.mknod(path, mode)
        self._metadata(path, entry, mode, kind)
        return at

    def _metadata(self, path: Path, entry: dict[str, Any], mode: int, kind: int) -> None:
        os.chown(path, int(entry["uid"]), int(entry["gid"]), follow_symlinks=False)
        attributes = entry.get("xattrs", {})
        for name in os.listxattr(path, follow_symlinks=False):
            if name not in attributes:
                with contextlib.suppress(OSError):
                    os.removexattr(path, name, follow_symlinks=False)
        for name, value in attributes.items():
            with contextlib.suppress(OSError):  # a kind this node may not set; the overlay's own are trusted.* or user.*
                os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
        times = (int(entry["atime"]), int(entry["mtime"]))
        if kind != stat.S_IFLNK:
            path.chmod(stat.S_IMODE(mode))
        if kind == stat.S_IFDIR:
            self._folder_times[path] = times
        else:
            os.utime(path, ns=times, follow_symlinks=False)


def _kind(path: Path) -> int | None:
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None


def _remove(path: Path) -> None:
    """Remove an entry of any kind; a folder must be empty or is emptied first."""
    if _kind(path) == stat.S_IFDIR:
        for child in path.iterdir():
            _remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _write_blocks(path: Path, entry: dict[str, Any], data: bytes, at: int) -> int:
    """Bring a regular file up to date. With ``replace`` it gets a new inode, filled from the old one where blocks are unchanged."""
    target = path
    if entry.get("replace"):
        target = path.with_name(f".{path.name[:200]}.emulab-new")
        target.unlink(missing_ok=True)
        if entry.get("base") and path.exists():
            target.write_bytes(path.read_bytes())
    with open(target, "r+b" if target.exists() else "w+b", buffering=0) as file:
        for number, length in entry["blocks"]:
            file.seek(int(number) * BLOCK)
            file.write(data[at : at + length])
            at += length
        file.truncate(int(entry["size"]))
    if target != path:
        target.replace(path)
    return at
