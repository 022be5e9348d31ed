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
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

from emulab.migration.channel import Peer

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
