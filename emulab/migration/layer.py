"""The guest's writable layer: pre-copied while it runs, only the rest inside the freeze.

The layer is the upper folder of an overlay, so it holds whole changed files, whiteouts (character devices 0/0) and the overlay's own
extended attributes; all are carried over as they are. A pass compares each entry's identity (inode, size, times) with the pass before and
sends what changed; of a regular file only the blocks whose digest changed.

The last pass is made while CRIU dumps, by ``LayerSender.looking``: the guest stands still, so that afterwards only folders are left to look
at, for links that CRIU made in them.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.channel import Peer

BLOCK = 65536
_BATCH = 4 * 1024 * 1024
_ENTRIES = 2048  # of one message, however small they are
_AHEAD = 4  # messages that `looking` keeps
# File times advance in steps of a tick (10 ms at most): within one, a second write leaves them as they are.
_TICKS_NS = 20_000_000
# An entry that a running guest has removed since it was listed, or has replaced by one of another kind.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL})

Identity = tuple[int, ...]
Entries = list[tuple[str, os.stat_result]]


@dataclass
class _Known:
    """What the other side holds of one path. ``settled``: an equal identity means equal content."""

    identity: Identity
    settled: bool = True
    blocks: list[bytes] = field(default_factory=list)


@dataclass
class _Listed:
    """A folder when it was last listed. ``settled``: an equal identity means equal names."""

    identity: Identity
    settled: bool
    folders: list[str]
    others: list[str]


@dataclass
class _Message:
    """``size``: of the content before it was compressed."""

    entries: list[dict[str, Any]]
    content: bytes = b""
    size: int = 0


def _xattrs(target: str | int) -> dict[str, str]:
    """Extended attributes of the trusted, user and security kind, hex encoded, of a path or a descriptor."""
    attributes = {}
    follow = isinstance(target, int)
    for name in os.listxattr(target, follow_symlinks=follow):
        with contextlib.suppress(OSError):
            attributes[name] = os.getxattr(target, name, follow_symlinks=follow).hex()
    return attributes


def _identity(status: os.stat_result) -> Identity:
    """Changes with owner, mode and attributes too: they leave their time in ``st_ctime``."""
    return (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _settled(status: os.stat_result) -> bool:
    """Whether what is written from now on will show in the times."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TICKS_NS


