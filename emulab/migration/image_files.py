"""What is in an image folder beside pages: small files by the hundred, sent and compressed as many at a time as one message takes.

Files keep their names; a file name never carries a folder, so nothing can be written outside of the image folder.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import zstandard

from emulab.errors import EmulabError
from emulab.migration.channel import Incoming

_LOCAL = {"stats-dump", "parent", "irmap-cache"}
_PIECES = 4 * 1024 * 1024  # content of one message
_INDEX = 16 * 1024 * 1024
_EARLY_SIZE = 256 * 1024  # bytes of a file that may be sent before the end, and once more
_GROWN = 1024  # bytes of a page map: some 10 000 pages
_SETTLED_NS = 20_000_000  # file times advance in steps of up to 10 ms: only a file that is older has one that tells of later changes

_NEW_PIECE = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW_FILE = _NEW_PIECE | os.O_TRUNC

Message = tuple[str, bytes, dict[str, Any]]  # kind, payload, fields
_Pieces = tuple[list[tuple[str, int, int]], bytes]  # (name, offset, size) of pieces of files, and their content


def check_file_name(name: str) -> str:
    """Raises EmulabError for anything that is not a plain file name."""
    if not name or "/" in name or name in {".", ".."} or "\0" in name:
        raise EmulabError(f"refused image file name {name!r}")
    return name


def is_pages(name: str) -> bool:
    return name.startswith("pages-") and name.endswith(".img")


class ImageFiles:
    """Messages with what is not pages in ``folder``, each piece once. ``give_way`` is called before each file."""

    def __init__(self, folder: Path, give_way: Callable[[], object]) -> None:
        self._folder = folder
        self._give_way = give_way
        self._grown: dict[str, int] = {}  # bytes of each page map that have been sent before the end
        self._early: dict[str, tuple[int, int]] = {}  # size and time of other files that have been sent before the end

    def rest(self) -> Iterator[Message]:
        """CRIU is done: everything that has not been sent as it is now, however large it is. Pages go another way."""
        entries = self._entries()
        if self._early.keys() - {entry.name for entry in entries}:
            raise EmulabError("an image was removed after it had been sent")
        return _packed(self._pieces(self._wanted(entries)))

    def settled(self) -> Iterator[Message]:
        """Files that CRIU seems to be done with, as are those of finished tasks. One that changes later is sent again."""
        return _packed(self._pieces(self._settled(self._entries())))

    def grown_maps(self) -> Iterator[Message]:
        """What large page maps have grown by, where nothing else ever happens to them."""
        names, content = [], bytearray()
        for entry in self._entries("pagemap-"):
            sent = self._grown.get(entry.name, 0)
            if entry.stat().st_size >= sent + _GROWN and len(content) < _PIECES:
                with open(entry.path, "rb", buffering=0) as file:
                    data = os.pread(file.fileno(), _PIECES - len(content), sent)
                names.append((entry.name, sent, len(data)))
                content += data
                self._grown[entry.name] = sent + len(data)
        return _packed([(names, bytes(content))] if names else [])

    def _entries(self, prefix: str = "") -> list[os.DirEntry[str]]:
        with os.scandir(self._folder) as found:
            return sorted((entry for entry in found if entry.name.startswith(prefix)), key=attrgetter("name"))

    def _wanted(self, entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        """Regular files that the other side needs and does not have as they are now."""
        for entry in entries:
            self._give_way()
            if entry.name in _LOCAL or entry.name.endswith(".log") or is_pages(entry.name):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and self._early.get(entry.name) != (status.st_size, status.st_mtime_ns):
                yield entry, status

    def _settled(self, entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        for entry, status in self._wanted(entries):
            if 0 < status.st_size <= _EARLY_SIZE and time.time_ns() - status.st_mtime_ns >= _SETTLED_NS:
                self._early[entry.name] = status.st_size, status.st_mtime_ns
                yield entry, status

    def _pieces(self, wanted: Iterable[tuple[os.DirEntry[str], os.stat_result]]) -> Iterator[_Pieces]:
        names: list[tuple[str, int, int]] = []
        content = bytearray()
        for entry, status in wanted:
            name = entry.name
            offset = self._grown.get(name, 0)
            file = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not status.st_size:
                    names.append((name, 0, 0))
                while data := os.pread(file, _PIECES - len(content), offset):
                    names.append((name, offset, len(data)))
                    content += data
                    offset += len(data)
                    if len(content) == _PIECES:
                        yield names, bytes(content)
                        names, content = [], bytearray()
            finally:
                os.close(file)
        if names:
            yield names, bytes(content)


def _packed(pieces: Iterable[_Pieces]) -> Iterator[Message]:
    compressor = zstandard.ZstdCompressor(level=3)
    for names, content in pieces:
        index = json.dumps(names, separators=(",", ":")).encode()
        yield "files", compressor.compress(index + content), {"index": len(index), "size": len(content)}


def write_files(folder: Path, message: Incoming) -> None:
    """The other side: write what a message brings. Raises EmulabError for one that is not as ``ImageFiles`` makes them."""
    index, content = int(message.fields["index"]), int(message.fields["size"])
    if not (0 <= content <= _PIECES and 0 <= index <= _INDEX):
        raise EmulabError("a message of image files is larger than it may be")
    try:
        if zstandard.frame_content_size(message.payload) != index + content:
            raise EmulabError("image files arrived that are not as large as they should be")
        data = zstandard.ZstdDecompressor().decompress(message.payload)
        pieces = [(check_file_name(str(name)), int(offset), int(size)) for name, offset, size in json.loads(data[:index])]
    except (zstandard.ZstdError, ValueError, TypeError) as error:
        raise EmulabError(f"image files cannot be unpacked: {error}") from error
    data = data[index:]
    if len(data) != content or sum(size for _, _, size in pieces) != content or any(size < 0 for _, _, size in pieces):
        raise EmulabError("image files arrived that are not as large as they should be")
    at = 0
    for name, offset, size in pieces:
        file = os.open(folder / name, _NEW_PIECE if offset else _NEW_FILE, 0o600)  # one that comes again has changed
        try:
            if os.lseek(file, 0, os.SEEK_END) != offset:
                raise EmulabError(f"a piece of {name} arrived out of order")
            if os.write(file, data[at : at + size]) != size:
                raise EmulabError(f"there is no room for {name}")
        finally:
            os.close(file)
        at += size
