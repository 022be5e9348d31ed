"""Moving one CRIU image folder while CRIU still writes it: pages files through the page transport, everything else in pieces.

Reading and hashing, compressing and sending, and rebuilding on the other side go on at the same time, a few chunks apart.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from io import FileIO
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration.channel import Incoming, Peer
from emulab.migration.image_files import ImageFiles, Message, check_file_name, is_pages, write_files
from emulab.migration.page_receiver import PageReceiver
from emulab.migration.page_sender import Named, PageSender
from emulab.migration.pages import CHUNK_PAGES, CHUNK_REFS, PAGE, Chunk, Part
from emulab.migration.priority import GiveWay
from emulab.migration.same_frame import Alike
from emulab.migration.store import ask

IMAGES = Path("/run/emulab")  # the image folders of all migrations of this node
FINAL = "final"  # the image folder of the final dump

_AHEAD = 16  # chunks that may wait for the link: bounds memory to some 20 MiB
_LOOK_EVERY_S = 0.025  # a look costs a millisecond of the CPU that CRIU needs; what grows by much is read without waiting
_OTHERS_EVERY_S = 0.05
_EAGER_PAGES = 64  # fewer pages than this wait for more while CRIU is at work
_PATIENCE_S = 0.5
_DIGEST = 32


class FolderSender:
    """Sends the images of one folder, from the moment it is made: what CRIU has written so far, until ``finish`` says that it is done.

    The connection belongs to it until ``finish`` or ``close`` has returned. ``give_way`` is called by its threads
    every other millisecond or so. ``alike``: stretches of the pages files that are left as holes, because the same pages are elsewhere.
    ``eager``: other files, too, are sent before the end. ``maps_grow``: page maps are only ever appended to, and travel as they grow.
    """

    def __init__(
        self,
        peer: Peer,
        folder: Path,
        sender: PageSender,
        *,
        give_way: GiveWay | None = None,
        alike: Alike | None = None,
        eager: bool = False,
        maps_grow: bool = False,
    ) -> None:
        self._peer = peer
        self._alike = alike or Alike()
        self._eager = eager
        self._maps_grow = maps_grow
        self._give_way = give_way or GiveWay(0.0)
        self._folder = folder
        self._sender = sender
        self._sent: dict[str, int] = {}  # pages of each pages file
        self._growing: set[str] = set()  # pages files that more is expected of
        self._parts: list[Part] = []  # of the chunk that is being gathered
        self._data: list[bytes] = []
        self._gathered = self._read_pages = 0  # pages of ``_parts``, and of ``_data``
        self._others = ImageFiles(folder, self._give_way)
        self._asked = threading.Event()  # and answered: until then nobody else may use the connection
        self._looking = threading.Lock()  # for other files than pages
        self._files_sent = False  # all of them
        self._may_go_on = threading.Event()  # the threads
        self._may_go_on.set()
        self._looked = clock.now()
        self._ahead: queue.Queue[Named | None] = queue.Queue(_AHEAD)  # a None ends it
        self._complete = threading.Event()
        self._stopped = threading.Event()
        self._failed: list[BaseException] = []
        peer.send("folder", folder=folder.name)
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in (self._read, self._send)]
        for thread in self._threads:
            thread.start()

    def poll(self) -> None:
        """Raises what went wrong so far, if something did."""
        if self._failed:
            raise self._failed[0]

    def finish_files(self) -> dict[str, int]:
        """CRIU is done: send all other files, past the pages that wait to be sent. Returns how many pages each pages file has.

        Pages wait until ``finish``: whoever is in between makes a restore begin, and is not to share the interpreter with them.
        """
        self._may_go_on.clear()
        while not self._asked.wait(0.05):
            self.poll()
        with os.scandir(self._folder) as found:
            sizes = {entry.name: entry.stat().st_size for entry in found if is_pages(entry.name)}
        if any(size % PAGE for size in sizes.values()):
            raise EmulabError("a pages file ends within a page")
        with self._looking:
            self._send_at_once(self._others.rest())
            self._files_sent = True
        return {name: size // PAGE for name, size in sizes.items()}

    def finish(self) -> None:
        """CRIU is done: send everything that is left."""
        if not self._files_sent:
            self.finish_files()
        self._complete.set()
        self._may_go_on.set()
        for thread in self._threads:
            thread.join()
        self.poll()
        self._peer.send("folder-end")

    def close(self) -> None:
        """Stop early, in the middle of the folder. Safe to repeat, and after ``finish``.

        A link that takes nothing any more is given up after a moment: a frozen guest may be waiting to be resumed.
        """
        self._stopped.set()
        self._complete.set()
        self._may_go_on.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)
            if thread.is_alive():
                self._peer.cut()
                thread.join()

    # -- two threads: reading and hashing, compressing and sending -------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failed.append(error)
            self._stopped.set()

    def _read(self) -> None:
        try:
            ask(self._peer, self._sender)
            self._asked.set()
            self._sender.versions.begin(self._folder)
            while not self._stopped.is_set():
                complete = self._complete.is_set()  # asked before looking: what is there then is all there is
                moved = self._gather(complete=complete)
                if self._parts and (complete or (not moved and self._gathered >= _EAGER_PAGES and self._ahead.empty())):
                    self._hand_over()
                if complete:
                    break
                self._look_at_others()
                if moved < CHUNK_PAGES:
                    self._complete.wait(_LOOK_EVERY_S)
        finally:
            self._put(None)

    def _pause(self) -> None:
        """What else is more urgent goes first."""
        self._give_way()
        self._may_go_on.wait()

    def _gather(self, *, complete: bool) -> int:
        """Take what the pages files have grown by; returns how many pages that was."""
        moved = 0
        with os.scandir(self._folder) as found:
            files = {entry.name: entry for entry in found if is_pages(entry.name)}
        names = sorted(files, key=lambda name: (len(name), name))
        # Files are written one after the other; whether one of those before the last two has grown after all, the last look tells.
        worth = names if complete else [name for name in names if name in self._growing or name not in self._sent or name in names[-2:]]
        for name in worth:
            self._pause()
            moved += self._gather_from(name, files[name].stat().st_size // PAGE, complete=complete)
        return moved

    def _gather_from(self, name: str, pages: int, *, complete: bool) -> int:
        first = self._sent.get(name)
        if first is None:
            self._sent[name] = first = 0
            if not pages:
                self._parts.append(Part(name, 0, 0))
        if pages < first:
            raise EmulabError(f"{name} became shorter while it was sent")
        until = pages if complete else max(first, self._sender.versions.ready(name, pages))
        if until > first:
            with (self._folder / name).open("rb", buffering=0) as file:
                while self._sent[name] < until and not self._stopped.is_set():
                    if not self._take(name, file, until):
                        if complete:
                            raise EmulabError(f"pages of {name} are like others that never came")
                        break
        if self._sent[name] < pages:
            self._growing.add(name)
        else:
            self._growing.discard(name)
        return self._sent[name] - first

    def _take(self, name: str, file: FileIO, pages: int) -> int:
        """Take some of a file's first ``pages``; returns how many: 0 if the next ones are like others that have not been taken yet."""
        first = self._sent[name]
        like, until = self._alike.at(name, first)
        count = min(pages, until) - first
        if like:
            there, page = like
            count = min(count, self._sent.get(there, 0) - page, CHUNK_REFS - self._gathered)
            if count <= 0:
                return 0
        else:
            data = os.pread(file.fileno(), min(count, CHUNK_PAGES - self._read_pages, CHUNK_REFS - self._gathered) * PAGE, first * PAGE)
            count = len(data) // PAGE
            if not count:
                raise EmulabError(f"{name} became shorter while it was sent")
            self._data.append(data[: count * PAGE])
            self._read_pages += count
        self._add(Part(name, first, count, like))
        self._sent[name] = first + count
        self._gathered += count
        if self._read_pages == CHUNK_PAGES or self._gathered == CHUNK_REFS:
            self._hand_over()
        return count

    def _add(self, part: Part) -> None:
        """To the parts of this chunk, as one with the last if they belong together."""
        last = self._parts[-1] if self._parts else None
        if last and last.name == part.name and last.like is part.like is None:
            self._parts[-1] = Part(part.name, last.first, last.count + part.count)
        else:
            self._parts.append(part)

    def _hand_over(self) -> None:
        self._pause()
        named = self._sender.name(self._folder, self._parts, b"".join(self._data), self._pause)
        self._parts, self._data = [], []
        self._gathered = self._read_pages = 0
        self._put(named)
        self._look_at_others()

    def _put(self, item: Named | None) -> None:
        while True:
            try:
                return self._ahead.put(item, timeout=0.05)
            except queue.Full:
                if self._stopped.is_set():
                    return None

    def _send(self) -> None:
        while not self._stopped.is_set():
            try:
                item = self._ahead.get(timeout=0.05)
            except queue.Empty:
                continue
            if item is None:
                return
            self._pause()
            kind, payload, fields = self._packed(item)
            self._peer.send(kind, payload, **fields)

    def _packed(self, named: Named) -> Message:
        chunk = self._sender.pack(named)
        # The other side need not know which parts of a file are like others.
        runs = (list(run) for _, run in groupby(chunk.parts, key=attrgetter("name")))
        parts = [(run[0].name, run[0].first, sum(part.count for part in run)) for run in runs]
        payload = b"".join((chunk.digest, chunk.refs, chunk.content))
        return "chunk", payload, {"parts": parts, "refs": len(chunk.refs), "form": chunk.kind, "waits": self._give_way.waits}

    def _look_at_others(self) -> None:
        """Now and then: what of other files can be sent before the end."""
        if not (self._eager or self._maps_grow) or clock.now() - self._looked < _OTHERS_EVERY_S:
            return
        with self._looking:
            if not self._files_sent:  # what a restore begins with is not touched any more
                self._send_at_once(self._others.settled() if self._eager else self._others.grown_maps())
        self._looked = clock.now()

    def _send_at_once(self, messages: Iterable[Message]) -> None:
        for kind, payload, fields in messages:
            self._peer.send(kind, payload, **fields)


