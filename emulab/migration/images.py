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


class FolderSender:
    """Sends the images of one folder. ``poll`` may be called while CRIU still writes: it sends the pages of finished tasks."""

    def __init__(self, peer: Peer, folder: Path, sender: PageSender) -> None:
        self._peer = peer
        self._folder = folder
        self._sender = sender
        self._sent = 0
        peer.send("folder", folder=folder.name)

    def poll(self) -> None:
        """CRIU numbers pages files in the order in which it dumps tasks, so each one is finished once the next exists."""
        while (self._folder / f"pages-{self._sent + 2}.img").exists():
            self._send_pages([self._folder / f"pages-{self._sent + 1}.img"])
            self._sent += 1

    def finish(self) -> None:
        """Send everything that is left."""
        files = sorted(path for path in self._folder.iterdir() if path.is_file() and path.name not in _LOCAL and path.suffix != ".log")
        early = {f"pages-{number}.img" for number in range(1, self._sent + 1)}
        pages = [path for path in files if _is_pages(path) and path.name not in early]
        others = [(path.name, path.read_bytes()) for path in files if path not in pages and path.name not in early]
        batch = zstandard.ZstdCompressor(level=1).compress(b"".join(data for _, data in others))
        self._peer.send("files", batch, names=[(name, len(data)) for name, data in others])
        self._send_pages(pages)
        self._peer.send("folder-end")

    def _send_pages(self, pages: list[Path]) -> None:
        """Hashing and compressing runs ahead of the link by a few chunks."""
        ahead: queue.Queue[tuple[str, Any] | None] = queue.Queue(_AHEAD)  # a None ends it
        failed: list[BaseException] = []

        def produce() -> None:
            try:
                for path in pages:
                    ahead.put(("pages", {"name": path.name, "pages": path.stat().st_size // PAGE}))
                    for chunk in self._sender.chunks(path):
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
                    self._peer.send("pages", **value)
                else:
                    self._peer.send("chunk", value.refs + value.content, first=value.first_page, refs=len(value.refs))
        finally:
            while thread.is_alive():  # let a blocked producer end
                try:
                    ahead.get(timeout=0.01)
                except queue.Empty:
                    continue
            thread.join()
        if failed:
            raise failed[0]


def send_folder(peer: Peer, folder: Path, sender: PageSender) -> None:
    """Send every image of a finished folder."""
    FolderSender(peer, folder, sender).finish()


class FolderReceiver:
    """The other side of ``send_folder``: feed it messages until ``handle`` returns True."""

    def __init__(self, base: Path, receiver: PageReceiver) -> None:
        self._base = base
        self._receiver = receiver
        self._folder: Path | None = None
        self._file: int | None = None

    def handle(self, message: Incoming) -> bool:
        handler: Callable[[Incoming], bool] | None = {
            "folder": self._start,
            "files": self._files,
            "pages": self._pages,
            "chunk": self._chunk,
            "folder-end": lambda _: True,
        }.get(message.kind)
        if handler is None:
            raise EmulabError(f"message {message.kind!r} in the middle of an image folder")
        return handler(message)

    def _start(self, message: Incoming) -> bool:
        self._folder = self._base / check_file_name(str(message.fields["folder"]))
        self._folder.mkdir(exist_ok=True)
        return False

    def _files(self, message: Incoming) -> bool:
        if self._folder is None:
            raise EmulabError("files before their folder")
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
