"""Dirty trackers: how pre-copy learns which pages were written since the last round.

``soft-dirty``     the kernel's own (CONFIG_MEM_SOFT_DIRTY); CRIU uses it by itself, and stops the guest in each round.
``write-protect``  userfaultfd's asynchronous write-protect with PAGEMAP_SCAN (kernel ≥ 6.7), armed by the program ``tracker``, used by our
                   own rounds, which stop nothing, and presented to CRIU's final dump by ``shim.so``. Must be armed again before each
                   round, for tasks and mappings that are new.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from emulab.command import Runner
from emulab.criu import NATIVE
from emulab.criu.dirty import scan_written
from emulab.errors import EmulabError, UsageError
from emulab.nice import NORMAL, renice

KDAT = Path("/run/criu.kdat")
NAMES = ("auto", "soft-dirty", "write-protect")
_USERFAULTFD_SYSCALL = 323  # x86-64
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_FEATURES = 1 << 13 | 1 << 15  # UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC
_USER_MODE_ONLY = 1
_AT_ONCE = 1  # tasks covered in about a millisecond
_MANY = 32  # of a guest that leaves no CPU idle: each task reaches its stop only when its turn comes, and many wait for that together


class TrackerError(EmulabError):
    pass


class DirtyTracker(Protocol):
    name: str
    write_protect: bool

    def arm(self, pids: Sequence[int], give_way: Callable[[], bool] = lambda: False) -> int:
        """Cover the tasks; returns how many could not be covered (their pages are sent in each round).

        ``give_way`` is called before each few of them, and tells whether the guest is one to wait for.
        """
        ...

    def close(self) -> None: ...


class SoftDirty:
    name = "soft-dirty"
    write_protect = False

    def arm(self, pids: Sequence[int], give_way: Callable[[], bool] = lambda: False) -> int:
        del pids, give_way
        return 0

    def close(self) -> None:
        return None


class WriteProtect:
    name = "write-protect"
    write_protect = True

    def __init__(self) -> None:
        self._process = subprocess.Popen([str(NATIVE / "tracker")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        renice(self._process.pid, NORMAL)  # whoever starts it may wait for guests; a task that it stops waits for it

    def arm(self, pids: Sequence[int], give_way: Callable[[], bool] = lambda: False) -> int:
        failed = at = 0
        while at < len(pids):
            count = _AT_ONCE if give_way() else _MANY
            failed += self._ask("cover", pids[at : at + count])
            at += count
        self._ask("keep", pids)
        return failed

    def _ask(self, what: str, pids: Sequence[int]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{what} {' '.join(map(str, pids))}\n")
            self._process.stdin.flush()
            words = self._process.stdout.readline().split()
        except OSError as error:
            raise TrackerError(f"the write-protect tracker ended: {error}") from error
        if len(words) != 2 or words[0] != "failed":
            raise TrackerError(f"the write-protect tracker answered {' '.join(words) or 'nothing'!r}")
        return int(words[1])

    def close(self) -> None:
        """Closing takes the protection off the guest: the kernel does so when the last descriptor goes."""
        if self._process.stdin:
            with contextlib.suppress(OSError):  # it was killed with a request still unread
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def has_soft_dirty() -> bool:
    """Look for the bit itself: a freshly written page of our own must read as soft-dirty (pagemap bit 55).

    CRIU's own answer (``criu check --feature mem_dirty_track``) comes from a cache that the shim may have filled. It must not be
    tried blind either: ``pre-dump`` on a kernel without soft-dirty stops the guest and then aborts on a BUG.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        page[0] = 1
        cell = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(cell)
        del cell  # a live view would keep the mapping from closing
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek(address // mmap.PAGESIZE * 8)
            entry = int.from_bytes(pagemap.read(8), "little")
        return bool(entry >> 55 & 1)
    finally:
        page.close()


def has_write_protect() -> bool:
    """Whether userfaultfd knows asynchronous write-protect and /proc/PID/pagemap can be scanned for it (Linux 6.7)."""
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(_USERFAULTFD_SYSCALL, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if descriptor < 0:
        return False
    try:
        fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, _FEATURES, 0))
        scan_written(os.getpid())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def warm_feature_cache(runner: Runner) -> None:
    """Let CRIU probe the kernel now (0.1 s) and not inside the first freeze; with the shim where it will be needed."""
    KDAT.unlink(missing_ok=True)
    env = {} if has_soft_dirty() else {"LD_PRELOAD": str(NATIVE / "shim.so"), "EMULAB_SHIM_WP": "1"}
    runner.try_run(("env", *(f"{key}={value}" for key, value in env.items()), "criu", "check"))


def choose(name: str) -> DirtyTracker:
    """The tracker asked for; ``auto`` prefers the one whose rounds do not stop the guest. Raises UsageError for one this kernel lacks."""
    if name not in NAMES:
        raise UsageError(f"unknown dirty tracker {name!r}", hint=f"one of {', '.join(NAMES)}")
    if name == "write-protect" or (name == "auto" and has_write_protect()):
        return WriteProtect()
    if has_soft_dirty():
        return SoftDirty()
    if name == "soft-dirty":
        raise UsageError("this kernel has no soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY)", hint="use --dirty-tracker write-protect or auto")
    return WriteProtect()
