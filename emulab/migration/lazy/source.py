"""The daemon's line to the server of its pages: it comes back when the connection breaks, and gives up only after a long silence."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulab import clock
from emulab.errors import EmulabError
from emulab.migration.channel import Incoming, Peer, PeerError
from emulab.migration.lazy.exchange import NotKeptError, PageTaker
from emulab.migration.store import KeptPages

log = logging.getLogger("emulab.migration.lazy")

# Longer than a link that was cut, or an agent that starts again and finds its frozen guest.
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Answer:
    """Pages of one question. ``line``: the connection on which they came; an answer of an earlier one counts for nothing."""

    line: int
    number: int
    pages: list[bytes | None]


class Source:
    """Questions go out at once, answers arrive on a thread of their own; ``descriptor`` (an eventfd) is readable when there is news.

    ``line`` is the number of the connection, 0 while there is none. ``lost_s``: since when there is none. ``lost``: the source says that
    the pages are gone. ``kept``: pages that are here already; once one of them is not as it was, all have to be sent.
    """

    def __init__(self, connect: Callable[[], Peer], key: str, kept: KeptPages | None = None) -> None:
        self._connect = connect
        self._kept = kept
        self._key = key
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._asked: dict[int, int] = {}
        self._peer: Peer | None = None
        self._lines = 0
        self._closing = False
        self._said_ok = threading.Event()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.line = 0
        self.lost_s = clock.now()
        self.lost = False
        threading.Thread(target=self._run, daemon=True, name="source").start()

    def _run(self) -> None:
        while not self._closing:
            peer = None
            try:
                peer = self._connect()
                peer.ask("pages", key=self._key, kept=self._kept is not None, timeout_s=10)
                self._listen(peer)
            except (EmulabError, OSError, ValueError, KeyError) as error:
                log.info("the source of the pages: %s", error)
            finally:
                if self.line:
                    self.line, self.lost_s = 0, clock.now()
                if peer:
                    peer.close()
            self._tell()
            time.sleep(0.25)

    def _listen(self, peer: Peer) -> None:
        self._lines += 1
        self._asked = {}
        self._peer = peer
        taker = PageTaker(self._kept.read if self._kept else None)
        self.line = self._lines
        self._tell()
        while True:
            message = peer.receive(timeout_s=None)
            if message.kind == "ok":
                self._said_ok.set()
            elif message.kind == "pages":
                self._answers.put(self._answer(taker, message))
            else:
                self.lost = bool(message.fields.get("lost"))
                raise EmulabError(str(message.fields.get("message", f"the source says {message.kind!r}")))
            self._tell()

    def _answer(self, taker: PageTaker, message: Incoming) -> Answer:
        number, size, proof = int(message.fields["id"]), int(message.fields["refs"]), bytes.fromhex(message.fields["proof"])
        try:
            return Answer(self.line, number, taker.take(message.payload[:size], message.payload[size:], proof, self._asked.pop(number)))
        except NotKeptError:
            self._kept = None
            raise

    def _tell(self) -> None:
        os.eventfd_write(self.descriptor, 1)

    def ask(self, line: int, number: int, pid: int, ranges: list[tuple[int, int]]) -> bool:
        """Ask for pages: [(address, count)]. False if that connection is no more; everything has to be asked again on the next one."""
        peer = self._peer
        if not line or self.line != line or peer is None:
            return False
        self._asked[number] = sum(pages for _, pages in ranges)
        return self._send(peer, "want", id=number, pid=pid, ranges=ranges)

    def _send(self, peer: Peer, kind: str, **fields: Any) -> bool:
        try:
            peer.send(kind, **fields)
        except PeerError:
            return False  # the listening thread finds it broken too
        return True

    def still_here(self) -> None:
        """The server keeps a frozen guest only for somebody who is heard of now and then."""
        if self.line and self._peer:
            self._send(self._peer, "still-here")

    def answers(self) -> list[Answer]:
        """What has arrived since the last call."""
        found = []
        while True:
            try:
                found.append(self._answers.get_nowait())
            except queue.Empty:
                return found

    def quiet(self) -> None:
        """The news was seen."""
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return

    def finish(self, report: dict[str, Any], patience_s: float = PATIENCE_S) -> bool:
        """Say that the last page is here until the source has heard it."""
        end, told = clock.now() + patience_s, 0
        while clock.now() < end:
            if self._said_ok.wait(0.05):
                self._closing = True
                return True
            if self.line and self.line != told and self._peer and self._send(self._peer, "done", **report):
                told = self.line
        return False