def send_folder(peer: Peer, folder: Path, sender: PageSender) -> None:
    """Send every image of a finished folder."""
    FolderSender(peer, folder, sender).finish()


class FolderReceiver:
    """The other side of ``FolderSender``: feed it messages until ``handle`` returns True."""

    def __init__(self, base: Path, receiver: PageReceiver) -> None:
        self._base = base
        self._receiver = receiver
        self._folder: Path | None = None

    def handle(self, message: Incoming) -> bool:
        handler: Callable[[Incoming], bool] | None = {
            "folder": self._start,
            "files": self._files,
            "chunk": self._chunk,
            "folder-end": self._end,
        }.get(message.kind)
        if handler is None:
            raise EmulabError(f"message {message.kind!r} in the middle of an image folder")
        return handler(message)

    def _start(self, message: Incoming) -> bool:
        self._folder = self._base / check_file_name(str(message.fields["folder"]))
        self._folder.mkdir(exist_ok=True)
        return False

    def expect(self, pages: Mapping[str, int]) -> None:
        """How many pages each pages file of the folder at hand will have; from now on they may be read (``PageReceiver.expect``)."""
        if self._folder is None:
            raise EmulabError("pages are expected before their folder")
        self._receiver.expect({self._folder / check_file_name(name): count for name, count in pages.items()})

    def _end(self, _: Incoming) -> bool:
        if self._folder is None:
            raise EmulabError("the end of a folder before its beginning")
        self._receiver.check_complete(self._folder)
        return True

    def _files(self, message: Incoming) -> bool:
        if self._folder is None:
            raise EmulabError("files before their folder")
        write_files(self._folder, message)
        return False

    def _chunk(self, message: Incoming) -> bool:
        if self._folder is None:
            raise EmulabError("a chunk before its folder")
        fields, payload = message.fields, memoryview(message.payload)
        parts = tuple(Part(check_file_name(str(name)), int(first), int(count)) for name, first, count in fields["parts"])
        end = _DIGEST + int(fields["refs"])
        self._receiver.write(
            self._folder, Chunk(parts, bytes(payload[:_DIGEST]), bytes(payload[_DIGEST:end]), int(fields["form"]), bytes(payload[end:]))
        )
        return False
