"""CRIU at work on the source: started as a child, watched from outside, held at its hook."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from emulab import clock
from emulab.criu import commands
from emulab.criu.log import read_deciding_line
from emulab.criu.standby import HookedCriu
from emulab.errors import EmulabError
from emulab.migration.pages import PAGE

_PATIENCE_S = 10.0


class FinalDump:
    """``criu dump`` of a frozen guest, held at ``post-dump``: ``refuse`` lets CRIU undo it all, ``end`` ends CRIU alone.

    Made before the freeze: it comes as far as ``pre-dump``, before it looks at any task, and waits there for ``begin``.
    """

    def __init__(self, call: commands.CriuCall, images: Path, socket_path: Path) -> None:
        self._images = images
        self._begun = False
        self._asked = threading.Event()  # to begin, or to give up before that
        self._dumped = threading.Event()
        self._decided = threading.Event()
        self._criu = HookedCriu(call, socket_path, {"pre-dump": self._at_pre_dump, "post-dump": self._at_post_dump})

    @property
    def pid(self) -> int:
        """CRIU's process number."""
        return self._criu.process.pid

    def begin(self) -> None:
        self._begun = True
        self._asked.set()

    def _at_pre_dump(self, pid: int) -> bool:
        del pid
        self._asked.wait()
        return self._begun

    def _at_post_dump(self, pid: int) -> bool:
        del pid
        self._dumped.set()
        self._decided.wait()
        return False

    def wait_until_dumped(self, timeout_s: float, meanwhile: Callable[[], None], check: Callable[[], None]) -> None:
        """``meanwhile`` is called again and again to make use of the time; ``check`` may raise to give up."""
        end = clock.now() + timeout_s
        while not self._dumped.wait(0.005):
            check()
            meanwhile()
            if (code := self._criu.process.poll()) is not None:
                raise EmulabError(f"CRIU dump failed: {read_deciding_line(self._images / 'dump.log', code)}")
            if clock.now() > end:
                raise EmulabError(f"CRIU dump took longer than {timeout_s:.1f} s")

    def settle(self) -> None:
        """Wait until CRIU is at its hook, or has ended. Its tasks have to be able to run until then: those of a frozen cgroup would not
        answer it. One that takes longer than ``_PATIENCE_S`` is ended.
        """
        end = clock.now() + _PATIENCE_S
        while not self._dumped.wait(0.005) and self._criu.process.poll() is None:
            if clock.now() > end:
                self._criu.kill()

    def refuse(self) -> None:
        """Answer no and wait until CRIU has let go of the tasks. Without a hook waiting, CRIU is ended and the tree goes on."""
        self._asked.set()
        self._decided.set()
        self._criu.stop()

    def end(self) -> None:
        """End CRIU without an answer: the tree stays as it is, and must be kept from running by its cgroup."""
        self._criu.kill()
        self._asked.set()
        self._decided.set()

    def close(self) -> None:
        self._criu.hooks.close()


class Nobody:
    """A socket with no other end: whoever listens on it learns at once that there is nobody."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        other.close()

    @property
    def descriptor(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def is_traced(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "TracerPid:\t0\n" not in status


def pages_in(images: Path) -> int:
    return sum(path.stat().st_size for path in images.glob("pages-*.img")) // PAGE
