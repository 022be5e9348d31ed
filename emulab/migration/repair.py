"""TCP connections that a CRIU left in repair mode when it died: without help, the guest's next write to one fails with EINVAL."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable
from pathlib import Path

_PIDFD_GETFD = 438
_TCP_REPAIR = 19
_OFF_WITHOUT_PROBE = -1


def end_repair(pids: Iterable[int]) -> int:
    """Switch repair mode off on every TCP socket of these tasks, which should stand still; returns on how many."""
    libc = ctypes.CDLL(None, use_errno=True)
    ended, seen = 0, set()
    for pid in pids:
        for descriptor, inode in _sockets(pid):
            if inode in seen:
                continue
            seen.add(inode)
            with contextlib.suppress(OSError):
                ended += _end(libc, pid, descriptor)
    return ended


def _sockets(pid: int) -> Iterable[tuple[int, str]]:
    """(descriptor, inode) of the sockets that a task has open."""
    try:
        entries = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return  # it has ended
    for entry in entries:
        with contextlib.suppress(OSError):
            target = os.readlink(entry)
            if target.startswith("socket:["):
                yield int(entry.name), target


def _end(libc: ctypes.CDLL, pid: int, descriptor: int) -> bool:
    handle = os.pidfd_open(pid)
    try:
        copy = libc.syscall(_PIDFD_GETFD, handle, descriptor, 0)
    finally:
        os.close(handle)
    if copy < 0:
        return False
    with socket.socket(fileno=copy) as found:
        if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        if not found.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
            return False
        found.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF_WITHOUT_PROBE)
        return True