def _listing(root: Path, folder: str) -> tuple[os.stat_result, bool, Entries] | None:
    """The folder's own status, whether that is settled, and its entries; None if it is gone. Entries that vanish meanwhile are left out."""
    try:
        descriptor = os.open(f"{root}/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return None
    try:
        status = os.fstat(descriptor)
        settled = _settled(status)
        prefix = f"{folder}/" if folder else ""
        entries: Entries = []
        with os.scandir(descriptor) as found:
            for entry in found:
                try:
                    entries.append((prefix + entry.name, entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
        return status, settled, entries
    finally:
        os.close(descriptor)


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below a folder, parents first, by relative name. Entries that vanish meanwhile are left out."""
    pending = [""]
    while pending:
        listing = _listing(root, pending.pop())
        for name, status in listing[2] if listing else ():
            yield name, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(name)


class LayerSender:
    """One per migration: remembers what the other side already holds. ``give_way`` is called every other millisecond or so."""

    def __init__(self, root: Path, give_way: Callable[[], object] = lambda: None) -> None:
        self._root = root
        self._give_way = give_way
        self._known: dict[str, _Known] = {}
        self._listed: dict[str, _Listed] = {}
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._given_up = threading.Event()
        self._ahead: list[_Message] = []  # found by `looking`; the rest of that pass is still to be found
        self._rest: Iterator[_Message] | None = None

    @contextlib.contextmanager
    def looking(self, again: Collection[str] = ()) -> Iterator[None]:
        """For the length of the block, begin a pass in a thread of its own, without a connection; the next ``send_pass`` completes it.

        Until then nobody may change the layer but CRIU, which adds and removes names. What is found is kept up to 16 MiB. Raises what went
        wrong in the thread. The thread has ended when the block is left, and is told to if that is by an error.
        """
        with ThreadPoolExecutor(1, "layer") as threads:
            looked = threads.submit(self._look_ahead, again)
            try:
                yield
            except BaseException:
                self._given_up.set()
                raise
            looked.result()

    def _look_ahead(self, again: Collection[str]) -> None:
        self._given_up.wait(_TICKS_NS / 1e9)  # whatever the guest did last is settled then
        changes = self._changes(again)
        self._ahead, self._rest = list(itertools.islice(changes, _AHEAD)), changes

    def send_pass(self, peer: Peer, again: Collection[str] = (), *, waits: bool = False) -> int:
        """Send what changed since the last pass; returns bytes put on the wire. The other side answers nothing until ``layer-end``.

        ``again``: files whose content is compared even if nothing about them seems to have changed. ``waits``: whether the other side, too,
        is to give way to guests.
        """
        before = peer.bytes_out
        changes: Iterable[_Message] = self._changes(again)
        if self._rest is not None:
            changes = itertools.chain(self._ahead, self._rest, self._changes(still=True))
        for message in changes:
            peer.send("layer", message.content, entries=message.entries, size=message.size, waits=waits)
        self._ahead, self._rest = [], None
        peer.send("layer-end")
        return peer.bytes_out - before

    def _look(self, *, still: bool) -> tuple[Entries, set[str]]:
        """Entries to compare, parents first, and the names of all. ``still``: only names have changed since the last look."""
        entries: Entries = []
        names: set[str] = set()
        before = self._listed
        self._listed = {}
        pending = [""]
        while pending:
            self._go_on()
            folder = pending.pop()
            listed = before.get(folder) if still else None
            if listed is None or not listed.settled or _identity(os.lstat(f"{self._root}/{folder}")) != listed.identity:
                listing = _listing(self._root, folder)
                if listing is None:
                    continue
                status, settled, found = listing
                listed = _Listed(_identity(status), settled, [], [])
                if folder:
                    entries.append((folder, status))
                for entry in found:
                    if stat.S_ISDIR(entry[1].st_mode):
                        listed.folders.append(entry[0])
                    else:
                        listed.others.append(entry[0])
                        entries.append(entry)
            self._listed[folder] = listed
            names.add(folder)
            names.update(listed.others)
            pending += listed.folders
        return entries, names

    def _changes(self, again: Collection[str] = (), *, still: bool = False) -> Iterator[_Message]:
        """What the other side is to do, in messages of about 4 MiB of content. ``still`` as for ``_look``."""
        entries, names = self._look(still=still)
        # Removals first: a name may have been a folder and be something else now.
        gone = sorted(self._known.keys() - names, reverse=True)
        for name in gone:
            del self._known[name]
        for at in range(0, len(gone), _ENTRIES):
            yield _Message([{"remove": gone[at : at + _ENTRIES]}])
        links = self._inodes(entries) if still else {}
        message = _Message([])
        content = bytearray()
        for name, status in entries:
            first = links.setdefault(status.st_ino, name) if status.st_nlink > 1 and stat.S_ISREG(status.st_mode) else name
            known = self._known.get(name)
            if known and known.settled and known.identity == _identity(status) and name not in again:
                continue
            for entry in self._entry(name, status, first, known, content):
                message.entries.append(entry)
                if len(content) >= _BATCH or len(message.entries) >= _ENTRIES:
                    yield self._pack(message, content)
                    message = _Message([])
            if first == name and self._known.get(name) is known:
                links.pop(status.st_ino, None)  # it has vanished: another of its names comes first
        if message.entries:
            yield self._pack(message, content)

    def _inodes(self, entries: Entries) -> dict[int, str]:
        """Files that the other side holds under names that are not among these entries, if one of those may be a link to them."""
        if not any(status.st_nlink > 1 and stat.S_ISREG(status.st_mode) for _, status in entries):
            return {}
        looked_at = {name for name, _ in entries}
        kept = ((name, known.identity) for name, known in self._known.items() if name not in looked_at)
        return {identity[1]: name for name, identity in kept if stat.S_ISREG(identity[0])}

    def _pack(self, message: _Message, content: bytearray) -> _Message:
        message.content, message.size = self._compressor.compress(bytes(content)), len(content)
        content.clear()
        return message

    def _entry(self, name: str, status: os.stat_result, first: str, known: _Known | None, content: bytearray) -> Iterator[dict[str, Any]]:
        """What to send of one entry: nothing if it is gone, several pieces of a large file."""
        path = f"{self._root}/{name}"
        try:
            if stat.S_ISREG(status.st_mode) and first == name:
                yield from self._file(name, path, known, content)
                return
            fresh = _Known(_identity(status), _settled(status))
            entry = _describe(name, status, _xattrs(path))
            if stat.S_ISLNK(status.st_mode):
                entry["target"] = os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                entry["rdev"] = status.st_rdev
            elif stat.S_ISREG(status.st_mode):
                entry["link"] = first
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return
        self._known[name] = fresh
        yield entry

    def _file(self, name: str, path: str, known: _Known | None, content: bytearray) -> Iterator[dict[str, Any]]:
        """Append the changed blocks to ``content``; their places are [(block number, length)]. Only the last piece tells the size."""
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return
            fresh = _Known(_identity(status), _settled(status))
            same_file = known is not None and stat.S_ISREG(known.identity[0])
            old = known.blocks if known and same_file else []
            # A file that was replaced by another of its name must not keep the old one's inode there: open files refer to it.
            replace = not (same_file and known is not None and known.identity[1] == status.st_ino)
            common = _describe(name, status, _xattrs(file))
            entry = {**common, "blocks": [], "replace": replace, "base": bool(replace and old)}
            size = 0
            while data := os.read(file, BLOCK):
                self._go_on()
                number = len(fresh.blocks)
                digest = blake3(data).digest()
                fresh.blocks.append(digest)
                if number >= len(old) or old[number] != digest:
                    entry["blocks"].append((number, len(data)))
                    content += data
                size += len(data)
                if len(data) < BLOCK:
                    break
                if len(content) >= _BATCH:
                    yield entry
                    entry = {**common, "blocks": [], "replace": False}
            self._known[name] = fresh
            yield {**entry, "size": size}
        finally:
            os.close(file)

    def _go_on(self) -> None:
        self._give_way()
        if self._given_up.is_set():
            raise EmulabError("the migration was given up")


def _describe(name: str, status: os.stat_result, attributes: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name, "mode": status.st_mode, "uid": status.st_uid, "gid": status.st_gid, "mtime": status.st_mtime_ns,
        "atime": status.st_atime_ns, "xattrs": attributes,
    }  # fmt: skip
