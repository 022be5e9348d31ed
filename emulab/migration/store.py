"""Pages that a node keeps of a guest that has left, so that they need not cross the wire when it comes back.

A store is one file per guest, written after the commit, outside the blackout, and put in place by a rename:

    pages | names, 8 bytes per page | BLAKE3 of each block of 256 pages | footer

A page's name is a hash of its digest, keyed with a number drawn when the guest has left: the guest cannot know it, so it cannot make two
pages of one name. A name only proposes a page; whether the right one was taken is decided by the digest of the rebuilt chunk (pages.py).
When the guest arrives, every block is read and compared with its digest before its pages are offered: what the disk spoiled, or a crash
left unwritten, is never offered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from blake3 import blake3

from emulab.errors import EmulabError
from emulab.migration.channel import Peer, PeerError
from emulab.migration.page_sender import PageSender
from emulab.migration.pages import PAGE
from emulab.node.rootfs import GUESTS

log = logging.getLogger("emulab.migration")

FOLDER = GUESTS / ".store"  # on the volume of the guests' layers: a disk, not memory
KEEPING = "keep-"
PER_GUEST = 2**30
ALL_GUESTS = 4 * 2**30
_SHARE_OF_FREE = 0.1  # of the disk, for one guest
_BLOCK = 256
_NAME = 8
_DIGEST = 32
_KEY = 32
_FOOTER = struct.Struct(f">8sQ{_KEY}s{_DIGEST}s")
_MAGIC = b"emulab-1"
_NO_NAME = bytes(_NAME)
_PATIENCE_S = 3.0  # for a store that is still being written, or read through


def _name(digest: bytes, key: bytes) -> bytes:
    return blake3(digest, key=key).digest(length=_NAME)


# -- on the node that the guest leaves -----------------------------------------------------------------------------------------------------


def kept(leaving: str, pages: Iterable[tuple[Path, int]], folder: Path = FOLDER, *, limit: int = PER_GUEST) -> int:
    """Write the store of a guest: pages as ``PageSender.distinct`` names them. Returns how many were kept.

    ``limit`` in bytes; less is kept on a full disk. Raises OSError. Memory: a block of pages, and 8 bytes per page.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    disk = os.statvfs(folder)
    room = min(limit, int(disk.f_bavail * disk.f_frsize * _SHARE_OF_FREE)) // PAGE
    key = secrets.token_bytes(_KEY)
    names, blocks = bytearray(), bytearray()
    partial = folder / f"{leaving}.new"
    try:
        with partial.open("wb") as file:
            for block in _blocks(islice(pages, room)):
                names += b"".join(_name(blake3(page).digest(), key) for page in block)
                content = b"".join(block)
                blocks += blake3(content).digest()
                file.write(content)
            count = len(names) // _NAME
            tail = bytes(names + blocks)
            file.write(tail)
            file.write(_FOOTER.pack(_MAGIC, count, key, blake3(tail).digest()))
        partial.replace(folder / leaving)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _blocks(pages: Iterator[tuple[Path, int]]) -> Iterator[list[bytes]]:
    """Content of pages, so many at a time."""
    descriptor, opened = -1, None
    try:
        while batch := list(islice(pages, _BLOCK)):
            block = []
            for path, number in batch:
                if path != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    descriptor, opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
                block.append(os.pread(descriptor, PAGE, number * PAGE))
            yield block
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def make_room(folder: Path = FOLDER, limit: int = ALL_GUESTS) -> None:
    """Remove the stores that were written first until all of them are within ``limit`` bytes."""
    files = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.iterdir() if path.suffix != ".new")
    total = sum(size for _, size, _ in files)
    for _, size, path in files[:-1]:
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size


def discard(guest: str, folder: Path = FOLDER) -> None:
    """Forget a guest: it was stopped."""
    _wait_for(guest)
    with contextlib.suppress(OSError):
        (folder / guest).unlink()


_writing: dict[str, threading.Thread] = {}


def keep_in_background(guest: str, sender: PageSender, images: Path, folder: Path = FOLDER) -> None:
    """Write the guest's store in a thread of its own and then remove the folder ``images``, which the pages are in.

    The folder is renamed at once (``KEEPING`` and a number): from now on it belongs to nobody's migration.
    """
    mine = images.with_name(f"{KEEPING}{time.time_ns()}")
    images.rename(mine)

    def work() -> None:
        try:
            count = kept(guest, ((mine / path.relative_to(images), page) for path, page in sender.distinct()), folder)
            make_room(folder)
            log.info("kept %d pages of %s", count, guest)
        except OSError as error:
            log.warning("the pages of %s are not kept: %s", guest, error)
        finally:
            shutil.rmtree(mine, ignore_errors=True)

    _writing[guest] = thread = threading.Thread(target=work, name=f"keep {guest}", daemon=True)
    thread.start()


def _wait_for(guest: str) -> None:
    if thread := _writing.get(guest):
        thread.join(_PATIENCE_S)


def names(guest: str, folder: Path = FOLDER) -> bytes:
    """What ``Visit.offer`` would say if every page is sound: enough to predict with. No names if nothing is kept, or damaged."""
    try:
        descriptor = os.open(folder / guest, os.O_RDONLY | os.O_CLOEXEC)
        try:
            key, count, tail = _index(descriptor)
        finally:
            os.close(descriptor)
    except (OSError, ValueError, struct.error):
        return bytes(_KEY)
    return key + tail[: count * _NAME]


