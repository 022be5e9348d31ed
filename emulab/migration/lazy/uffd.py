"""The kernel's side of post-copy: one userfaultfd per restored task, as CRIU hands it over (linux/userfaultfd.h)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import ClassVar

PAGE = 4096
FAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16

_COPY = 0xC028AA03
_ZEROPAGE = 0xC020AA04
_MESSAGE = struct.Struct("=B7xQQQ")
_AT_ONCE = 64  # events per read

_libc = ctypes.CDLL(None, use_errno=True)


class _CopyArgument(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_uint64) for name in ("dst", "src", "len", "mode")] + [("copy", ctypes.c_int64)]


class _ZeroArgument(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_uint64) for name in ("start", "len", "mode")] + [("zeropage", ctypes.c_int64)]


@dataclass(frozen=True)
class Event:
    """``kind`` FAULT: ``start`` is the address. FORK: ``start`` is the child's descriptor. REMAP: [start, start + size) went to ``to``.
    REMOVE, UNMAP: [start, start + size) is gone.
    """

    kind: int
    start: int
    size: int = 0
    to: int = 0


@dataclass(frozen=True)
class Filled:
    """What a call achieved: so many bytes from the beginning, then ``error`` (0: none) at the page behind them."""

    size: int
    error: int


class Uffd:
    """A userfaultfd. Address ranges are multiples of pages."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def copy(self, target: int, source: int, size: int) -> Filled:
        """Put pages from ``source`` (an address of ours) to ``target`` (one of the task's) and wake who waits for them."""
        argument = _CopyArgument(target, source, size, 0, 0)
        return self._call(_COPY, argument, size, lambda: argument.copy)

    def zero(self, target: int, size: int) -> Filled:
        argument = _ZeroArgument(target, size, 0, 0)
        return self._call(_ZEROPAGE, argument, size, lambda: argument.zeropage)

    def _call(self, request: int, argument: ctypes.Structure, size: int, result: object) -> Filled:
        assert callable(result)
        if _libc.ioctl(self.descriptor, ctypes.c_ulong(request), ctypes.byref(argument)) == 0:
            return Filled(size, 0)
        code = ctypes.get_errno()
        done = int(result())
        if done > 0:
            return Filled(done, errno.EAGAIN)
        return Filled(0, -done if done < 0 else code)

    def events(self) -> list[Event]:
        """Everything that waits to be heard. The task behind an event goes on as soon as it was read (a fault: once its page is there)."""
        try:
            data = os.read(self.descriptor, _MESSAGE.size * _AT_ONCE)
        except BlockingIOError:
            return []
        return [_event(*fields) for fields in _MESSAGE.iter_unpack(data)]

    def close(self) -> None:
        """Ends the watch over the task's memory: what is not there by now reads as zero."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _event(kind: int, first: int, second: int, third: int) -> Event:
    if kind == FAULT:
        return Event(FAULT, second & ~(PAGE - 1))
    if kind == FORK:
        return Event(FORK, first & 0xFFFFFFFF)
    if kind == REMAP:
        return Event(REMAP, first, third, second)
    return Event(kind, first, second - first)
