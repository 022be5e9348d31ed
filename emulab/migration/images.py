"""Moving one CRIU image folder: pages files through the page transport, everything else as one compressed batch.

Files keep their names; a file name never carries a folder, so nothing can be written outside of the image folder.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from emulab.errors import EmulabError
from emulab.migration.channel import Incoming, Peer
from emulab.migration.pages import PAGE, Chunk, PageReceiver, PageSender

_LOCAL = {"stats-dump", "parent", "irmap-cache"}
_AHEAD = 4  # chunks that may wait for the link: bounds memory to some 20 MiB


def check_file_name(name: str) -> str:
    """Raises EmulabError for anything that is not a plain file name."""
    if not name or "/" in name or name in {".", ".."} or "\0" in name:
        raise EmulabError(f"refused image file name {name!r}")
    return name


def _is_pages(path: Path) -> bool:
    return path.name.startswith("pages-") and path.suffix == ".img" and path.stat().st_size % PAGE == 0


def send_folder(peer: Peer, folder: Path, sender: PageSender) -> None:
    """Send every image of a folder. Hashing and compressing runs ahead of the link by a few chunks."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in _LOCAL and path.suffix != ".log")
    pages = [path for path in files if _is_pages(path)]
    others = [(path.name, path.read_bytes()) for path in files if path not in pages]
    batch = zstandard.ZstdCompressor(level=1).compress(b"".join(data for _, data in others))
    peer.send("files", batch, folder=folder.name, names=[(name, len(data)) for name, data in others])
    # What is hashed and compressed here is sent there; a None ends it, an error on either side ends both.
    ahead: queue.Queue[tuple[str, Any] | None] = queue.Queue(_AHEAD)
    failed: list[BaseException] = []

    def produce() -> None:
        try:
            for path in pages:
                ahead.put(("pages", {"name": path.name, "pages": path.stat().st_size // PAGE}))
                for chunk in sender.chunks(path):
                    ahead.put(("chunk", chunk))
        except BaseException as error:
            failed.append(error)
        ahead.put(None)

    thread = threading.Thread(target=produce, name="hash", daemon=True)
    thread.start()
    try:
        while (item := ahead.get()) is not None:
            kind, value = item
            if kind == "pages":
                peer.send("pages", **value)
            else:
                peer.send("chunk", value.refs + value.content, first=value.first_page, refs=len(value.refs))
    finally:
        while thread.is_alive():  # let a blocked producer end
            try:
                ahead.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()
    if failed:
        raise failed[0]
    peer.send("folder-end")


class FolderReceiver:
    """The other side of ``send_folder``: feed it messages until ``handle`` returns True."""

    def __init__(self, base: Path, receiver: PageReceiver) -> None:
        self._base = base
        self._receiver = receiver
        self._folder: Path | None = None
        self._file: int | None = None

    def handle(self, message: Incoming) -> bool:
        handler: Callable[[Incoming], bool] | None = {
            "files": self._files,
            "pages": self._pages,
            "chunk": self._chunk,
            "folder-end": lambda _: True,
        }.get(message.kind)
        if handler is None:
            raise EmulabError(f"message {message.kind!r} in the middle of an image folder")
        return handler(message)

    def _files(self, message: Incoming) -> bool:
        self._folder = self._base / check_file_name(str(message.fields["folder"]))
        self._folder.mkdir(exist_ok=True)
        names = [(check_file_name(str(name)), int(size)) for name, size in message.fields["names"]]
        total = sum(size for _, size in names)
        data = zstandard.ZstdDecompressor().decompress(message.payload, max_output_size=total) if total else b""
        at = 0
        for name, size in names:
            (self._folder / name).write_bytes(data[at : at + size])
            at += size
        return False

    def _pages(self, message: Incoming) -> bool:
        if self._folder is None:
            raise EmulabError("pages before their folder")
        self._file = self._receiver.open(self._folder / check_file_name(str(message.fields["name"])), int(message.fields["pages"]))
        return False

    def _chunk(self, message: Incoming) -> bool:
        if self._file is None:
            raise EmulabError("a chunk before its pages file")
        size = int(message.fields["refs"])
        self._receiver.write(self._file, Chunk(int(message.fields["first"]), message.payload[:size], message.payload[size:]))
        return False