def _index(descriptor: int) -> tuple[bytes, int, bytes]:
    """Key, number of pages, and all that is behind the pages but the footer. Raises OSError, ValueError, struct.error."""
    size = os.fstat(descriptor).st_size
    magic, count, key, digest = _FOOTER.unpack(os.pread(descriptor, _FOOTER.size, max(0, size - _FOOTER.size)))
    pieces = -(-count // _BLOCK)
    if magic != _MAGIC or size != count * (PAGE + _NAME) + pieces * _DIGEST + _FOOTER.size:
        raise ValueError("it is cut off")
    tail = os.pread(descriptor, count * _NAME + pieces * _DIGEST, count * PAGE)
    if blake3(tail).digest() != digest:
        raise ValueError("its index is damaged")
    return key, count, tail


# -- on the node that the guest comes back to ----------------------------------------------------------------------------------------------


class Visit:
    """The store of a guest that is about to arrive. It is read through in the background, from the beginning.

    ``give_way`` is called before each block.
    """

    def __init__(self, guest: str, folder: Path = FOLDER, give_way: Callable[[], object] = lambda: None) -> None:
        self._guest = guest
        self._folder = folder
        self._give_way = give_way
        self._descriptor = -1
        self._key = bytes(_KEY)
        self._names = bytearray()
        self._ended = threading.Event()
        self._closed = False
        threading.Thread(target=self._guarded, name=f"store {guest}", daemon=True).start()

    def _guarded(self) -> None:
        try:
            _wait_for(self._guest)
            self._read_through()
        except (OSError, ValueError, struct.error) as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("the store of %s cannot be used: %s", self._guest, error)
        finally:
            self._ended.set()

    def _read_through(self) -> None:
        descriptor = self._descriptor = os.open(self._folder / self._guest, os.O_RDONLY | os.O_CLOEXEC)
        self._key, count, tail = _index(descriptor)
        block = bytearray(_BLOCK * PAGE)
        for number in range(-(-count // _BLOCK)):
            self._give_way()
            if self._closed:
                return
            pages = min(_BLOCK, count - number * _BLOCK)
            view = memoryview(block)[: pages * PAGE]
            whole = os.preadv(descriptor, [view], number * _BLOCK * PAGE) == len(view)
            at = count * _NAME + number * _DIGEST
            good = whole and blake3(view).digest() == tail[at : at + _DIGEST]
            first = number * _BLOCK * _NAME
            self._names += tail[first : first + pages * _NAME] if good else _NO_NAME * pages

    def offer(self, patience_s: float = _PATIENCE_S) -> bytes:
        """What is sent to the guest's source: key and names of the pages that are sound as far as is known by then."""
        self._ended.wait(patience_s)
        return self._key + bytes(self._names)

    def read_into(self, first: int, pages: memoryview) -> None:
        count = len(pages) // PAGE
        if not 0 <= first <= len(self._names) // _NAME - count:
            raise EmulabError("a page arrived that refers to one which was never offered")
        if os.preadv(self._descriptor, [pages], first * PAGE) != len(pages):
            raise EmulabError("a page of the store is gone")

    def handed_on(self) -> dict[str, Any] | None:
        """What another process needs for ``KeptPages`` while this one has the file open; None if nothing was offered."""
        if self._descriptor < 0 or not self._names:
            return None
        return {"path": f"/proc/{os.getpid()}/fd/{self._descriptor}", "count": len(self._names) // _NAME}

    def close(self) -> None:
        self._closed = True
        self._ended.wait()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class KeptPages:
    """The pages of a visit, read by another process. Raises OSError if there is no such file."""

    def __init__(self, path: str, count: int) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._count = count

    def read(self, number: int) -> bytes:
        """Raises OSError, and EmulabError for a page that was never offered."""
        page = os.pread(self._descriptor, PAGE, number * PAGE) if 0 <= number < self._count else b""
        if len(page) != PAGE:
            raise EmulabError("it was never offered")
        return page


# -- between the two -----------------------------------------------------------------------------------------------------------------------


class Offered:
    """The answer to ``ask``: names of pages by their place in the other side's store."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self._key = message[:_KEY]
        names = array("Q", message[_KEY : len(message) - (len(message) - _KEY) % _NAME])
        self._places = {name: place for place, name in enumerate(names) if name}

    def find(self, digest: bytes) -> int | None:
        return self._places.get(int.from_bytes(_name(digest, self._key), sys.byteorder)) if self._places else None


def ask(peer: Peer, sender: PageSender) -> None:
    """Ask the destination once per migration which pages of the guest it has. The connection must be idle."""
    if not sender.asks:
        return
    sender.asks = False
    peer.send("stored")
    sender.refer_to(_offered(peer))


def look(peer: Peer, guest: str) -> Offered:
    """What another node keeps of a guest, before anything of it moves. Raises PeerError."""
    peer.send("kept", name=guest)
    return _offered(peer)


def _offered(peer: Peer) -> Offered:
    answer = peer.receive(_PATIENCE_S + 10)
    if answer.kind != "stored" or len(answer.payload) < _KEY:
        raise PeerError(f"the other agent answered {answer.kind!r} when asked for its pages")
    return Offered(answer.payload)
